"""Draws predicted masks over their image, with Pillow and NumPy."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFont


# Colors that color-blind people can tell apart (Okabe and Ito, 2008, "Color Universal Design"), starting with those
# that stand out most in photographs.
COLORS = ("#D55E00", "#0072B2", "#F0E442", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")

# A legend widens a small image up to this many pixels; longer captions are cut and end in dots.
_LEGEND_WIDTH = 480


def color_of(index: int) -> tuple[int, int, int]:
    """Returns the color (red, green, blue) of expression number `index`. The colors repeat after seven."""
    red, green, blue = ImageColor.getrgb(COLORS[index % len(COLORS)])[:3]
    return red, green, blue


def draw_overlay(
    image: Image.Image,
    masks: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    opacity: float = 0.45,
    colors: Sequence[tuple[int, int, int]] | None = None,
) -> Image.Image:
    """
    Draws each mask over the image in its own color, with an outline, and optionally a legend below the image.

    Args:
        image: The image, of any mode.
        masks: Images of mode "L" or "1" and of the same size; every pixel that is not zero belongs to the mask.
        captions: One line of text per mask. `None` draws no legend.
        opacity: Opacity of the fill, from 0 (outline only) to 1 (opaque).
        colors: One (red, green, blue) per mask. Defaults to those of [`color_of`].

    Returns:
        An image of mode "RGB". It is higher than `image` by the legend, and wider than a small image if the captions
        need the space.

    Raises:
        ValueError: If a mask has another size, or if the number of captions or colors is not that of the masks.
    """
    for name, values in (("captions", captions), ("colors", colors)):
        if values is not None and len(values) != len(masks):
            raise ValueError(f"`{name}` has {len(values)} entries for {len(masks)} masks: give one per mask.")
    colors = [color_of(index) for index in range(len(masks))] if colors is None else list(colors)
    overlay = image.convert("RGB")
    margin = max(1, round(min(image.size) / 400))
    for index, (mask, color) in enumerate(zip(masks, colors, strict=True)):
        if mask.size != image.size:
            raise ValueError(
                f"`masks[{index}]` has the size {mask.size}, but the image has {image.size}: resize the mask."
            )
        inside = mask.convert("L").point(lambda value: 255 if value else 0)
        box = inside.getbbox()
        if box is None:
            continue
        # Drawing changes nothing outside this part. With the margin, the outline of the part is that of the whole.
        left, top, right, bottom = box
        box = (
            max(0, left - margin),
            max(0, top - margin),
            min(image.width, right + margin),
            min(image.height, bottom + margin),
        )
        inside, part = inside.crop(box), overlay.crop(box)
        paint = Image.new("RGB", part.size, color)
        part = Image.composite(Image.blend(part, paint, opacity), part, inside)
        part.paste(paint, mask=ImageChops.difference(inside, _eroded(inside, margin)))
        overlay.paste(part, box)
    return overlay if captions is None else _with_legend(overlay, captions, colors)


def _eroded(inside: Image.Image, margin: int) -> Image.Image:
    """
    The pixels whose whole neighborhood, `margin` pixels to each side, is inside. What lies beyond the edge of the
    image counts as inside. A filter of Pillow would look at each pixel of each neighborhood; here neighborhoods are
    joined to neighborhoods of twice the size, first along columns, then along rows.
    """
    array = np.asarray(inside)
    for _ in range(2):
        array = np.pad(array.T, ((margin, margin), (0, 0)), constant_values=255)
        covered = 1
        while covered < 2 * margin + 1:
            step = min(covered, 2 * margin + 1 - covered)
            array = np.minimum(array[:-step], array[step:])
            covered += step
    return Image.fromarray(array)


def _with_legend(image: Image.Image, captions: Sequence[str], colors: Sequence[tuple[int, int, int]]) -> Image.Image:
    font_size = max(12, round(image.height / 28))
    font = ImageFont.load_default(size=font_size)
    margin = font_size // 2
    row_height = round(font_size * 1.5)
    left = 2 * margin + font_size
    wanted = left + margin + math.ceil(max((font.getlength(caption) for caption in captions), default=0))
    width = max(image.width, min(wanted, _LEGEND_WIDTH))
    canvas = Image.new("RGB", (width, image.height + row_height * len(captions) + margin), "white")
    canvas.paste(image)
    draw = ImageDraw.Draw(canvas)
    for index, (caption, color) in enumerate(zip(captions, colors, strict=True)):
        top = image.height + margin // 2 + index * row_height
        draw.rectangle((margin, top + font_size // 5, margin + font_size, top + font_size * 6 // 5), fill=color)
        draw.text((left, top), _fitted(caption, font, width - left - margin), fill="black", font=font)
    return canvas


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
