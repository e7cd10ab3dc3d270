"""Canonical rows made on the spot: rectangles on a plain ground."""

from typing import Any

import numpy as np
from PIL import Image

from processing.data.masks import empty_rle, encode_mask


COLORS = {"red": (220, 30, 30), "green": (30, 160, 40), "blue": (30, 60, 220)}


def canonical_row(number: int, sentences: tuple[int, ...] = (1,), size: tuple[int, int] = (40, 48)) -> dict[str, Any]:
    """A row with one referent for each entry of `sentences`, which says how many expressions refer to it.

    Referent `i` is a rectangle that no other one touches; an entry that is negative makes an absent referent.
    """
    generator = np.random.default_rng(number)
    height, width = size
    pixels = np.full((height, width, 3), 128, dtype=np.uint8)
    pixels += generator.integers(0, 20, size=pixels.shape, dtype=np.uint8)
    masks, expressions, mask_index = [], [], []
    band = height // len(sentences)
    for referent, count in enumerate(sentences):
        mask = np.zeros((height, width), dtype=bool)
        color = list(COLORS)[int(generator.integers(len(COLORS)))]
        if count > 0:
            left = int(generator.integers(0, width // 2))
            mask[referent * band : (referent + 1) * band, left : left + width // 3] = True
            pixels[mask] = COLORS[color]
        masks.append(encode_mask(mask) if count > 0 else empty_rle(height, width))
        for sentence in range(abs(count)):
            expressions.append(f"the {color} square {['left', 'right', 'above', 'below'][sentence % 4]}")
            mask_index.append(referent)
    return {
        "image": Image.fromarray(pixels),
        "image_id": str(number),
        "dataset": "made",
        "split": "train",
        "expressions": expressions,
        "masks": masks,
        "mask_index": mask_index,
        "ref_ids": [f"{number}-{referent}" for referent in range(len(sentences))],
    }
