"""Reads the entries in the files of a folder: texts with their images and masks.

There are two formats. A table (CSV, TSV or JSON lines) has the columns `image`, `mask` and `expression`. A COCO file
has annotations with texts: CVAT writes attributes of its labels under `attributes`, `jmceln predict` writes
`expression`. The COCO export of Label Studio has no text per region, so the names of the labels are used as texts.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.canonical_rows import DATA_ERRORS, reason_of


# In the column of masks, it means that the referent of the text is not in the image.
NO_TARGET = "none"
# As a `text_field`, it means the name of the category of an annotation.
CATEGORY = "category"
COLUMN_NAMES = {
    "image": ("image", "image_path", "file_name", "filename", "photo"),
    "mask": ("mask", "mask_path"),
    "expression": ("expression", "expressions", "text", "caption", "phrase", "sentence"),
    "split": ("split",),
}
TEXT_FIELDS = (*COLUMN_NAMES["expression"], "referring_expression", "description")
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
_NEEDED_COLUMNS = ("image", "mask", "expression")


@dataclass(frozen=True)
class Entry:
    """
    Args:
        place (`str`): File and line, or file and annotation.
        image (`str`): File name of the image, as in the file.
        expressions (`tuple[str, ...]`): Expressions for the mask.
        mask: File name of a mask or [`NO_TARGET`] in tables, polygons or RLE in COCO files.
        split (`str`): Split of the image; empty if the data has none.
        is_file (`bool`): Whether `mask` is a file name.
        merges (`bool`): Whether more masks for the same text and image are parts of the same target.
    """

    place: str
    image: str
    expressions: tuple[str, ...]
    mask: Any
    split: str = ""
    is_file: bool = True
    merges: bool = False


@dataclass
class AnnotationFile:
    """
    The entries of one file, and the problems in it with their places.

    Args:
        path (`Path`): The file.
        root (`Path`): The folder of the data.
        image_folders (`list[Path]`): Folders to look for images in, in this order.
    """

    path: Path
    root: Path
    image_folders: list[Path]
    entries: list[Entry] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)


def annotation_files(path: str | Path) -> list[Path]:
    """
    Returns the files with texts in a folder and in its subfolder `annotations` (as written by CVAT). For the path of
    such a file, returns the file itself.
    """
    path = Path(path)
    if path.is_file():
        return [path] if _is_annotation_file(path) else []
    if not path.is_dir():
        return []
    found = [file for folder in (path, path / "annotations") if folder.is_dir() for file in sorted(folder.iterdir())]
    return [file for file in found if file.is_file() and _is_annotation_file(file)]


def read_annotation_file(path: Path, text_field: str | None = None) -> AnnotationFile:
    """
    Reads a table or a COCO file.

    Args:
        path (`Path`): One of [`annotation_files`].
        text_field (`str`, *optional*): For COCO files, the field or attribute of an annotation that contains its text,
            or `"category"` for the name of its category. Defaults to the first of `TEXT_FIELDS` that has text.

    Raises:
        ValueError: If a COCO file has no text.
    """
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    read = AnnotationFile(path, root, [root, root / "images"])
    if path.suffix.lower() in TABLES:
        _read_table(read)
    else:
        _read_coco(read, text_field)
    return read


# Tables


def _is_annotation_file(path: Path) -> bool:
    suffix = path.suffix.lower()
    try:
        if suffix in TABLES:
            return set(_NEEDED_COLUMNS) <= _columns(_first_names(path)).keys()
        if suffix == ".json":
            content = json.loads(path.read_text("utf-8-sig"))
            return isinstance(content, dict) and all(
                isinstance(content.get(key), list) for key in ("images", "annotations")
            )
    except (OSError, ValueError, RecursionError):
        return False
    return False


def _first_names(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        first = next((line for line in lines if line.strip()), "")
    if path.suffix.lower() in (".csv", ".tsv"):
        return next(csv.reader([first], delimiter=_delimiter(first)), [])
    content = json.loads(first)
    return list(content) if isinstance(content, dict) else []


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _columns(names: Iterable[str]) -> dict[str, str]:
    """Returns the name in the file of each known column."""
    by_name = {str(name).strip().lower(): name for name in reversed(list(names))}
    found = {}
    for column, aliases in COLUMN_NAMES.items():
        name = next((by_name[alias] for alias in aliases if alias in by_name), None)
        if name is not None:
            found[column] = name
    return found


def _read_table(read: AnnotationFile) -> None:
    for line, row in _table_rows(read):
        place = f"{read.path.name}, line {line}"
        try:
            read.entries.append(_table_entry(place, row))
        except DATA_ERRORS as error:
            read.problems.append((place, reason_of(error)))


def _table_rows(read: AnnotationFile) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the readable lines with their numbers. Other lines become problems."""
    raw = read.path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        read.problems.append((f"{read.path.name}, line {line}", "not UTF-8: save the table as UTF-8"))
        text = raw.decode("utf-8-sig", "replace")
    if read.path.suffix.lower() in (".csv", ".tsv"):
        header = next(line for line in text.splitlines() if line.strip())
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(header))
        columns = _columns(reader.fieldnames or ())
        try:
            for row in reader:
                yield reader.line_num, {column: row[name] for column, name in columns.items()}
        except csv.Error as error:
            read.problems.append((f"{read.path.name}, line {reader.line_num}", f"{error}; nothing is read from there"))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield number, {column: row[name] for column, name in _columns(row).items()}
        else:
            read.problems.append((f"{read.path.name}, line {number}", f"no JSON object: {line.strip():.40}"))


