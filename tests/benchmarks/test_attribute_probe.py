"""The probes of the maps: exact on features that are known, and a short run on a model."""

import pytest
import torch

from benchmarks import attribute_probe
from benchmarks.attribute_probe import object_features, probe
from modeling_jmceln import JMCELNModel
from processing import JMCELNProcessor
from processing.shapes.oracles import labeled_scene


@pytest.mark.parametrize(("noise", "least", "most"), [(0.1, 1.0, 1.0), (1e3, 0.15, 0.4)])
def test_probe_finds_what_is_there_and_no_more(noise, least, most):
    torch.manual_seed(0)
    names = ["red", "green", "blue", "gray"]
    classes = torch.arange(400) % 4
    features = torch.randn(4, 12)[classes] + noise * torch.randn(400, 12)
    labels = [names[index] for index in classes]
    share = probe(features[:200], labels[:200], features[200:], labels[200:])
    assert least <= share <= most


def test_features_are_means_over_the_objects(saved_model):
    model, processor = (loaded.from_pretrained(saved_model[1]) for loaded in (JMCELNModel, JMCELNProcessor))
    scene = labeled_scene("test", 0, image_size=64, levels=("comparison",), expressions_per_image=1)
    features, attributes = object_features(model.eval(), processor, [scene])
    assert attributes["color"] == [shape.color for shape in scene.scene.objects]
    for name, values in attribute_probe.maps_of(model, processor, scene):
        height, width, _ = values.shape
        cells = torch.from_numpy(scene.masks[0]).view(height, 64 // height, width, 64 // width).float().mean((1, 3))
        expected = (cells.unsqueeze(-1) * values).sum((0, 1)) / cells.sum()
        torch.testing.assert_close(features[name][0], expected, msg=name)
    assert len(features) == 2 + 1 + model.config.num_stages


def test_report(saved_model, tmp_path, monkeypatch):
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- probe: begin -->\nold\n<!-- probe: end -->\nafter\n")
    monkeypatch.setattr(attribute_probe, "PAGE", page)
    text = attribute_probe.main([*saved_model, "--document"])
    assert text.count("after stage") == 3
    assert text in page.read_text()
    assert "old" not in page.read_text()
