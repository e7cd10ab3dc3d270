"""Checks of compressed run lengths before `pycocotools`, which does not check its input, reads them in C.

With damaged run lengths, it would loop forever, read past the end of its buffer, or count more pixels than there are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


# The size of the largest image that Pillow opens. Without a limit, a few damaged characters could stand for any size.
MAX_PIXELS = 2 * 89478485

# 7 characters have 35 bits, enough for every run in an image of that size, and all shifts fit into 64-bit integers.
_MAX_CHARACTERS = 7


def check_size(size: Any) -> tuple[int, int]:
    """
    Returns the `(height, width)` of a mask.

    Raises:
        ValueError: If `size` is not two positive integers, or has more than `MAX_PIXELS` pixels.
    """
    try:
        sides = [int(side) for side in size]
        is_whole = all(side == given for side, given in zip(sides, size, strict=True))
    except (TypeError, ValueError, OverflowError):
        sides, is_whole = [], False
    if len(sides) != 2 or not is_whole or min(sides) < 1:
        raise ValueError(f"RLE needs a `size` of [height, width], two positive integers, got {_short(size)}")
    height, width = sides
    if height * width > MAX_PIXELS:
        raise ValueError(f"RLE of {height} x {width} pixels, more than the limit of {MAX_PIXELS}")
    return height, width


def check_runs(runs: np.ndarray, height: int, width: int) -> None:
    """
    Checks that runs of pixels fill a mask.

    Raises:
        ValueError: If a run is negative, or if the runs do not add up to `height * width`.
    """
    if runs.size and runs.min() < 0:
        raise ValueError("RLE with a negative run")
    # The runs are only added up if each is within the limit, so that the sum cannot overflow.
    total = int(runs.sum()) if not runs.size or runs.max() <= MAX_PIXELS else int(runs.max())
    if total != height * width:
        raise ValueError(f"RLE whose runs add up to {total} pixels for a size of {height} x {width}")


def compressed_runs(counts: str | bytes) -> np.ndarray:
    """
    Decodes compressed counts to runs. Each character has 5 bits of a signed number. From the fourth run on, the
    numbers are differences.

    Raises:
        ValueError: If a character is invalid, if a run is too long, or if the last run is incomplete.
    """
    try:
        raw = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError as error:
        raise ValueError(
            f"RLE with the character {counts[error.start]!r}, which compressed counts cannot contain"
        ) from None
    codes = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    strange = (codes < 0) | (codes > 63)
    if strange.any():
        character = chr(raw[int(strange.argmax())])
        raise ValueError(f"RLE with the character {character!r}, which compressed counts cannot contain")
    ends = np.flatnonzero(codes & 32 == 0)
    if codes.size and (not ends.size or ends[-1] != codes.size - 1):
        raise ValueError("RLE that ends in the middle of a run")
    starts = np.concatenate(([0], ends[:-1] + 1)) if ends.size else ends
    lengths = ends - starts + 1
    if lengths.size and lengths.max() > _MAX_CHARACTERS:
        raise ValueError(f"RLE with a run of {lengths.max()} characters, which exceeds the size of any image")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, starts) if ends.size else codes
    values = values - np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    # The first three runs are absolute; the others are differences from the previous run of the same value.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def check_compressed(rle: Mapping[str, Any]) -> dict[str, Any]:
    """
    Checks a compressed RLE and returns it in the format of `pycocotools`.

    Raises:
        ValueError: If its size or its counts are damaged, or if they do not match.
    """
    size, counts = check_size(rle["size"]), rle["counts"]
    if not isinstance(counts, str | bytes):
        raise ValueError(f"RLE needs compressed `counts`, a string or bytes, got {type(counts).__name__}")
    check_runs(compressed_runs(counts), *size)
    return {"size": list(size), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
