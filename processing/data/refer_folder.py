"""Read a local folder in the format of the REFER API, as RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO are published.

Such a folder holds `instances.json` (COCO annotations) and one or several files of references: `refs(unc).p`,
`refs(umd).p`, `refs(google).p` (pickles; Yu et al. 2016, Mao et al. 2016), `grefs(unc).json` (gRefCOCO; Liu et al.
2023, where `ann_id` is a list and `[-1]` means no target), or `refs(<name>).json` as `jmceln benchmark-data photos` writes it
(as gRefCOCO, each sentence with a `level`). The photos are those of COCO train2014.
"""

import json
import logging
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .masks import RunLengthMask, empty_rle, mask_area, to_rle, union_rles
from .canonical_rows import Referent, collect_referents, find_image, sentence_texts
from .restricted_pickle import load_plain_pickle


logger = logging.getLogger(__name__)

_REFERENCE_FILE = re.compile(r"^(g?refs)\((?P<split_by>[^)]+)\)\.(p|json)$")


def reference_files(folder: str | Path) -> dict[str, Path]:
    """Files of references in a folder by the name in their brackets; JSON where both forms are there."""
    found: dict[str, Path] = {}
    for path in sorted(Path(folder).iterdir(), key=lambda path: path.suffix != ".p"):
        match = _REFERENCE_FILE.match(path.name)
        if match:
            found[match["split_by"]] = path
    return found


def is_refer_folder(folder: str | Path) -> bool:
    """Whether a folder looks like one of the REFER API."""
    folder = Path(folder)
    return folder.is_dir() and (folder / "instances.json").is_file() and bool(reference_files(folder))


def load_references(folder: str | Path, split_by: str | None = None) -> tuple[list[dict[str, Any]], str]:
    """
    Read the references of a folder, without annotations or images.

    Args:
        folder (`str` or `Path`):
            The folder.
        split_by (`str`, *optional*):
            Name in the brackets of the file: `unc`, `umd`, `google`, `coco`. May be left out where there is only one.

    Returns:
        `tuple[list[dict], str]`: the references and the name in the brackets.

    Raises:
        ValueError: if there is no such file, or several and none was named; if the file is not a list of references,
            or a pickle that is not plain data.
    """
    files = reference_files(folder)
    if split_by is None:
        if len(files) != 1:
            raise ValueError(f"{folder} has the reference files {sorted(files)}: say which one with `split_by`")
        split_by = next(iter(files))
    if split_by not in files:
        raise ValueError(f"{folder} has no references split by {split_by!r}, only {sorted(files)}")
    path = files[split_by]
    references = json.loads(path.read_text("utf-8")) if path.suffix == ".json" else load_plain_pickle(path)
    if not isinstance(references, list) or not all(isinstance(reference, dict) for reference in references):
        raise ValueError(f"{path} is not a list of references")
    return references, split_by


def annotation_ids(reference: Mapping[str, Any]) -> list[int]:
    """Annotations that a reference means, none for no target: an id, or a list of ids with -1 for none."""
    ids = reference["ann_id"]
    return [int(identifier) for identifier in (ids if isinstance(ids, list | tuple) else [ids]) if identifier != -1]


@dataclass(frozen=True)
class ReferImage:
    """An image of a REFER folder with its references, masks not yet made."""

    image_id: str
    info: Mapping[str, Any]
    references: list[Mapping[str, Any]]


