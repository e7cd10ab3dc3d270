"""A sheet of results from an evaluation: the best, the worst and random cases."""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.masks import decode_mask
from ..visualization import draw_overlay
from .evaluation import EvaluationSettings


TILE_WIDTH, IMAGE_HEIGHT = 420, 220
CAPTION_LINES = 3
FONT_SIZE = 15
MARGIN = 10

# Bluish green, vermilion and blue of Okabe and Ito (2008), which color-blind people can tell apart.
MASK_COLORS = {"right": (0, 158, 115), "too much": (213, 94, 0), "missed": (0, 114, 178)}


class Case(NamedTuple):
    """One expression of an evaluation."""

    row: int
    expression: int
    iou: float


def choose_cases(
    journal_rows: Iterable[Mapping[str, Any]], settings: EvaluationSettings, number: int, seed: int = 0
) -> dict[str, list[Case]]:
    """
    Chooses `number` best, worst and random expressions, with at most one per image and kind.

    Ties are broken at random, since many IoUs are 0. Among the best, expressions without a target come last, because
    their correct masks are empty.
    """
    cases, has_target = [], {}
    for row in journal_rows:
        for index, expression in enumerate(row["expressions"]):
            cases.append(Case(row["row"], index, settings.sample_iou(expression["counts"])))
            has_target[row["row"], index] = expression["counts"][2] > 0
    cases.sort()
    random.Random(seed).shuffle(cases)
    orders = {
        "best": sorted(cases, key=lambda case: (not has_target[case.row, case.expression], -case.iou)),
        "worst": sorted(cases, key=lambda case: case.iou),
        "random": cases,
    }
    chosen = {}
    for kind, order in orders.items():
        of_image: dict[int, Case] = {}
        for case in order:
            if len(of_image) == number:
                break
            of_image.setdefault(case.row, case)
        chosen[kind] = list(of_image.values())
    return chosen


def draw_sheet(
    cases: Mapping[str, Sequence[Case]],
    dataset_rows: Mapping[int, Mapping[str, Any]],
    journal_rows: Mapping[int, Mapping[str, Any]],
    title: str,
    columns: int = 3,
) -> Image.Image:
    """
    Draws the cases.

    Args:
        cases: The result of `choose_cases`.
        dataset_rows: The canonical rows of the cases, by index.
        journal_rows: The lines of the journal for these rows, by index, with a `mask` for each expression.
        title: The first line of the sheet.
        columns: Number of tiles next to each other.

    Returns:
        An image of mode "RGB".
    """
    font = _font()
    line = round(FONT_SIZE * 1.35)
    tile_height = IMAGE_HEIGHT + CAPTION_LINES * line + MARGIN
    heights = [line * 2 + -(-len(section) // columns) * tile_height for section in cases.values()]
    sheet = Image.new("RGB", (columns * (TILE_WIDTH + MARGIN) + MARGIN, 2 * line + 2 * MARGIN + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, fill="black", font=font)
    left = MARGIN
    for name, color in MASK_COLORS.items():
        draw.rectangle((left, MARGIN + line + 3, left + FONT_SIZE, MARGIN + line + 3 + FONT_SIZE), fill=color)
        draw.text((left + FONT_SIZE + 6, MARGIN + line), name, fill="black", font=font)
        left += FONT_SIZE + 30 + round(font.getlength(name))
    top = MARGIN + 2 * line
    for (kind, section), height in zip(cases.items(), heights, strict=True):
        draw.text((MARGIN, top + line // 2), kind.capitalize(), fill="black", font=font)
        for number, case in enumerate(section):
            position = (
                MARGIN + number % columns * (TILE_WIDTH + MARGIN),
                top + 2 * line + number // columns * tile_height,
            )
            entry = journal_rows[case.row]["expressions"][case.expression]
            sheet.paste(_tile(dataset_rows[case.row], case, entry), position)
            caption = f"IoU {case.iou:.3f}  {entry['text']}"
            for index, text in enumerate(_wrap(caption, font)):
                draw.text((position[0], position[1] + IMAGE_HEIGHT + index * line), text, fill="black", font=font)
        top += height
    return sheet


def _tile(row: Mapping[str, Any], case: Case, entry: Mapping[str, Any]) -> Image.Image:
    """Draws the image and, beside it, a gray copy with the masks. In gray, its own colors cannot be confused."""
    image = row["image"].convert("RGB")
    scale = min((TILE_WIDTH - 4) / 2 / image.width, (IMAGE_HEIGHT - MARGIN) / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    # A protocol may stretch images, so the prediction can have another size than the image: both are resized here.
    predicted, wanted = (
        np.asarray(Image.fromarray(decode_mask(rle)).resize(size, Image.Resampling.NEAREST))
        for rle in (entry["mask"], row["masks"][row["mask_index"][case.expression]])
    )
    masks = [predicted & wanted, predicted & ~wanted, wanted & ~predicted]
    tile = Image.new("RGB", (TILE_WIDTH, IMAGE_HEIGHT), "white")
    tile.paste(image)
    overlays = [Image.fromarray(mask) for mask in masks]
    overlay = draw_overlay(image.convert("L"), overlays, opacity=0.6, colors=list(MASK_COLORS.values()))
    tile.paste(overlay, (size[0] + 4, 0))
    return tile


def _wrap(text: str, font: Any) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= TILE_WIDTH or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > CAPTION_LINES:
        lines = [*lines[: CAPTION_LINES - 1], lines[CAPTION_LINES - 1] + " ..."]
    return lines


def _font() -> Any:
    try:
        return ImageFont.truetype("DejaVuSans.ttf", FONT_SIZE)
    except OSError:
        return ImageFont.load_default(FONT_SIZE)
