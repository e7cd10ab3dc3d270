# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Losses: masks, agreement of the stages, presence of the referent. Every function returns one value an expression."""

import torch
from torch import nn

from .configuration_jmceln import JMCELNConfig


def mask_loss(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, has_target: torch.Tensor, config: JMCELNConfig
) -> torch.Tensor:
    """
    Binary cross entropy, averaged over the counted pixels, and Dice loss where there is a target.

    Args:
        logits (`torch.Tensor` of shape `(expressions, height, width)`)
        targets (`torch.Tensor` of shape `(expressions, height, width)`): Share of the referent in each pixel, 0 to 1.
        weights (`torch.Tensor` of shape `(expressions, height, width)`): Share of each pixel that counts, 0 to 1.
        has_target (`torch.Tensor` of shape `(expressions,)`): Booleans.

    Returns:
        `torch.Tensor` of shape `(expressions,)`.
    """
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, targets, weight=weights, reduction="none")
    cross_entropy = cross_entropy.flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1)
    loss = config.binary_cross_entropy_weight * cross_entropy
    return loss + config.dice_weight * dice_loss(logits.sigmoid(), targets, weights) * has_target


def dice_loss(probabilities: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Milletari et al., V-Net, 2016 (without their squares); shapes as in [`mask_loss`]."""
    overlap = (probabilities * targets * weights).flatten(1).sum(1)
    total = ((probabilities + targets) * weights).flatten(1).sum(1)
    return 1 - (2 * overlap + 1) / (total + 1)


def alignment_loss(
    stage_logits: tuple[torch.Tensor, ...], weights: list[torch.Tensor], has_target: torch.Tensor
) -> torch.Tensor:
    """
    Disagreement (Dice) of each stage with the one after it, which is the better informed and gets no gradient from it.

    Args:
        stage_logits (`tuple` of `torch.Tensor` of shape `(expressions, height, width)`): Coarse to fine.
        weights (`list` of `torch.Tensor` of the same shapes): Share of each pixel that counts.
        has_target (`torch.Tensor` of shape `(expressions,)`): Booleans.

    Returns:
        `torch.Tensor` of shape `(expressions,)`.
    """
    losses = [torch.zeros_like(has_target, dtype=torch.float32)]
    for logits, weight, later_logits in zip(stage_logits[:-1], weights[:-1], stage_logits[1:], strict=True):
        later = nn.functional.adaptive_avg_pool2d(later_logits.detach().sigmoid(), logits.shape[-2:])
        losses.append(dice_loss(logits.sigmoid(), later, weight) * has_target)
    return torch.stack(losses).sum(0)


def expression_losses(
    logits: torch.Tensor,
    stage_logits: tuple[torch.Tensor, ...],
    presence_logits: torch.Tensor,
    labels: torch.Tensor,
    stage_size: tuple[int, int],
    config: JMCELNConfig,
) -> torch.Tensor:
    """
    The weighted sum of all losses.

    Args:
        logits (`torch.Tensor` of shape `(expressions, height, width)`): At the resolution of the labels.
        stage_logits (`tuple` of `torch.Tensor`): One a stage, at strides of their own.
        presence_logits (`torch.Tensor` of shape `(expressions,)`)
        labels (`torch.Tensor` of shape `(expressions, height, width)`): 1 referent, 0 background, else ignored.
        stage_size (`tuple[int, int]`): Height and width of the padded input, which the stages' maps cover.
        config ([`JMCELNConfig`])

    Returns:
        `torch.Tensor` of shape `(expressions,)`.
    """
    targets = (labels == 1).float()
    weights = ((labels == 0) | (labels == 1)).float()
    has_target = targets.flatten(1).any(1)
    loss = mask_loss(logits.float(), targets, weights, has_target, config)

    padding = (0, stage_size[1] - labels.shape[-1], 0, stage_size[0] - labels.shape[-2])
    targets, weights = nn.functional.pad(targets, padding), nn.functional.pad(weights, padding)
    stage_logits = tuple(stage.float() for stage in stage_logits)
    stage_weights = []
    for stage in stage_logits:
        # Exact coverage of each cell, so that no boundary is moved by the coarser grid.
        weight = nn.functional.adaptive_avg_pool2d(weights, stage.shape[-2:])
        target = nn.functional.adaptive_avg_pool2d(targets, stage.shape[-2:]) / weight.clamp(min=1e-6)
        stage_weights.append(weight)
        loss = loss + config.stage_loss_weight * mask_loss(stage, target.clamp(max=1), weight, has_target, config)
    if config.use_alignment:
        loss = loss + config.alignment_loss_weight * alignment_loss(stage_logits, stage_weights, has_target)
    presence = nn.functional.binary_cross_entropy_with_logits(
        presence_logits.float(), has_target.float(), reduction="none"
    )
    # Of an expression whose every pixel is ignored nothing is known, neither where its referent is nor whether.
    is_known = weights.flatten(1).any(1)
    return loss + config.presence_loss_weight * presence * is_known
