"""New versions of an annotated photo. Pixels and masks change together, before expressions are generated.

A mirrored photo would make "the left dog" wrong. Crop, flip, size and color are therefore changed here, together with
the annotations, and not during training.
"""

import random

import numpy as np
from PIL import Image, ImageEnhance

from .annotated_photo import AnnotatedPhoto, PhotoObject


_SMALLEST_CROP = 0.5  # of each side
_WITHOUT_CROP = 0.25
_OTHER_HUE = 0.15
_STRETCH = 0.15


def resize_photo(photo: AnnotatedPhoto, size: tuple[int, int]) -> AnnotatedPhoto:
    """Resizes a photo to (width, height). Objects without any pixel left are dropped."""
    if photo.pixels.size == size:
        return photo
    return _transform(photo, (0, 0, *photo.pixels.size), size, is_flipped=False)


def fit_size(size: tuple[int, int], longest_side: int | None) -> tuple[int, int]:
    """Returns a (width, height) with the same aspect ratio whose longer side has at most `longest_side` pixels."""
    if longest_side is None or max(size) <= longest_side:
        return size
    scale = longest_side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def augment_photo(photo: AnnotatedPhoto, generator: random.Random, longest_side: int | None = None) -> AnnotatedPhoto:
    """
    Returns a version of a photo that is cropped, slightly stretched, mirrored, and changed in brightness, contrast and
    color.

    An object that the crop cuts keeps its visible part (see `visible_share`). If the hue changes, which is rare, the
    version is marked so that no names of colors are used.

    Args:
        photo (`AnnotatedPhoto`):
            The photo, which is not changed.
        generator (`random.Random`):
            Source of randomness.
        longest_side (`int`, *optional*):
            Maximum number of pixels of the longer side.
    """
    width, height = photo.pixels.size
    box = (0, 0, width, height)
    if generator.random() >= _WITHOUT_CROP:
        crop_width, crop_height = (
            max(1, round(side * generator.uniform(_SMALLEST_CROP, 1.0))) for side in (width, height)
        )
        # Long strips would not look like photos.
        crop_width, crop_height = min(crop_width, 2 * crop_height), min(crop_height, 2 * crop_width)
        left, top = generator.randint(0, width - crop_width), generator.randint(0, height - crop_height)
        box = (left, top, left + crop_width, top + crop_height)
    stretch = generator.uniform(1 - _STRETCH, 1 + _STRETCH)
    size = fit_size((max(1, round((box[2] - box[0]) * stretch)), box[3] - box[1]), longest_side)
    version = _transform(photo, box, size, is_flipped=generator.random() < 0.5)
    pixels = version.pixels
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        pixels = enhance(pixels).enhance(generator.uniform(0.85, 1.15))
    has_true_colors = photo.has_true_colors
    if generator.random() < _OTHER_HUE:
        pixels = _shift_hue(pixels, generator.choice((None, generator.randint(15, 240))))
        has_true_colors = False
    return AnnotatedPhoto(pixels, version.objects, has_true_colors, photo.has_pasted)


def _transform(
    photo: AnnotatedPhoto, box: tuple[int, int, int, int], size: tuple[int, int], is_flipped: bool
) -> AnnotatedPhoto:
    left, top, right, bottom = box
    flip = Image.Transpose.FLIP_LEFT_RIGHT
    # As good as Lanczos at these scales, and twice as fast.
    pixels = photo.pixels.resize(size, Image.Resampling.BICUBIC, box=box)
    objects = []
    for item in photo.objects:
        inside = item.mask[top:bottom, left:right]
        visible = np.count_nonzero(inside)
        if visible == 0:
            continue
        mask = np.asarray(Image.fromarray(inside.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) >= 128
        if mask.any():
            share = item.visible_share * float(visible / np.count_nonzero(item.mask))
            objects.append(PhotoObject(item.category_id, mask[:, ::-1] if is_flipped else mask, item.is_crowd, share))
    return AnnotatedPhoto(
        pixels.transpose(flip) if is_flipped else pixels, tuple(objects), photo.has_true_colors, photo.has_pasted
    )


def _shift_hue(pixels: Image.Image, shift: int | None) -> Image.Image:
    """Rotates all hues by `shift` of 256 steps, or removes all color for `None`."""
    if shift is None:
        return pixels.convert("L").convert("RGB")
    hue, saturation, value = pixels.convert("HSV").split()
    hue = hue.point(lambda level: (level + shift) % 256)
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
