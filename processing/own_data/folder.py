"""Reads a folder of your own data as canonical rows, with a list of the problems in it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
from PIL import Image

from ..data.canonical_rows import (
    DATA_ERRORS,
    Referent,
    annotation_columns,
    canonical_features,
    check_image,
    image_size_from_header,
    is_excluded,
    reason_of,
)
from ..data.load_options import LoadOptions, same_split
from ..data.masks import RunLengthMask, empty_rle, mask_area, to_rle, union_rles
from ..natural_order import by_number
from .entries import NO_TARGET, AnnotationFile, Entry, annotation_files, read_annotation_file


VALIDATION_SHARE = 0.2


class OwnFolder:
    """
    A folder (or file) of your own data, read and checked.

    Args:
        path (`str` or `Path`):
            A folder with a table or a COCO file, or such a file: see [`~processing.own_data.entries`].
        text_field (`str`, *optional*):
            See [`~processing.own_data.entries.read_annotation_file`].
        image_folder (`str` or `Path`, *optional*):
            First folder to look for images in.

    Attributes:
        rows (`list[dict]`): Canonical rows with undecoded images; `split` is empty if the data has no splits.
        problems (`list[tuple[str, str]]`): Place and reason of each problem. These entries are in no row.
        num_entries (`int`): Number of lines and annotations.

    Raises:
        ValueError: If there is no such file, or if a COCO file has no text.
    """

    def __init__(self, path: str | Path, text_field: str | None = None, image_folder: str | Path | None = None):
        self.path = Path(path)
        files = annotation_files(path)
        if not files:
            raise ValueError(
                f"{path} has neither a table (.csv, .tsv or .jsonl) with the columns image, mask and expression, nor a"
                " COCO file with images and annotations"
            )
        self.rows: list[dict[str, Any]] = []
        self.problems: list[tuple[str, str]] = []
        self.num_entries = 0
        images: dict[Path, _OwnImage] = {}
        for file in files:
            read = read_annotation_file(file, text_field)
            if image_folder is not None:
                read.image_folders.insert(0, Path(image_folder))
            self.num_entries += len(read.entries) + len(read.problems)
            self.problems += read.problems
            for entry in read.entries:
                self._take(entry, read, images)
        self.problems.sort(key=lambda problem: by_number(problem[0]))
        for image in images.values():
            if image.texts:
                self.rows.append(image.row(self.path.resolve().name))

    def _take(self, entry: Entry, read: AnnotationFile, images: "dict[Path, _OwnImage]") -> None:
        try:
            path = _find_file(entry.image, read.image_folders)
            if path not in images:
                images[path] = _OwnImage(path, entry.image)
            self.problems += [(entry.place, reason) for reason in images[path].add(entry, read)]
        except DATA_ERRORS as error:
            self.problems.append((entry.place, reason_of(error)))

    def split(self, name: str, validation_share: float = VALIDATION_SHARE, seed: int = 0) -> list[dict[str, Any]]:
        """
        Returns the rows of one split.

        If the data has no splits, images are selected for `val` by a hash of their content, so that copies of an image
        are in the same split, and new images change the split of only a few others.

        Args:
            name (`str`): `train`, `val` or, if the data has splits, one of them.
            validation_share (`float`, *optional*, defaults to 0.2): Share of the images in `val`, at least one image.
            seed (`int`, *optional*, defaults to 0): Random seed of the split.

        Raises:
            ValueError: If the split has no row.
        """
        if any(row["split"] for row in self.rows):
            splits = {id(row): row["split"] or "train" for row in self.rows}
        else:
            splits = _draw_splits(self.rows, validation_share, seed)
        chosen = [{**row, "split": name} for row in self.rows if same_split(splits[id(row)], name)]
        if not chosen:
            raise ValueError(
                f"{self.path}: no image is left in the split {name!r}; {len(self.rows)} images can be used, in the"
                f" splits {sorted(set(splits.values()))}, problems: {len(self.problems)}; see `jmceln"
                f" check-data {self.path}`"
            )
        return chosen


def load_own_folder(
    path: str | Path,
    options: LoadOptions,
    *,
    text_field: str | None = None,
    image_folder: str | Path | None = None,
    validation_share: float = VALIDATION_SHARE,
    split_seed: int = 0,
    **unused: Any,
) -> "datasets.Dataset | datasets.IterableDataset":
    """
    Loads the canonical rows of your own data. For arguments and errors, see
    [`~processing.data.referring_datasets.load_referring_dataset`].
    """
    given = sorted(name for name, value in unused.items() if value is not None)
    if given:
        raise ValueError(f"{path} is a folder of your own data, for which {given} have no effect: omit them")
    folder = OwnFolder(path, text_field, image_folder)
    name = options.dataset_name or folder.path.resolve().name
    bad_rows = options.bad_rows(f"{name} {options.split}")
    for place, reason in folder.problems:
        bad_rows.report(place, reason)
    bad_rows.summarize()
    rows = [
        {**row, "dataset": name}
        for row in folder.split(options.split, validation_share, split_seed)
        if not is_excluded(row["image_id"], options.excluded)
    ]
    if not rows:
        raise ValueError(f"{name} {options.split}: all images are excluded")
    loaded = datasets.Dataset.from_list(rows, features=canonical_features())
    return loaded.to_iterable_dataset() if options.streaming else loaded


def is_own_folder(path: str | Path) -> bool:
    """Whether [`load_own_folder`] can read a folder or a file."""
    return bool(annotation_files(path))


class _OwnImage:
    """One image with its texts and masks."""

    def __init__(self, path: Path, name: str):
        self.cell = {"bytes": None, "path": str(path)}
        self.name = PurePosixPath(name.replace("\\", "/")).as_posix()
        self.split = ""
        self.texts: dict[str, _Text] = {}
        self._size: tuple[int, int] | None = None
        self._reason = ""
        try:
            self._size = image_size_from_header(self.cell)
            check_image(self.cell, [])
        except ValueError as error:
            self._reason = str(error)

    def add(self, entry: Entry, read: AnnotationFile) -> list[str]:
        """
        Adds an entry and returns the problems with its texts.

        Raises:
            DATA_ERRORS: If nothing in the entry can be used.
        """
        if self._size is None or self._reason:
            raise ValueError(f"{self.name}: {self._reason}")
        mask = _read_mask(entry, read, self._size)
        if self.texts and entry.split != self.split:
            raise ValueError(f"{self.name} is in the split {self.split!r} as well as in {entry.split!r}")
        self.split = entry.split
        problems = []
        for text in entry.expressions:
            before = self.texts.get(text.casefold())
            if not text:
                problems.append("the expression is empty")
            elif before is None:
                self.texts[text.casefold()] = _Text(text, mask, entry.place)
            elif entry.merges:
                before.mask = union_rles([before.mask, mask])
            else:
                what = "is there already" if before.mask == mask else "has another mask already"
                problems.append(f"{text!r} for {self.name} {what}: {before.place}")
        return problems

    def row(self, dataset: str) -> dict[str, Any]:
        """Returns the canonical row. Texts for the same mask are expressions of one referent."""
        of_mask: dict[str, list[_Text]] = {}
        for text in self.texts.values():
            of_mask.setdefault(text.mask["counts"], []).append(text)
        referents = [
            Referent(str(number), [text.text for text in texts], texts[0].mask)
            for number, texts in enumerate(of_mask.values())
        ]
        return {"image": self.cell, **annotation_columns(referents, self.name, dataset, self.split)}


@dataclass
class _Text:
    text: str
    mask: RunLengthMask
    place: str


def _read_mask(entry: Entry, read: AnnotationFile, size: tuple[int, int]) -> RunLengthMask:
    if not entry.is_file:
        return _checked(to_rle(entry.mask, *size), size)
    if entry.mask.lower() == NO_TARGET:
        return empty_rle(*size)
    path = _find_file(entry.mask, [read.root, read.root / "masks"])
    try:
        with Image.open(path) as image:
            is_lossy = image.format == "JPEG"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"the mask {entry.mask!r} cannot be opened: {error}") from error
    if is_lossy:
        raise ValueError(f"the mask {entry.mask!r} is a JPEG, which blurs its edge: save masks as PNG")
    try:
        return _checked(to_rle({"path": str(path)}, *size), size)
    except ValueError as error:
        raise ValueError(f"{entry.mask!r}: {error}") from error


def _checked(mask: RunLengthMask, size: tuple[int, int]) -> RunLengthMask:
    area = mask_area(mask)
    if area == 0:
        raise ValueError("the mask is empty: no pixel differs from black")
    if area == size[0] * size[1]:
        raise ValueError("the mask covers the whole image: no pixel is black")
    return mask


def _find_file(name: str, folders: list[Path]) -> Path:
    """
    Finds a file by its name in the data, which must not lead out of the folders.

    Exported names can contain other folders (`/data/upload/1/a.jpg`), so the last part of the name is tried as well.

    Raises:
        ValueError: If the file is in none of the folders.
    """
    written = PurePosixPath(name.replace("\\", "/"))
    leads_out = written.is_absolute() or Path(name).is_absolute() or ".." in written.parts or "\0" in name
    for candidate in (*(() if leads_out else (written,)), *([written.name] if written.name else ())):
        for folder in folders:
            path = folder / str(candidate).replace("\0", "")
            if path.is_file():
                return path
    raise ValueError(f"there is no file {name!r} in {' or '.join(str(folder) for folder in dict.fromkeys(folders))}")


def _draw_splits(rows: list[dict[str, Any]], validation_share: float, seed: int) -> dict[int, str]:
    if not 0 <= validation_share < 1:
        raise ValueError(f"`validation_share` must be at least 0 and below 1, got {validation_share}")
    by_content: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        digest = hashlib.sha256(f"{seed} ".encode() + Path(row["image"]["path"]).read_bytes()).hexdigest()
        by_content.setdefault(digest, []).append(row)
    count = round(validation_share * len(by_content))
    if validation_share > 0 and len(by_content) > 1:
        count = max(1, count)
    held_out = set(sorted(by_content)[:count])
    return {id(row): "val" if digest in held_out else "train" for digest, group in by_content.items() for row in group}
