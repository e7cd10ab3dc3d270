"""Reads a local folder in the format of the REFER API, as RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO are published.

Such a folder contains `instances.json` (COCO annotations) and one or several files of references: `refs(unc).p`,
`refs(umd).p`, `refs(google).p` (pickles; Yu et al. 2016, Mao et al. 2016), `grefs(unc).json` (gRefCOCO; Liu et al.
2023, where `ann_id` is a list and `[-1]` means no target), or `refs(<name>).json` written by `jmceln benchmark-data
photos` (as gRefCOCO, with a `level` per sentence). The photos are those of COCO train2014.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ..evaluation.referring_segmentation_metric.run_lengths import check_size
from .canonical_rows import (
    DATA_ERRORS,
    BadRows,
    Referent,
    annotation_columns,
    canonical_features,
    check_image,
    collect_referents,
    find_image,
    is_excluded,
    reason_of,
    sentence_texts,
)
from .load_options import LoadOptions
from .masks import RunLengthMask, empty_rle, mask_area, to_rle, union_rles
from .restricted_pickle import load_plain_pickle


_SHARDS = 64
_REFERENCE_FILE = re.compile(r"^(g?refs)\((?P<split_by>[^)]+)\)\.(p|json)$")


def reference_files(folder: str | Path) -> dict[str, Path]:
    """Returns the files of references in a folder by the name in parentheses. JSON is preferred to pickles."""
    found: dict[str, Path] = {}
    for path in sorted(Path(folder).iterdir(), key=lambda path: path.suffix != ".p"):
        match = _REFERENCE_FILE.match(path.name)
        if match:
            found[match["split_by"]] = path
    return found


def is_refer_folder(folder: str | Path) -> bool:
    """Whether a folder has the format of the REFER API."""
    folder = Path(folder)
    return folder.is_dir() and (folder / "instances.json").is_file() and bool(reference_files(folder))


def load_references(folder: str | Path, split_by: str | None = None) -> tuple[list[Any], str]:
    """
    Reads the references of a folder, without annotations or images.

    Args:
        folder (`str` or `Path`):
            The folder.
        split_by (`str`, *optional*):
            Name in the parentheses of the file: `unc`, `umd`, `google`, `coco`. Optional if there is only one file.

    Returns:
        `tuple[list, str]`: the references, for [`parse_reference`], and the name in parentheses.

    Raises:
        ValueError: If there is no such file, if there are several and `split_by` is missing, or if the file cannot be
            read, is not a list, or is a pickle with anything but plain data.
    """
    files = reference_files(folder)
    if split_by is None:
        if len(files) != 1:
            raise ValueError(f"{folder} has the reference files {sorted(files)}: choose one with `split_by`")
        split_by = next(iter(files))
    if split_by not in files:
        raise ValueError(f"{folder} has no references split by {split_by!r}: choose one of {sorted(files)}")
    path = files[split_by]
    references = _read_json(path) if path.suffix == ".json" else load_plain_pickle(path)
    if not isinstance(references, list):
        raise ValueError(f"{path} is not a list of references")
    return references, split_by


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from None


@dataclass(frozen=True)
class Reference:
    """
    A reference whose fields have the right types.

    Args:
        ref_id (`str`): Id of the reference.
        image_id (`int` or `str`): Id of the image, as in `instances.json`.
        split (`str`): Name of the split.
        annotation_ids (`tuple[int, ...]`): Annotations of the referent; empty for no target.
        sentences (`tuple[Mapping, ...]`): Sentences, each with `sent` or `raw` and optionally `level` and
            `landmark_ids`.
    """

    ref_id: str
    image_id: int | str
    split: str
    annotation_ids: tuple[int, ...]
    sentences: tuple[Mapping[str, Any], ...]

    @property
    def landmark_ids(self) -> Iterator[int]:
        """Annotations of the landmarks of all sentences."""
        for sentence in self.sentences:
            yield from sentence.get("landmark_ids", ())


def reference_image_id(reference: Mapping[str, Any]) -> int | str:
    """
    Returns the id of the image of a reference.

    Raises:
        DATA_ERRORS: If it is missing, or neither an integer nor a string.
    """
    image_id = reference["image_id"]
    if isinstance(image_id, bool) or not isinstance(image_id, int | str):
        raise ValueError(f"`image_id` must be an integer or a string, got {image_id!r}")
    return image_id


def reference_split(reference: Mapping[str, Any]) -> str:
    """
    Returns the split of a reference.

    Raises:
        DATA_ERRORS: If it is missing or not a string.
    """
    if not isinstance(reference, Mapping):
        raise ValueError(f"a reference must be a mapping, got {reference!r:.80}")
    split = reference["split"]
    if not isinstance(split, str):
        raise ValueError(f"`split` must be a string, got {split!r}")
    return split


def parse_reference(reference: Any) -> Reference:
    """
    Checks and converts a reference from its file.

    Raises:
        DATA_ERRORS: If a field is missing or has the wrong type.
    """
    if not isinstance(reference, dict):
        raise ValueError(f"a reference must be a mapping, got {type(reference).__name__}")
    ids, sentences = reference["ann_id"], reference["sentences"]
    if not isinstance(sentences, list | tuple) or not all(isinstance(sentence, dict) for sentence in sentences):
        raise ValueError(f"`sentences` must be a list of mappings, got {type(sentences).__name__}")
    return Reference(
        ref_id=str(reference["ref_id"]),
        image_id=reference_image_id(reference),
        split=reference_split(reference),
        annotation_ids=_annotation_ids("ann_id", ids if isinstance(ids, list | tuple) else [ids]),
        sentences=tuple(
            {**sentence, "landmark_ids": _annotation_ids("landmark_ids", sentence["landmark_ids"])}
            if "landmark_ids" in sentence
            else sentence
            for sentence in sentences
        ),
    )


def _annotation_ids(field: str, ids: Iterable[Any]) -> tuple[int, ...]:
    """Checks ids of annotations and drops -1, which means no annotation."""
    ids = list(ids)
    if any(isinstance(identifier, bool) or not isinstance(identifier, int) for identifier in ids):
        raise ValueError(f"`{field}` must contain integer ids of annotations, got {ids!r:.60}")
    return tuple(identifier for identifier in ids if identifier != -1)


class _Entries:
    """The entries of a list in `instances.json`, by their id."""

    def __init__(self, kind: str, entries: Any):
        self.kind = kind
        self._by_id: dict[int | str, Mapping[str, Any]] = {}
        self._ambiguous: set[int | str] = set()
        for entry in entries if isinstance(entries, list) else ():
            identifier = entry.get("id") if isinstance(entry, dict) else None
            if not isinstance(identifier, int | str):
                continue
            if self._by_id.setdefault(identifier, entry) != entry:
                self._ambiguous.add(identifier)

    def keep(self, identifiers: set[int]) -> None:
        """Drops all other entries, so that these are quick to pass to other processes."""
        self._by_id = {identifier: self._by_id[identifier] for identifier in identifiers & self._by_id.keys()}

    def __getitem__(self, identifier: int | str) -> Mapping[str, Any]:
        if identifier in self._ambiguous:
            raise ValueError(f"{self.kind} {identifier} occurs in instances.json several times, with differences")
        if identifier not in self._by_id:
            raise ValueError(f"{self.kind} {identifier} is not in instances.json")
        return self._by_id[identifier]

    def __contains__(self, identifier: int | str) -> bool:
        return identifier in self._by_id and identifier not in self._ambiguous


@dataclass(frozen=True)
class ReferImage:
    """An image of a REFER folder with its references. Masks are decoded later."""

    image_id: int | str
    references: list[Reference]


class ReferFolder:
    """
    The references of a folder, grouped by image. Masks are decoded when they are needed.

    Args:
        folder (`str` or `Path`):
            Folder with `instances.json` and the references.
        split (`str`):
            Value of the `split` field of the references.
        split_by (`str`, *optional*):
            See [`load_references`].
        image_folder (`str` or `Path`, *optional*):
            Folder of the photos. Defaults to `images` inside `folder`.
        sentence_field (`str`, *optional*, defaults to `"sent"`):
            `"sent"` (lower case, without punctuation) or `"raw"` (as typed).
        excluded (`frozenset[str]`, *optional*):
            Photos to leave out, together with the images that were made from them: see
            [`~processing.data.canonical_rows.excluded_images`].

    Attributes:
        images (`list[ReferImage]`): Images of the split in order of their first reference.
        problems (`list[tuple[str, str]]`): Position and reason of each reference that cannot be read.

    Raises:
        ValueError: If the split has no references, or if a file cannot be read.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        split_by: str | None = None,
        image_folder: str | Path | None = None,
        sentence_field: str = "sent",
        excluded: frozenset[str] = frozenset(),
    ):
        self.folder = Path(folder)
        self.split = split
        self.image_folder = Path(image_folder) if image_folder is not None else self.folder / "images"
        self.sentence_field = sentence_field
        references, self.split_by = load_references(folder, split_by)
        self.problems: list[tuple[str, str]] = []
        chosen = self._of_split(references)
        instances = _read_json(self.folder / "instances.json")
        if not isinstance(instances, dict):
            raise ValueError(f"{self.folder / 'instances.json'} must be a mapping with `images` and `annotations`")
        self._infos = _Entries("image", instances.get("images"))
        self._annotations = _Entries("annotation", instances.get("annotations"))
        by_image: dict[int | str, list[Reference]] = {}
        for reference in chosen:
            if not any(is_excluded(photo, excluded) for photo in self._photos(reference.image_id)):
                by_image.setdefault(reference.image_id, []).append(reference)
        self.images = [ReferImage(image_id, own) for image_id, own in by_image.items()]
        kept = [reference for own in by_image.values() for reference in own]
        self._annotations.keep({one for own in kept for one in (*own.annotation_ids, *own.landmark_ids)})
        sentences = [sentence for reference in chosen for sentence in reference.sentences]
        self.has_levels = any("level" in sentence for sentence in sentences)
        self.has_landmarks = all("landmark_ids" in sentence for sentence in sentences)

    def __len__(self) -> int:
        return len(self.images)

    def _of_split(self, references: list[Any]) -> list[Reference]:
        """Returns the references of the split. Those that cannot be read become problems."""
        chosen, splits = [], set()
        for position, raw in enumerate(references):
            try:
                split = reference_split(raw)
                splits.add(split)
                if split == self.split:
                    chosen.append(parse_reference(raw))
            except DATA_ERRORS as error:  # noqa: PERF203 - a bad reference must not affect the others
                self.problems.append((f"reference {position} of the file", reason_of(error)))
        if self.split not in splits:
            raise ValueError(
                f"{self.folder} split by {self.split_by!r} has no split {self.split!r}: choose one of {sorted(splits)}"
                + (f"; {len(self.problems)} references cannot be read" if self.problems else "")
            )
        return chosen

    def _photos(self, image_id: int | str) -> set[str]:
        """Returns the ids of the photos that an image was made from: several for an image with pasted objects."""
        made_of = self._infos[image_id].get("source_image_ids") if image_id in self._infos else None
        return {str(photo) for photo in (made_of if isinstance(made_of, list) else [image_id])}

    def image_path(self, image: ReferImage) -> Path:
        """Returns the path of the photo. Raises a `ValueError` if there is no such file."""
        return find_image(self.image_folder, self._infos[image.image_id]["file_name"], str(image.image_id))

    def referents(self, image: ReferImage) -> tuple[list[Referent], list[str]]:
        """Returns the referents of an image, and the problems with those that cannot be read."""
        info = self._infos[image.image_id]
        if "height" not in info or "width" not in info:
            raise ValueError("it has no `height` and `width` in instances.json")
        size = check_size([info["height"], info["width"]])
        return collect_referents(image.references, lambda reference: self._referent(image.image_id, reference, size))

    def _referent(self, image_id: int | str, reference: Reference, size: tuple[int, int]) -> Referent:
        try:
            mask = self._union(image_id, reference.annotation_ids, size)
            if reference.annotation_ids and mask_area(mask) == 0:
                raise ValueError("its annotations are empty masks")
            sentences = reference.sentences
            expressions = sentence_texts(sentences, self.sentence_field)
            if (self.has_levels or self.has_landmarks) and len(sentences) != len(expressions):
                raise ValueError("a sentence with a level or landmarks is empty")
            levels = [sentence.get("level", "") for sentence in sentences] if self.has_levels else None
            if not all(isinstance(level, str) for level in levels or ()):
                raise ValueError(f"the `level` of a sentence must be a string, got {levels}")
            landmarks = None
            if self.has_landmarks:
                landmarks = [self._union(image_id, sentence["landmark_ids"], size) for sentence in sentences]
        except DATA_ERRORS as error:
            raise ValueError(f"reference {reference.ref_id}: {reason_of(error)}") from error
        return Referent(reference.ref_id, expressions, mask, levels, landmarks)

    def _union(self, image_id: int | str, identifiers: Iterable[int], size: tuple[int, int]) -> RunLengthMask:
        """Returns the union of several annotations, or an empty mask for none."""
        parts = []
        for identifier in identifiers:
            annotation = self._annotations[identifier]
            if annotation.get("image_id", image_id) != image_id:
                raise ValueError(f"annotation {identifier} belongs to the image {annotation['image_id']!r:.60}")
            try:
                parts.append(to_rle(annotation["segmentation"], *size))
            except DATA_ERRORS as error:
                raise ValueError(f"annotation {identifier}: {reason_of(error)}") from error
        return union_rles(parts) if parts else empty_rle(*size)


