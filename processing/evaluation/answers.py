"""Compares the masks of a model with the true ones, and draws parts of sheets that show them."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from transformers import pipeline

from ..data.masks import decode_mask
from ..visualization import draw_overlay
from .sheet import MASK_COLORS


GAP = 4
_TASK: Any = "referring-image-segmentation"  # transformers knows it once `processing` is imported
_FONT_SIZE, _LINE_HEIGHT = 13, 17


class Answer(NamedTuple):
    """The predicted and the true mask of one expression: boolean, `(height, width)`."""

    found: np.ndarray
    wanted: np.ndarray

    def counts(self) -> tuple[int, int, int]:
        """Returns the pixels of the intersection, of the predicted mask and of the true mask."""
        return int((self.found & self.wanted).sum()), int(self.found.sum()), int(self.wanted.sum())

    def iou(self) -> float:
        """Returns the intersection over union, which is 1 if both masks are empty."""
        union = (self.found | self.wanted).sum()
        return float((self.found & self.wanted).sum() / union) if union else 1.0


def ask_all(
    model: Any, processor: Any, rows: Iterable[Mapping[str, Any]], column: str = "expressions"
) -> list[list[Answer]]:
    """Segments all expressions of all rows. Expressions that are too long are truncated."""
    ask = pipeline(_TASK, model=model.eval(), processor=processor)
    answers = []
    for row in rows:
        found = [np.asarray(answer["mask"]) > 0 for answer in ask(row["image"], row[column], truncation=True)]
        wanted = [decode_mask(row["masks"][index]) > 0 for index in row["mask_index"]]
        answers.append([Answer(*masks) for masks in zip(found, wanted, strict=True)])
    return answers


def mark(image: Image.Image, answer: Answer) -> Image.Image:
    """Draws true positives, false positives and false negatives in the colors of `MASK_COLORS` on the gray image."""
    parts = (answer.found & answer.wanted, answer.found & ~answer.wanted, answer.wanted & ~answer.found)
    masks = [Image.fromarray(part) for part in parts]
    return draw_overlay(image.convert("L"), masks, opacity=0.6, colors=list(MASK_COLORS.values()))


def grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Arranges pictures in rows of `columns` on white. The height of a row is that of its tallest picture."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    width = max(sum(picture.width + GAP for picture in row) for row in rows)
    heights = [max(picture.height for picture in row) + GAP for row in rows]
    sheet = Image.new("RGB", (width, sum(heights)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for picture in row:
            sheet.paste(picture, (left, top))
            left += picture.width + GAP
        top += height
    return sheet


def with_caption(picture: Image.Image, caption: Sequence[tuple[str, Any]]) -> Image.Image:
    """Adds colored lines of text below a picture. Long lines are wrapped."""
    font = ImageFont.load_default(size=_FONT_SIZE)
    lines = []
    for text, color in caption:
        characters = int(picture.width / font.getlength(text) * len(text))
        lines += [(line, color) for line in textwrap.wrap(text, characters)]
    captioned = Image.new("RGB", (picture.width, picture.height + len(lines) * _LINE_HEIGHT + GAP), "white")
    captioned.paste(picture)
    draw = ImageDraw.Draw(captioned)
    for number, (line, color) in enumerate(lines):
        draw.text((0, picture.height + number * _LINE_HEIGHT), line, fill=color, font=font)
    return captioned
