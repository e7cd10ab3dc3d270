"""A photo in memory with the masks of its annotated objects, and its description for the expression writer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ..data.masks import decode_mask, encode_mask, to_rle
from .color_names import ColorShares, color_indices, is_dim, measure_colors
from .expressions import Scene, SceneObject
from .wording import CARRIED, SUPPORTS


# If a crop leaves less than this share of an object, expressions do not refer to it.
_LEAST_VISIBLE = 1 / 3
# Minimum number of pixels to determine a color.
_FEWEST_COLORED_PIXELS = 120
# Contact of two masks: their distance as a share of the diagonal, and the share of the smaller one within that
# distance.
_CONTACT_DISTANCE = 0.006
_CONTACT_SHARE = 0.03


@dataclass(frozen=True)
class PhotoObject:
    """
    An object of a photo.

    Args:
        category_id (`int`): Category in COCO.
        mask (`np.ndarray` of shape `(height, width)`): Boolean mask of the visible part.
        is_crowd (`bool`): Whether the annotation stands for several objects.
        visible_share (`float`): Share of the mask in the original photo that is still visible.
    """

    category_id: int
    mask: np.ndarray
    is_crowd: bool = False
    visible_share: float = 1.0


@dataclass(frozen=True)
class AnnotatedPhoto:
    """
    A photo and its objects.

    Args:
        pixels (`Image.Image`): Image of mode RGB.
        objects (`tuple[PhotoObject, ...]`): Objects whose masks are not empty.
        has_true_colors (`bool`): False if hue or saturation was changed so much that names of colors would be wrong.
        has_pasted (`bool`): Whether objects were pasted in, so that contact and depth are not meaningful.
    """

    pixels: Image.Image
    objects: tuple[PhotoObject, ...]
    has_true_colors: bool = True
    has_pasted: bool = False


def read_annotated_photo(
    path: Path, image: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]]
) -> AnnotatedPhoto:
    """
    Reads a photo and its masks.

    Raises:
        ValueError: If the file does not have the size in its entry, or if a mask cannot be read.
        OSError: If the file cannot be read.
    """
    with Image.open(path) as file:
        pixels = file.convert("RGB")
    if pixels.size != (image["width"], image["height"]):
        raise ValueError(
            f"{path} has the size {pixels.size}, but its entry {(image['width'], image['height'])} (width, height)"
        )
    objects = tuple(
        PhotoObject(
            annotation["category_id"],
            decode_mask(to_rle(annotation["segmentation"], image["height"], image["width"])),
            bool(annotation.get("iscrowd")),
        )
        for annotation in annotations
    )
    return AnnotatedPhoto(pixels, tuple(item for item in objects if item.mask.any()))


def coco_annotations(photo: AnnotatedPhoto, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Returns the COCO annotations of the objects of a photo, with masks as RLE and ids from `first_id`."""
    entries = []
    for number, item in enumerate(photo.objects):
        left, top, right, bottom = box_of(item.mask)
        entries.append(
            {
                "id": first_id + number,
                "image_id": image_id,
                "category_id": item.category_id,
                "segmentation": encode_mask(item.mask),
                "area": int(np.count_nonzero(item.mask)),
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": int(item.is_crowd),
            }
        )
    return entries


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom of a non-empty mask; right and bottom are exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def scene_of_photo(
    photo: AnnotatedPhoto,
    image_id: int,
    annotation_ids: Sequence[int],
    categories: Mapping[int, str],
    persons_only: bool = False,
) -> Scene:
    """
    Describes a photo for the expression writer.

    Args:
        photo (`AnnotatedPhoto`):
            Photo with its objects.
        image_id (`int`):
            Id of the photo.
        annotation_ids (`Sequence[int]`):
            Id of each object.
        categories (`Mapping[int, str]`):
            Name of each category.
        persons_only (`bool`, *optional*, defaults to `False`):
            See [`Scene`].
    """
    indices = color_indices(np.asarray(photo.pixels)) if photo.has_true_colors else None
    in_dim_light = indices is not None and is_dim(indices)
    objects = []
    for identifier, item in zip(annotation_ids, photo.objects, strict=True):
        left, top, right, bottom = box_of(item.mask)
        category = categories[item.category_id]
        inside = item.mask[top:bottom, left:right]
        colors = clothing = None
        if indices is not None and not item.is_crowd:
            window = indices[top:bottom, left:right]
            colors = _colors(window, inside, in_dim_light)
            if category == "person":
                clothing = _clothing_colors(window, inside, in_dim_light)
        objects.append(
            SceneObject(
                annotation_id=identifier,
                category=category,
                left=left,
                top=top,
                right=right,
                bottom=bottom,
                area=int(np.count_nonzero(inside)),
                is_crowd=item.is_crowd,
                is_cut=item.visible_share < _LEAST_VISIBLE,
                colors=colors,
                clothing=clothing,
            )
        )
    touching = frozenset() if photo.has_pasted else _contacts(objects, [item.mask for item in photo.objects])
    return Scene(
        image_id,
        *photo.pixels.size,
        tuple(objects),
        touching=touching,
        has_pasted=photo.has_pasted,
        persons_only=persons_only,
    )


def _colors(window: np.ndarray, inside: np.ndarray, in_dim_light: bool) -> ColorShares | None:
    pixels = window[inside]
    return measure_colors(pixels, in_dim_light) if pixels.size >= _FEWEST_COLORED_PIXELS else None


def _clothing_colors(window: np.ndarray, inside: np.ndarray, in_dim_light: bool) -> ColorShares | None:
    """
    Measures the colors of the clothing of a person above the waist, or returns `None` if its position is unclear.

    In an upright body, the head is about the first fifth; if the legs are not visible, it is more.
    """
    height, width = inside.shape
    if height >= 2.2 * width:
        first, last = 0.2, 0.45
    elif height >= 1.2 * width:
        first, last = 0.35, 0.65
    else:
        return None
    rows = slice(round(first * height), round(last * height))
    return _colors(window[rows], inside[rows], in_dim_light)


def _contacts(objects: Sequence[SceneObject], masks: Sequence[np.ndarray]) -> frozenset[frozenset[int]]:
    """Returns pairs of annotations in contact, one of which is of an object that is carried or stood on."""
    if not masks:
        return frozenset()
    height, width = masks[0].shape
    reach = max(1, round(_CONTACT_DISTANCE * (height**2 + width**2) ** 0.5))
    pairs = []
    for place, (item, mask) in enumerate(zip(objects, masks, strict=True)):
        if item.category not in CARRIED and item.category not in SUPPORTS:
            continue
        left, top = max(0, int(item.left) - reach), max(0, int(item.top) - reach)
        right, bottom = int(item.right) + reach, int(item.bottom) + reach
        window = Image.fromarray(mask[top:bottom, left:right].astype(np.uint8) * 255)
        grown = np.asarray(window.filter(ImageFilter.MaxFilter(2 * reach + 1))) > 0
        for other_place, (other, other_mask) in enumerate(zip(objects, masks, strict=True)):
            is_apart = other.left > right or other.right < left or other.top > bottom or other.bottom < top
            if other_place == place or is_apart or other.category == item.category:
                continue
            shared = np.count_nonzero(grown & other_mask[top:bottom, left:right])
            if shared >= _CONTACT_SHARE * min(item.area, other.area):
                pairs.append(frozenset((item.annotation_id, other.annotation_id)))
    return frozenset(pairs)
