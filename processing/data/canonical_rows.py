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
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..evaluation.referring_segmentation_metric.run_lengths import check_compressed
from .masks import RunLengthMask, open_image_cell


logger = logging.getLogger(__name__)

CANONICAL_COLUMNS = ("image", "image_id", "dataset", "split", "expressions", "masks", "mask_index", "ref_ids")

# What data of a wrong form raises when it is read. Other errors are not the data's fault.
DATA_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

# Orientations of EXIF that `datasets` undoes by turning the image on its side.
_TRANSPOSING_ORIENTATIONS = (5, 6, 7, 8)
_ORIENTATION_TAG = 0x0112
_NAMED_BAD_ROWS = 20
# The last bytes of a whole file, and how far from the end they may stand.
_END_OF_FILE = {"JPEG": (b"\xff\xd9", 64), "PNG": (b"IEND", 12)}


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
    """
    What an adapter reads in one row of its source: some or all referents of one image, and what was wrong.

    `photo` tells photos apart that have the same `image_id`; rows of one image have the same. `file_name` is that of
    the image, where there is a folder of images.
    """

    image_id: str
    referents: list[Referent]
    problems: list[str] = field(default_factory=list)
    photo: str = ""
    file_name: str = ""


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

    def report(self, place: int | str, reason: str) -> None:
        """Raise a [`BadRowError`] or log it, as the policy says; a number as `place` is that of a row."""
        place = f"row {place}" if isinstance(place, int) else place
        message = f"{self.dataset}, {place}: {reason}"
        if self.policy == "raise":
            raise BadRowError(message)
        if (place, reason) in self.places:
            return
        self.places.add((place, reason))
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
        except DATA_ERRORS as error:  # noqa: PERF203 - one bad referent spares the rest
            problems.append(f"referent {position}: {reason_of(error)}")
    return referents, problems


def reason_of(error: BaseException) -> str:
    """What was wrong with the data that raised an error, in words."""
    if isinstance(error, KeyError):
        return f"missing {error}"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def clean_expressions(expressions: Iterable[str | None]) -> list[str]:
    """
    Strip expressions and drop empty ones.

    Raises:
        ValueError: if none is left.
    """
    if isinstance(expressions, str):
        raise ValueError(f"a list of expressions is needed, got the string {expressions!r}")
    texts = ["" if expression is None else expression for expression in expressions]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"an expression must be text, got {text!r}")
    cleaned = [text for text in (" ".join(text.split()) for text in texts) if text]
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


def group_by_image(rows: Iterable[tuple[int, ParsedRow]]) -> list[tuple[int, str, list[Referent]]]:
    """
    Group rows by image, in order of first appearance: (index of the first row, image id, all referents).

    Different photos with the same id stay apart, and a warning names them.
    """
    images: dict[tuple[str, str], tuple[int, list[Referent]]] = {}
    for index, row in rows:
        if row.referents:
            images.setdefault((row.image_id, row.photo), (index, []))[1].extend(row.referents)
    grouped = [(index, image_id, referents) for (image_id, _), (index, referents) in images.items()]
    counts = Counter(image_id for _, image_id, _ in grouped)
    shared = [image_id for image_id, count in counts.items() if count > 1]
    if shared:
        logger.warning("%d image ids stand for several photos, which are kept apart: %s", len(shared), shared[:5])
    return grouped


def group_consecutive(rows: Iterable[tuple[Any, ParsedRow]]) -> Iterator[tuple[Any, str, list[Referent]]]:
    """Group consecutive rows of the same image, as a stream: (image of the first row, image id, referents)."""
    usable = (item for item in rows if item[1].referents)
    for (image_id, _), group in itertools.groupby(usable, key=lambda item: (item[1].image_id, item[1].photo)):
        members = list(group)
        yield members[0][0], image_id, [referent for _, row in members for referent in row.referents]


