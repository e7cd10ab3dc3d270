# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Vision encoders as a pyramid of feature maps, also those that transformers does not offer as a backbone."""

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import AutoBackbone, AutoModel
from transformers.modeling_outputs import BackboneOutput

from .configuration_jmceln import JMCELNConfig


# Beside the weights of a vision model that comes with them.
CATEGORY_HEADS_FILE = "category_heads.safetensors"


def build_vision_encoder(config: JMCELNConfig) -> nn.Module:
    """
    The vision encoder of a configuration, with random weights.

    Returns:
        `nn.Module` that maps `pixel_values` to a [`BackboneOutput`] and names the `channels` of its feature maps.
    """
    if config.feature_indices is None:
        return AutoBackbone.from_config(config.backbone_config)
    encoder = AutoModel.from_config(config.backbone_config)
    return JMCELNHiddenStatePyramid(encoder, config.feature_indices, config.feature_channels, config.num_categories)


class JMCELNCategoryHeads(nn.Module):
    """
    Convolutions that say how much each cell of the two coarsest maps looks like each category of a detector. They come
    with a vision model that was trained to detect: the class predictors of SSD (Liu et al., 2016), averaged over its
    anchor boxes.

    Args:
        channels (`list[int]`): Of the two maps.
        num_categories (`int`)
    """

    # Most cells show none of a category: the logits of those that do begin at about this one.
    lowest_logit = -6.0

    def __init__(self, channels: list[int], num_categories: int):
        super().__init__()
        self.heads = nn.ModuleList([nn.Conv2d(size, num_categories, kernel_size=3, padding=1) for size in channels])

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Maps of shape `(batch, channels, height, width)` to `(batch, num_categories, height, width)`, from 0 on."""
        return [
            nn.functional.softplus(head(feature_map) - self.lowest_logit)
            for head, feature_map in zip(self.heads, maps, strict=True)
        ]


class JMCELNHiddenStatePyramid(nn.Module):
    """
    A vision model without a backbone class whose hidden states get coarser with depth, such as MobileNetV2: some of
    them are its feature maps.

    Args:
        encoder (`PreTrainedModel`): Returns hidden states of shape `(batch, channels, height, width)`.
        feature_indices (`list[int]`): Which of [`all_feature_maps`] to take, fine to coarse.
        channels (`list[int]`): Channels of each.
        num_categories (`int`): If not 0, [`JMCELNCategoryHeads`] add so many channels to the two coarsest maps; the
            encoder must be a MobileNetV2.
    """

    def __init__(self, encoder: nn.Module, feature_indices: list[int], channels: list[int], num_categories: int = 0):
        super().__init__()
        self.encoder = encoder
        self.feature_indices = list(feature_indices)
        self.encoder_channels = list(channels)
        self.num_categories = num_categories
        self.channels = list(channels)
        self.category_heads = None
        if num_categories > 0:
            expanded = self._expansion().convolution.out_channels
            self.category_heads = JMCELNCategoryHeads([expanded, self.channels[-1]], num_categories)
            self.channels[-2:] = [size + num_categories for size in self.channels[-2:]]

    def _expansion(self) -> nn.Module:
        """The layer behind the second coarsest map, whose wide output SSD reads."""
        return self.encoder.layer[self.feature_indices[-2] + 1].expand_1x1

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BackboneOutput:
        """`pixel_values` of shape `(batch, 3, height, width)`; keyword arguments go to the encoder."""
        wants_hidden_states = kwargs.pop("output_hidden_states", False)
        outputs = self.encoder(pixel_values, output_hidden_states=True, **kwargs)
        maps = all_feature_maps(outputs)
        maps = [maps[index] for index in self.feature_indices]
        if self.category_heads is not None:
            evidence = self.category_heads([self._expansion()(maps[-2]), maps[-1]])
            maps[-2:] = [torch.cat(pair, dim=1) for pair in zip(maps[-2:], evidence, strict=True)]
        return BackboneOutput(
            feature_maps=tuple(maps),
            hidden_states=outputs.hidden_states if wants_hidden_states else None,
            attentions=getattr(outputs, "attentions", None),
        )


def all_feature_maps(outputs: Any) -> tuple[torch.Tensor, ...]:
    """The hidden states of a vision model, and its last one after the layers that follow the last block."""
    return (*outputs.hidden_states, outputs.last_hidden_state)


def find_pyramid(encoder: nn.Module, size: int = 256) -> tuple[list[int], list[int], list[int]]:
    """
    Finds the feature maps of a vision model by trying it: the last at each stride, the four coarsest of them.

    Args:
        encoder (`nn.Module`): Returns hidden states.
        size (`int`): Height and width of the image to try, in pixels.

    Returns:
        Indices into [`all_feature_maps`], channels and strides of the maps, fine to coarse.

    Raises:
        ValueError: If fewer than three strides are found, each twice the one before.
    """
    with torch.no_grad():
        maps = all_feature_maps(encoder(torch.zeros(1, 3, size, size), output_hidden_states=True))
    last_at_stride = {
        size // feature_map.shape[-1]: index
        for index, feature_map in enumerate(maps)
        if feature_map.ndim == 4 and feature_map.shape[-1] == feature_map.shape[-2] < size
    }
    strides = sorted(last_at_stride)[-4:]
    if len(strides) < 3 or any(2 * fine != coarse for fine, coarse in pairwise(strides)):
        raise ValueError(
            f"`{encoder.config.model_type}` gives no pyramid: its hidden states lie at the strides"
            f" {sorted(last_at_stride)}, and three or four are needed, each twice the one before."
        )
    indices = [last_at_stride[stride] for stride in strides]
    return indices, [maps[index].shape[1] for index in indices], strides
