"""Encoders whose weights have other names in another release of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_jmceln import JMCELNModel
from modeling_jmceln.renamed_weights import tower_key_mapping
from tests.modeling_jmceln.inputs import random_model
from tests.saved_models import ENCODERS, config_with


def rename(folder: Path, names: dict[str, str]) -> None:
    """Renames the beginnings of names in the file of a saved model."""
    weights = load_file(folder / "model.safetensors")
    for old, new in names.items():
        renamed = {new + name.removeprefix(old): name for name in weights if name.startswith(old)}
        weights |= {new: weights[name] for new, name in renamed.items()}
        weights = {name: weight for name, weight in weights.items() if name not in renamed.values()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", sorted(ENCODERS))
@pytest.mark.parametrize("level", ["with", "without"])
def test_towers_load_with_and_without_their_level_in_the_names(tmp_path: Path, name: str, level: str) -> None:
    model = random_model(config=config_with(*ENCODERS[name]))
    model.save_pretrained(tmp_path)
    long = {"backbone.encoder.": "backbone.encoder.vision_model.", "text_model.": "text_model.text_model."}
    if name != "clip":
        del long["text_model."]
    # First the short names, whichever this release has.
    rename(tmp_path, {with_level: without for without, with_level in long.items()})
    if level == "with":
        rename(tmp_path, long)
    loaded, info = JMCELNModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for weight, expected in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, expected)
    # A model that was loaded under other names can be saved and loaded again.
    loaded.save_pretrained(tmp_path / "again")
    again = JMCELNModel.from_pretrained(tmp_path / "again")
    for weight, expected in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, expected)


def test_the_mapping_names_only_towers() -> None:
    missing = {"backbone.encoder.vision_model.head.bias", "text_model.layer.bias"}
    assert tower_key_mapping(missing, {"text_model.other.bias"}) == {}
    assert tower_key_mapping(missing, {"backbone.encoder.head.bias"}) == {
        r"^backbone\.encoder\.(?!vision_model\.)": "backbone.encoder.vision_model."
    }


@pytest.mark.parametrize("encoder", ["backbone", "text_model"])
def test_an_encoder_does_not_stay_random_because_of_other_names(tmp_path: Path, encoder: str) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    rename(tmp_path, {f"{encoder}.embeddings.": f"{encoder}.front."})
    with pytest.raises(ValueError, match=rf"weights of `{encoder}` would stay random, .* '{encoder}\.front\."):
        JMCELNModel.from_pretrained(tmp_path)
