"""Adapters for the referring datasets on the Hugging Face Hub, and a table of these datasets.

An adapter converts one row of its source to the referents of one image. It is chosen by the name of the dataset or by
its columns. No adapter decodes an image: if the columns do not contain its size, the size is read from the header of
the file.
"""

import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, ClassVar

from .canonical_rows import (
    Referent,
    clean_expressions,
    coco_image_id,
    collect_referents,
    image_size_from_header,
    sentence_texts,
)
from .masks import RunLengthMask, empty_rle, mask_area, to_rle


@dataclass(frozen=True)
class Partition:
    """One of several published partitions of a validation split, with its numbers of references and images."""

    name: str
    references: int
    images: int


@dataclass(frozen=True)
class HubDataset:
    """
    Description of a dataset on the Hub.

    Args:
        identifier (`str`): The Hub id.
        adapter (`str`): Name of its adapter.
        dataset (`str`): Value of the `dataset` column; empty if it is part of the name of the split.
        splits (`dict[str, str]`): Usual name of each split -> its name on the Hub.
        images (`str`): `"inside"`, or `"by path"` in a folder of COCO images that the user provides.
        verified (`str`): What was checked, and against which source.
        mixed_splits (`dict[str, tuple[Partition, ...]]`): Splits that mix several partitions.
    """

    identifier: str
    adapter: str
    dataset: str
    splits: dict[str, str]
    images: str
    verified: str
    mixed_splits: dict[str, tuple[Partition, ...]] = field(default_factory=dict)


_CARD = (
    "columns, types and row counts read in a stored copy of its card; fixture with these columns written to Parquet "
    "and read back; rows themselves never downloaded"
)
_UNC_SPLITS = {"val": "val", "testA": "testA", "testB": "testB"}
_JXU_SPLITS = {"train": "train", "val": "validation", "testA": "test", "testB": "testB"}
# Numbers of references and images per partition as listed by TensorFlow Datasets (ref_coco). The numbers of references
# agree with the cards of lmms-lab, those of images with the rows of jxu124/refcoco-benchmark (one per image).
_REFCOCO_VAL = (Partition("unc", 3811, 1500), Partition("google", 5000, 4559))
_REFCOCOG_VAL = (Partition("umd", 2573, 1300), Partition("google", 5000, 4650))

HUB_DATASETS: tuple[HubDataset, ...] = (
    HubDataset(
        "jxu124/refcoco-benchmark",
        "refcoco-benchmark",
        "",
        {
            f"{name}_{split}": f"{name}_{split}"
            for name, splits in {
                "refcoco_unc": ("val", "testA", "testB"),
                "refcoco_google": ("val", "test"),
                "refcoco_plus_unc": ("val", "testA", "testB"),
                "refcocog_umd": ("val", "test"),
                "refcocog_google": ("val",),
            }.items()
            for split in splits
        },
        "inside",
        _CARD + "; row counts per split agree with the published image counts",
    ),
    HubDataset("jxu124/refcoco", "refcoco-by-path", "refcoco_unc", _JXU_SPLITS, "by path", _CARD),
    HubDataset("jxu124/refcocoplus", "refcoco-by-path", "refcoco+_unc", _JXU_SPLITS, "by path", _CARD),
    HubDataset(
        "jxu124/refcocog",
        "refcoco-by-path",
        "refcocog_umd",
        {"train": "train", "val": "validation", "test": "test"},
        "by path",
        _CARD,
    ),
    HubDataset(
        "jerife/jxu124_refcoco_debug",
        "refcoco-by-path",
        "refcoco_unc",
        {"val": "validation", "testA": "testA", "testB": "testB"},
        "inside",
        _CARD + "; ten rows per split",
    ),
    HubDataset(
        "lmms-lab/RefCOCO",
        "lmms-lab",
        "refcoco",
        {**_UNC_SPLITS, "test": "test"},
        "inside",
        _CARD + "; that `val` mixes two partitions follows from its 8,811 rows; their order is checked on loading",
        {"val": _REFCOCO_VAL},
    ),
    HubDataset("lmms-lab/RefCOCOplus", "lmms-lab", "refcoco+_unc", _UNC_SPLITS, "inside", _CARD),
    HubDataset(
        "lmms-lab/RefCOCOg",
        "lmms-lab",
        "refcocog",
        {"val": "val", "test": "test"},
        "inside",
        _CARD + "; that `val` mixes two partitions follows from its 7,573 rows; their order is checked on loading",
        {"val": _REFCOCOG_VAL},
    ),
    HubDataset(
        "moondream/refcoco-m",
        "refcoco-m",
        "refcoco-m_unc",
        {"val": "validation"},
        "inside",
        _CARD + "; its card also states the form of the masks",
    ),
)


