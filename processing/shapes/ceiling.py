"""The best possible score on the synthetic benchmark for logits at a coarser resolution."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, interpolate


def upsampled_prediction(mask: np.ndarray, stride: int) -> np.ndarray:
    """Returns the mask after bilinear upsampling of perfect logits at a stride.

    A perfect logit is the share of its cell that the mask covers, minus one half.

    Args:
        mask: `(height, width)` booleans; both must be multiples of `stride`.
        stride: Pixels per logit, at least 1.

    Returns:
        `(height, width)` booleans.

    Raises:
        ValueError: If height or width is not a multiple of `stride`.
    """
    height, width = mask.shape
    if stride < 1 or height % stride or width % stride:
        raise ValueError(f"the sides of the mask, {height} and {width}, must be multiples of the stride, {stride}")
    cover = avg_pool2d(torch.from_numpy(mask.astype(np.float32))[None, None], stride)
    logits = interpolate(cover - 0.5, size=(height, width), mode="bilinear", align_corners=False)
    return (logits[0, 0] > 0.0).numpy()


def resolution_ceiling(masks: Iterable[np.ndarray], stride: int) -> float:
    """Computes the mean IoU of bilinearly upsampled perfect logits at `stride`, over masks that are not empty.

    Args:
        masks: `(height, width)` booleans each.
        stride: Pixels per logit, for example 4.

    Raises:
        ValueError: If all masks are empty, or if a height or width is not a multiple of `stride`.
    """
    ious = []
    for mask in masks:
        if mask.any():
            prediction = upsampled_prediction(mask, stride)
            ious.append(np.count_nonzero(prediction & mask) / np.count_nonzero(prediction | mask))
    if not ious:
        raise ValueError("all masks are empty: pass at least one with foreground")
    return float(np.mean(ious))
