"""A photo in memory with the masks of its annotated objects, and what the writer of expressions wants of it."""

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


# An object of which the crop left less than this is no target, though it is still there.
_LEAST_VISIBLE = 1 / 3
# Pixels that tell a color.
_FEWEST_COLORED_PIXELS = 120
# Contact of two masks: how far apart, of the diagonal, and how much of the smaller lies so near to the other.
_CONTACT_DISTANCE = 0.006
_CONTACT_SHARE = 0.03


@dataclass(frozen=True)
class PhotoObject:
    """
    An object of a photo.

    Args:
        category_id (`int`): Category of COCO.
        mask (`np.ndarray` of shape `(height, width)`): Where it is visible, boolean.
        is_crowd (`bool`): Whether it stands for several.
        visible_share (`float`): How much of what the original photo shows of it is left.
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
        pixels (`Image.Image`): Of mode RGB.
        objects (`tuple[PhotoObject, ...]`): Objects with a mask that covers at least one pixel.
        has_true_colors (`bool`): False once hue or saturation was changed so far that names of colors would be wrong.
        has_pasted (`bool`): Whether objects were pasted in, so that contact and depth mean nothing.
    """

    pixels: Image.Image
    objects: tuple[PhotoObject, ...]
    has_true_colors: bool = True
    has_pasted: bool = False


def read_annotated_photo(
    path: Path, image: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]]
) -> AnnotatedPhoto:
    """
    Read a photo and draw its masks.

    Raises:
        ValueError: if the file has another size than its entry says, or a mask cannot be read.
        OSError: if the file cannot be read.
    """
    with Image.open(path) as file:
        pixels = file.convert("RGB")
    if pixels.size != (image["width"], image["height"]):
        raise ValueError(
            f"{path} has the size {pixels.size}, its entry says {(image['width'], image['height'])} (width, height)"
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
    """COCO annotations of the objects of a photo, masks as run lengths, numbered from `first_id`."""
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
    """Left, top, right and bottom of a mask that is not empty; right and bottom just outside."""
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
    What the writer of expressions wants to know of a photo.

    Args:
        photo (`AnnotatedPhoto`):
            Photo with its objects.
        image_id (`int`):
            Its id.
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
    Colors of what a person wears above the waist, None where the shape does not tell where that is.

    In an upright body the head takes the first fifth or so; where the legs are out of view, more.
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
    """Pairs of annotations, one of something carried or stood on, whose masks touch along more than a point."""
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
