"""Makes new training images by pasting annotated objects from one photo into another.

In most photos, the noun is enough to find the object, so a model may learn to ignore all other words. With a second
object of the same category, cut out of another photo, position, size and relation matter. Pasting whole instances
follows Ghiasi et al. 2021 ("Simple Copy-Paste"), here with distractors chosen by category. The masks of covered
objects are cut accordingly, so that every annotation of the new image is exact.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ..data.masks import decode_mask, to_rle
from .annotated_photo import AnnotatedPhoto, PhotoObject, box_of
from .wording import FIXTURES


_TRIES = 20
# Limits for the area of a cutout as a share of its photo, and for the share of another object that it may cover.
_SMALLEST, _LARGEST = 0.01, 0.2
_MOST_COVERED = 0.3


@dataclass(frozen=True)
class Cutout:
    """An object cut out of a photo: its pixels, its mask of mode "L", and the size (width, height) of the photo."""

    category_id: int
    photo_id: int
    photo_size: tuple[int, int]
    pixels: Image.Image
    stencil: Image.Image


class CutoutCollection:
    """
    Objects for pasting, by category: complete objects of medium size, away from the edges, except for furniture and
    other fixtures.

    Args:
        photos (`Iterable[tuple[Mapping, Iterable[Mapping]]]`):
            COCO image entries, each with its annotations, all of which must be readable.
        categories (`Mapping[int, str]`):
            Name of each category.
        open_photo (`Callable[[int], Image.Image]`):
            Returns the pixels of a photo for its id.
    """

    def __init__(
        self,
        photos: Iterable[tuple[Mapping[str, Any], Iterable[Mapping[str, Any]]]],
        categories: Mapping[int, str],
        open_photo: Callable[[int], Image.Image],
    ):
        self._open_photo = open_photo
        self._cut: dict[int, Cutout] = {}
        self._sources: dict[int, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = defaultdict(list)
        for photo, annotations in photos:
            for annotation in annotations:
                is_fixture = categories[annotation["category_id"]] in FIXTURES
                if not annotation.get("iscrowd") and not is_fixture and _is_worth_pasting(photo, annotation):
                    self._sources[annotation["category_id"]].append((photo, annotation))

    def choose(self, present: Iterable[int], photo_id: int, generator: random.Random) -> Cutout | None:
        """Returns a random object of another photo, mostly of a category that is already present, or `None`."""
        known = [category for category in sorted(set(present)) if category in self._sources]
        pool = known if known and generator.random() < 0.8 else sorted(self._sources)
        if not pool:
            return None
        photo, annotation = generator.choice(self._sources[generator.choice(pool)])
        return self._cutout(photo, annotation) if photo["id"] != photo_id else None

    def _cutout(self, photo: Mapping[str, Any], annotation: Mapping[str, Any]) -> Cutout:
        if annotation["id"] not in self._cut:
            mask = decode_mask(to_rle(annotation["segmentation"], photo["height"], photo["width"]))
            left, top, right, bottom = box_of(mask)
            self._cut[annotation["id"]] = Cutout(
                annotation["category_id"],
                photo["id"],
                (photo["width"], photo["height"]),
                self._open_photo(photo["id"]).crop((left, top, right, bottom)),
                Image.fromarray(mask[top:bottom, left:right].astype(np.uint8) * 255),
            )
        return self._cut[annotation["id"]]


def _is_worth_pasting(photo: Mapping[str, Any], annotation: Mapping[str, Any]) -> bool:
    left, top, width, height = annotation["bbox"]
    inside = left > 2 and top > 2 and left + width < photo["width"] - 2 and top + height < photo["height"] - 2
    share = annotation.get("area", width * height) / (photo["width"] * photo["height"])
    return inside and _SMALLEST < share < _LARGEST


def paste_objects(
    photo: AnnotatedPhoto, photo_id: int, cutouts: CutoutCollection, generator: random.Random
) -> tuple[AnnotatedPhoto, list[int]]:
    """
    Pastes one to three objects of other photos into a photo.

    Args:
        photo (`AnnotatedPhoto`):
            The photo, which is not changed.
        photo_id (`int`):
            Id of the photo, since objects are not pasted into their own photo.
        cutouts (`CutoutCollection`):
            Objects for pasting.
        generator (`random.Random`):
            Source of randomness.

    Returns:
        `tuple[AnnotatedPhoto, list[int]]`: the new image, and the ids of the photos that objects were pasted from. The
        list is empty if there was no suitable position.
    """
    present = [item.category_id for item in photo.objects]
    used = []
    for _ in range(generator.choice((1, 1, 2, 3))):
        cutout = cutouts.choose(present, photo_id, generator)
        if cutout is not None:
            pasted = _paste(photo, cutout, generator)
            if pasted is not None:
                photo = pasted
                used.append(cutout.photo_id)
    return photo, used


def _paste(photo: AnnotatedPhoto, cutout: Cutout, generator: random.Random) -> AnnotatedPhoto | None:
    """Pastes an object where it covers little of other objects. Returns `None` if there is no such position."""
    pixels, stencil = cutout.pixels, cutout.stencil
    if generator.random() < 0.5:
        flip = Image.Transpose.FLIP_LEFT_RIGHT
        pixels, stencil = pixels.transpose(flip), stencil.transpose(flip)
    width, height = photo.pixels.size
    fit = min(width / cutout.photo_size[0], height / cutout.photo_size[1])
    for _ in range(_TRIES):
        scale = generator.uniform(0.6, 1.3) * fit
        size = (round(pixels.width * scale), round(pixels.height * scale))
        if min(size) < 8 or size[0] >= width or size[1] >= height:
            continue
        left, top = generator.randrange(width - size[0]), generator.randrange(height - size[1])
        shape = stencil.resize(size, Image.Resampling.BILINEAR)
        placed = np.asarray(shape) >= 128
        rows, columns = slice(top, top + size[1]), slice(left, left + size[0])
        covered = [np.count_nonzero(item.mask[rows, columns] & placed) for item in photo.objects]
        areas = [np.count_nonzero(item.mask) for item in photo.objects]
        is_hiding = any(lost > _MOST_COVERED * area for lost, area in zip(covered, areas, strict=True))
        if is_hiding or not placed.any():
            continue
        canvas = photo.pixels.copy()
        soft = shape.filter(ImageFilter.GaussianBlur(0.7))
        canvas.paste(pixels.resize(size, Image.Resampling.LANCZOS), (left, top), soft)
        mask = np.zeros((height, width), dtype=bool)
        mask[rows, columns] = placed
        objects = [
            PhotoObject(item.category_id, item.mask & ~mask, item.is_crowd, item.visible_share * (1 - lost / area))
            for item, lost, area in zip(photo.objects, covered, areas, strict=True)
        ]
        objects.append(PhotoObject(cutout.category_id, mask))
        return AnnotatedPhoto(canvas, tuple(objects), photo.has_true_colors, has_pasted=True)
    return None
