"""What a model could score at best on the synthetic benchmark if its logits come at a coarser resolution."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, interpolate


def upsampled_prediction(mask: np.ndarray, stride: int) -> np.ndarray:
    """The mask that comes back when perfect logits at a stride are enlarged bilinearly.

    A perfect logit is the share of its cell that the mask covers, less one half.

    Args:
        mask: `(height, width)` booleans; both sides must be multiples of `stride`.
        stride: pixels a logit, at least 1.

    Returns:
        `(height, width)` booleans.

    Raises:
        ValueError: if the sides are no multiples of `stride`.
    """
    height, width = mask.shape
    if stride < 1 or height % stride or width % stride:
        raise ValueError(f"the sides of the mask, {height} and {width}, must be multiples of the stride, {stride}")
    cover = avg_pool2d(torch.from_numpy(mask.astype(np.float32))[None, None], stride)
    logits = interpolate(cover - 0.5, size=(height, width), mode="bilinear", align_corners=False)
    return (logits[0, 0] > 0.0).numpy()


def resolution_ceiling(masks: Iterable[np.ndarray], stride: int) -> float:
    """Mean IoU of perfect logits at `stride`, enlarged bilinearly, over masks that are not empty.

    Args:
        masks: `(height, width)` booleans each.
        stride: pixels a logit, for example 4.

    Raises:
        ValueError: if all masks are empty, or their sides are no multiples of `stride`.
    """
    ious = []
    for mask in masks:
        if mask.any():
            prediction = upsampled_prediction(mask, stride)
            ious.append(np.count_nonzero(prediction & mask) / np.count_nonzero(prediction | mask))
    if not ious:
        raise ValueError("there is no mask with foreground to measure a ceiling on")
    return float(np.mean(ious))
