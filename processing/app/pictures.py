"""Images, HTML and downloads of the page."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..visualization import COLORS, color_of, draw_overlay
from .predictions import Result, StageMaps


# Larger photos are scaled down on the page; downloads have the size of the photo.
SCREEN_SIDE = 1024
MAP_SIDE = 320


def fit(image: Image.Image, side: int = SCREEN_SIDE) -> Image.Image:
    """Returns the image, scaled down if its longer side has more than `side` pixels."""
    if max(image.size) <= side:
        return image
    return ImageOps.contain(image, (side, side))


def mask_image(mask: np.ndarray) -> Image.Image:
    """Returns an image of mode "L", 255 on the referent and 0 elsewhere."""
    return Image.fromarray(mask.astype(np.uint8) * 255)


def cut_out(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Returns an image of mode "RGBA" with the referent, transparent elsewhere."""
    cut = image.convert("RGB")
    cut.putalpha(mask_image(mask))
    return cut


def overlay(image: Image.Image, results: Sequence[Result]) -> Image.Image:
    """Draws each mask over the image in the color of its index. The image must have the size of the masks."""
    return draw_overlay(image, [mask_image(result.mask) for result in results])


def run_lengths(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Returns one entry per expression, with its mask as compressed COCO RLE under "segmentation"."""
    from ..data.masks import encode_mask, mask_area  # pycocotools, which only the downloads need

    entries = []
    for result in results:
        rle = encode_mask(result.mask)
        entries.append(
            {
                "expression": result.expression,
                "score": round(result.score, 6),
                "area": mask_area(rle),
                "segmentation": rle,
            }
        )
    return entries


def legend(results: Sequence[Result]) -> str:
    """Returns HTML with the color, the expression, the score and notes of each result."""
    rows = []
    for index, result in enumerate(results):
        notes = []
        if result.is_absent:
            notes.append("not in the image")
        else:
            notes.append(f"{result.mask.mean():.1%} of the image")
        if result.unknown_words:
            words = ", ".join(f"“{word}”" for word in result.unknown_words)
            noun = "word" if len(result.unknown_words) == 1 else "words"
            notes.append(f"the model does not know the {noun} {words}")
        color = COLORS[index % len(COLORS)]
        rows.append(
            f'<li class="{"absent" if result.is_absent else "found"}">'
            f'<span class="swatch" style="background:{color}"></span>'
            f'<span class="expression">{html.escape(result.expression)}</span>'
            f'<span class="score">{result.score:.2f}</span>'
            f'<span class="notes">{html.escape("; ".join(notes))}</span></li>'
        )
    return f'<ul class="legend">{"".join(rows)}</ul>'


def message(text: str) -> str:
    """Returns HTML with an error message."""
    text = text[:1].upper() + text[1:]
    return f'<p class="message" role="alert">{html.escape(text if text.endswith((".", "?", "!")) else text + ".")}</p>'


def cascade(image: Image.Image, stages: Sequence[StageMaps], index: int) -> str:
    """Returns HTML with one row of images per stage, coarse to fine, for expression number `index`."""
    background = fit(image, MAP_SIDE)
    color = color_of(index)
    rows = []
    for number, stage in enumerate(stages, start=1):
        drawn = [
            ("Mask", stage.mask, color),
            ("Landmarks", stage.landmarks, (230, 159, 0)),
            ("Attention of context tokens", stage.attention, (240, 228, 66)),
            ("Filter of PAN", stage.alignment_filter, (86, 180, 233)),
        ]
        figures = "".join(
            f'<figure><img alt="{title}, stage {number}" src="{_data_url(draw_map(background, values, paint))}">'
            f"<figcaption>{title}</figcaption></figure>"
            for title, values, paint in drawn
            if values is not None
        )
        rows.append(f'<h4>Stage {number} of {len(stages)}</h4><div class="stage">{figures}</div>')
    return f'<div class="cascade">{"".join(rows)}</div>'


def draw_map(image: Image.Image, values: np.ndarray, color: tuple[int, int, int]) -> Image.Image:
    """Draws `values` (height, width), from 0 to 1, in `color` over a dark gray copy of the image."""
    dark = ImageOps.grayscale(image).point(lambda value: value * 0.45).convert("RGB")
    strength = Image.fromarray(np.rint(values.clip(0, 1) * 255).astype(np.uint8)).resize(
        image.size, Image.Resampling.BILINEAR
    )
    return Image.composite(Image.new("RGB", image.size, color), dark, strength)


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
