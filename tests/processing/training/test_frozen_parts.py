"""What does not learn: by wish, and because nothing depends on it."""

from __future__ import annotations

import torch
from torch import nn

from modeling_jmceln import JMCELNModel
from processing.training.frozen_parts import batch_norm_layers, freeze, freeze_unused_parameters
from tests.tiny import tiny_config


def test_a_head_that_no_mask_depends_on_is_found_and_frozen() -> None:
    model = JMCELNModel(tiny_config()).train()
    width = model.config.text_config.hidden_size
    model.text_model.pooler = nn.Linear(width, width)  # BERT computes it, and SigLIP something like it
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    generator = torch.get_rng_state()
    states = {name: value.clone() for name, value in model.state_dict().items()}
    assert freeze_unused_parameters(model, 64, 64) == ["text_model.pooler.weight", "text_model.pooler.bias"]
    still_learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning - still_learning == {"text_model.pooler.weight", "text_model.pooler.bias"}
    # Nothing else has changed.
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, states[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert freeze_unused_parameters(model, 64, 64) == []


def test_a_frozen_backbone_keeps_no_activations() -> None:
    model = JMCELNModel(tiny_config()).train()
    freeze(model.backbone)
    assert freeze_unused_parameters(model, 64, 64) == []
    feature_maps = model.backbone(torch.zeros(1, 3, 64, 64)).feature_maps
    assert not any(feature_map.requires_grad for feature_map in feature_maps)


def test_all_kinds_of_batch_normalisation_are_found() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.LayerNorm(2), nn.Sequential(nn.SyncBatchNorm(2), nn.GroupNorm(1, 2)))
    assert batch_norm_layers(model) == [model[0], model[2][0]]
