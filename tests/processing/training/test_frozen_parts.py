"""What does not learn by wish."""

from __future__ import annotations

import torch
from torch import nn

from modeling_jmceln import JMCELNModel
from processing.training.frozen_parts import batch_norm_layers, freeze
from tests.tiny import tiny_config


def test_a_frozen_backbone_keeps_no_activations() -> None:
    model = JMCELNModel(tiny_config()).train()
    freeze(model.backbone)
    feature_maps = model.backbone(torch.zeros(1, 3, 64, 64)).feature_maps
    assert not any(feature_map.requires_grad for feature_map in feature_maps)


def test_all_kinds_of_batch_normalization_are_found() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.LayerNorm(2), nn.Sequential(nn.SyncBatchNorm(2), nn.GroupNorm(1, 2)))
    assert batch_norm_layers(model) == [model[0], model[2][0]]
