# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Progressive alignment network (PAN): mixes the prediction of a stage with the previous one, through a filter."""

import torch
from torch import nn

from .configuration_jmceln import JMCELNConfig


class JMCELNAlignmentFilter(nn.Conv2d):
    """The last layer of the filter. It is a separate class so that the model can initialize it in its own way."""


class JMCELNProgressiveAlignment(nn.Module):
    """
    Mixes the logits `r` of a stage with the logits `m` of the previous stage, pixel by pixel: `a * r + (1 - a) * m`.
    The filter `a` in (0, 1) is computed from the pixel embeddings and both masks.
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
            prediction (`torch.Tensor` of shape `(batch, height, width)`): The logits of this stage.
            previous (`torch.Tensor` of shape `(batch, height, width)`): The upsampled logits of the previous stage.

        Returns:
            The aligned logits and the filter, both of shape `(batch, height, width)`.
        """
        # Channels last in memory, like the embeddings. Contiguous, since on a CPU GELU of large values takes ten times
        # as long in any other layout.
        masks = torch.stack([previous, prediction], dim=-1).sigmoid().permute(0, 3, 1, 2)
        features = self.reduction(pixel_embeddings) + self.mask_mixer(masks).permute(0, 2, 3, 1)
        features = nn.functional.gelu(features.contiguous()).permute(0, 3, 1, 2)
        alignment_filter = self.filter(features).squeeze(1).sigmoid()
        return alignment_filter * prediction + (1 - alignment_filter) * previous, alignment_filter
