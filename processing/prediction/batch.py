"""Writes predictions for many images to a folder. Finished images are not repeated, unreadable ones are skipped."""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..app import pictures
from ..app.predictions import Photo, Result, Segmenter
from ..data.masks import decode_mask
from ..safe_files import drop_incomplete_line, replace_text
from .polygons import mask_to_polygons
from .requests import Request, UnusableRequest


FORMATS = ("masks", "cut-outs", "probabilities", "overlays", "polygons")
PREDICTIONS = "predictions.jsonl"
SETTINGS = "settings.json"
ANNOTATIONS = "annotations.json"
# A higher number is slower on a CPU and takes more memory.
EXPRESSIONS_PER_CALL = 8


@dataclass
class Counts:
    done: int = 0
    done_before: int = 0
    failed: int = 0


def predict_into_folder(
    segmenter: Segmenter,
    requests: Iterable[Request | UnusableRequest],
    folder: Path,
    formats: Sequence[str] = ("masks",),
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    model_name: str = "",
) -> Counts:
    """
    Writes predictions for many images to a folder.

    Args:
        segmenter ([`Segmenter`]): The model with its processor.
        requests (`Iterable` of [`Request`]): Images and expressions.
        folder (`Path`): Output folder. It gets `predictions.jsonl`, one line per image with the masks as COCO RLE, and
            files in the other `formats`. If a run is interrupted, the next run with the same settings continues it.
        formats (`Sequence` of `str`): Names in `FORMATS`. "masks" and "cut-outs" are PNG files, "probabilities" `.npy`
            files of `float16` (height, width), "overlays" images with all masks, "polygons" one `annotations.json` of
            all images in the format of COCO, in which masks with holes are RLE.
        threshold, mask_threshold (`float`): See [`JMCELNImageProcessor.post_process_referring_segmentation`].
        model_name (`str`): Saved in the settings, so that two models cannot write to the same folder.

    Returns:
        [`Counts`]: Numbers of images. Those that failed are listed on standard error.

    Raises:
        ValueError: If the folder contains predictions with other settings.
    """
    settings = {"model": model_name, "threshold": threshold, "mask_threshold": mask_threshold, "formats": [*formats]}
    _check_settings(folder, settings)
    done = {_key(entry["image"], entry["expressions"]) for entry in _read(folder)}
    counts = Counts()
    with (folder / PREDICTIONS).open("a", encoding="utf-8") as journal:
        # `disable=None` hides the progress bar if standard error is not a terminal.
        for request in tqdm(requests, unit=" photos", disable=None):
            if isinstance(request, UnusableRequest):
                counts.failed += 1
                tqdm.write(f"{request.place}: {request.reason}", file=sys.stderr)
                continue
            key = _key(request.image, request.expressions)
            if key in done:
                counts.done_before += 1
                continue
            try:
                photo = segmenter.encode(request.image if request.pixels is None else request.pixels)
                results = _ask(segmenter, photo, request, threshold, mask_threshold)
            except (OSError, ValueError) as error:
                counts.failed += 1
                tqdm.write(f"{request.image}: {error}", file=sys.stderr)
                continue
            _write_files(folder, f"{request.stem}-{key}", photo, results, formats)
            entry = {
                "image": request.image,
                "expressions": request.expressions,
                "size": [photo.image.height, photo.image.width],
                "results": pictures.run_lengths(results),
            }
            # The line is written last, so that all other files of its image exist.
            journal.write(json.dumps(entry) + "\n")
            journal.flush()
            done.add(key)
            counts.done += 1
    if "polygons" in formats:
        replace_text(folder / ANNOTATIONS, json.dumps(coco_annotations(_read(folder))))
    return counts


def coco_annotations(entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Converts the lines of `predictions.jsonl` to the format of COCO, with one annotation per non-empty mask."""
    images, annotations = [], []
    for image_id, entry in enumerate(entries, start=1):
        height, width = entry["size"]
        images.append({"id": image_id, "file_name": entry["image"], "height": height, "width": width})
        for result in entry["results"]:
            if result["area"] == 0:
                continue
            mask = decode_mask(result["segmentation"])
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            left, top = int(columns[0]), int(rows[0])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "expression": result["expression"],
                    "score": result["score"],
                    "area": result["area"],
                    "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                    "segmentation": mask_to_polygons(mask) or result["segmentation"],
                    "iscrowd": 0,
                }
            )
    return {"images": images, "categories": [{"id": 1, "name": "referent"}], "annotations": annotations}


def _ask(
    segmenter: Segmenter, photo: Photo, request: Request, threshold: float, mask_threshold: float
) -> list[Result]:
    size = (photo.image.height, photo.image.width)
    results = []
    for start in range(0, len(request.expressions), EXPRESSIONS_PER_CALL):
        expressions = request.expressions[start : start + EXPRESSIONS_PER_CALL]
        answers = segmenter.ask(photo, expressions, look_inside=False)
        results += segmenter.results(answers, size, threshold, mask_threshold)
    return results


def _write_files(folder: Path, name: str, photo: Photo, results: Sequence[Result], formats: Sequence[str]) -> None:
    for form in formats:
        if form == "polygons":
            continue
        (folder / form).mkdir(exist_ok=True)
        if form == "overlays":
            pictures.overlay(photo.image, results).save(folder / form / f"{name}.png")
            continue
        for number, result in enumerate(results, start=1):
            words = re.sub(r"[^\w]+", "-", result.expression.lower()).strip("-")[:60]
            path = folder / form / f"{name}-{number:02d}-{words}"
            if form == "masks":
                pictures.mask_image(result.mask).save(f"{path}.png")
            elif form == "cut-outs":
                pictures.cut_out(photo.image, result.mask).save(f"{path}.png")
            else:
                np.save(f"{path}.npy", result.probabilities.astype(np.float16))


def _key(image: str, expressions: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([image, *expressions]).encode()).hexdigest()[:10]


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in settings if found.get(name) != settings[name]]
        if other:
            raise ValueError(
                f"{str(folder)!r} contains predictions with another {other[0]} ({found.get(other[0])!r}, now "
                f"{settings[other[0]]!r}): choose another folder"
            )
    replace_text(path, json.dumps(settings, indent=1) + "\n")


def _read(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of an earlier run. Removes an incomplete last line from the file."""
    path = folder / PREDICTIONS
    if not path.is_file():
        return []
    drop_incomplete_line(path)
    entries = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                entries.append({name: entry[name] for name in ("image", "expressions", "size", "results")})
            except (ValueError, KeyError, TypeError, RecursionError):  # noqa: PERF203 - one line spares the others
                tqdm.write(f"{path}, line {number} is damaged: its image is done again", file=sys.stderr)
    return entries
