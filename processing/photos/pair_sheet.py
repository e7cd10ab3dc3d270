"""A sheet of random pairs of expression and mask, to check the expressions by eye."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..data.masks import decode_mask
from ..visualization import draw_overlay


_TILE, _MARGIN = 380, 10


def choose_pairs(rows: Sequence[Mapping[str, Any]], number: int, seed: int = 0) -> list[tuple[int, int]]:
    """
    Chooses random expressions, at most one per image.

    Args:
        rows (`Sequence[Mapping]`): Canonical rows.
        number (`int`): Number of expressions. There are fewer if there are fewer rows with expressions.
        seed (`int`, *optional*, defaults to 0): Random seed.

    Returns:
        `list[tuple[int, int]]`: index of the row, and index of the expression in it.
    """
    generator = random.Random(seed)
    order = generator.sample(range(len(rows)), len(rows))
    pairs = []
    for row in order:
        if len(pairs) == number:
            break
        expressions = rows[row]["expressions"]
        if expressions:
            pairs.append((row, generator.randrange(len(expressions))))
    return pairs


def draw_pair_sheet(
    rows: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[int, int]], columns: int = 4
) -> Image.Image:
    """
    Draws the image of each pair with the outline of its mask, its number, its level and its expression.

    Args:
        rows (`Sequence[Mapping]`): Canonical rows, with images.
        pairs (`Sequence[tuple[int, int]]`): The result of [`choose_pairs`].
        columns (`int`, *optional*, defaults to 4): Tiles per row.

    Returns:
        `Image.Image`: an image of mode RGB.
    """
    tiles = [_tile(rows[row], expression, number) for number, (row, expression) in enumerate(pairs, start=1)]
    lines = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in line) + _MARGIN for line in lines]
    width = max(tile.width for tile in tiles) + _MARGIN
    sheet = Image.new("RGB", (columns * width + _MARGIN, sum(heights) + _MARGIN), "white")
    top = _MARGIN
    for line, height in zip(lines, heights, strict=True):
        for column, tile in enumerate(line):
            sheet.paste(tile, (_MARGIN + column * width, top))
        top += height
    return sheet


def _tile(row: Mapping[str, Any], expression: int, number: int) -> Image.Image:
    image = row["image"].convert("RGB")
    mask = Image.fromarray(decode_mask(row["masks"][row["mask_index"][expression]]))
    scale = _TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    levels = row.get("levels")
    level = f" {levels[expression]}:" if levels else ""
    absent = "" if mask.getbbox() else " (not in the image)"
    caption = f"{number}{level} {row['expressions'][expression]}{absent}"
    return draw_overlay(
        image.resize(size, Image.Resampling.LANCZOS),
        [mask.resize(size, Image.Resampling.NEAREST)],
        [caption],
        opacity=0,  # a fill would change the colors that the expressions name
        colors=[(255, 0, 255)],
    )
