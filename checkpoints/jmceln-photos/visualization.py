"""Drawing of predicted masks over their picture, with Pillow alone."""

import math
from collections.abc import Sequence

from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter, ImageFont


# Colours that stay apart for colour-blind readers (Okabe and Ito, 2008, "Color Universal Design"), the most visible
# on photographs first.
COLOURS = ("#D55E00", "#0072B2", "#F0E442", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")

# A legend makes a small picture wider up to this many pixels; longer captions end in dots.
_LEGEND_WIDTH = 480


def colour_of(index: int) -> tuple[int, int, int]:
    """The colour (red, green, blue) of the expression number `index`; the colours repeat after seven."""
    red, green, blue = ImageColor.getrgb(COLOURS[index % len(COLOURS)])[:3]
    return red, green, blue


def draw_overlay(
    image: Image.Image,
    masks: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    opacity: float = 0.45,
    colours: Sequence[tuple[int, int, int]] | None = None,
) -> Image.Image:
    """
    Lays each mask over the picture in its own colour, with an outline, and the captions in a legend below it.

    Args:
        image: the picture, of any mode.
        masks: pictures of mode "L" or "1" of the same size; every pixel that is not zero belongs to the mask.
        captions: one line of text a mask; no legend is drawn when `None`.
        opacity: of the fill, from 0 (outline only) to 1 (opaque).
        colours: one (red, green, blue) a mask; by default those of [`colour_of`].

    Returns:
        A picture of mode "RGB": as high as `image` plus the legend, and as wide, or wider where a small picture would
        cut its captions.

    Raises:
        ValueError: a mask of another size, or as many captions or colours as do not fit the masks.
    """
    for name, values in (("captions", captions), ("colours", colours)):
        if values is not None and len(values) != len(masks):
            raise ValueError(f"`{name}` has {len(values)} entries for {len(masks)} masks.")
    colours = [colour_of(index) for index in range(len(masks))] if colours is None else list(colours)
    overlay = image.convert("RGB")
    outline_width = 2 * max(1, round(min(image.size) / 400)) + 1
    for index, (mask, colour) in enumerate(zip(masks, colours, strict=True)):
        if mask.size != image.size:
            raise ValueError(f"`masks[{index}]` has the size {mask.size} but the image has {image.size}.")
        inside = mask.convert("L").point(lambda value: 255 if value else 0)
        paint = Image.new("RGB", image.size, colour)
        overlay = Image.composite(Image.blend(overlay, paint, opacity), overlay, inside)
        outline = ImageChops.difference(inside, inside.filter(ImageFilter.MinFilter(outline_width)))
        overlay.paste(paint, mask=outline)
    return overlay if captions is None else _with_legend(overlay, captions, colours)


def _with_legend(
    picture: Image.Image, captions: Sequence[str], colours: Sequence[tuple[int, int, int]]
) -> Image.Image:
    font_size = max(12, round(picture.height / 28))
    font = ImageFont.load_default(size=font_size)
    margin = font_size // 2
    row_height = round(font_size * 1.5)
    left = 2 * margin + font_size
    wanted = left + margin + math.ceil(max((font.getlength(caption) for caption in captions), default=0))
    width = max(picture.width, min(wanted, _LEGEND_WIDTH))
    canvas = Image.new("RGB", (width, picture.height + row_height * len(captions) + margin), "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for index, (caption, colour) in enumerate(zip(captions, colours, strict=True)):
        top = picture.height + margin // 2 + index * row_height
        draw.rectangle((margin, top + font_size // 5, margin + font_size, top + font_size * 6 // 5), fill=colour)
        draw.text((left, top), _fitted(caption, font, width - left - margin), fill="black", font=font)
    return canvas


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
