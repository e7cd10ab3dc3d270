"""The row format of this project, to which every dataset is converted: an image with all its expressions and masks.

| column | type | meaning |
| --- | --- | --- |
| `image` | image | decoded only when the row is read |
| `image_id` | string | for COCO images the COCO id without leading zeros |
| `dataset` | string | for example `refcoco_unc` |
| `split` | string | `train`, `val`, `test`, `testA`, `testB` |
| `expressions` | list of strings | all expressions for the image |
| `masks` | list of `{"size": [height, width], "counts": string}` | one per referent; empty if there is no target |
| `mask_index` | list of integers | for each expression, the index of its mask in `masks` |
| `ref_ids` | list of strings | one per mask |
| `levels` | list of strings | optional, one per expression: its level of difficulty |
| `landmarks` | list of masks | optional, one per expression: the other objects that it names |
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
from .masks import RunLengthMask, check_address, open_image_cell


logger = logging.getLogger(__name__)

CANONICAL_COLUMNS = ("image", "image_id", "dataset", "split", "expressions", "masks", "mask_index", "ref_ids")

# Errors that malformed data can raise when it is read. All other errors are bugs in the code.
DATA_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

# EXIF orientations for which `datasets` swaps height and width.
_TRANSPOSING_ORIENTATIONS = (5, 6, 7, 8)
_ORIENTATION_TAG = 0x0112
_NAMED_BAD_ROWS = 20
# The last bytes of a complete file, and how far from the end they may be.
_END_OF_FILE = {"JPEG": (b"\xff\xd9", 64), "PNG": (b"IEND", 12)}


def canonical_features(with_levels: bool = False, with_landmarks: bool = False) -> datasets.Features:
    """Returns the features of the canonical row."""
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
    """The referent of one or several expressions: its mask is empty if the referent is not in the image."""

    ref_id: str
    expressions: list[str]
    mask: RunLengthMask
    levels: list[str] | None = None
    landmarks: list[RunLengthMask] | None = None


@dataclass(frozen=True)
class ParsedRow:
    """
    One row of a source, read by an adapter: some or all referents of one image, and the problems in the row.

    `photo` is the same for all rows of one image, and different for different images with the same `image_id`.
    `file_name` is the name of the image file, if images are in a folder.
    """

    image_id: str
    referents: list[Referent]
    problems: list[str] = field(default_factory=list)
    photo: str = ""
    file_name: str = ""


class BadRowError(ValueError):
    """A row that cannot be used. The message names the dataset, the row and the reason."""


@dataclass
class BadRows:
    """
    Handles rows that cannot be used: raises an error, or logs and counts them, each only once.

    Args:
        dataset (`str`):
            Name of the dataset in messages.
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
        """Raises a [`BadRowError`] or logs a warning, depending on the policy. `place` is a row index or a text."""
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
            logger.warning("%s: more bad rows are only counted", self.dataset)

    def summarize(self) -> None:
        """Logs the number of bad rows at the end of a dataset or of a shard of a stream."""
        if self.places:
            logger.warning("%s: %d bad rows or referents skipped so far", self.dataset, len(self.places))


def collect_referents(items: Iterable[Any], build: Callable[[Any], Referent]) -> tuple[list[Referent], list[str]]:
    """Builds a referent from each item. An error becomes a problem with the position of the item."""
    referents, problems = [], []
    for position, item in enumerate(items):
        try:
            referents.append(build(item))
        except DATA_ERRORS as error:  # noqa: PERF203 - a bad referent must not affect the others
            problems.append(f"referent {position}: {reason_of(error)}")
    return referents, problems


def reason_of(error: BaseException) -> str:
    """Describes what is wrong with the data that raised an error."""
    if isinstance(error, KeyError):
        return f"missing {error}"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def clean_expressions(expressions: Iterable[str | None]) -> list[str]:
    """
    Strips expressions and drops empty ones.

    Raises:
        ValueError: If an expression is not a string, or if none is left.
    """
    if isinstance(expressions, str):
        raise ValueError(f"expected a list of expressions, got the string {expressions!r}")
    texts = ["" if expression is None else expression for expression in expressions]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"an expression must be a string, got {text!r}")
    cleaned = [text for text in (" ".join(text.split()) for text in texts) if text]
    if not cleaned:
        raise ValueError("there is no expression")
    return cleaned


