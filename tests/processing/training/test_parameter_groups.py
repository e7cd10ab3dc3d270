"""Learning rates by part of the model, and what decays."""

import pytest
import torch
from torch import nn

from modeling_jmceln import JMCELNModel
from processing.training.parameter_groups import decaying_parameter_names, parameter_groups, plain_name
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def model():
    return JMCELNModel(tiny_config())


def by_name(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


def test_every_parameter_is_in_one_group_with_its_rate_and_decay(model):
    groups = parameter_groups(
        model,
        learning_rate=1e-3,
        weight_decay=0.05,
        learning_rate_scales={"backbone.": 0.1, "text_model.": 0.5, "text_model.embeddings.": 0.25},
    )
    settings = by_name(model, groups)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(settings) == sum(len(group["params"]) for group in groups) == len(trainable)
    for name, parameter in trainable.items():
        expected = 1e-3
        if name.startswith("backbone."):
            expected = 1e-4
        elif name.startswith("text_model.embeddings."):
            expected = 2.5e-4
        elif name.startswith("text_model."):
            expected = 5e-4
        assert settings[name]["lr"] == pytest.approx(expected), name
        if parameter.ndim == 1 or "norm" in name.lower() or name.endswith("bias"):
            assert settings[name]["weight_decay"] == 0, name
    assert settings["text_projection.weight"]["weight_decay"] == 0.05
    assert groups[0]["lr"] == 1e-3


def test_position_bias_tables_of_swin_do_not_decay(model):
    tables = [name for name, _ in model.named_parameters() if "relative_position_bias_table" in name]
    assert tables
    assert not decaying_parameter_names(model) & set(tables)


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.1)
    assert {id(parameter) for group in groups for parameter in group["params"]} == {
        id(parameter) for parameter in model[1].parameters()
    }


def test_wrappers_do_not_change_what_a_parameter_is(model):
    wrapped = nn.Module()
    wrapped.module = torch.compile(model)
    scales = {"backbone.": 0.1}
    plain = parameter_groups(model, learning_rate=1.0, weight_decay=0.1, learning_rate_scales=scales)
    same = parameter_groups(wrapped, learning_rate=1.0, weight_decay=0.1, learning_rate_scales=scales)
    assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in plain] == [
        (group["lr"], group["weight_decay"], len(group["params"])) for group in same
    ]
    assert plain_name("module._orig_mod.a._fsdp_wrapped_module.b.weight") == "a.b.weight"
    assert plain_name("submodule.weight") == "submodule.weight"


def test_refuses_prefixes_that_fit_nothing_and_negative_rates(model):
    with pytest.raises(ValueError, match=r"has the parts.*backbone"):
        parameter_groups(model, learning_rate=1.0, weight_decay=0.0, learning_rate_scales={"vision.": 0.1})
    with pytest.raises(ValueError, match="negative"):
        parameter_groups(model, learning_rate=1.0, weight_decay=0.0, learning_rate_scales={"backbone.": -1.0})