def find_hub_dataset(identifier: str) -> HubDataset | None:
    """Returns the table entry of a Hub id, ignoring its case."""
    return next((entry for entry in HUB_DATASETS if entry.identifier.lower() == identifier.lower()), None)


class Adapter(ABC):
    """
    Reads the referents of one image from a row of a source.

    Class attributes:
        name (`str`): Name of the adapter.
        columns (`frozenset[str]`): Columns by which a source is recognized.
        needs_image_bytes (`bool`): Whether the size of the image must be read from its header.
    """

    name: ClassVar[str]
    columns: ClassVar[frozenset[str]]
    needs_image_bytes: ClassVar[bool] = False
    image_column: str = "image"

    @property
    def required_columns(self) -> frozenset[str]:
        """Columns that the source must have."""
        return self.columns

    @property
    @abstractmethod
    def identity_columns(self) -> tuple[str, ...]:
        """The columns that identify the image of a row."""

    @abstractmethod
    def image_id(self, row: Mapping[str, Any]) -> str | None:
        """Returns the id of the image, from the identity columns, or `None` if each row is a separate image."""

    def photo(self, row: Mapping[str, Any]) -> str:
        """Returns a text that differs between images with the same id; empty if ids are unique, as in COCO."""
        del row
        return ""

    @abstractmethod
    def referents(self, row: Mapping[str, Any]) -> tuple[list[Referent], list[str]]:
        """
        Returns the referents in a row, and the problems with those that cannot be read. `ref_id` can be empty.

        Raises:
            ValueError, TypeError or KeyError: If nothing in the row can be used.
        """

    def image_file_name(self, row: Mapping[str, Any]) -> str:
        """Returns the file name of the image, for sources without images."""
        raise ValueError(f"the adapter {self.name!r} finds no path of an image in the columns {sorted(row)}")


@dataclass(frozen=True)
class RefcocoBenchmarkAdapter(Adapter):
    """`jxu124/refcoco-benchmark`: one row per image, references as a list of structs, polygons as lists of lists."""

    sentence_field: str = "sent"

    name: ClassVar[str] = "refcoco-benchmark"
    columns: ClassVar[frozenset[str]] = frozenset({"ref_list", "image_info", "image"})

    @property
    def identity_columns(self) -> tuple[str, ...]:
        return ("image_info",)

    def image_id(self, row: Mapping[str, Any]) -> str:
        return coco_image_id(row["image_info"]["id"])

    def referents(self, row: Mapping[str, Any]) -> tuple[list[Referent], list[str]]:
        height, width = row["image_info"]["height"], row["image_info"]["width"]

        def build(item: Mapping[str, Any]) -> Referent:
            reference = item["ref_info"]
            mask = _target_mask(item["ann_info"]["segmentation"], height, width)
            return Referent(
                str(reference["ref_id"]), sentence_texts(reference["sentences"], self.sentence_field), mask
            )

        return collect_referents(row["ref_list"], build)


@dataclass(frozen=True)
class RefcocoByPathAdapter(Adapter):
    """`jxu124/refcoco`, `refcocoplus`, `refcocog`: one row per reference, annotation and image info as JSON."""

    sentence_field: str = "sent"

    name: ClassVar[str] = "refcoco-by-path"
    columns: ClassVar[frozenset[str]] = frozenset(
        {"raw_anns", "raw_image_info", "sentences", "image_id", "ref_id", "image_path"}
    )

    @property
    def identity_columns(self) -> tuple[str, ...]:
        return ("image_id",)

    def image_id(self, row: Mapping[str, Any]) -> str:
        return coco_image_id(row["image_id"])

    def referents(self, row: Mapping[str, Any]) -> tuple[list[Referent], list[str]]:
        info, annotation = json.loads(row["raw_image_info"]), json.loads(row["raw_anns"])
        mask = _target_mask(annotation["segmentation"], info["height"], info["width"])
        expressions = sentence_texts(row["sentences"], self.sentence_field)
        return [Referent(str(row["ref_id"]), expressions, mask)], []

    def image_file_name(self, row: Mapping[str, Any]) -> str:
        return PurePosixPath(row["image_path"]).name


