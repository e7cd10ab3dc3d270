"""Loads published datasets, from the Hub or from files: chooses an adapter and selects the rows."""

import itertools
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets

from .canonical_datasets import load_canonical_rows
from .canonical_rows import CANONICAL_COLUMNS
from .hub_adapters import (
    Adapter,
    GenericAdapter,
    HubDataset,
    LmmsLabAdapter,
    Partition,
    RefcocoBenchmarkAdapter,
    RefcocoByPathAdapter,
    adapter_by_columns,
    adapter_by_name,
    find_hub_dataset,
    lost_parts,
    partition_rows,
)
from .hub_rows import RowSource, read_rows, shard_column, shards_of, stream_rows
from .load_options import LoadOptions
from .source_rows import load_source_rows


logger = logging.getLogger(__name__)

_MIXED = "mixed"


def load_published_dataset(
    name_or_path: "str | Path | datasets.Dataset | datasets.IterableDataset",
    options: LoadOptions,
    *,
    adapter: str | Adapter | None = None,
    columns: Mapping[str, Any] | None = None,
    image_folder: str | Path | None = None,
    partition: str | None = None,
    sentence_field: str = "sent",
    num_proc: int | None = None,
    **load_kwargs: Any,
) -> "datasets.Dataset | datasets.IterableDataset":
    """
    Loads the canonical rows of a dataset on the Hub, in files or in memory. For arguments and errors, see
    [`~processing.data.referring_datasets.load_referring_dataset`].
    """
    if load_kwargs.pop("split_by", None) is not None:
        raise ValueError(f"`split_by` applies only to REFER folders, and {name_or_path} is none: omit it")
    if sentence_field not in ("sent", "raw"):
        raise ValueError(f"`sentence_field` must be 'sent' or 'raw', got {sentence_field!r}")
    entry = find_hub_dataset(options.dataset_name or str(name_or_path))
    source_split = options.split if entry is None else entry.splits.get(options.split, options.split)
    rows = load_source_rows(name_or_path, source_split, options.streaming, **load_kwargs)
    column_names = _column_names(rows)
    name, usual_split = _names(entry, name_or_path, options)
    is_canonical = adapter is None and columns is None and set(CANONICAL_COLUMNS) <= set(column_names)
    chosen = None if is_canonical else _choose_adapter(adapter, columns, entry, column_names, sentence_field)
    partitions = () if chosen is None else _partitions(chosen, entry, usual_split)
    if partition is not None and not partitions:
        raise ValueError(f"{name_or_path}: the split {options.split!r} is not mixed, omit `partition`")
    if chosen is None:
        return load_canonical_rows(rows, name, options)
    missing = sorted(chosen.required_columns - set(column_names))
    has_images = chosen.image_column in column_names
    if missing:
        raise ValueError(f"{name_or_path}: the adapter {chosen.name!r} needs the columns {missing}, which are missing")
    if not has_images and image_folder is None:
        raise ValueError(
            f"{name_or_path} has no images, only their paths: pass the folder of the COCO images (train2014 or "
            "train2017) as `image_folder`"
        )
    kept = None
    if partitions:
        kept = _partition_ranges(rows, partitions, partition, name_or_path)
        name = name if partition == _MIXED else f"{name}_{partition}"
    if has_images:
        rows = rows.cast_column(chosen.image_column, datasets.Image(decode=False))
    for mask_column, feature in (rows.features or {}).items():
        if isinstance(chosen, GenericAdapter) and mask_column == chosen.mask_column:
            rows = rows.cast_column(mask_column, _undecoded(feature))
    folder = None if has_images or image_folder is None else Path(image_folder)
    source = RowSource(chosen, name, usual_split, folder, options.excluded, options.check_images)
    if isinstance(chosen, LmmsLabAdapter):
        _warn_about_lost_parts(rows, source)
    if isinstance(rows, datasets.IterableDataset):
        return stream_rows(rows, source, options.on_bad_row, kept)
    return read_rows(rows if kept is None else rows.select(kept[0]), source, options.on_bad_row, num_proc)


def _column_names(rows: "datasets.Dataset | datasets.IterableDataset") -> list[str]:
    if rows.column_names is not None:
        return list(rows.column_names)
    return list(next(iter(rows)))