def load_refer_folder(
    path: str | Path,
    options: LoadOptions,
    *,
    split_by: str | None = None,
    image_folder: str | Path | None = None,
    sentence_field: str = "sent",
    **unused: Any,
) -> "datasets.Dataset | datasets.IterableDataset":
    """
    Loads the canonical rows of a REFER folder. For arguments and errors, see
    [`~processing.data.referring_datasets.load_referring_dataset`].
    """
    given = sorted(name for name, value in unused.items() if value is not None)
    if given:
        raise ValueError(f"{path} is a REFER folder, for which {given} have no effect: omit them")
    if sentence_field not in ("sent", "raw"):
        raise ValueError(f"`sentence_field` must be 'sent' or 'raw', got {sentence_field!r}")
    folder = ReferFolder(path, options.split, split_by, image_folder, sentence_field, options.excluded)
    name = options.dataset_name or f"{folder.folder.resolve().name}_{folder.split_by}"
    features = canonical_features(folder.has_levels, folder.has_landmarks)
    bad_rows = options.bad_rows(f"{name} {folder.split}")
    for place, reason in folder.problems:
        bad_rows.report(place, reason)
    arguments = {"folder": folder, "name": name, "bad_rows": bad_rows, "check_images": options.check_images}
    if options.streaming:
        count = max(1, min(_SHARDS, len(folder)))
        return datasets.IterableDataset.from_generator(
            functools.partial(_rows, num_shards=count, **arguments),
            features=features,
            gen_kwargs={"shards": list(range(count))},
        )
    rows = list(_rows([0], num_shards=1, **arguments))
    if not rows:
        raise ValueError(f"{name} {folder.split}: no row is left after bad rows and excluded images are dropped")
    return datasets.Dataset.from_list(rows, features=features)


def _rows(
    shards: Iterable[int], folder: ReferFolder, name: str, num_shards: int, bad_rows: BadRows, check_images: bool
) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for index in range(shard, len(folder), num_shards):
            image = folder.images[index]
            try:
                cell = {"bytes": None, "path": str(folder.image_path(image))}
                referents, problems = folder.referents(image)
                if check_images:
                    check_image(cell, [referent.mask for referent in referents])
            except DATA_ERRORS as error:
                bad_rows.report(index, f"image {image.image_id}: {reason_of(error)}")
                continue
            for problem in problems:
                bad_rows.report(index, f"image {image.image_id}: {problem}")
            if referents:
                columns = annotation_columns(
                    referents, str(image.image_id), name, folder.split, folder.has_levels, folder.has_landmarks
                )
                yield {"image": cell, **columns}
    bad_rows.summarize()
