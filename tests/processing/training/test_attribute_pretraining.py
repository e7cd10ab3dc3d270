import numpy as np
import pytest
import torch
from transformers import ResNetConfig

from processing.shapes.rendering import render_scene
from processing.shapes.scene import sample_scene
from processing.training.attribute_pretraining import (
    ATTRIBUTES,
    AttributeReader,
    AttributeScenes,
    attribute_accuracy,
    attribute_maps,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8], "depths": [1, 1, 1], "layer_type": "basic"}
    return AttributeReader(ResNetConfig(**sizes, out_features=["stage1", "stage2", "stage3"]))


def test_every_pixel_has_the_attributes_of_its_object():
    scene = sample_scene(np.random.default_rng(3))
    _, owners = render_scene(scene, 48)
    maps = attribute_maps(scene, owners)
    assert maps.shape == (4, 48, 48)
    for row, column in np.ndindex(owners.shape):
        owner = owners[row, column]
        for attribute, names in enumerate(ATTRIBUTES.values()):
            expected = 0
            if owner >= 0:
                expected = 1 + names.index(getattr(scene.objects[owner], list(ATTRIBUTES)[attribute]))
            assert maps[attribute, row, column] == expected


def test_scenes_depend_on_split_seed_and_index_alone():
    first, again = AttributeScenes("train", 4, image_size=32), AttributeScenes("train", 9, image_size=32)
    assert torch.equal(first[2]["pixel_values"], again[2]["pixel_values"])
    for other in (first[1], AttributeScenes("validation", 4, image_size=32)[2], AttributeScenes("train", 4, 1, 32)[2]):
        assert not torch.equal(first[2]["pixel_values"], other["pixel_values"])


def test_learns_colors_first(model):
    scenes = AttributeScenes("train", 16, image_size=64)
    before = attribute_accuracy(model, scenes, batch_size=8)
    batch = {name: torch.stack([scenes[index][name] for index in range(16)]) for name in ("pixel_values", "labels")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch)["loss"].backward()
        optimizer.step()
    after = attribute_accuracy(model, scenes, batch_size=8)
    assert len(after) == 3
    assert after[1].keys() == ATTRIBUTES.keys()
    assert after[1]["color"] > before[1]["color"] + 0.15


def test_only_cells_that_lie_mostly_on_an_object_are_scored(model):
    labels = torch.zeros(1, 4, 32, 32, dtype=torch.long)
    labels[:, :, :16, :20] = 1  # five cells of stride 4 across, two and a half of stride 8
    counted = model(torch.zeros(1, 3, 32, 32), labels)["counted"]
    assert counted[0].tolist() == [4 * 5] * 4
    assert counted[1].tolist() == [2 * 2] * 4
