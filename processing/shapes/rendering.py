"""Renders a scene of the synthetic benchmark: the image, and the visible object at each pixel.

A pixel belongs to the frontmost object whose outline contains the center of the pixel. This is computed from the
formula of the shape, not from a rasterized polygon, so masks are exact at every image size. Only colors at the
outlines are blended.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from .scene import COLORS, REACH, Scene


_HEART_SIDE = 1.0 / math.sqrt(1.0 + math.pi / 4.0)
_HEART_DROP = 0.16578
_SIN_36, _COS_36 = math.sin(math.pi / 5), math.cos(math.pi / 5)
_STAR_OUTER = 1.0 / math.sqrt(5.0 * 0.45 * _SIN_36)
_STAR_INNER = 0.45 * _STAR_OUTER
_STAR_EDGE = math.hypot(_STAR_OUTER - _STAR_INNER * _COS_36, _STAR_INNER * _SIN_36)
_CROSS_LENGTH = 1.0 / math.sqrt(8.0 * 0.36 - 4.0 * 0.36**2)
_CROSS_WIDTH = 0.36 * _CROSS_LENGTH
_RING_OUTER = 1.0 / math.sqrt(math.pi * (1.0 - 0.52**2))
_RING_INNER = 0.52 * _RING_OUTER
_DIAMOND_X = 1.0 / math.sqrt(3.0)
_DIAMOND_Y = 1.5 * _DIAMOND_X


def signed_distance(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to the outline of a shape of area 1 with its centroid at the origin, negative inside.

    The sign is exact everywhere. The value is the exact distance near the straight and round parts of the outline, and
    a lower bound near corners.

    Args:
        kind: One of `processing.shapes.scene.KINDS`.
        u: Coordinates to the right, an array of any shape.
        v: Coordinates downward, of the same shape.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind == "circle":
        return np.hypot(u, v) - math.sqrt(1.0 / math.pi)
    if kind == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.5
    if kind == "triangle":
        slanted = (math.sqrt(3.0) / 2.0) * np.abs(u) - 0.5 * v
        return np.maximum(slanted, v) - 1.0 / math.sqrt(3.0 * math.sqrt(3.0))
    if kind == "star":
        sector = 2.0 * math.pi / 5.0
        angle = np.arctan2(u, -v)
        angle = np.abs(angle - sector * np.round(angle / sector))
        radius = np.hypot(u, v)
        along, aside = radius * np.cos(angle), radius * np.sin(angle)
        rise, run = _STAR_INNER * _SIN_36, _STAR_OUTER - _STAR_INNER * _COS_36
        return ((along - _STAR_OUTER) * rise + aside * run) / _STAR_EDGE
    if kind == "cross":
        across, down = np.abs(u), np.abs(v)
        longer, shorter = np.maximum(across, down), np.minimum(across, down)
        return np.maximum(longer - _CROSS_LENGTH, shorter - _CROSS_WIDTH)
    if kind == "ring":
        middle, half = 0.5 * (_RING_OUTER + _RING_INNER), 0.5 * (_RING_OUTER - _RING_INNER)
        return np.abs(np.hypot(u, v) - middle) - half
    if kind == "heart":
        # A square on its tip with half a disc on each upper side.
        across, down = np.abs(u), v - _HEART_DROP
        center = _HEART_SIDE / (2.0 * math.sqrt(2.0))
        square = (across + np.abs(down)) / math.sqrt(2.0) - _HEART_SIDE / 2.0
        return np.minimum(square, np.hypot(across - center, down + center) - _HEART_SIDE / 2.0)
    if kind == "diamond":
        scale = _DIAMOND_X * _DIAMOND_Y / math.hypot(_DIAMOND_X, _DIAMOND_Y)
        return (np.abs(u) / _DIAMOND_X + np.abs(v) / _DIAMOND_Y - 1.0) * scale
    raise ValueError(f"unknown kind of shape {kind!r}; choose one of {', '.join(REACH)}")


def _octaves(rng: np.random.Generator, side: int) -> np.ndarray:
    """Generates smooth noise in about [-1, 1] with detail at three scales, `(side, side)` float32."""
    cells = 24
    total = np.zeros((cells, cells), dtype=np.float32)
    for coarse, strength in ((3, 0.5), (8, 0.28), (cells, 0.15)):
        grid = Image.fromarray(np.float32(strength) * rng.standard_normal((coarse, coarse), dtype=np.float32))
        total += np.asarray(grid.resize((cells, cells), Image.Resampling.BICUBIC))
    return np.asarray(Image.fromarray(total).resize((side, side), Image.Resampling.BICUBIC))


def _background(rng: np.random.Generator, kind: str, side: int) -> np.ndarray:
    """Generates a background, `(3, side, side)` float32 in about 0..255, muted so that the objects stand out."""
    base, other = rng.uniform(85.0, 190.0, size=(2, 1, 1, 1)) + rng.uniform(-26.0, 26.0, size=(2, 3, 1, 1))
    base, other = base.astype(np.float32), other.astype(np.float32)
    if kind == "plain":
        return np.broadcast_to(base, (3, side, side)).copy()
    if kind == "gradient":
        angle = rng.uniform(0.0, 2.0 * math.pi)
        ramp = np.linspace(-0.35, 0.35, side, dtype=np.float32)
        mix = 0.5 + np.float32(math.cos(angle)) * ramp[None, :] + np.float32(math.sin(angle)) * ramp[:, None]
        return base + mix * (other - base)
    grain = rng.integers(-9, 10, size=(3, side, side), dtype=np.int8)
    return base + (0.5 + 0.6 * _octaves(rng, side)) * (other - base) + (22.0 * _octaves(rng, side) + grain)


def _pattern(texture: str, u: np.ndarray, v: np.ndarray, angle: float, period: float) -> np.ndarray | None:
    """Returns booleans where the second color is, or `None` for a solid object. `period` is in units of `u`, `v`."""
    if texture == "solid":
        return None
    cosine, sine = math.cos(angle) / period, math.sin(angle) / period
    along = cosine * u + sine * v
    if texture == "striped":
        return along - np.floor(along) < 0.45
    aside = cosine * v - sine * u
    return np.hypot(along - np.round(along), aside - np.round(aside)) < 0.33


def render_scene(scene: Scene, image_size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Renders a scene.

    Args:
        scene: The scene.
        image_size: Height and width of the image in pixels, at least 32.

    Returns:
        The image, `(image_size, image_size, 3)` uint8, and the owners, `(image_size, image_size)` int8: the index of
        the visible object at each pixel, -1 for the background. `owners == i` is the exact visible mask of object `i`.

    Raises:
        ValueError: If the image is too small to distinguish the shapes.
    """
    if image_size < 32:
        raise ValueError(f"image_size must be at least 32 pixels, got {image_size}")
    rng = np.random.default_rng(scene.look_seed)
    canvas = _background(rng, scene.background, image_size)
    owners = np.full((image_size, image_size), -1, dtype=np.int8)
    looks = rng.random((len(scene.objects), 5), dtype=np.float32)
    for index, (shape, look) in enumerate(zip(scene.objects, looks, strict=True)):
        size = shape.scale * image_size
        center_x, center_y = shape.x * image_size - 0.5, shape.y * image_size - 0.5
        reach = REACH[shape.kind] * size + 1.0
        left, right = max(math.floor(center_x - reach), 0), min(math.ceil(center_x + reach) + 1, image_size)
        top, bottom = max(math.floor(center_y - reach), 0), min(math.ceil(center_y + reach) + 1, image_size)
        # Coordinates relative to the shape, in units of its size and rotated by its angle.
        across = (np.arange(left, right, dtype=np.float32)[None, :] - np.float32(center_x)) / np.float32(size)
        down = (np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(center_y)) / np.float32(size)
        cosine, sine = np.float32(math.cos(shape.angle)), np.float32(math.sin(shape.angle))
        u, v = cosine * across + sine * down, cosine * down - sine * across
        distance = np.float32(size) * signed_distance(shape.kind, u, v)

        color = np.asarray(COLORS[shape.color], dtype=np.float32) + 16.0 * (look[:3] - 0.5)
        shade = 0.38 * color if sum(COLORS[shape.color]) > 315 else 0.45 * color + 130.0
        paint = color[:, None, None]
        second = _pattern(shape.texture, u, v, shape.pattern_angle, max(0.047, 4.0 / image_size) / shape.scale)
        if second is not None:
            paint = paint + second * (shade - color)[:, None, None]
        # Light from one side, and a darker rim that separates touching objects of the same color.
        light = 1.0 + (0.2 * look[3] - 0.1) * u + (0.2 * look[4] - 0.1) * v
        light[distance > -image_size / 110.0] *= 0.72
        cover = np.clip(0.5 - distance, 0.0, 1.0)
        window = canvas[:, top:bottom, left:right]
        window *= 1.0 - cover
        window += paint * (light * cover)
        owners[top:bottom, left:right][distance < 0.0] = index
    pixels = np.clip(canvas + 0.5, 0.0, 255.0).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)), owners
