# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Learned upsampling of mask logits to the input resolution, with weights that depend on the image alone."""

import math

import torch
from torch import nn

from .configuration_jmceln import JMCELNConfig


class JMCELNUpsamplingWeights(nn.Conv2d):
    """The last layer of the upsampler, which starts as bilinear interpolation."""

    def initial_bias(self) -> torch.Tensor:
        """Logarithms of the bilinear weights, softened so that every cell can be learned: shape `(9 * stride**2,)`."""
        stride = math.isqrt(self.out_channels // 9)
        offsets = (torch.arange(stride) + 0.5) / stride - 0.5
        # (3, stride): weight of the cell before, of the own cell and of the cell after, for each position in the cell
        line = torch.stack([(-offsets).clamp(min=0), 1 - offsets.abs(), offsets.clamp(min=0)])
        weights = torch.einsum("is,jt->ijst", line, line)
        return (weights + 1e-2).log().flatten()


class JMCELNConvexUpsampler(nn.Module):
    """
    Every input pixel takes a convex combination of the 3 x 3 coarse logits around its cell (Teed & Deng, RAFT, 2020,
    who upsample optical flow so). Where boundaries run is a property of the image, so the weights are computed once an
    image and serve all its expressions.
    """

    def __init__(self, config: JMCELNConfig):
        super().__init__()
        self.stride = config.feature_strides[0]
        mixer_size = max(config.mask_feature_size // 2, 16)
        self.pixel_mixer = nn.Conv2d(
            3 * self.stride**2 + config.mask_feature_size, mixer_size, kernel_size=3, padding=1
        )
        self.weights = JMCELNUpsamplingWeights(mixer_size, 9 * self.stride**2, kernel_size=1)

    def forward(self, pixel_values: torch.Tensor, pixel_features: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): Multiples of the stride.
            pixel_features (`torch.Tensor` of shape `(batch, height / stride, width / stride, mask_features)`)

        Returns:
            `torch.Tensor` of shape `(batch, 9, height, width)`: For each pixel, weights that sum to 1.
        """
        features = [nn.functional.pixel_unshuffle(pixel_values, self.stride), pixel_features.permute(0, 3, 1, 2)]
        weights = self.weights(nn.functional.gelu(self.pixel_mixer(torch.cat(features, dim=1))))
        # Softmax first: the nine channels that it goes over lie apart, and stay in the caches as they are now.
        weights = weights.unflatten(1, (9, -1)).softmax(dim=1).flatten(1, 2)
        return nn.functional.pixel_shuffle(weights, self.stride)

    def upsample(self, logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """
        Args:
            logits (`torch.Tensor` of shape `(batch * expressions, coarse_height, coarse_width)`)
            weights (`torch.Tensor` of shape `(batch, 9, height, width)`): From `forward`, possibly cropped.

        Returns:
            `torch.Tensor` of shape `(batch * expressions, height, width)`.
        """
        # Not `len`, which is a constant in exported graphs.
        batch_size = weights.shape[0]
        rows, columns = logits.shape[1:]
        logits = logits.unflatten(0, (batch_size, -1))
        height, width = weights.shape[-2:]
        padding = (0, columns * self.stride - width, 0, rows * self.stride - height)
        weights = nn.functional.pixel_unshuffle(nn.functional.pad(weights, padding), self.stride)
        weights = weights.reshape(batch_size, 1, 9, self.stride**2, rows, columns)
        padded = nn.functional.pad(logits, (1, 1, 1, 1), mode="replicate")
        upsampled = 0
        # Unbound, since the gradient of an index is a tensor of zeros as large as all nine weights.
        for neighbour, weight in enumerate(weights.unbind(2)):
            row, column = divmod(neighbour, 3)
            cells = padded[:, :, row : row + rows, column : column + columns]
            # (batch, expressions, stride * stride, rows, columns)
            upsampled = upsampled + cells[:, :, None] * weight
        upsampled = nn.functional.pixel_shuffle(upsampled.flatten(0, 1), self.stride).squeeze(1)
        return upsampled[..., :height, :width]
