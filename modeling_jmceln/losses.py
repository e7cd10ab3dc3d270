# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Losses per expression: of the masks, of the alignment of the stages, of the landmarks and of the presence."""

from collections.abc import Iterable

import torch
from torch import nn

from .configuration_jmceln import JMCELNConfig


_IGNORED_VALUES = (255, -100)


def mask_loss(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, has_target: torch.Tensor, config: JMCELNConfig
) -> torch.Tensor:
    """
    Binary cross entropy, averaged over the pixels that are not ignored, plus the Dice loss if there is a target.

    Args:
        logits (`torch.Tensor` of shape `(expressions, height, width)`)
        targets (`torch.Tensor` of shape `(expressions, height, width)`): Share of the referent in each pixel, 0 to 1.
        weights (`torch.Tensor` of shape `(expressions, height, width)`):
            Share of each pixel that is not ignored, 0 to 1.
        has_target (`torch.Tensor` of shape `(expressions,)`): Booleans.

    Returns:
        `torch.Tensor` of shape `(expressions,)`.
    """
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, targets, weight=weights, reduction="none")
    cross_entropy = cross_entropy.flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1)
    loss = config.binary_cross_entropy_weight * cross_entropy
    return loss + config.dice_weight * dice_loss(logits.sigmoid(), targets, weights) * has_target


