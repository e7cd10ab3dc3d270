"""Conversion of masks to COCO polygons."""

from collections.abc import Iterator

import numpy as np


def mask_to_polygons(mask: np.ndarray) -> list[list[float]] | None:
    """
    Converts a mask to exact polygons along the edges of its pixels.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): Booleans.

    Returns:
        `list`: one flat polygon `[x1, y1, x2, y2, ...]` per part, in pixels from the upper left corner. `None` for a
        mask with holes, which COCO polygons cannot represent.
    """
    polygons = []
    for points in _loops(mask):
        x, y = np.array(points, dtype=float).T
        # The edges run clockwise around a part, and counterclockwise around a hole.
        area = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum()
        if area < 0:
            return None
        is_corner = (np.roll(x, 1) - x) * (np.roll(y, -1) - y) != (np.roll(y, 1) - y) * (np.roll(x, -1) - x)
        polygons.append(np.stack([x[is_corner], y[is_corner]], axis=1).ravel().tolist())
    return polygons


def _loops(mask: np.ndarray) -> Iterator[list[tuple[int, int]]]:
    """Yields closed paths along the edges of the mask, with the mask on the right-hand side."""
    padded = np.pad(mask, 1)
    inside, starts = padded[1:-1, 1:-1], {}
    sides = (  # where the neighbor is outside: first and last corner of the edge, from the pixel's upper left corner
        (inside & ~padded[:-2, 1:-1], (0, 0), (1, 0)),
        (inside & ~padded[1:-1, 2:], (1, 0), (1, 1)),
        (inside & ~padded[2:, 1:-1], (1, 1), (0, 1)),
        (inside & ~padded[1:-1, :-2], (0, 1), (0, 0)),
    )
    for edges, (first_x, first_y), (last_x, last_y) in sides:
        for y, x in np.argwhere(edges).tolist():
            starts.setdefault((x + first_x, y + first_y), []).append((x + last_x, y + last_y))
    while starts:
        point = next(iter(starts))
        loop, direction = [], None
        while point in starts:
            loop.append(point)
            ways = starts[point]
            # If two pixels touch at a corner, turning right stays at the same pixel.
            right = None if direction is None else (point[0] - direction[1], point[1] + direction[0])
            following = ways.pop(ways.index(right) if right in ways else 0)
            if not ways:
                del starts[point]
            direction = (following[0] - point[0], following[1] - point[1])
            point = following
        yield loop
