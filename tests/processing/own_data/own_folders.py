"""Small folders of photos, masks and texts, written as people and labeling tools write them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


HEIGHT, WIDTH = 40, 60


def square(left: int) -> np.ndarray:
    """A mask of 10 x 10 pixels."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[5:15, left : left + 10] = True
    return mask


def write_photo(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def write_table(
    folder: Path, rows: list[list[str]], header: tuple[str, ...] = ("image", "mask", "expression")
) -> None:
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_good_folder(folder: Path, count: int = 10) -> Path:
    """Photos with two masks each, three expressions, one of them for what is not there."""
    rows = []
    for number in range(count):
        write_photo(folder / "photos" / f"{number}.png", number)
        for side, left in (("left", 2), ("right", 40)):
            write_mask(folder / "masks" / f"{number}-{side}.png", square(left))
            rows.append([f"photos/{number}.png", f"masks/{number}-{side}.png", f"the {side} square"])
        rows.append([f"photos/{number}.png", "none", "the star"])
    write_table(folder, rows)
    return folder


def coco_annotation(identifier: int, image_id: int, left: int, **further: Any) -> dict[str, Any]:
    polygon = [left, 5, left + 10, 5, left + 10, 15, left, 15]
    return {
        "id": identifier,
        "image_id": image_id,
        "category_id": 1,
        "segmentation": [polygon],
        "area": 100.0,
        "bbox": [left, 5, 10, 10],
        "iscrowd": 0,
        **further,
    }


def write_coco(path: Path, file_names: list[str], annotations: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {"id": number, "width": WIDTH, "height": HEIGHT, "file_name": name} for number, name in enumerate(file_names)
    ]
    content = {
        "images": images,
        "categories": [{"id": 1, "name": "square"}, {"id": 2, "name": "star"}],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
