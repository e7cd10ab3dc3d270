"""Names of colors, measured in the pixels of an object.

Each name has two regions in CIE LCh (lightness, chroma and hue of CIE Lab): in the narrow one, everybody would use the
name; outside the wide one, nobody would. An object clearly has a color if most of its pixels are in the narrow region,
and clearly lacks it if hardly any pixel is in the wide one. In all other cases, the color is not mentioned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np


@dataclass(frozen=True)
class _Region:
    """A box in lightness, chroma and hue. The range of hues can include 360 degrees."""

    lightness: tuple[float, float]
    chroma: tuple[float, float] = (0, 200)
    hue: tuple[float, float] = (0, 360)

    def holds(self, lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
        darkest, lightest = self.lightness
        dullest, strongest = self.chroma
        first, last = self.hue
        hue_from_first = (hue - first) % 360
        return (
            (lightness >= darkest)
            & (lightness <= lightest)
            & (chroma >= dullest)
            & (chroma <= strongest)
            & (hue_from_first <= last - first)
        )


# Chosen by eye, for sRGB with daylight white: (narrow, wide).
_REGIONS: dict[str, tuple[_Region, _Region]] = {
    "red": (_Region((20, 62), (42, 200), (15, 44)), _Region((10, 75), (22, 200), (-15, 58))),
    "orange": (_Region((50, 85), (50, 200), (52, 74)), _Region((35, 95), (30, 200), (40, 88))),
    "yellow": (_Region((65, 100), (45, 200), (84, 108)), _Region((50, 100), (22, 200), (70, 118))),
    "green": (_Region((15, 90), (20, 200), (114, 175)), _Region((5, 100), (9, 200), (98, 205))),
    "blue": (_Region((12, 80), (22, 200), (245, 305)), _Region((5, 95), (8, 200), (205, 318))),
    "purple": (_Region((12, 60), (26, 200), (310, 340)), _Region((5, 85), (10, 200), (292, 362))),
    "pink": (_Region((55, 92), (22, 200), (-20, 18)), _Region((35, 97), (10, 200), (-40, 42))),
    "brown": (_Region((18, 50), (16, 50), (45, 82)), _Region((8, 75), (7, 75), (20, 100))),
    "black": (_Region((0, 20), (0, 9)), _Region((0, 40), (0, 22))),
    "white": (_Region((82, 100), (0, 9)), _Region((60, 100), (0, 20))),
    "gray": (_Region((35, 62), (0, 6)), _Region((18, 90), (0, 15))),
    "dark": (_Region((0, 24), (0, 16)), _Region((0, 50))),
}
COLOR_NAMES = tuple(_REGIONS)

# Shares of the pixels for which a color is clear, for which its absence is clear, and for which it is a visible part.
_MOST_ARE_SURE, _NEARLY_ALL_MAY_BE = 0.5, 0.75
_HARDLY_ANY = 0.15
_A_PART = 0.25
# Share of dark pixels above which the light in a photo is dim.
_DIM = 0.4
# Pixels are looked up in a table of colors with 5 bits per channel.
_BITS = 5


@dataclass(frozen=True)
class ColorShares:
    """Shares of the pixels of an object in the narrow (`sure`) and the wide (`possible`) region of each color name."""

    sure: tuple[float, ...]
    possible: tuple[float, ...]

    def clear_colors(self) -> list[str]:
        """Returns the names that clearly apply. `"dark"` can apply together with another one."""
        return [
            name
            for name, sure, possible in zip(COLOR_NAMES, self.sure, self.possible, strict=True)
            if sure >= _MOST_ARE_SURE and possible >= _NEARLY_ALL_MAY_BE
        ]

    def clearly_lacks(self, name: str) -> bool:
        """Whether nobody would use this name for the object."""
        return self.possible[COLOR_NAMES.index(name)] <= _HARDLY_ANY

    def shows(self, name: str) -> bool:
        """Whether a part of the object surely has this color."""
        return self.sure[COLOR_NAMES.index(name)] >= _A_PART


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each color of the table, whether it is in the narrow and in the wide region of each name."""
    steps = (np.arange(2**_BITS) + 0.5) / 2**_BITS
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness, chroma, hue = _to_lch(rgb)
    sure, possible = (
        np.stack([pair[index].holds(lightness, chroma, hue) for pair in _REGIONS.values()], axis=1)
        for index in range(2)
    )
    return sure, possible


def _to_lch(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Converts sRGB from 0 to 1 to lightness, chroma and hue in degrees (CIE 1976, white point D65)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    lightness = 116 * root[:, 1] - 16
    a, b = 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])
    return lightness, np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360


def color_indices(pixels: np.ndarray) -> np.ndarray:
    """Returns the index in the table of colors of each pixel of an 8-bit image (height, width, 3)."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32) >> (8 - _BITS), -1, 0)
    return (red << 2 * _BITS) | (green << _BITS) | blue


def is_dim(indices: np.ndarray) -> bool:
    """Whether a photo, given by its [`color_indices`], is so dark that everything in it looks black or dark."""
    sure, _ = _tables()
    return bool(sure[indices, COLOR_NAMES.index("dark")].mean() > _DIM)


def measure_colors(indices: np.ndarray, in_dim_light: bool = False) -> ColorShares:
    """
    Measures the shares of the color names.

    Args:
        indices (`np.ndarray` of shape `(number_of_pixels,)`):
            [`color_indices`] of the pixels of one object, at least one.
        in_dim_light (`bool`, *optional*, defaults to `False`):
            Whether the light is dim, so that nothing is clearly black, dark or gray: see [`is_dim`].
    """
    sure, possible = _tables()
    sure = sure[indices]
    if in_dim_light:
        sure[:, [COLOR_NAMES.index(name) for name in ("black", "dark", "gray")]] = False
    return ColorShares(_as_shares(sure), _as_shares(possible[indices]))


def _as_shares(found: np.ndarray) -> tuple[float, ...]:
    shares: Sequence[float] = found.mean(axis=0).tolist()
    return tuple(shares)
