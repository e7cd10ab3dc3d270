"""Adapters on the encoders: what learns, that they merge into the same model, and that runs with them go on."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from modeling_jmceln import JMCELNModel
from processing.training import run as train
from processing.training.frozen_parts import batch_norm_layers, freeze, freeze_batch_norm_statistics
from processing.training.lora import add_adapters, has_adapters, merge_adapters
from tests.modeling_jmceln.inputs import random_inputs, random_labels
from tests.processing.training.tiny_run import write_settings
from tests.tiny import tiny_config, tiny_model_with_batch_norm


pytest.importorskip("peft")


def test_adapters_change_nothing_at_first_and_merge_into_the_same_layers() -> None:
    model, inputs = tiny_model_with_batch_norm().eval(), random_inputs()
    names = model.state_dict().keys()
    expected = model(**inputs).logits
    add_adapters(model, 2)
    torch.testing.assert_close(model(**inputs).logits, expected)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    in_encoders = {name for name in learning if name.startswith(("backbone.", "text_model."))}
    assert in_encoders
    assert all("lora_" in name for name in in_encoders)
    assert any("expand_1x1" in name for name in in_encoders)
    assert any("text_model" in name for name in in_encoders)
    assert {name.partition(".")[0] for name in learning - in_encoders} >= {"cascade", "presence_head"}
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    adapted = model(**inputs).logits
    assert (adapted - expected).abs().max() > 1e-3
    merge_adapters(model)
    assert not has_adapters(model)
    assert model.state_dict().keys() == names
    torch.testing.assert_close(model(**inputs).logits, adapted, rtol=1e-4, atol=1e-4)


def test_frozen_modules_get_no_adapters() -> None:
    model = JMCELNModel(tiny_config())
    freeze(model.text_model)
    add_adapters(model, 2)
    assert not has_adapters(model.text_model)
    freeze(model)
    with pytest.raises(ValueError, match="nothing to adapt"):
        add_adapters(model, 2)
    with pytest.raises(ValueError, match="at least 1"):
        add_adapters(model, 0)


def test_a_run_with_adapters_goes_on_and_saves_a_model_like_any_other(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_made_loss", "save_steps": 3}
    settings = str(write_settings(tmp_path, lora_rank=2, **best))
    train.main([settings])
    run = tmp_path / "run"
    whole = load_file(run / "model.safetensors")
    assert not any("lora" in name for name in whole)
    _, loading = JMCELNModel.from_pretrained(run, output_loading_info=True)
    assert not any(loading.values())
    # As after a kill behind the third step.
    (run / "all_results.json").unlink()
    shutil.rmtree(run / "checkpoint-6")
    train.main([settings])
    again = load_file(run / "model.safetensors")
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 6
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())


def test_statistics_of_batch_norm_stay_whatever_mode_the_model_is_in() -> None:
    model, inputs = tiny_model_with_batch_norm(), random_inputs()
    freeze_batch_norm_statistics(model.backbone)
    before = copy.deepcopy(model.state_dict())
    model.train()
    model(**inputs, labels=random_labels(inputs)).loss.backward()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.training
    assert not any(layer.training for layer in batch_norm_layers(model.backbone))
