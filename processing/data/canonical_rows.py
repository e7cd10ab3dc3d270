"""The one row that every dataset of this project is brought to: an image with all its expressions and masks.

| column | type | meaning |
| --- | --- | --- |
| `image` | image | decoded when the row is read, never before |
| `image_id` | string | for COCO images the COCO id without leading zeros |
| `dataset` | string | for example `refcoco_unc` |
| `split` | string | `train`, `val`, `test`, `testA`, `testB` |
| `expressions` | list of strings | every sentence of the image |
| `masks` | list of `{"size": [height, width], "counts": string}` | one a referent; area 0: nothing is meant |
| `mask_index` | list of integers | for each expression its entry in `masks` |
| `ref_ids` | list of strings | one a mask |
| `levels` | list of strings | one an expression, only where the source grades its expressions |
| `landmarks` | list of masks | one an expression: the other objects that it names, only where the source knows them |
"""

import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from .masks import RunLengthMask, open_image_cell


logger = logging.getLogger(__name__)

CANONICAL_COLUMNS = ("image", "image_id", "dataset", "split", "expressions", "masks", "mask_index", "ref_ids")

# Orientations of EXIF that `datasets` undoes by turning the image on its side.
_TRANSPOSING_ORIENTATIONS = (5, 6, 7, 8)
_ORIENTATION_TAG = 0x0112
_NAMED_BAD_ROWS = 20


def canonical_features(with_levels: bool = False, with_landmarks: bool = False) -> datasets.Features:
    """Features of the canonical row."""
    text, integer = datasets.Value("string"), datasets.Value("int32")
    mask = {"size": [integer], "counts": text}
    features = {
        "image": datasets.Image(),
        "image_id": text,
        "dataset": text,
        "split": text,
        "expressions": [text],
        "masks": [mask],
        "mask_index": [integer],
        "ref_ids": [text],
    }
    if with_levels:
        features["levels"] = [text]
    if with_landmarks:
        features["landmarks"] = [mask]
    return datasets.Features(features)


@dataclass(frozen=True)
class Referent:
    """What one or several expressions of an image mean: a mask, empty where nothing in the image is meant."""

    ref_id: str
    expressions: list[str]
    mask: RunLengthMask
    levels: list[str] | None = None
    landmarks: list[RunLengthMask] | None = None


@dataclass(frozen=True)
class ParsedRow:
    """What an adapter reads in one row of its source: some or all referents of one image, and what was wrong."""

    image_id: str
    referents: list[Referent]
    problems: list[str] = field(default_factory=list)


class BadRowError(ValueError):
    """A row that cannot be used; its message names the dataset, the row and the reason."""


@dataclass
class BadRows:
    """
    Deals with rows that cannot be used: fatal, or named in the log and counted, each once however often it is read.

    Args:
        dataset (`str`):
            Name for the messages.
        policy (`str`):
            `"skip"` or `"raise"`.
    """

    dataset: str
    policy: str = "skip"
    places: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self):
        if self.policy not in ("skip", "raise"):
            raise ValueError(f"`on_bad_row` must be 'skip' or 'raise', got {self.policy!r}")

    def report(self, index: int | str, reason: str) -> None:
        """Raise a [`BadRowError`] or log it, as the policy says."""
        message = f"{self.dataset}, row {index}: {reason}"
        if self.policy == "raise":
            raise BadRowError(message)
        if (str(index), reason) in self.places:
            return
        self.places.add((str(index), reason))
        if len(self.places) <= _NAMED_BAD_ROWS:
            logger.warning("Bad row skipped: %s", message)
        elif len(self.places) == _NAMED_BAD_ROWS + 1:
            logger.warning("%s: further bad rows are counted, not named", self.dataset)

    def summarize(self) -> None:
        """Log the count at the end of a dataset, or of a shard of a stream."""
        if self.places:
            logger.warning("%s: %d bad rows or referents skipped so far", self.dataset, len(self.places))


def collect_referents(items: Iterable[Any], build: Callable[[Any], Referent]) -> tuple[list[Referent], list[str]]:
    """Build a referent of each item; what fails becomes a problem with its position instead of an exception."""
    referents, problems = [], []
    for position, item in enumerate(items):
        try:
            referents.append(build(item))
        except (KeyError, TypeError, ValueError) as error:  # noqa: PERF203 - one bad referent spares the rest
            reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
            problems.append(f"referent {position}: {reason}")
    return referents, problems


def clean_expressions(expressions: Iterable[str | None]) -> list[str]:
    """
    Strip expressions and drop empty ones.

    Raises:
        ValueError: if none is left.
    """
    cleaned = [text for text in (" ".join((expression or "").split()) for expression in expressions) if text]
    if not cleaned:
        raise ValueError("no expression")
    return cleaned