class ReferFolder:
    """
    References of a folder by image; masks are made when asked for.

    Args:
        folder (`str` or `Path`):
            Holds `instances.json` and the references.
        split (`str`):
            As in the `split` field of the references.
        split_by (`str`, *optional*):
            See [`load_references`].
        image_folder (`str` or `Path`, *optional*):
            Where the photos are; `images` inside `folder` if left out.
        sentence_field (`str`, *optional*, defaults to `"sent"`):
            `"sent"` (lower case, without punctuation) or `"raw"` (as typed).
        exclude_image_ids (`Collection[str]`, *optional*):
            Photos to leave out, with the images that were made of them.

    Raises:
        ValueError: if the split has no reference, naming those that there are.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        split_by: str | None = None,
        image_folder: str | Path | None = None,
        sentence_field: str = "sent",
        exclude_image_ids: Collection[str] = (),
    ):
        self.folder = Path(folder)
        self.split = split
        self.image_folder = Path(image_folder) if image_folder is not None else self.folder / "images"
        self.sentence_field = sentence_field
        references, self.split_by = load_references(folder, split_by)
        splits = {reference["split"] for reference in references}
        if split not in splits:
            raise ValueError(f"{folder} split by {self.split_by!r} has the splits {sorted(splits)}, not {split!r}")
        excluded = set(exclude_image_ids)
        instances = json.loads((self.folder / "instances.json").read_text("utf-8"))
        image_info = {image["id"]: image for image in instances["images"]}
        by_image: OrderedDict[int, list[Mapping[str, Any]]] = OrderedDict()
        for reference in references:
            # A pasted image shows the photos that it was made of, and its own id is no photo's.
            info = image_info.get(reference["image_id"], {})
            photos = {str(photo) for photo in info.get("source_image_ids", [reference["image_id"]])}
            if reference["split"] == split and excluded.isdisjoint(photos):
                by_image.setdefault(reference["image_id"], []).append(reference)
        needed = {
            identifier
            for references in by_image.values()
            for reference in references
            for identifier in (*annotation_ids(reference), *_landmark_ids(reference))
        }
        self._annotations = {
            annotation["id"]: annotation for annotation in instances["annotations"] if annotation["id"] in needed
        }
        self.images = [
            ReferImage(str(image_id), image_info.get(image_id, {}), references)
            for image_id, references in by_image.items()
        ]
        self.has_levels = any("level" in sentence for sentence in _sentences(references, split))
        self.has_landmarks = all("landmark_ids" in sentence for sentence in _sentences(references, split))

    def __len__(self) -> int:
        return len(self.images)

    def image_path(self, image: ReferImage) -> Path:
        """Path of the photo. Raises ValueError if it is not there."""
        file_name = image.info.get("file_name")
        if file_name is None:
            raise ValueError(f"image {image.image_id} is not in instances.json")
        return find_image(self.image_folder, file_name, image.image_id)

    def referents(self, image: ReferImage) -> tuple[list[Referent], list[str]]:
        """Referents of an image, and what could not be read with the reason."""
        return collect_referents(image.references, lambda reference: self._referent(image, reference))

    def _referent(self, image: ReferImage, reference: Mapping[str, Any]) -> Referent:
        ref_id = reference["ref_id"]
        if "height" not in image.info or "width" not in image.info:
            raise ValueError(f"reference {ref_id}: image {image.image_id} has no size in instances.json")
        size = image.info["height"], image.info["width"]
        mask = self._union(ref_id, annotation_ids(reference), size)
        if annotation_ids(reference) and mask_area(mask) == 0:
            raise ValueError(f"reference {ref_id}: its annotations cover no pixel")
        sentences = reference["sentences"]
        expressions = sentence_texts(sentences, self.sentence_field)
        if (self.has_levels or self.has_landmarks) and len(sentences) != len(expressions):
            raise ValueError(f"reference {ref_id}: an empty sentence among graded ones")
        levels = [sentence.get("level", "") for sentence in sentences] if self.has_levels else None
        landmarks = None
        if self.has_landmarks:
            landmarks = [self._union(ref_id, sentence["landmark_ids"], size) for sentence in sentences]
        return Referent(str(ref_id), expressions, mask, levels, landmarks)

    def _union(self, ref_id: Any, identifiers: Iterable[int], size: tuple[int, int]) -> RunLengthMask:
        """The mask of several annotations together, empty for none."""
        parts = []
        for identifier in identifiers:
            if identifier not in self._annotations:
                raise ValueError(f"reference {ref_id}: annotation {identifier} is not in instances.json")
            try:
                parts.append(to_rle(self._annotations[identifier]["segmentation"], *size))
            except (ValueError, TypeError) as error:
                raise ValueError(f"reference {ref_id}: annotation {identifier}: {error}") from error
        return union_rles(parts) if parts else empty_rle(*size)


def _landmark_ids(reference: Mapping[str, Any]) -> Iterator[int]:
    for sentence in reference["sentences"]:
        yield from sentence.get("landmark_ids", ())


def _sentences(references: list[dict[str, Any]], split: str) -> Iterator[Mapping[str, Any]]:
    for reference in references:
        if reference["split"] == split:
            yield from reference["sentences"]
