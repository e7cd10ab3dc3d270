# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The image-only part after the backbone: computes tokens for the neck and a pyramid of pixel features per image."""

import torch
from torch import nn

from .attention import sine_position_embedding
from .configuration_jmceln import JMCELNConfig
from .fusion import JMCELNImageLayer


def coarse_map_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Rows and columns of the working map, `height` and `width`, and of the coarsest map."""
    return [(height, width), (height // 2, width // 2)]


def resize_maps(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resizes channels-last maps `(batch, h, w, channels)` bilinearly to `(batch, height, width, channels)`."""
    if maps.shape[1:3] == (height, width):
        return maps
    maps = nn.functional.interpolate(
        maps.permute(0, 3, 1, 2), size=(height, width), mode="bilinear", align_corners=False
    )
    return maps.permute(0, 2, 3, 1)


class JMCELNPixelMixer(nn.Module):
    """A residual block of a 3 x 3 depthwise and a pointwise convolution, on channels-last maps."""

    def __init__(self, config: JMCELNConfig):
        super().__init__()
        size = config.mask_feature_size
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.depthwise = nn.Conv2d(size, size, kernel_size=3, padding=1, groups=size)
        self.pointwise = nn.Linear(size, size)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Takes and returns maps of shape `(batch, height, width, mask_features)`."""
        neighbors = self.depthwise(self.norm(maps).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return maps + self.pointwise(nn.functional.gelu(neighbors))


class JMCELNPixelDecoder(nn.Module):
    """
    Turns the two coarsest feature maps into one token sequence with self-attention, and all feature maps into a
    pyramid of pixel features.
    """

    def __init__(self, config: JMCELNConfig, channels: list[int]):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.num_levels = len(channels) - 1
        self.token_projections = nn.ModuleList([nn.Linear(size, config.hidden_size) for size in channels[-2:]])
        self.token_norms = nn.ModuleList(
            [nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(2)]
        )
        self.scale_embedding = nn.Embedding(2, config.hidden_size)
        self.position_projection = nn.Linear(config.hidden_size, config.hidden_size)
        self.layers = nn.ModuleList([JMCELNImageLayer(config) for _ in range(config.num_image_layers)])

        mask_size = config.mask_feature_size
        self.top_projection = nn.Linear(config.hidden_size, mask_size)
        self.laterals = nn.ModuleList([nn.Linear(size, mask_size) for size in channels[:-2]])
        self.lateral_norms = nn.ModuleList([nn.LayerNorm(mask_size, eps=config.layer_norm_eps) for _ in channels[:-2]])
        self.mixers = nn.ModuleList([JMCELNPixelMixer(config) for _ in channels[:-2]])

    def positions(self, height: int, width: int, reference: torch.Tensor) -> torch.Tensor:
        """
        Position embeddings of the working map and of the coarsest map, on the device and in the dtype of `reference`.

        Returns:
            `torch.Tensor` of shape `(1, height * width + height * width / 4, hidden)`.
        """
        embeddings = [
            self.position_projection(
                sine_position_embedding(rows, columns, self.hidden_size, reference.device, reference.dtype)
            )
            + self.scale_embedding.weight[scale]
            for scale, (rows, columns) in enumerate(coarse_map_sizes(height, width))
        ]
        return torch.cat(embeddings, dim=1)

    def forward(self, feature_maps: list[torch.Tensor]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """
        Args:
            feature_maps (`list` of `torch.Tensor` of shape `(batch, channels, height, width)`): Fine to coarse.

        Returns:
            The tokens of the working map (the second coarsest) and of the coarsest map, `(batch, num_pixels, hidden)`,
            and the pixel features from the finest map to the working map, `(batch, height, width, mask_features)`.
        """
        height, width = feature_maps[-2].shape[-2:]
        tokens = [
            norm(projection(feature_map.flatten(2).transpose(1, 2)))
            for projection, norm, feature_map in zip(
                self.token_projections, self.token_norms, feature_maps[-2:], strict=True
            )
        ]
        tokens = torch.cat(tokens, dim=1)
        positions = self.positions(height, width, tokens)
        for layer in self.layers:
            tokens = layer(tokens, positions, coarse_map_sizes(height, width))

        maps = self.top_projection(tokens[:, : height * width]).unflatten(1, (height, width))
        pyramid = [maps]
        for level in reversed(range(self.num_levels - 1)):
            lateral = self.lateral_norms[level](self.laterals[level](feature_maps[level].permute(0, 2, 3, 1)))
            maps = self.mixers[level](lateral + resize_maps(maps, *lateral.shape[1:3]))
            pyramid.insert(0, maps)
        return tokens, tuple(pyramid)