@dataclass(frozen=True)
class LmmsLabAdapter(Adapter):
    """
    `lmms-lab/RefCOCO`, `RefCOCOplus`, `RefCOCOg`: one row per reference, with one flat polygon.

    These datasets contain only one part of each mask. If the polygon is smaller than its box, other parts are missing,
    see [`lost_parts`].
    """

    name: ClassVar[str] = "lmms-lab"
    columns: ClassVar[frozenset[str]] = frozenset({"question_id", "answer", "segmentation", "file_name", "image"})
    needs_image_bytes: ClassVar[bool] = True

    @property
    def identity_columns(self) -> tuple[str, ...]:
        return ("file_name",)

    def image_id(self, row: Mapping[str, Any]) -> str:
        return coco_image_id(row["file_name"])

    def referents(self, row: Mapping[str, Any]) -> tuple[list[Referent], list[str]]:
        if row.get("iscrowd"):
            raise ValueError("a crowd, whose run lengths look like a polygon in this dataset")
        height, width = image_size_from_header(row["image"])
        mask = _target_mask(row["segmentation"], height, width)
        expressions = clean_expressions(row["answer"])
        return [Referent(str(row["question_id"]), expressions, mask)], []

    def image_file_name(self, row: Mapping[str, Any]) -> str:
        return PurePosixPath(row["file_name"]).name


def lost_parts(segmentation: Sequence[float], bbox: Sequence[float], tolerance: float = 2.0) -> bool:
    """Whether a flat polygon is smaller than its box `[x, y, width, height]`: then parts of the mask are missing."""
    if not segmentation or not bbox:
        return False
    across, down = segmentation[::2], segmentation[1::2]
    x, y, width, height = bbox
    return (
        max(abs(min(across) - x), abs(min(down) - y), abs(max(across) - x - width), abs(max(down) - y - height))
        > tolerance
    )


def partition_rows(file_names: Sequence[str], partitions: Sequence[Partition], wanted: str) -> range:
    """
    Finds the rows of one partition in a split that contains several partitions one after the other.

    The columns of `lmms-lab/RefCOCO` and `RefCOCOg` do not tell to which partition a row of `val` belongs, but the
    numbers of references and images of each partition are known. The rows are split only if exactly one order of the
    partitions gives each of them its number of references and of distinct images.

    Args:
        file_names (`Sequence[str]`): The column with this name.
        partitions (`Sequence[Partition]`): All partitions in the split.
        wanted (`str`): Name of one of the partitions.

    Raises:
        ValueError: If `wanted` is unknown, or if the numbers do not determine which rows belong to it.
    """
    names = [partition.name for partition in partitions]
    if wanted not in names:
        raise ValueError(f"unknown partition {wanted!r}: choose one of {names}, or 'mixed' for all rows together")
    proven = []
    for order in (tuple(partitions), tuple(reversed(partitions))):
        start, ranges = 0, {}
        for partition in order:
            rows = range(start, start + partition.references)
            start = rows.stop
            images = {coco_image_id(name) for name in file_names[rows.start : rows.stop]}
            if len(images) == partition.images:
                ranges[partition.name] = rows
        if start == len(file_names) and len(ranges) == len(partitions):
            proven.append(ranges[wanted])
    if len(proven) != 1:
        expected = ", ".join(
            f"{partition.name}: {partition.references} rows of {partition.images} images" for partition in partitions
        )
        raise ValueError(
            f"cannot split the {len(file_names)} rows into their partitions, because the numbers do not match "
            f"({expected}). Use partition='mixed' for all rows, or jxu124/refcoco-benchmark, whose splits are separate"
        )
    return proven[0]


@dataclass(frozen=True)
class RefcocoMAdapter(Adapter):
    """`moondream/refcoco-m`: one row per image, samples as a list of structs, masks as compressed RLE."""

    name: ClassVar[str] = "refcoco-m"
    columns: ClassVar[frozenset[str]] = frozenset({"samples", "image_id", "image", "file_name"})

    @property
    def identity_columns(self) -> tuple[str, ...]:
        return ("image_id",)

    def image_id(self, row: Mapping[str, Any]) -> str:
        return coco_image_id(row["image_id"])

    def referents(self, row: Mapping[str, Any]) -> tuple[list[Referent], list[str]]:
        def build(sample: Mapping[str, Any]) -> Referent:
            height, width = sample["mask"]["size"]
            mask = _target_mask(sample["mask"], height, width)
            return Referent(str(sample["id"]), clean_expressions(sample["sentences"]), mask)

        return collect_referents(row["samples"], build)