def sentence_texts(sentences: Iterable[Mapping[str, Any]], sentence_field: str) -> list[str]:
    """Returns the texts of REFER sentences: from `sentence_field` (`sent` or `raw`), or from the other if empty."""
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
    """Returns all columns of the canonical row except the image."""
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
    Groups rows by image, in order of first appearance: (index of the first row, image id, all referents).

    Different images with the same id are not grouped, and a warning names their ids.
    """
    images: dict[tuple[str, str], tuple[int, list[Referent]]] = {}
    for index, row in rows:
        if row.referents:
            images.setdefault((row.image_id, row.photo), (index, []))[1].extend(row.referents)
    grouped = [(index, image_id, referents) for (image_id, _), (index, referents) in images.items()]
    counts = Counter(image_id for _, image_id, _ in grouped)
    shared = [image_id for image_id, count in counts.items() if count > 1]
    if shared:
        logger.warning("%d image ids are used for several images, which are not grouped: %s", len(shared), shared[:5])
    return grouped


def group_consecutive(rows: Iterable[tuple[Any, ParsedRow]]) -> Iterator[tuple[Any, str, list[Referent]]]:
    """Groups consecutive rows of the same image in a stream: (image of the first row, image id, referents)."""
    usable = (item for item in rows if item[1].referents)
    for (image_id, _), group in itertools.groupby(usable, key=lambda item: (item[1].image_id, item[1].photo)):
        members = list(group)
        yield members[0][0], image_id, [referent for _, row in members for referent in row.referents]


def common_size(masks: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """
    Returns the `(height, width)` of the masks of one image.

    Raises:
        ValueError: If the sizes differ.
    """
    sizes = {tuple(mask["size"]) for mask in masks}
    if len(sizes) > 1:
        raise ValueError(f"the masks of one image have different sizes (height, width): {sorted(sizes)}")
    return next(iter(sizes))


def check_canonical_row(row: Mapping[str, Any]) -> None:
    """
    Checks all columns of a canonical row except its image.

    Raises:
        ValueError: If a value has the wrong type, if the lengths of columns do not match, or if a mask is damaged.
    """
    for column in ("image_id", "dataset", "split"):
        if not isinstance(row[column], str):
            raise ValueError(f"`{column}` must be a string, got {row[column]!r}")
    per_expression = [column for column in ("mask_index", "levels", "landmarks") if row.get(column) is not None]
    for column in ("expressions", "masks", "ref_ids", *per_expression):
        if not isinstance(row[column], Sequence) or isinstance(row[column], str | bytes):
            raise ValueError(f"`{column}` must be a list, got {row[column]!r}")
    expressions, masks = row["expressions"], row["masks"]
    if len(clean_expressions(expressions)) != len(expressions):
        raise ValueError("an expression is empty")
    for column in per_expression:
        if len(row[column]) != len(expressions):
            raise ValueError(f"{len(expressions)} expressions but {len(row[column])} entries in `{column}`")
    if len(row["ref_ids"]) != len(masks):
        raise ValueError(f"{len(masks)} masks but {len(row['ref_ids'])} entries in `ref_ids`")
    for index in row["mask_index"]:
        if not isinstance(index, int | np.integer) or not 0 <= index < len(masks):
            raise ValueError(f"`mask_index` contains {index!r}, but there are {len(masks)} masks")
    landmarks = row.get("landmarks") or []
    for mask in (*masks, *landmarks):
        check_compressed(mask)
    common_size([*masks, *landmarks])


def image_cells_without_bytes(rows: datasets.Dataset, column: str = "image") -> Iterator[dict[str, Any]]:
    """Yields the undecoded image cells of a dataset without reading the bytes of the images, which become `b""`."""
    for table in rows.select_columns([column]).with_format("arrow").iter(1000):
        cells = table.column(column).combine_chunks()
        has_bytes = cells.field("bytes").is_valid().to_pylist()
        for is_inside, path in zip(has_bytes, cells.field("path").to_pylist(), strict=True):
            yield {"bytes": b"" if is_inside else None, "path": path}


def image_size_from_header(cell: Mapping[str, Any]) -> tuple[int, int]:
    """
    Reads the `(height, width)` of an undecoded image cell from the header of the file.

    The size is that of the upright image, since `datasets` applies the EXIF orientation.

    Raises:
        ValueError: If the cell is empty, or if the header cannot be read.
    """
    check_address(cell)
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
    Returns the ids of images to exclude, also in the format of [`photo_id`]: `000000000009` and `9` mean the same
    image.

    Raises:
        TypeError: If `image_ids` is a single string.
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
    Returns the COCO image id without leading zeros, from an id or from a file name.

    The file names in the published `refs(...).p` have a running number after the id
    (`COCO_train2014_000000581857_16.jpg`), so the id is the part with twelve digits.

    Raises:
        ValueError: If the name does not contain a COCO id.
    """
    if isinstance(name, int):
        return str(name)
    stem = Path(name).stem
    if stem.isdigit():
        return str(int(stem))
    for part in stem.split("_"):
        if len(part) == 12 and part.isdigit():
            return str(int(part))
    raise ValueError(f"there is no COCO image id in the file name {name!r}")


def photo_id(name: str) -> str:
    """Returns the COCO image id in a name, or the name itself if it contains none."""
    try:
        return coco_image_id(name)
    except ValueError:
        return name


def find_image(folder: Path, file_name: str, image_id: str | None = None) -> Path:
    """
    Finds an image in a folder of COCO images of 2014 or 2017.

    The same photos are published as `train2014/COCO_train2014_<id>.jpg` and as `train2017/<id>.jpg`. The folder can be
    the one with the files or its parent.

    Links in the folder are followed, since the owner of the folder created them. A file name in the data must not lead
    out of the folder.

    Raises:
        ValueError: If there is no file with one of the usual names, or if the file name leads out of the folder.
    """
    if not isinstance(file_name, str):
        raise ValueError(f"the file name of an image must be a string, got {file_name!r}")
    parts = PurePosixPath(file_name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or Path(file_name).is_absolute() or "\0" in file_name:
        raise ValueError(f"the file name {file_name!r} leads out of the image folder")
    names = [file_name]
    # An image that is not from COCO can have the id of a COCO image.
    if image_id is not None and image_id.isdigit() and photo_id(file_name) == photo_id(image_id):
        names += [f"{prefix}{int(image_id):012d}.jpg" for prefix in ("COCO_train2014_", "COCO_val2014_", "")]
    for name in dict.fromkeys(names):
        for parent in ("", "train2014", "val2014", "train2017", "val2017", "images"):
            path = folder / parent / name
            if path.is_file():
                return path
    raise ValueError(f"image {file_name!r} not found in {folder}")
