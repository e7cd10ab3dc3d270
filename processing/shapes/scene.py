"""Scenes of the synthetic benchmark: the shapes, their looks and their positions.

A scene is pure geometry in units of the image size (x to the right, y downward, both in [0, 1]), so it can be rendered
at any resolution. A scene has only a few kinds and colors, so that several objects share each of them, and a single
word does not identify an object.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np


KINDS = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "diamond")

COLORS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (250, 220, 40),
    "green": (40, 150, 60),
    "cyan": (40, 200, 210),
    "blue": (40, 80, 215),
    "purple": (125, 50, 165),
    "pink": (250, 140, 195),
    "white": (245, 245, 245),
    "black": (25, 25, 28),
}

TEXTURES = ("solid", "striped", "dotted")

# Square root of the full area of an object. Neighboring classes differ by more than a third, and sizes within a class
# by at most 3 %, so the class is easy to see. "bigger than" is only used between classes.
SIZES = {"small": 0.115, "medium": 0.158, "large": 0.217}
SIZE_JITTER = 0.03

# Distance from the centroid to the farthest point, for a shape of area 1.
REACH = {
    "circle": 0.5642,
    "square": 0.7072,
    "triangle": 0.8774,
    "star": 0.8697,
    "cross": 0.6917,
    "heart": 0.6951,
    "ring": 0.6606,
    "diamond": 0.8661,
}

# Largest rotation in radians: small if a larger one would confuse two kinds (a square on its corner is a diamond).
_LARGEST_TURN = {"circle": math.pi, "ring": math.pi, "star": math.pi / 5}
_DEFAULT_TURN = 0.25

_KIND_WEIGHTS = {3: (0.45, 0.30, 0.25), 4: (0.40, 0.25, 0.20, 0.15)}
_TEXTURE_WEIGHTS = (0.55, 0.25, 0.20)
_SIZE_WEIGHTS = (0.40, 0.35, 0.25)

# Distance of the centers divided by the sum of the two sizes. Shapes of area 1 touch at about 1.1 to 1.2, so with the
# first value tips can cross, and with the second up to a third of the shape behind is occluded.
_APART = 0.64
_OVERLAP = 0.44
_OVERLAPS_ALLOWED = (0, 1, 2, 3)
# Share of the objects that are placed to overlap another object, as long as overlaps are allowed.
_OVERLAP_SHARE = 0.3
_TRIES_AN_OBJECT = 48


@dataclass(frozen=True, slots=True)
class ShapeObject:
    """One object: its four attributes, and its exact geometry in units of the image size.

    Attributes:
        kind: one of `KINDS`.
        color: a key of `COLORS`.
        texture: one of `TEXTURES`.
        size: a key of `SIZES`.
        x: horizontal position of the centroid of the whole shape, including hidden parts.
        y: vertical position of the centroid, increasing downward.
        scale: square root of the area of the whole shape.
        angle: rotation in radians, clockwise.
        pattern_angle: direction of the stripes or dots in radians, relative to the shape.
    """

    kind: str
    color: str
    texture: str
    size: str
    x: float
    y: float
    scale: float
    angle: float
    pattern_angle: float


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene: objects from back to front, the kind of background, and a seed for the rendering.

    Attributes:
        objects: from back to front; later objects hide earlier ones.
        background: `"plain"`, `"gradient"` or `"noise"`.
        look_seed: seeds background colors, shading and camera noise.
    """

    objects: tuple[ShapeObject, ...]
    background: str
    look_seed: int


def _free_place(
    points: Iterable[tuple[float, float]],
    reach: float,
    scale: float,
    placed: list[tuple[float, float, float]],
    overlaps: int,
) -> tuple[float, float, int] | None:
    """Returns the first of `points` where the object fits: `(x, y, number of overlaps)`."""
    for x, y in points:
        if not (reach <= x <= 1.0 - reach and reach <= y <= 1.0 - reach):
            continue
        near = 0
        for other_x, other_y, other_scale in placed:
            ratio = math.hypot(x - other_x, y - other_y) / (scale + other_scale)
            if ratio < _OVERLAP:
                break
            near += ratio < _APART
        else:
            if near <= min(overlaps, 1):
                return x, y, near
    return None


