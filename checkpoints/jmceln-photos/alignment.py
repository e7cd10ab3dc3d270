# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Progressive alignment network (PAN): the previous stage's output filters the current one."""

import torch
from torch import nn

from .configuration_jmceln import JMCELNConfig


class JMCELNAlignmentFilter(nn.Conv2d):
    """The last layer of the filter. A class of its own, by which the model knows to start it open."""


class JMCELNProgressiveAlignment(nn.Module):
    """
    Mixes the stage's own prediction `r` with the mask `m` of the stage before, pixel by pixel and in logits:
    `a * r + (1 - a) * m`, where the filter `a` in (0, 1) is computed from the pixel embeddings and both masks.
    """

    def __init__(self, config: JMCELNConfig):
        super().__init__()
        filter_size = max(config.mask_feature_size // 4, 4)
        self.reduction = nn.Linear(config.mask_feature_size, filter_size)
        self.mask_mixer = nn.Conv2d(2, filter_size, kernel_size=3, padding=1)
        self.filter = JMCELNAlignmentFilter(filter_size, 1, kernel_size=1)

    def forward(
        self, pixel_embeddings: torch.Tensor, prediction: torch.Tensor, previous: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            pixel_embeddings (`torch.Tensor` of shape `(batch, height, width, mask_features)`)
            prediction (`torch.Tensor` of shape `(batch, height, width)`): The stage's own logits.
            previous (`torch.Tensor` of shape `(batch, height, width)`): The logits of the stage before, upsampled.

        Returns:
            The aligned logits and the filter, both of shape `(batch, height, width)`.
        """
        masks = torch.stack([previous, prediction], dim=1).sigmoid()
        features = self.reduction(pixel_embeddings).permute(0, 3, 1, 2) + self.mask_mixer(masks)
        alignment_filter = self.filter(nn.functional.gelu(features)).squeeze(1).sigmoid()
        return alignment_filter * prediction + (1 - alignment_filter) * previous, alignment_filter