@dataclass(frozen=True, kw_only=True)
class GenericAdapter(Adapter):
    """
    Any dataset with columns that the user specifies, with one row per image or per expression.

    Args:
        image_column (`str`): Column of the image.
        expression_column (`str`): Column of a string or of a list of strings for the same mask; with several masks, of
            a list with one string or list of strings per mask.
        mask_column (`str`): Column of a mask in any format of [`~processing.data.masks.to_rle`], or of a list of
        masks. image_id_column, ref_id_column (`str`, *optional*): Columns of ids. Without an image id, each row is a
        separate
            image, as are rows with the same id but different images. The reference id defaults to the row index.
        several_masks (`bool`, *optional*, defaults to `False`): Whether the mask column contains a list of masks, one
            per referent. Otherwise, a list contains the parts of one mask.
        missing_mask_means_no_target (`bool`, *optional*, defaults to `False`): Whether a missing or empty mask means
            that the referent is absent. Otherwise, the row is bad.
    """

    image_column: str
    expression_column: str
    mask_column: str
    image_id_column: str | None = None
    ref_id_column: str | None = None
    several_masks: bool = False
    missing_mask_means_no_target: bool = False

    name: ClassVar[str] = "generic"
    columns: ClassVar[frozenset[str]] = frozenset()
    needs_image_bytes: ClassVar[bool] = True

    @property
    def required_columns(self) -> frozenset[str]:
        named = (
            self.image_column,
            self.expression_column,
            self.mask_column,
            self.image_id_column,
            self.ref_id_column,
        )
        return frozenset(column for column in named if column is not None)

    @property
    def identity_columns(self) -> tuple[str, ...]:
        return () if self.image_id_column is None else (self.image_id_column,)

    def image_id(self, row: Mapping[str, Any]) -> str | None:
        value = None if self.image_id_column is None else row[self.image_id_column]
        return None if value is None or value == "" else str(value)

    def photo(self, row: Mapping[str, Any]) -> str:
        cell = row[self.image_column]
        return str(cell.get("path")) if cell.get("bytes") is None else f"{zlib.crc32(cell['bytes']):08x}"

    def referents(self, row: Mapping[str, Any]) -> tuple[list[Referent], list[str]]:
        height, width = image_size_from_header(row[self.image_column])
        masks, expressions = row[self.mask_column], row[self.expression_column]
        ref_id = "" if self.ref_id_column is None else row[self.ref_id_column]
        if not self.several_masks:
            masks, expressions, ref_ids = [masks], [expressions], [ref_id]
        else:
            if isinstance(expressions, str) or masks is None or len(masks) != len(expressions):
                raise ValueError("a list of masks needs a list of expressions of the same length")
            if isinstance(ref_id, Sequence) and not isinstance(ref_id, str):
                ref_ids = ref_id
            else:
                ref_ids = [f"{ref_id}_{position}" if ref_id != "" else "" for position in range(len(masks))]

        def build(item: tuple[Any, Any, Any]) -> Referent:
            mask, texts, identifier = item
            is_missing = mask is None or (isinstance(mask, Sequence) and len(mask) == 0)
            if is_missing and self.missing_mask_means_no_target:
                rle = empty_rle(height, width)
            else:
                rle = to_rle(mask, height, width)
            texts = [texts] if isinstance(texts, str) else texts
            return Referent(str(identifier), clean_expressions(texts or []), rle)

        items = zip(masks, expressions, ref_ids, strict=True)
        return collect_referents(items, build)


ADAPTERS: tuple[type[Adapter], ...] = (
    RefcocoBenchmarkAdapter,
    RefcocoByPathAdapter,
    LmmsLabAdapter,
    RefcocoMAdapter,
)


def adapter_by_name(name: str) -> type[Adapter]:
    """
    Returns the adapter class with this name.

    Raises:
        ValueError: If there is none.
    """
    for adapter in ADAPTERS:
        if adapter.name == name:
            return adapter
    raise ValueError(
        f"unknown adapter {name!r}: choose one of {[adapter.name for adapter in ADAPTERS]}, or describe the columns "
        "with `columns`"
    )


def adapter_by_columns(columns: Collection[str]) -> type[Adapter]:
    """
    Returns the adapter class for a set of columns.

    Raises:
        ValueError: If no adapter or more than one matches.
    """
    matching = [adapter for adapter in ADAPTERS if adapter.columns <= set(columns)]
    if len(matching) != 1:
        raise ValueError(
            f"the columns {sorted(columns)} are not those of a known referring dataset: pass an `adapter`, or name "
            "the columns of the image, the expression and the mask in `columns`"
        )
    return matching[0]


def _target_mask(segmentation: Any, height: int, width: int) -> RunLengthMask:
    # In these datasets every expression has a target, so an empty mask is an error.
    mask = to_rle(segmentation, height, width)
    if mask_area(mask) == 0:
        raise ValueError("its mask is empty")
    return mask
