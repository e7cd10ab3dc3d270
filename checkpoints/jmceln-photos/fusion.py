# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The fusion neck: pixels attend to each other once per image, and to the words once per expression."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import JMCELNAttention, JMCELNFeedForward, JMCELNPixelAttention, matched_reading
from .configuration_jmceln import JMCELNConfig


class JMCELNImageLayer(GradientCheckpointingLayer):
    """Self-attention among the pixels of the two coarsest maps. It sees no words, so it runs once per image."""

    def __init__(self, config: JMCELNConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = JMCELNPixelAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = JMCELNFeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        pixels: torch.Tensor,
        positions: torch.Tensor,
        map_sizes: Sequence[tuple[int, int]],
        num_updated: int | None = None,
    ) -> torch.Tensor:
        """
        Args:
            pixels (`torch.Tensor` of shape `(batch, num_pixels, hidden)`)
            positions (`torch.Tensor` of shape `(1, num_pixels, hidden)`)
            map_sizes (`Sequence[tuple[int, int]]`): Height and width of the two maps.
            num_updated (`int`, *optional*): How many pixels to update and return, from the first on. Default: all.
        """
        update = self.attention(self.attention_norm(pixels), positions, map_sizes, num_updated)
        pixels = pixels[:, :num_updated] + self.dropout(update)
        return pixels + self.dropout(self.feed_forward(self.feed_forward_norm(pixels)))


class JMCELNFusionLayer(JMCELNImageLayer):
    """
    A layer in which the pixels attend first to the words, then to each other. What a pixel reads from the words is
    multiplied by a gate computed from the pixel itself ([`matched_reading`]).
    """

    def __init__(self, config: JMCELNConfig):
        super().__init__(config)
        self.word_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.word_attention = JMCELNAttention(config)
        self.word_gate = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        pixels: torch.Tensor,
        positions: torch.Tensor,
        map_sizes: Sequence[tuple[int, int]],
        words: torch.Tensor,
        word_bias: torch.Tensor,
        num_updated: int | None = None,
    ) -> torch.Tensor:
        """
        Args:
            pixels (`torch.Tensor` of shape `(batch, num_pixels, hidden)`)
            positions (`torch.Tensor` of shape `(1, num_pixels, hidden)`)
            map_sizes (`Sequence[tuple[int, int]]`): Height and width of the two maps.
            words (`torch.Tensor` of shape `(batch, length, hidden)`)
            word_bias (`torch.Tensor` of shape `(batch, 1, 1, length)`): 0 at words, very negative at padding.
            num_updated (`int`, *optional*): How many pixels to update and return, from the first on. Default: all.
        """
        queries = self.word_norm(pixels) + positions
        agreement = matched_reading(self.word_attention, self.word_gate, queries, words, word_bias)
        pixels = pixels + self.dropout(agreement)
        return super().forward(pixels, positions, map_sizes, num_updated)