def _names(entry: HubDataset | None, name_or_path: Any, options: LoadOptions) -> tuple[str, str]:
    """Returns the value of the `dataset` column and the usual name of the split."""
    split = options.split
    name = Path(name_or_path).name if isinstance(name_or_path, str | Path) else "rows"
    if entry is not None:
        name = entry.dataset
        usual = {source: usual for usual, source in entry.splits.items()}
        split = usual.get(split, split)
    if entry is not None and not entry.dataset:
        name, _, split = split.rpartition("_")
        name = name.replace("_plus", "+")
    return (options.dataset_name or name) if entry is None else name, split


def _choose_adapter(
    adapter: str | Adapter | None,
    columns: Mapping[str, Any] | None,
    entry: HubDataset | None,
    column_names: list[str],
    sentence_field: str,
) -> Adapter:
    if isinstance(adapter, Adapter):
        return adapter
    if columns is not None or adapter == GenericAdapter.name:
        options = {
            f"{key}_column" if key in ("image", "expression", "mask", "image_id", "ref_id") else key: value
            for key, value in (columns or {}).items()
        }
        known = {option.name for option in fields(GenericAdapter)}
        needed = {"image_column", "expression_column", "mask_column"}
        if set(options) - known or needed - set(options):
            raise ValueError(
                "`columns` must contain image, expression and mask, and optionally image_id, ref_id, several_masks "
                f"and missing_mask_means_no_target, got {sorted(columns or {})}"
            )
        return GenericAdapter(**options)
    if adapter is not None:
        kind = adapter_by_name(adapter)
    elif entry is not None:
        kind = adapter_by_name(entry.adapter)
    else:
        kind = adapter_by_columns(column_names)
    if issubclass(kind, RefcocoBenchmarkAdapter | RefcocoByPathAdapter):
        return kind(sentence_field=sentence_field)
    return kind()


def _undecoded(feature: Any) -> Any:
    """Returns the same feature without decoding of images."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, list):
        return [_undecoded(feature[0])]
    if hasattr(feature, "feature"):
        return type(feature)(_undecoded(feature.feature))
    return feature


def _partitions(adapter: Adapter, entry: HubDataset | None, split: str) -> tuple[Partition, ...]:
    if entry is not None:
        return entry.mixed_splits.get(split, ())
    if isinstance(adapter, LmmsLabAdapter) and split in ("val", "validation"):
        raise ValueError(
            "the columns are those of lmms-lab/RefCOCO, RefCOCOplus and RefCOCOg. In some of them, `val` mixes two "
            "partitions, and the columns do not tell which of the three this is: pass its Hub id as `dataset_name`"
        )
    return ()


def _partition_ranges(
    rows: Any, partitions: tuple[Partition, ...], wanted: str | None, name_or_path: Any
) -> list[range] | None:
    """Returns the rows to keep in each shard, or `None` for all."""
    names = [partition.name for partition in partitions]
    if wanted is None:
        raise ValueError(
            f"{name_or_path} mixes the partitions {names} in this split, and scores on the mixture cannot be compared "
            f"with published ones: set `partition` to one of {names}, or to {_MIXED!r} for all rows"
        )
    if wanted == _MIXED:
        logger.warning("%s: this split mixes the partitions %s", name_or_path, names)
        return None
    file_names = [list(shard_column(shard, "file_name")) for shard in shards_of(rows)]
    taken = partition_rows([name for names in file_names for name in names], partitions, wanted)
    starts = [0, *itertools.accumulate(len(names) for names in file_names)]
    return [
        range(max(taken.start - start, 0), max(min(taken.stop, stop) - start, 0))
        for start, stop in itertools.pairwise(starts)
    ]


def _warn_about_lost_parts(rows: Any, source: RowSource) -> None:
    message = (
        "%s: each mask is published as one flat polygon. The other parts of masks with several parts are missing, so "
        "scores differ from those on the original annotations"
    )
    if isinstance(rows, datasets.IterableDataset) or "bbox" not in rows.column_names:
        logger.warning(message, source.label)
        return
    polygons = rows.select_columns(["segmentation", "bbox"])
    lost = sum(lost_parts(row["segmentation"], row["bbox"]) for row in polygons)
    logger.warning(message + " (%d of %d polygons are smaller than their box)", source.label, lost, len(rows))
