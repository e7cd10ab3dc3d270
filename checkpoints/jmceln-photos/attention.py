# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Attention, feed-forward block and position embedding, used in the neck and the cascade."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_jmceln import JMCELNConfig


# On a CPU, matrix products with few columns are up to four times faster if the columns fill whole vectors.
_KEY_BLOCK = 16


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_,
) -> tuple[torch.Tensor, torch.Tensor]:
    # Scaling the queries instead of the scores saves a pass over the largest tensor, and another one in the backward.
    attention_weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        attention_weights = attention_weights + attention_mask
    attention_weights = nn.functional.softmax(attention_weights, dim=-1)
    attention_weights = nn.functional.dropout(attention_weights, p=dropout, training=module.training)
    attention_output = torch.matmul(attention_weights, value).transpose(1, 2).contiguous()
    return attention_output, attention_weights


class JMCELNAttention(nn.Module):
    """Multi-head attention from one sequence to another."""

    def __init__(self, config: JMCELNConfig):
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False

        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_bias: torch.Tensor | None = None,
        output_attentions: bool = False,
        query_angles: torch.Tensor | None = None,
        key_angles: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            queries (`torch.Tensor` of shape `(batch, num_queries, hidden)`)
            keys, values (`torch.Tensor` of shape `(batch, num_keys, hidden)`)
            attention_bias (`torch.Tensor`, broadcastable to `(batch, heads, num_queries, num_keys)`, *optional*):
                Added to the attention scores before the softmax.
            output_attentions (`bool`): Whether to return the weights. This call then uses eager attention.
            query_angles, key_angles (`torch.Tensor` of shape `(num_queries or num_keys, head_dim / 2)`, *optional*):
                Positions of queries and keys as angles. The scores and the values then depend on the offset from the
                query to the key.

        Returns:
            The output of shape `(batch, num_queries, hidden)` and, with `output_attentions`, the weights of shape
            `(batch, heads, num_queries, num_keys)`, otherwise `None`.
        """
        batch_size, num_queries, _ = queries.shape
        heads_shape = (batch_size, -1, self.num_attention_heads, self.head_dim)
        query_states = self.q_proj(queries).view(heads_shape).transpose(1, 2)
        key_states = self.k_proj(keys).view(heads_shape).transpose(1, 2)
        value_states = self.v_proj(values).view(heads_shape).transpose(1, 2)

        if query_angles is not None:
            query_states = rotate(query_states, query_angles)
            key_states, value_states = rotate(key_states, key_angles), rotate(value_states, key_angles)

        attention_interface: Callable = eager_attention_forward
        if self.config._attn_implementation != "eager" and not output_attentions:
            attention_interface = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        attention_output, attention_weights = attention_interface(
            self, query_states, key_states, value_states, attention_bias, scaling=self.scaling, dropout=0.0
        )
        if query_angles is not None:
            attention_output = rotate(attention_output.transpose(1, 2), -query_angles).transpose(1, 2)
        attention_output = attention_output.reshape(batch_size, num_queries, -1)
        return self.o_proj(attention_output), attention_weights if output_attentions else None


def matched_reading(
    attention: JMCELNAttention,
    gate: nn.Linear,
    queries: torch.Tensor,
    sources: torch.Tensor,
    attention_bias: torch.Tensor,
) -> torch.Tensor:
    """
    Multiplies what pixels read from `sources` by a gate computed from the pixels, as in the pixel-word attention of
    LAVT (Yang et al., 2022). A product expresses whether both agree; a sum takes longer to learn this.

    Args:
        attention, gate: The attention and the gate of the layer.
        queries (`torch.Tensor` of shape `(batch, num_pixels, hidden)`)
        sources (`torch.Tensor` of shape `(batch, num_sources, hidden)`): Words, or words and context tokens.
        attention_bias (`torch.Tensor` of shape `(batch, 1, 1, num_sources)`): Very negative at padding.
    """
    if sources.device.type == "cpu" and not torch.compiler.is_compiling():
        padding = -sources.shape[1] % _KEY_BLOCK
        sources = nn.functional.pad(sources, (0, 0, 0, padding))
        attention_bias = nn.functional.pad(attention_bias, (0, padding), value=torch.finfo(attention_bias.dtype).min)
    return attention(queries, sources, sources, attention_bias)[0] * gate(queries)


def pool_maps(tokens: torch.Tensor, map_sizes: Sequence[tuple[int, int]], limit: int) -> torch.Tensor:
    """
    Averages neighboring cells of each map, so that it has at most `limit` rows and columns.

    Args:
        tokens (`torch.Tensor` of shape `(batch, num_pixels, hidden)`): Concatenated maps, each row by row.
        map_sizes (`Sequence[tuple[int, int]]`): Height and width of each map.
        limit (`int`)

    Returns:
        `torch.Tensor` of shape `(batch, num_cells, hidden)`, with at most `limit**2` cells per map.
    """
    pooled = []
    for cells, (height, width) in zip(tokens.split([h * w for h, w in map_sizes], dim=1), map_sizes, strict=True):
        factor = math.ceil(max(height, width) / limit)
        if factor > 1:
            grid = cells.transpose(1, 2).unflatten(2, (height, width))
            cells = nn.functional.avg_pool2d(grid, factor, ceil_mode=True).flatten(2).transpose(1, 2)
        pooled.append(cells)
    return torch.cat(pooled, dim=1)


class JMCELNPixelAttention(JMCELNAttention):
    """
    Self-attention among the pixels of one or more maps. Keys and values are averaged to at most `max_key_size` rows
    and columns, as in the spatial reduction of the Pyramid Vision Transformer (Wang et al., 2021), so that the cost is
    linear in the number of pixels.

    Queries, keys and values are rotated by their positions, as in RoFormer (Su et al., 2021), with half of the
    channels for rows and half for columns. The output is rotated back by the position of the query, as in geometric
    transform attention (Miyato et al., 2024). Attention can thus select by direction, such as "left of this pixel",
    and the output tells how far away the selected pixels are.
    """

    def forward(
        self,
        pixels: torch.Tensor,
        positions: torch.Tensor,
        map_sizes: Sequence[tuple[int, int]],
        num_queries: int | None = None,
    ) -> torch.Tensor:
        """
        Args:
            pixels (`torch.Tensor` of shape `(batch, num_pixels, hidden)`)
            positions (`torch.Tensor` of shape `(1, num_pixels, hidden)`)
            map_sizes (`Sequence[tuple[int, int]]`): Height and width of each map.
            num_queries (`int`, *optional*): How many pixels ask, from the first on. Default: all.
        """
        placed = pixels + positions
        # The values include the positions too, so that a pixel learns where the pixels are that it attends to.
        sources = pool_maps(placed, map_sizes, self.config.max_key_size)
        centers = torch.cat([cell_centers(*size, device=pixels.device) for size in map_sizes]).unsqueeze(0)
        return super().forward(
            # A linear layer takes twice as long for a slice.
            placed[:, :num_queries].contiguous(),
            sources,
            sources,
            query_angles=axial_angles(centers[0, :num_queries], self.head_dim),
            key_angles=axial_angles(pool_maps(centers, map_sizes, self.config.max_key_size)[0], self.head_dim),
        )[0]


def cell_centers(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Row and column of the center of each cell of a map, 0 to 1 over the image: `(height * width, 2)`, `float32`."""
    rows = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    columns = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    positions = [rows[:, None].expand(height, width), columns[None].expand(height, width)]
    return torch.stack(positions, dim=-1).flatten(0, 1)