def dice_loss(probabilities: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Dice loss of V-Net (Milletari et al., 2016), without their squares. The shapes are as in [`mask_loss`]."""
    overlap = (probabilities * targets * weights).flatten(1).sum(1)
    total = ((probabilities + targets) * weights).flatten(1).sum(1)
    return 1 - (2 * overlap + 1) / (total + 1)


def alignment_loss(
    stage_logits: tuple[torch.Tensor, ...], weights: list[torch.Tensor], has_target: torch.Tensor
) -> torch.Tensor:
    """
    Dice loss between each stage and the next one, which serves as the target and gets no gradient.

    Args:
        stage_logits (`tuple` of `torch.Tensor` of shape `(expressions, height, width)`): Coarse to fine.
        weights (`list` of `torch.Tensor` of the same shapes): Share of each pixel that is not ignored.
        has_target (`torch.Tensor` of shape `(expressions,)`): Booleans.

    Returns:
        `torch.Tensor` of shape `(expressions,)`.
    """
    losses = [torch.zeros_like(has_target, dtype=torch.float32)]
    for logits, weight, later_logits in zip(stage_logits[:-1], weights[:-1], stage_logits[1:], strict=True):
        later = nn.functional.adaptive_avg_pool2d(later_logits.detach().sigmoid(), logits.shape[-2:])
        losses.append(dice_loss(logits.sigmoid(), later, weight) * has_target)
    return torch.stack(losses).sum(0)


def cover_cells(
    targets: torch.Tensor, weights: torch.Tensor, sizes: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]:
    """
    Averages targets and weights over the cells of coarser grids. The exact shares keep the boundaries where they are.

    Args:
        targets, weights (`torch.Tensor` of shape `(expressions, height, width)`): 0 or 1 at every pixel.
        sizes (`Iterable[tuple[int, int]]`): Rows and columns of the grids. Each size must divide the larger ones.

    Returns:
        For each size, the share of the target among the pixels of each cell that are not ignored, and the share of the
        pixels of each cell that are not ignored.
    """
    covered = {}
    # A coarser grid is averaged from the next finer grid, which is faster than from all pixels.
    for size in sorted(set(sizes), reverse=True):
        targets = nn.functional.adaptive_avg_pool2d(targets, size)
        weights = nn.functional.adaptive_avg_pool2d(weights, size)
        covered[size] = (targets / weights.clamp(min=1e-6)).clamp(max=1), weights
    return covered


def landmark_loss(
    landmark_logits: tuple[torch.Tensor, ...],
    landmark_masks: torch.Tensor,
    stage_size: tuple[int, int],
    config: JMCELNConfig,
) -> torch.Tensor:
    """
    Sum of the [`mask_loss`] of the landmarks over all stages. MDETR (Kamath et al., 2021) trains in a similar way with
    a target for each phrase of an expression.

    Args:
        landmark_logits (`tuple` of `torch.Tensor` of shape `(expressions, height, width)`): One per stage.
        landmark_masks (`torch.Tensor` of shape `(expressions, height, width)`):
            1 at the landmarks, 0 elsewhere; pixels of any other value are ignored.
        stage_size (`tuple[int, int]`): Height and width of the padded input, which the maps of the stages cover.
        config ([`JMCELNConfig`])

    Returns:
        `torch.Tensor` of shape `(expressions,)`.
    """
    targets, weights = _targets_and_weights(landmark_masks)
    has_landmark = targets.flatten(1).any(1)
    targets, weights = _pad(targets, stage_size), _pad(weights, stage_size)
    sizes = map_sizes(landmark_logits)
    covered = cover_cells(targets, weights, sizes)
    losses = [
        mask_loss(stage.float(), *covered[size], has_landmark, config)
        for stage, size in zip(landmark_logits, sizes, strict=True)
    ]
    return torch.stack(losses).sum(0)


def map_sizes(maps: Iterable[torch.Tensor]) -> list[tuple[int, int]]:
    """Returns rows and columns of each map."""
    return [(each.shape[-2], each.shape[-1]) for each in maps]


def check_mask_values(name: str, masks: torch.Tensor) -> None:
    """
    Raises:
        ValueError: if a mask holds anything but 0, 1 and the ignored values 255 and -100.
    """
    # A traced graph cannot depend on values.
    if masks.dtype == torch.bool or torch.compiler.is_compiling() or torch.jit.is_tracing() or masks.is_meta:
        return
    # Most pixels are 0 or 1, and two comparisons are many times faster than `torch.isin`.
    others = masks[(masks != 0) & (masks != 1)]
    unknown = others[~torch.isin(others, torch.tensor(_IGNORED_VALUES, device=masks.device))]
    if unknown.numel():
        raise ValueError(
            f"`{name}` must hold 1 at the object, 0 elsewhere, and 255 or -100 where a pixel is ignored; got"
            f" {unknown[:5].tolist()}. Compare probabilities with a threshold, and a map of labels with the label that"
            " is meant."
        )


def _targets_and_weights(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    is_target = labels == 1
    return is_target.float(), (is_target | (labels == 0)).float()


def _pad(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return nn.functional.pad(maps, (0, size[1] - maps.shape[-1], 0, size[0] - maps.shape[-2]))


def expression_losses(
    logits: torch.Tensor,
    stage_logits: tuple[torch.Tensor, ...],
    presence_logits: torch.Tensor,
    labels: torch.Tensor,
    stage_size: tuple[int, int],
    config: JMCELNConfig,
) -> torch.Tensor:
    """
    The weighted sum of all losses except [`landmark_loss`].

    Args:
        logits (`torch.Tensor` of shape `(expressions, height, width)`): At the size of the labels.
        stage_logits (`tuple` of `torch.Tensor`): One per stage, each at its own stride.
        presence_logits (`torch.Tensor` of shape `(expressions,)`)
        labels (`torch.Tensor` of shape `(expressions, height, width)`):
            1 at the referent, 0 elsewhere; pixels of any other value are ignored.
        stage_size (`tuple[int, int]`): Height and width of the padded input, which the maps of the stages cover.
        config ([`JMCELNConfig`])

    Returns:
        `torch.Tensor` of shape `(expressions,)`.
    """
    targets, weights = _targets_and_weights(labels)
    has_target = targets.flatten(1).any(1)
    loss = mask_loss(logits.float(), targets, weights, has_target, config)

    targets, weights = _pad(targets, stage_size), _pad(weights, stage_size)
    stage_logits = tuple(stage.float() for stage in stage_logits)
    sizes = map_sizes(stage_logits)
    covered = cover_cells(targets, weights, sizes)
    for stage, size in zip(stage_logits, sizes, strict=True):
        loss = loss + config.stage_loss_weight * mask_loss(stage, *covered[size], has_target, config)
    if config.use_alignment:
        stage_weights = [weight for _, weight in (covered[size] for size in sizes)]
        loss = loss + config.alignment_loss_weight * alignment_loss(stage_logits, stage_weights, has_target)
    presence = nn.functional.binary_cross_entropy_with_logits(
        presence_logits.float(), has_target.float(), reduction="none"
    )
    # If every pixel is ignored, it is not known whether the referent is in the image either.
    is_known = weights.flatten(1).any(1)
    return loss + config.presence_loss_weight * presence * is_known
