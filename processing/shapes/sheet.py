"""A sheet of samples of the synthetic benchmark: a few images per level, each with an expression and its mask."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from ..visualization import draw_overlay
from .expressions import LEVELS, Expression
from .oracles import LabeledScene


_TILE = 256
_TEXT_LINES = 4
_LINE_HEIGHT = 15
_MARGIN = 8
_OUTLINE = (255, 0, 255)


def _tile(item: LabeledScene, expression: Expression) -> Image.Image:
    """Returns the image with outlined targets, and with everything else dimmed."""
    size = (_TILE, _TILE)
    targets = Image.fromarray(item.target_mask(expression)).resize(size, Image.Resampling.NEAREST)
    image = Image.fromarray(item.image).resize(size, Image.Resampling.BICUBIC)
    dimmed = ImageEnhance.Brightness(image).enhance(0.62)
    return draw_overlay(Image.composite(image, dimmed, targets), [targets], opacity=0, colors=[_OUTLINE])


def draw_sheet(items: Sequence[LabeledScene], columns: int = 6) -> Image.Image:
    """Draws up to `columns` samples per level, with one row per level.

    Targets keep their brightness and get a magenta outline. If there is no outline, the expression has no target.

    Args:
        items: Scenes to choose from, with at most one sample per scene and level.
        columns: Number of samples per level.

    Raises:
        ValueError: If `columns` is below 1, or if `items` contain no expression.
    """
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    rows: dict[str, list[tuple[LabeledScene, Expression]]] = {}
    for level in LEVELS:
        of_level = [
            (item, next(one for one in item.expressions if one.level == level))
            for item in items
            if any(one.level == level for one in item.expressions)
        ]
        if of_level:
            # Each level starts at another scene, so that the sheet shows many different scenes.
            start = len(rows) * columns
            rows[level] = [of_level[(start + turn) % len(of_level)] for turn in range(min(columns, len(of_level)))]
    if not rows:
        raise ValueError("there is no expression to draw")
    width, height = _TILE + _MARGIN, _TILE + (_TEXT_LINES + 1) * _LINE_HEIGHT + _MARGIN
    sheet = Image.new("RGB", (columns * width + _MARGIN, len(rows) * height + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font, bold = ImageFont.load_default(12), ImageFont.load_default(13)
    for row, (level, samples) in enumerate(rows.items()):
        for column, (item, expression) in enumerate(samples):
            left, top = _MARGIN + column * width, _MARGIN + row * height
            sheet.paste(_tile(item, expression), (left, top))
            draw.text((left, top + _TILE), level, fill=(150, 0, 120), font=bold)
            for line, text in enumerate(textwrap.wrap(expression.text, 40)[:_TEXT_LINES]):
                draw.text((left, top + _TILE + (line + 1) * _LINE_HEIGHT), text, fill="black", font=font)
    return sheet
