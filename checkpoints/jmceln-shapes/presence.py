# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Predicts whether the referent is in the image."""

import torch
from torch import nn

from .configuration_jmceln import JMCELNConfig


class JMCELNPresenceHead(nn.Module):
    """Predicts presence from the context and from the pixels that the last mask covers."""

    def __init__(self, config: JMCELNConfig):
        super().__init__()
        self.pixel_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.context_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.hidden = nn.Linear(2 * config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, 1)

    def forward(
        self, pixels: torch.Tensor, context: torch.Tensor, logits: torch.Tensor, height: int, width: int
    ) -> torch.Tensor:
        """
        Args:
            pixels (`torch.Tensor` of shape `(batch, height * width, hidden)`): The working map.
            context (`torch.Tensor` of shape `(batch, num_tokens, hidden)`)
            logits (`torch.Tensor` of shape `(batch, mask_height, mask_width)`): The last mask.
            height, width (`int`): Of the working map.

        Returns:
            `torch.Tensor` of shape `(batch,)`: Logits.
        """
        weights = nn.functional.adaptive_avg_pool2d(logits.sigmoid(), (height, width)).flatten(1)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-3)
        covered = (self.pixel_norm(pixels) * weights.unsqueeze(-1)).sum(dim=1)
        features = torch.cat([covered, self.context_norm(context[:, 0])], dim=-1)
        return self.output(nn.functional.gelu(self.hidden(features))).squeeze(-1)