def axial_angles(positions: torch.Tensor, head_dim: int) -> torch.Tensor:
    """
    Computes the angles for [`rotate`] from positions.

    Args:
        positions (`torch.Tensor` of shape `(num_positions, 2)`): Row and column, 0 to 1.
        head_dim (`int`): A multiple of 4.

    Returns:
        `torch.Tensor` of shape `(num_positions, head_dim / 2)`: The first half for rows, the second for columns.
    """
    # From a quarter of a turn over the image, at which no two positions look alike, to four turns.
    exponents = torch.linspace(-1, 3, head_dim // 4, device=positions.device)
    return (positions.unsqueeze(-1) * (math.pi * 2**exponents)).flatten(1)


def rotate(states: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """
    Rotates pairs of channels `(i, i + head_dim / 2)`.

    Args:
        states (`torch.Tensor` of shape `(..., num_positions, head_dim)`)
        angles (`torch.Tensor` of shape `(num_positions, head_dim / 2)`): In radians.
    """
    cosines, sines = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
    first, second = states.chunk(2, dim=-1)
    # In place, since a pass over new memory takes longer than the arithmetic.
    turned = torch.cat([second, first], dim=-1).mul_(torch.cat([-sines, sines], dim=-1))
    return turned.addcmul_(states, torch.cat([cosines, cosines], dim=-1))


class JMCELNFeedForward(nn.Module):
    def __init__(self, config: JMCELNConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activation(self.up_proj(hidden_states)))


def sine_position_embedding(
    height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """
    Sines and cosines of the centers of the cells, relative to the size of the image, so that a position in the image
    has the same embedding at any resolution.

    Returns:
        `torch.Tensor` of shape `(1, height * width, channels)`.
    """
    num_frequencies = channels // 4
    # From half a period over the image, which orders objects, to 16 periods, which distinguish neighboring cells.
    exponents = torch.linspace(0, math.log2(32), num_frequencies, device=device, dtype=torch.float32)
    frequencies = math.pi * 2**exponents
    # (height * width, rows and columns, num_frequencies)
    angles = cell_centers(height, width, device).unsqueeze(-1) * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).unsqueeze(0).to(dtype)
