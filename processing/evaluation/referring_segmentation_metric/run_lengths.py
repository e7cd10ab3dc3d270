"""Check compressed run lengths before C code reads them: `pycocotools` trusts what it is given.

With damaged run lengths it loops for ever, reads past the end of its buffer, or counts more pixels than there are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


# As many pixels as the largest image that Pillow opens. A few characters can claim any size.
MAX_PIXELS = 2 * 89478485

# 35 bits hold every run of an image of that size, and their shifts fit 64-bit integers.
_MAX_CHARACTERS = 7


def check_size(size: Any) -> tuple[int, int]:
    """
    `(height, width)` of a mask.

    Raises:
        ValueError: if `size` is not two whole numbers above 0, or more than `MAX_PIXELS` pixels.
    """
    try:
        sides = [int(side) for side in size]
        is_whole = all(side == given for side, given in zip(sides, size, strict=True))
    except (TypeError, ValueError, OverflowError):
        sides, is_whole = [], False
    if len(sides) != 2 or not is_whole or min(sides) < 1:
        raise ValueError(f"RLE needs a `size` of [height, width], whole numbers above 0, got {_short(size)}")
    height, width = sides
    if height * width > MAX_PIXELS:
        raise ValueError(f"RLE of {height} x {width} pixels, more than an image may have ({MAX_PIXELS})")
    return height, width


def check_runs(runs: np.ndarray, height: int, width: int) -> None:
    """
    Check that runs of pixels fill a mask.

    Raises:
        ValueError: if a run is negative, or the runs do not add up to `height * width`.
    """
    if runs.size and runs.min() < 0:
        raise ValueError("RLE with a negative run")
    # Bounded before they are added up, so that the sum cannot wrap.
    total = int(runs.sum()) if not runs.size or runs.max() <= MAX_PIXELS else int(runs.max())
    if total != height * width:
        raise ValueError(f"RLE whose runs add up to {total} pixels for a size of {height} x {width}")


def compressed_runs(counts: str | bytes) -> np.ndarray:
    """
    Runs of compressed counts: 5 bits a character, sign-extended, from the fourth run on as differences.

    Raises:
        ValueError: if a character is not one of compressed counts, a run is too long, or the last one is cut off.
    """
    try:
        raw = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError as error:
        raise ValueError(
            f"RLE with the character {counts[error.start]!r}, which compressed counts cannot hold"
        ) from None
    codes = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    strange = (codes < 0) | (codes > 63)
    if strange.any():
        character = chr(raw[int(strange.argmax())])
        raise ValueError(f"RLE with the character {character!r}, which compressed counts cannot hold")
    ends = np.flatnonzero(codes & 32 == 0)
    if codes.size and (not ends.size or ends[-1] != codes.size - 1):
        raise ValueError("RLE that ends in the middle of a run")
    starts = np.concatenate(([0], ends[:-1] + 1)) if ends.size else ends
    lengths = ends - starts + 1
    if lengths.size and lengths.max() > _MAX_CHARACTERS:
        raise ValueError(f"RLE with a run of {lengths.max()} characters, longer than any image has pixels")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, starts) if ends.size else codes
    values = values - np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    # The first run stands alone; the others are differences to the run of the same color before them.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def check_compressed(rle: Mapping[str, Any]) -> dict[str, Any]:
    """
    Compressed RLE as `pycocotools` takes it, checked.

    Raises:
        ValueError: if its size or its counts are damaged, or do not fit each other.
    """
    size, counts = check_size(rle["size"]), rle["counts"]
    if not isinstance(counts, str | bytes):
        raise ValueError(f"RLE needs compressed `counts`, a string or bytes, got {type(counts).__name__}")
    check_runs(compressed_runs(counts), *size)
    return {"size": list(size), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