def sentence_texts(sentences: Iterable[Mapping[str, Any]], sentence_field: str) -> list[str]:
    """Texts of REFER sentences: the wanted field (`sent`, cleaned, or `raw`), or the other where it is empty."""
    other = "raw" if sentence_field == "sent" else "sent"
    return clean_expressions(sentence.get(sentence_field) or sentence.get(other) for sentence in sentences)


def annotation_columns(
    referents: Sequence[Referent],
    image_id: str,
    dataset: str,
    split: str,
    with_levels: bool = False,
    with_landmarks: bool = False,
) -> dict[str, Any]:
    """All columns of the canonical row but the image; with landmarks only if all referents have theirs."""
    row: dict[str, Any] = {
        "image_id": image_id,
        "dataset": dataset,
        "split": split,
        "expressions": [text for referent in referents for text in referent.expressions],
        "masks": [referent.mask for referent in referents],
        "mask_index": [index for index, referent in enumerate(referents) for _ in referent.expressions],
        "ref_ids": [referent.ref_id for referent in referents],
    }
    if with_levels:
        row["levels"] = [
            level for referent in referents for level in referent.levels or [""] * len(referent.expressions)
        ]
    if with_landmarks:
        row["landmarks"] = [mask for referent in referents for mask in referent.landmarks or ()]
    return row


def group_by_image(rows: Iterable[tuple[int, ParsedRow]]) -> "OrderedDict[str, tuple[int, list[Referent]]]":
    """Group rows by image, in order of first appearance: image id -> (index of its first row, all its referents)."""
    images: OrderedDict[str, tuple[int, list[Referent]]] = OrderedDict()
    for index, row in rows:
        if row.referents:
            images.setdefault(row.image_id, (index, []))[1].extend(row.referents)
    return images


def group_consecutive(rows: Iterable[tuple[Any, ParsedRow]]) -> Iterator[tuple[Any, str, list[Referent]]]:
    """Group consecutive rows of the same image, as a stream: (image of the first row, image id, referents)."""
    usable = (item for item in rows if item[1].referents)
    for image_id, group in itertools.groupby(usable, key=lambda item: item[1].image_id):
        members = list(group)
        yield members[0][0], image_id, [referent for _, row in members for referent in row.referents]


def image_size_from_header(cell: Mapping[str, Any]) -> tuple[int, int]:
    """
    `(height, width)` of an undecoded image cell, from the header of the file alone.

    `datasets` turns an image as its EXIF orientation says, and so does this size.

    Raises:
        ValueError: if the cell is empty or its header cannot be read.
    """
    if cell is None or (cell.get("bytes") is None and not cell.get("path")):
        raise ValueError("no image")
    try:
        with open_image_cell(cell) as file, Image.open(file) as image:
            width, height = image.size
            if image.getexif().get(_ORIENTATION_TAG) in _TRANSPOSING_ORIENTATIONS:
                width, height = height, width
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"image cannot be opened: {error}") from error
    return height, width


def coco_image_id(name: str | int) -> str:
    """
    COCO image id without leading zeros, from an id or from a file name.

    The file names in published `refs(...).p` carry a running number behind the id
    (`COCO_train2014_000000581857_16.jpg`), so the id is the part of twelve digits.

    Raises:
        ValueError: if the name holds no COCO id.
    """
    if isinstance(name, int):
        return str(name)
    stem = Path(name).stem
    if stem.isdigit():
        return str(int(stem))
    for part in stem.split("_"):
        if len(part) == 12 and part.isdigit():
            return str(int(part))
    raise ValueError(f"no COCO image id in the file name {name!r}")


def photo_id(name: str) -> str:
    """The COCO image id in a name, or the name itself where it holds none."""
    try:
        return coco_image_id(name)
    except ValueError:
        return name


def find_image(folder: Path, file_name: str, image_id: str | None = None) -> Path:
    """
    Path of an image in a folder of COCO images, whatever their edition.

    The same photos are published as `train2014/COCO_train2014_<id>.jpg` and as `train2017/<id>.jpg`; the folder may be
    the one that holds the files or its parent.

    Raises:
        ValueError: if none of the usual names exists there.
    """
    names = [file_name]
    # Other images may have the number of a photo of COCO, and are not that photo.
    if image_id is not None and image_id.isdigit() and photo_id(file_name) == photo_id(image_id):
        names += [f"{prefix}{int(image_id):012d}.jpg" for prefix in ("COCO_train2014_", "COCO_val2014_", "")]
    for name in dict.fromkeys(names):
        for parent in ("", "train2014", "val2014", "train2017", "val2017", "images"):
            path = folder / parent / name
            if path.is_file():
                return path
    raise ValueError(f"image {file_name!r} not found in {folder}")