def _points_beside(
    placed: list[tuple[float, float, float]], scale: float, draws: list[list[float]]
) -> Iterator[tuple[float, float]]:
    """Yields points where an object of this scale would overlap an existing one."""
    for which, turn in draws:
        x, y, other_scale = placed[int(which * len(placed))]
        distance = (scale + other_scale) * (_OVERLAP + 0.02 + 0.08 * turn)
        angle = 2.0 * math.pi * ((7.0 * turn) % 1.0)
        yield x + distance * math.cos(angle), y + distance * math.sin(angle)


def sample_scene(rng: np.random.Generator, min_objects: int = 8, max_objects: int = 12) -> Scene:
    """Samples a scene with `min_objects` to `max_objects` objects.

    Args:
        rng: The only source of randomness.
        min_objects: At least 4.
        max_objects: At most 12; more shapes do not fit without hiding each other.

    Raises:
        ValueError: If the bounds are out of range.
    """
    if not 4 <= min_objects <= max_objects <= 12:
        raise ValueError(f"need 4 <= min_objects <= max_objects <= 12, got {min_objects} and {max_objects}")
    color_names = tuple(COLORS)
    size_names = tuple(SIZES)
    while True:
        wanted = int(rng.integers(min_objects, max_objects + 1))
        kind_weights = _KIND_WEIGHTS[int(rng.integers(3, 5))]
        kinds = rng.permutation(len(KINDS))[: len(kind_weights)]
        colors = rng.permutation(len(color_names))[: int(rng.integers(3, 5))]
        textures = rng.permutation(3)
        uniform = rng.random((wanted, 8))
        points = rng.random((wanted, _TRIES_AN_OBJECT, 2)).tolist()
        kind_of = kinds[np.searchsorted(np.cumsum(kind_weights)[:-1], uniform[:, 0], side="right")]
        color_of = colors[(uniform[:, 1] * len(colors)).astype(int)]
        texture_of = textures[np.searchsorted(np.cumsum(_TEXTURE_WEIGHTS)[:-1], uniform[:, 2], side="right")]
        size_of = np.sort(np.searchsorted(np.cumsum(_SIZE_WEIGHTS)[:-1], uniform[:, 3], side="right"))[::-1]
        overlaps = _OVERLAPS_ALLOWED[int(rng.integers(len(_OVERLAPS_ALLOWED)))]
        objects: list[ShapeObject] = []
        placed: list[tuple[float, float, float]] = []
        # Large objects are placed first, and small ones in the gaps.
        for i in range(wanted):
            kind, size = KINDS[kind_of[i]], size_names[size_of[i]]
            scale = SIZES[size] * (1.0 + SIZE_JITTER * (2.0 * float(uniform[i, 4]) - 1.0))
            reach = scale * REACH[kind] + 0.01
            anywhere = ((reach + a * (1.0 - 2.0 * reach), reach + b * (1.0 - 2.0 * reach)) for a, b in points[i])
            if placed and overlaps and uniform[i, 7] < _OVERLAP_SHARE:
                anywhere = chain(_points_beside(placed, scale, points[i][:8]), anywhere)
            place = _free_place(anywhere, reach, scale, placed, overlaps)
            if place is None:
                continue
            x, y, used = place
            overlaps -= used
            placed.append((x, y, scale))
            turn = _LARGEST_TURN.get(kind, _DEFAULT_TURN)
            objects.append(
                ShapeObject(
                    kind=kind,
                    color=color_names[color_of[i]],
                    texture=TEXTURES[texture_of[i]],
                    size=size,
                    x=x,
                    y=y,
                    scale=scale,
                    angle=float(turn * (2.0 * uniform[i, 5] - 1.0)),
                    pattern_angle=float(math.pi * uniform[i, 6]),
                )
            )
        if len(objects) >= min_objects:
            break
    # The depth order is random, so that it does not depend on the sizes of overlapping shapes.
    order = rng.permutation(len(objects))
    background = ("plain", "gradient", "noise", "noise")[int(rng.integers(4))]
    return Scene(tuple(objects[i] for i in order), background, int(rng.integers(2**31)))
