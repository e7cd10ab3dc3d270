"""Commands refuse a model whose weights are damaged or incomplete, which `from_pretrained` would make up."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from modeling_jmceln import JMCELNModel
from processing.model_loading import load_whole_model
from processing.predict import load_pipeline
from tests.tiny import tiny_config, tiny_model_with_batch_norm, tiny_processor


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    JMCELNModel(tiny_config()).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def model_folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def test_a_whole_model_is_loaded_for_answers(model_folder):
    model = load_whole_model(AutoModel, str(model_folder), dtype=torch.float32)
    assert isinstance(model, JMCELNModel)
    assert not model.training


def test_missing_weights_are_not_made_up(model_folder):
    path = model_folder / "model.safetensors"
    weights = load_file(path)
    del weights[max(weights)]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack 1 tensors, such as"):
        load_pipeline(str(model_folder), "cpu", "float32")


def test_integers_that_another_transformers_does_not_save_are_not_missed(tmp_path):
    tiny_model_with_batch_norm().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    # Copies: older releases of safetensors read the file when a tensor is used, and it is overwritten below.
    weights = {name: weight.clone() for name, weight in load_file(path).items()}
    computed = [name for name, weight in weights.items() if not weight.is_floating_point()]
    assert computed
    kept = {name: weight for name, weight in weights.items() if name not in computed}
    save_file(kept, path, metadata={"format": "pt"})
    model = load_whole_model(AutoModel, str(tmp_path))
    for name in kept:
        assert torch.equal(model.state_dict()[name], weights[name])
    learned = next(name for name in kept if name.endswith("running_mean"))
    save_file({name: weight for name, weight in kept.items() if name != learned}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lack 1 tensors, such as `{learned}`"):
        load_whole_model(AutoModel, str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\x10", bytes(100)])
def test_a_damaged_file_of_weights_is_named(model_folder, content):
    (model_folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model' are damaged: .* Copy them anew"):
        load_whole_model(AutoModel, str(model_folder))


def test_weights_that_are_not_finite_are_refused(model_folder):
    path = model_folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name, weight in weights.items() if weight.is_floating_point())
    save_file({**weights, name: torch.full_like(weights[name], torch.nan)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_whole_model(AutoModel, str(model_folder))