def common_size(masks: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """
    `(height, width)` of the masks of one image.

    Raises:
        ValueError: if they differ.
    """
    sizes = {tuple(mask["size"]) for mask in masks}
    if len(sizes) > 1:
        raise ValueError(f"masks of different sizes (height, width) in one image: {sorted(sizes)}")
    return next(iter(sizes))


def check_canonical_row(row: Mapping[str, Any]) -> None:
    """
    Check the columns of a canonical row but its image.

    Raises:
        ValueError: if a value is of another kind than its column's, columns do not fit each other, or a mask is
            damaged.
    """
    for column in ("image_id", "dataset", "split"):
        if not isinstance(row[column], str):
            raise ValueError(f"`{column}` must be text, got {row[column]!r}")
    per_expression = [column for column in ("mask_index", "levels", "landmarks") if row.get(column) is not None]
    for column in ("expressions", "masks", "ref_ids", *per_expression):
        if not isinstance(row[column], Sequence) or isinstance(row[column], str | bytes):
            raise ValueError(f"`{column}` must be a list, got {row[column]!r}")
    expressions, masks = row["expressions"], row["masks"]
    if len(clean_expressions(expressions)) != len(expressions):
        raise ValueError("an expression without text")
    for column in per_expression:
        if len(row[column]) != len(expressions):
            raise ValueError(f"{len(expressions)} expressions but {len(row[column])} entries in `{column}`")
    if len(row["ref_ids"]) != len(masks):
        raise ValueError(f"{len(masks)} masks but {len(row['ref_ids'])} entries in `ref_ids`")
    for index in row["mask_index"]:
        if not isinstance(index, int | np.integer) or not 0 <= index < len(masks):
            raise ValueError(f"`mask_index` points to the mask {index!r} of {len(masks)}")
    landmarks = row.get("landmarks") or []
    for mask in (*masks, *landmarks):
        check_compressed(mask)
    common_size([*masks, *landmarks])


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
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image cannot be opened: {error}") from error
    return height, width


def check_image(cell: Mapping[str, Any], masks: Iterable[Mapping[str, Any]]) -> None:
    """
    Check, without decoding it, that an image is whole and of the size of its masks.

    Only a file whose end looks wrong is decoded.

    Args:
        cell (`Mapping`): The undecoded image cell.
        masks (`Iterable[Mapping]`): Run lengths of the image.

    Raises:
        ValueError: if the sizes differ, or the image is missing, damaged or cut off.
    """
    size = image_size_from_header(cell)
    wrong = {tuple(mask["size"]) for mask in masks} - {size}
    if wrong:
        raise ValueError(f"masks of (height, width) = {sorted(wrong)} for an image of {size}")
    try:
        with open_image_cell(cell) as file, Image.open(file) as image:
            marker, distance = _END_OF_FILE.get(image.format or "", (b"", 0))
            length = file.seek(0, 2)
            file.seek(max(0, length - distance))
            is_whole = marker in file.read()
            if not is_whole:
                file.seek(0)
                image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image cannot be decoded: {error}") from error


def excluded_images(image_ids: Collection[str | int]) -> frozenset[str]:
    """
    Ids of images to leave out, also as [`photo_id`] writes them: `000000000009` and `9` are the same photo.

    Raises:
        TypeError: for one string, which would be taken for a collection of characters.
    """
    if isinstance(image_ids, str | bytes):
        raise TypeError(f"`exclude_image_ids` must be a collection of ids, got the string {image_ids!r}")
    names = [str(image_id) for image_id in image_ids]
    return frozenset(names) | frozenset(photo_id(name) for name in names)


def is_excluded(image_id: str, excluded: Collection[str]) -> bool:
    """Whether an image is among those that [`excluded_images`] lists."""
    return bool(excluded) and (image_id in excluded or photo_id(image_id) in excluded)


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

    Links in the folder are followed, since whoever owns the folder made them; a file name, which anybody may have
    written, cannot lead out of it.

    Raises:
        ValueError: if none of the usual names exists there, or the file name leads out of the folder.
    """
    if not isinstance(file_name, str):
        raise ValueError(f"the file name of an image must be text, got {file_name!r}")
    parts = PurePosixPath(file_name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or Path(file_name).is_absolute() or "\0" in file_name:
        raise ValueError(f"the file name {file_name!r} leads out of the folder of images")
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
