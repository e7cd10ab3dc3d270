"""Make new training images by pasting annotated objects of one photo into another.

In most photos a noun alone finds its object, so a model can learn to read no more than that. A second object of the
same category, cut from another photo along its mask, makes position, size and relation decide. Cutting and pasting
whole instances is Ghiasi et al. 2021 ("Simple Copy-Paste"), here with distractors chosen by category; the masks of
what is covered are cut accordingly, so every annotation of the new image stays exact.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ..data.masks import decode_mask, encode_mask, mask_area, to_rle
from .wording import FIXTURES


_TRIES = 20
# Of an object that is cut out, its area as a share of its photo, and of what it covers, how much may be lost.
_SMALLEST, _LARGEST = 0.01, 0.2
_MOST_COVERED = 0.3
_QUALITY = 92


def paste_objects(
    photos: Sequence[Mapping[str, Any]],
    annotations: Mapping[int, Sequence[Mapping[str, Any]]],
    splits: Mapping[int, str],
    categories: Mapping[int, str],
    folder: Path,
    count: int,
    first_id: int,
    generator: random.Random,
) -> list[tuple[dict[str, Any], list[dict[str, Any]], str]]:
    """
    Make images, each a photo with one to three objects of other photos of its split.

    Args:
        photos (`Sequence[Mapping]`):
            COCO image entries, the files being in `folder`.
        annotations (`Mapping[int, Sequence[Mapping]]`):
            Annotations by image id, all of which can be read.
        splits (`Mapping[int, str]`):
            Split of each photo; objects never cross from one to the other.
        categories (`Mapping[int, str]`):
            Name of each category; furniture and the like is not pasted.
        folder (`Path`):
            Where the photos are and the new images are written.
        count (`int`):
            Images to make.
        first_id (`int`):
            Image id of the first of them.
        generator (`random.Random`):
            Source of all choices.

    Returns:
        `list[tuple[dict, list[dict], str]]`: image entry (with `source_image_ids`), annotations and split of each.
        Fewer than `count` where the photos hardly have objects worth pasting.
    """
    next_image = first_id
    next_annotation = max((item["id"] for items in annotations.values() for item in items), default=0) + 1
    sources = _sources(photos, annotations, splits, categories)
    made: list[tuple[dict[str, Any], list[dict[str, Any]], str]] = []
    for _ in range(count * 3):
        if len(made) == count:
            break
        photo = generator.choice(photos)
        split = splits[photo["id"]]
        present = {annotation["category_id"] for annotation in annotations[photo["id"]]}
        canvas = _Canvas(photo, annotations[photo["id"]], folder)
        used = {photo["id"]}
        for _ in range(generator.choice((1, 1, 2, 3))):
            # Mostly a second of something that is there already.
            known = [category for category in sorted(present) if sources[split].get(category)]
            pool = known if known and generator.random() < 0.8 else sorted(sources[split])
            if not pool:
                break
            source, annotation = generator.choice(sources[split][generator.choice(pool)])
            if source["id"] != photo["id"] and canvas.paste(source, annotation, generator):
                used.add(source["id"])
        if len(used) == 1:
            continue
        # Not twelve digits, which would name a photo of COCO.
        name = f"pasted_{next_image}.jpg"
        canvas.pixels.save(folder / name, quality=_QUALITY)
        entry = {
            "id": next_image,
            "file_name": name,
            "height": photo["height"],
            "width": photo["width"],
            "source_image_ids": sorted(used),
        }
        parts = canvas.annotations(next_image, next_annotation)
        next_image += 1
        next_annotation += len(parts)
        made.append((entry, parts, split))
    return made


def _sources(
    photos: Sequence[Mapping[str, Any]],
    annotations: Mapping[int, Sequence[Mapping[str, Any]]],
    splits: Mapping[int, str],
    categories: Mapping[int, str],
) -> dict[str, dict[int, list[tuple[Mapping[str, Any], Mapping[str, Any]]]]]:
    """Objects worth pasting, by split and category: whole ones of middling size, away from the edges."""
    sources: dict[str, dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for photo in photos:
        for annotation in annotations[photo["id"]]:
            left, top, width, height = annotation["bbox"]
            inside = left > 2 and top > 2 and left + width < photo["width"] - 2 and top + height < photo["height"] - 2
            share = annotation.get("area", width * height) / (photo["width"] * photo["height"])
            is_fixture = categories.get(annotation["category_id"]) in FIXTURES
            if not annotation.get("iscrowd") and not is_fixture and inside and _SMALLEST < share < _LARGEST:
                sources[splits[photo["id"]]][annotation["category_id"]].append((photo, annotation))
    return sources


class _Canvas:
    """A photo into which objects are pasted, with the masks of all that is on it."""

    def __init__(self, photo: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]], folder: Path):
        self.folder = folder
        with Image.open(folder / photo["file_name"]) as image:
            self.pixels = image.convert("RGB")
        self.height, self.width = photo["height"], photo["width"]
        self.items = [
            (annotation, decode_mask(to_rle(annotation["segmentation"], self.height, self.width)))
            for annotation in annotations
        ]

    def paste(self, source: Mapping[str, Any], annotation: Mapping[str, Any], generator: random.Random) -> bool:
        """Paste an object somewhere it covers little of others; False if no such place was found."""
        mask = decode_mask(to_rle(annotation["segmentation"], source["height"], source["width"]))
        rows, columns = np.nonzero(mask)
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        with Image.open(self.folder / source["file_name"]) as image:
            cut = image.convert("RGB").crop(box)
        stencil = Image.fromarray(mask[box[1] : box[3], box[0] : box[2]].astype(np.uint8) * 255)
        if generator.random() < 0.5:
            cut, stencil = (
                cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
                stencil.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            )
        for _ in range(_TRIES):
            scale = generator.uniform(0.6, 1.3) * min(self.width / source["width"], self.height / source["height"])
            size = (round(cut.width * scale), round(cut.height * scale))
            if min(size) < 8 or size[0] >= self.width or size[1] >= self.height:
                continue
            left = generator.randrange(self.width - size[0])
            top = generator.randrange(self.height - size[1])
            shape = stencil.resize(size, Image.Resampling.BILINEAR)
            placed = np.zeros((self.height, self.width), dtype=bool)
            placed[top : top + size[1], left : left + size[0]] = np.asarray(shape) >= 128
            if not placed.any() or any((old & placed).sum() > _MOST_COVERED * old.sum() for _, old in self.items):
                continue
            soft = shape.filter(ImageFilter.GaussianBlur(0.7))
            self.pixels.paste(cut.resize(size, Image.Resampling.LANCZOS), (left, top), soft)
            self.items = [(item, old & ~placed) for item, old in self.items]
            self.items.append((annotation, placed))
            return True
        return False

    def annotations(self, image_id: int, first_id: int) -> list[dict[str, Any]]:
        """COCO annotations of what is on the canvas now, masks as run lengths."""
        entries = []
        for item, mask in self.items:
            if not mask.any():
                continue
            rows, columns = np.nonzero(mask)
            left, top = int(columns.min()), int(rows.min())
            rle = encode_mask(mask)
            entries.append(
                {
                    "id": first_id + len(entries),
                    "image_id": image_id,
                    "category_id": item["category_id"],
                    "segmentation": rle,
                    "area": mask_area(rle),
                    "bbox": [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
                    "iscrowd": int(bool(item.get("iscrowd"))),
                }
            )
        return entries
