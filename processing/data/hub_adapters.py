"""Adapters for the referring datasets of the Hugging Face hub, and the one table of what is known of each.

An adapter turns one row of its source into the referents of one image. It is chosen by the dataset's name or
recognised by its columns. No adapter decodes an image: a size that the columns do not give is read in the file's
header.
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
    """One of the published partitions of a dataset's validation split, by its counts of references and of images."""

    name: str
    references: int
    images: int


@dataclass(frozen=True)
class HubDataset:
    """
    What is known of a dataset on the hub.

    Args:
        identifier (`str`): The id on the hub.
        adapter (`str`): Name of its adapter.
        dataset (`str`): Name for the `dataset` column; empty where the split's name says it.
        splits (`dict[str, str]`): Usual name of each split -> its name on the hub.
        images (`str`): `"inside"`, or `"by path"` in a folder of COCO images that the user gives.
        verified (`str`): What was checked, and against what.
        mixed_splits (`dict[str, tuple[Partition, ...]]`): Splits in which several partitions are mixed.
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
# References and images of each partition as listed by TensorFlow Datasets (ref_coco); the counts of references agree
# with the cards of lmms-lab, those of images with the rows of jxu124/refcoco-benchmark, which are one an image.
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
        _CARD + "; row counts a split agree with the published image counts",
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
        _CARD + "; ten rows a split",
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
    """Entry of the table for an id, whatever its case."""
    return next((entry for entry in HUB_DATASETS if entry.identifier.lower() == identifier.lower()), None)


class Adapter(ABC):
    """
    Reads the referents of one image in a row of a source.

    Class attributes:
        name (`str`): By which it can be chosen.
        columns (`frozenset[str]`): Columns that the source must have; they also recognise it.
        needs_image_bytes (`bool`): Whether the size of the image must be read in its header.
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
        """The few columns that say which image a row is about."""

    @abstractmethod
    def image_id(self, row: Mapping[str, Any]) -> str | None:
        """Id of the row's image, from its identity columns; `None` where each row is an image of its own."""

    def photo(self, row: Mapping[str, Any]) -> str:
        """What tells photos with the same id apart; empty where ids can be trusted, as those of COCO."""
        del row
        return ""

    @abstractmethod
    def referents(self, row: Mapping[str, Any]) -> tuple[list[Referent], list[str]]:
        """
        Referents in a row, and what could not be read with the reason. An empty `ref_id` means that there is none.

        Raises:
            ValueError, TypeError or KeyError: if nothing of the row can be used.
        """

    def image_file_name(self, row: Mapping[str, Any]) -> str:
        """File name of the row's image, for sources without images inside."""
        raise ValueError(f"the adapter {self.name!r} finds no image by path in the columns {sorted(row)}")


@dataclass(frozen=True)
class RefcocoBenchmarkAdapter(Adapter):
    """`jxu124/refcoco-benchmark`: a row an image, its references as a list of structs, polygons as lists of lists."""

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
    """`jxu124/refcoco`, `refcocoplus`, `refcocog`: a row a reference, annotation and image info as JSON strings."""

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
    `lmms-lab/RefCOCO`, `RefCOCOplus`, `RefCOCOg`: a row a reference with one flat polygon.

    Of a mask in several parts only one was kept there. A polygon that does not reach its box has lost parts;
    [`lost_parts`] says which rows do.
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
            raise ValueError("a crowd, whose run lengths cannot be told from a polygon here")
        height, width = image_size_from_header(row["image"])
        mask = _target_mask(row["segmentation"], height, width)
        expressions = clean_expressions(row["answer"])
        return [Referent(str(row["question_id"]), expressions, mask)], []

    def image_file_name(self, row: Mapping[str, Any]) -> str:
        return PurePosixPath(row["file_name"]).name


def lost_parts(segmentation: Sequence[float], bbox: Sequence[float], tolerance: float = 2.0) -> bool:
    """Whether a flat polygon falls short of its box `[x, y, width, height]`, so that parts of the mask are missing."""
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
    Rows of one partition in a split into which several were written one after the other.

    Nothing in the columns of `lmms-lab/RefCOCO` and `RefCOCOg` says to which partition a row of `val` belongs. What
    is known is how many references and images each has. The rows are taken apart only where every partition, in one
    order and one order alone, has exactly its number of references and of distinct images.

    Args:
        file_names (`Sequence[str]`): The column of that name.
        partitions (`Sequence[Partition]`): All partitions in the split.
        wanted (`str`): Name of one of them.

    Raises:
        ValueError: if `wanted` is not one of them or the counts do not prove where it begins and ends.
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
            f"the {len(file_names)} rows cannot be taken apart into their partitions: their counts do not match "
            f"({expected}). Use partition='mixed' to take all rows, or jxu124/refcoco-benchmark, whose splits are "
            "separate"
        )
    return proven[0]


@dataclass(frozen=True)
class RefcocoMAdapter(Adapter):
    """`moondream/refcoco-m`: a row an image, its samples as a list of structs, masks as compressed RLE."""

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
    Any dataset whose columns the user names: a row an image or a row an expression.

    Args:
        image_column (`str`): The image.
        expression_column (`str`): A string, or a list of strings that all mean the same mask, or with a list of
            masks a list of strings or of lists of strings, one a mask.
        mask_column (`str`): A mask in any form that [`~processing.data.masks.to_rle`] reads, or a list of such masks.
        image_id_column, ref_id_column (`str`, *optional*): Ids. Without an image id each row is an image of its own;
            without a reference id the row's number serves. Rows whose id is missing, or that show another photo than
            the first with their id, stay apart.
        several_masks (`bool`, *optional*, defaults to `False`): Whether the mask column holds a list of masks, one a
            referent, rather than the parts of one.
        missing_mask_means_no_target (`bool`, *optional*, defaults to `False`): Whether a missing or empty mask says
            that nothing is meant. Otherwise it makes a bad row.
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
                raise ValueError("a list of masks needs a list of as many expressions")
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
    Adapter class of a name.

    Raises:
        ValueError: if there is none, naming all.
    """
    for adapter in ADAPTERS:
        if adapter.name == name:
            return adapter
    raise ValueError(
        f"unknown adapter {name!r}: choose one of {[adapter.name for adapter in ADAPTERS]}, or name the columns with "
        "`columns`"
    )


def adapter_by_columns(columns: Collection[str]) -> type[Adapter]:
    """
    Adapter class that recognises a set of columns.

    Raises:
        ValueError: if none or several do.
    """
    matching = [adapter for adapter in ADAPTERS if adapter.columns <= set(columns)]
    if len(matching) != 1:
        raise ValueError(
            f"the columns {sorted(columns)} are not those of a known referring dataset: name an `adapter`, or say "
            "with `columns` which column holds the image, the expression and the mask"
        )
    return matching[0]


def _target_mask(segmentation: Any, height: int, width: int) -> RunLengthMask:
    # These datasets have no expression without a target, so a mask without a pixel is damage and not a label.
    mask = to_rle(segmentation, height, width)
    if mask_area(mask) == 0:
        raise ValueError("its mask covers no pixel")
    return mask