def _table_entry(place: str, row: Mapping[str, Any]) -> Entry:
    image, mask = (_file_name(row, column) for column in ("image", "mask"))
    split = row.get("split") or ""
    if not isinstance(split, str):
        raise ValueError(f"`split` must be text, got {split!r}")
    return Entry(place, image, _texts(row.get("expression")), mask, split.strip())


def _file_name(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        hint = f'; write "{NO_TARGET}" if the image does not show what the text names' if column == "mask" else ""
        raise ValueError(f"no {column}{hint}")
    return value.strip()


def _texts(value: Any) -> tuple[str, ...]:
    """Returns stripped texts. Empty texts are kept, and reported later."""
    texts = [value] if value is None or isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(text is None or isinstance(text, str) for text in texts):
        raise ValueError(f"the expression must be text, got {value!r:.60}")
    return tuple(" ".join((text or "").split()) for text in texts) or ("",)


# COCO files


def _read_coco(read: AnnotationFile, text_field: str | None) -> None:
    content = json.loads(read.path.read_text("utf-8-sig"))
    subset = read.path.stem.removeprefix("instances_")
    # CVAT puts the images of a subset into a folder with its name.
    read.image_folders.append(read.root / "images" / subset)
    split = subset if subset in ("train", "val", "validation", "test") else ""
    images = {image.get("id"): image for image in content["images"] if isinstance(image, dict)}
    categories = {
        category.get("id"): category.get("name")
        for category in content.get("categories") or ()
        if isinstance(category, dict)
    }
    annotations = [annotation for annotation in content["annotations"] if isinstance(annotation, dict)]
    if text_field is None:
        text_field = _text_field(annotations, read.path, len(categories))
    for annotation in annotations:
        place = f"{read.path.name}, annotation {annotation.get('id')!r}"
        try:
            image = images.get(annotation["image_id"])
            if image is None:
                raise ValueError(f"there is no image {annotation['image_id']!r} in the file")
            if text_field == CATEGORY:
                text = categories.get(annotation["category_id"])
            else:
                text = _fields(annotation).get(text_field)
            if not annotation.get("segmentation"):
                raise ValueError("a box without a mask: draw it as a polygon or as a mask")
            read.entries.append(
                Entry(
                    place,
                    str(image["file_name"]),
                    _texts(text),
                    annotation["segmentation"],
                    split,
                    is_file=False,
                    merges=text_field == CATEGORY,
                )
            )
        except DATA_ERRORS as error:
            read.problems.append((place, reason_of(error)))


def _fields(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields and attributes of an annotation."""
    attributes = annotation.get("attributes")
    return {**(attributes if isinstance(attributes, dict) else {}), **annotation}


def _text_field(annotations: Sequence[Mapping[str, Any]], path: Path, num_categories: int) -> str:
    names: dict[str, None] = {}
    for annotation in annotations:
        texts = (name for name, value in _fields(annotation).items() if isinstance(value, str) and value.strip())
        names.update(dict.fromkeys(texts))
    chosen = next((name for name in TEXT_FIELDS if name in names), None)
    if chosen is None:
        raise ValueError(
            f"{path}: no annotation has a text under {', '.join(TEXT_FIELDS)}"
            + (f"; there is text under {', '.join(names)}" if names else "")
            + f". Name the field with `text_field`, or pass text_field={CATEGORY!r} to take the names of the"
            f" {num_categories} labels (Label Studio exports no other text in COCO's form)."
        )
    return chosen
