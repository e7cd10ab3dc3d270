# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Padded batches of images of several sizes: each image gets the same result as if it were alone."""

from typing import NamedTuple

import torch
from torch import nn

from .outputs import JMCELNAnswers, JMCELNImageFeatures


# The logit of padding pixels: certainly background, and finite in half precision.
PADDING_LOGIT = -20.0


class JMCELNSizeGroup(NamedTuple):
    """Images of a batch with the same size in whole cells: their indices, and their height and width in pixels."""

    indices: torch.Tensor
    height: int
    width: int


def group_by_size(pixel_mask: torch.Tensor, stride: int) -> list[JMCELNSizeGroup]:
    """
    Groups the images of a padded batch by their size.

    Args:
        pixel_mask (`torch.BoolTensor` of shape `(batch, height, width)`): True in the image, False in its padding.
        stride (`int`): The coarsest stride. Heights and widths are rounded up to its multiples.

    Raises:
        ValueError: If an image is not a rectangle in the upper left corner.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, mask in enumerate(pixel_mask.cpu()):
        height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
        if height == 0 or not mask[:height, :width].all() or mask.sum() != height * width:
            raise ValueError(
                "`pixel_mask` must be 1 in one rectangle in the upper left corner and 0 everywhere else; image"
                f" {index} of the batch has another mask."
            )
        groups.setdefault((height + -height % stride, width + -width % stride), []).append(index)
    return [
        JMCELNSizeGroup(torch.tensor(indices, device=pixel_mask.device), height, width)
        for (height, width), indices in groups.items()
    ]


def original_order(groups: list[JMCELNSizeGroup]) -> torch.Tensor:
    """Returns the index of each image of the batch in the concatenation of the groups."""
    return torch.cat([group.indices for group in groups]).argsort()


def crop_features(features: JMCELNImageFeatures, group: JMCELNSizeGroup, strides: list[int]) -> JMCELNImageFeatures:
    """Returns the features of the images of one group, without their padding."""
    canvas = features.pixel_features[-1].shape[1:3]
    maps = [
        tokens[group.indices, : group.height // stride, : group.width // stride]
        for tokens, stride in zip(split_tokens(features.last_hidden_state, *canvas), strides[-2:], strict=True)
    ]
    return JMCELNImageFeatures(
        last_hidden_state=torch.cat([tokens.flatten(1, 2) for tokens in maps], dim=1),
        pixel_features=tuple(
            level[group.indices, : group.height // stride, : group.width // stride]
            for level, stride in zip(features.pixel_features, strides[:-1], strict=True)
        ),
        upsampling_weights=features.upsampling_weights[group.indices, :, : group.height, : group.width],
    )


def pad_features(
    features: JMCELNImageFeatures, group: JMCELNSizeGroup, size: tuple[int, int], strides: list[int]
) -> JMCELNImageFeatures:
    """Pads the features of one group with zeros to an input of `size`: the inverse of [`crop_features`]."""
    height, width = (pixels + -pixels % strides[-1] for pixels in size)
    rows, columns = group.height // strides[-2], group.width // strides[-2]
    maps = [
        pad_maps(tokens, height // stride, width // stride)
        for tokens, stride in zip(split_tokens(features.last_hidden_state, rows, columns), strides[-2:], strict=True)
    ]
    weights = pad_planes(features.upsampling_weights, height, width)
    return JMCELNImageFeatures(
        last_hidden_state=torch.cat([tokens.flatten(1, 2) for tokens in maps], dim=1),
        pixel_features=tuple(
            pad_maps(level, height // stride, width // stride)
            for level, stride in zip(features.pixel_features, strides[:-1], strict=True)
        ),
        upsampling_weights=weights[..., : size[0], : size[1]],
    )


def pad_answers(
    answers: JMCELNAnswers,
    group: JMCELNSizeGroup,
    features: JMCELNImageFeatures,
    pixel_mask: torch.Tensor,
    stride: int,
    attends_to_pixels: bool,
) -> JMCELNAnswers:
    """
    Pads the answers for one group with background.

    Args:
        answers ([`JMCELNAnswers`]): For the images of the group, of shape `(images, expressions, ...)`.
        group ([`JMCELNSizeGroup`])
        features ([`JMCELNImageFeatures`]): Of the whole batch. Their sizes are the sizes to pad to.
        pixel_mask (`torch.BoolTensor` of shape `(batch, height, width)`): Of the whole batch.
        stride (`int`): Of the working map.
        attends_to_pixels (`bool`): Whether pixels are among the keys of the attention weights.
    """
    rows, columns = group.height // stride, group.width // stride
    canvas_rows, canvas_columns = features.pixel_features[-1].shape[1:3]

    def pad_stage(planes: torch.Tensor) -> torch.Tensor:
        factor = planes.shape[-2] // rows
        return pad_planes(planes, canvas_rows * factor, canvas_columns * factor, PADDING_LOGIT)

    def pad_pixels(pixels: torch.Tensor) -> torch.Tensor:
        maps = pixels.flatten(0, 1).unflatten(1, (rows, columns))
        return pad_maps(maps, canvas_rows, canvas_columns).flatten(1, 2).unflatten(0, pixels.shape[:2])

    def pad_weights(weights: torch.Tensor) -> torch.Tensor:
        if not attends_to_pixels:
            return weights
        num_others = weights.shape[-1] - rows * columns
        others, pixels = weights.split([num_others, rows * columns], dim=-1)
        planes = pad_planes(pixels.unflatten(-1, (rows, columns)), canvas_rows, canvas_columns)
        return torch.cat([others, planes.flatten(-2)], dim=-1)

    height, width = features.upsampling_weights.shape[-2:]
    is_image = pixel_mask[group.indices].unsqueeze(1)
    logits = pad_planes(answers.logits, max(height, group.height), max(width, group.width))[..., :height, :width]
    return answers._replace(
        logits=logits.masked_fill(~is_image, PADDING_LOGIT),
        stage_logits=tuple(pad_stage(planes) for planes in answers.stage_logits),
        landmark_logits=tuple(pad_stage(planes) for planes in answers.landmark_logits),
        alignment_filters=tuple(pad_stage(planes) for planes in answers.alignment_filters),
        hidden_states=tuple(pad_pixels(pixels) for pixels in answers.hidden_states),
        attentions=tuple(pad_weights(weights) for weights in answers.attentions),
    )


def split_tokens(tokens: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits tokens into the working map and the coarsest map, both of shape `(batch, height, width, hidden)`."""
    working, coarsest = tokens.split([rows * columns, tokens.shape[1] - rows * columns], dim=1)
    return working.unflatten(1, (rows, columns)), coarsest.unflatten(1, (rows // 2, columns // 2))


def pad_maps(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pads `(batch, h, w, channels)` with zeros at the bottom and on the right."""
    return nn.functional.pad(maps, (0, 0, 0, width - maps.shape[2], 0, height - maps.shape[1]))


def pad_planes(planes: torch.Tensor, height: int, width: int, value: float = 0.0) -> torch.Tensor:
    """Pads `(..., h, w)` with `value` at the bottom and on the right."""
    return nn.functional.pad(planes, (0, width - planes.shape[-1], 0, height - planes.shape[-2]), value=value)
