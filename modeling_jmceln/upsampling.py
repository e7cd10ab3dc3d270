# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Learned upsampling of mask logits to the size of the input, with weights that depend on the image alone."""

import math

import torch
from torch import nn

from .configuration_jmceln import JMCELNConfig


class JMCELNUpsamplingWeights(nn.Conv2d):
    """The last layer of the upsampler. It is initialized so that the upsampling is bilinear interpolation."""

    def initial_bias(self) -> torch.Tensor:
        """Logarithms of the bilinear weights, `(9 * stride**2,)`, softened so that every weight gets a gradient."""
        stride = math.isqrt(self.out_channels // 9)
        offsets = (torch.arange(stride) + 0.5) / stride - 0.5
        # (3, stride): weights of the previous, the own and the next cell, for each position in a cell
        line = torch.stack([(-offsets).clamp(min=0), 1 - offsets.abs(), offsets.clamp(min=0)])
        weights = torch.einsum("is,jt->ijst", line, line)
        return (weights + 1e-2).log().flatten()


class JMCELNConvexUpsampler(nn.Module):
    """
    Each input pixel is a convex combination of the 3 x 3 coarse logits around its cell, as in the upsampling of
    optical flow in RAFT (Teed & Deng, 2020). Object boundaries are a property of the image, so the weights are
    computed once per image and used for all its expressions.
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
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`):
                Height and width must be multiples of the stride.
            pixel_features (`torch.Tensor` of shape `(batch, height / stride, width / stride, mask_features)`)

        Returns:
            `torch.Tensor` of shape `(batch, 9, height, width)`: Weights that sum to 1 for each pixel.
        """
        features = [nn.functional.pixel_unshuffle(pixel_values, self.stride), pixel_features.permute(0, 3, 1, 2)]
        weights = self.weights(nn.functional.gelu(self.pixel_mixer(torch.cat(features, dim=1))))
        # The softmax comes before the shuffle: its nine channels are in contiguous blocks here, which is faster.
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
        # Not `len`: exported graphs would turn it into a constant.
        batch_size = weights.shape[0]
        rows, columns = logits.shape[1:]
        cells = cell_weights(weights, self.stride, rows, columns)
        size = (weights.shape[-2], weights.shape[-1])
        return upsample_cells(logits.unflatten(0, (batch_size, -1)), cells, size).flatten(0, 1)


def cell_weights(weights: torch.Tensor, stride: int, rows: int, columns: int) -> torch.Tensor:
    """
    Groups the weights of the upsampling by cells.

    Args:
        weights (`torch.Tensor` of shape `(batch, 9, height, width)`): From [`JMCELNConvexUpsampler`].
        stride (`int`): Pixels per cell, along both axes.
        rows, columns (`int`): Number of cells, which may reach beyond the image.

    Returns:
        `torch.Tensor` of shape `(batch, rows, columns, 9, stride**2)`.
    """
    height, width = weights.shape[-2:]
    weights = nn.functional.pad(weights, (0, columns * stride - width, 0, rows * stride - height))
    weights = weights.unflatten(3, (columns, stride)).unflatten(2, (rows, stride))
    return weights.permute(0, 2, 4, 1, 3, 5).flatten(4, 5)


def upsample_cells(logits: torch.Tensor, weights: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Upsamples by a small matrix product per cell, instead of nine passes over all pixels of all expressions.

    Args:
        logits (`torch.Tensor` of shape `(batch, expressions, rows, columns)`)
        weights (`torch.Tensor` of shape `(batch, rows, columns, 9, stride**2)`): From [`cell_weights`].
        size (`tuple[int, int]`): Height and width of the image.

    Returns:
        `torch.Tensor` of shape `(batch, expressions, height, width)`.
    """
    stride = math.isqrt(weights.shape[-1])
    padded = nn.functional.pad(logits, (1, 1, 1, 1), mode="replicate")
    # (batch, rows, columns, expressions, 9)
    neighbors = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).permute(0, 2, 3, 1, 4)
    # (batch, expressions, rows, stride, columns, stride)
    pixels = torch.matmul(neighbors, weights).unflatten(4, (stride, stride)).permute(0, 3, 1, 4, 2, 5)
    return pixels.flatten(4, 5).flatten(2, 3)[..., : size[0], : size[1]]
