"""Load any referring dataset as rows of one form: [`load_referring_dataset`]."""

import functools
import itertools
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets

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
from .hub_rows import RowSource, check_size, read_rows, shard_column, shards_of, stream_rows
from .refer_folder import ReferFolder, is_refer_folder
from .canonical_rows import CANONICAL_COLUMNS, BadRows, annotation_columns, canonical_features
from .source_rows import load_source_rows


logger = logging.getLogger(__name__)

_FOLDER_SHARDS = 64
_MIXED = "mixed"


def load_referring_dataset(
    name_or_path: "str | Path | datasets.Dataset | datasets.IterableDataset",
    split: str,
    *,
    adapter: str | Adapter | None = None,
    columns: Mapping[str, Any] | None = None,
    image_folder: str | Path | None = None,
    split_by: str | None = None,
    partition: str | None = None,
    sentence_field: str = "sent",
    dataset_name: str | None = None,
    exclude_image_ids: Collection[str | int] = (),
    streaming: bool = False,
    on_bad_row: str = "skip",
    check_images: bool = False,
    num_proc: int | None = None,
    **load_kwargs: Any,
) -> "datasets.Dataset | datasets.IterableDataset":
    """
    Load a referring dataset as canonical rows: one row an image, with all its expressions and masks.

    Images are passed through as bytes or paths and decoded once, when a row is read.

    Args:
        name_or_path (`str`, `Path`, `datasets.Dataset` or `datasets.IterableDataset`):
            An id on the hub, a folder or file that `datasets.load_dataset` reads, a folder in the format of the REFER
            API (see [`~processing.data.refer_folder`]), or rows that are loaded already.
        split (`str`):
            The usual name (`train`, `val`, `test`, `testA`, `testB`) or the source's own.
        adapter (`str` or `Adapter`, *optional*):
            How to read a row. Chosen by the hub id or recognised by the columns if left out.
        columns (`Mapping`, *optional*):
            For a dataset of one's own, the arguments of [`~processing.data.hub_adapters.GenericAdapter`]:
            `{"image": ..., "expression": ..., "mask": ...}` and, if there are, `image_id`, `ref_id`, `several_masks`
            and `missing_mask_means_no_target`.
        image_folder (`str` or `Path`, *optional*):
            Folder of COCO images, for sources that name images by path; others have no use for it.
        split_by (`str`, *optional*):
            For REFER folders: `unc`, `umd` or `google`, where there are several.
        partition (`str`, *optional*):
            For splits in which several partitions are mixed (`val` of lmms-lab/RefCOCO and RefCOCOg): one of them, or
            `"mixed"` for all rows.
        sentence_field (`str`, *optional*, defaults to `"sent"`):
            `"sent"` (lower case, without punctuation) or `"raw"` (as typed), where both are published.
        dataset_name (`str`, *optional*):
            For the `dataset` column; from the source if left out. Of a local copy of a hub dataset give the id on the
            hub: it is then read as that one is.
        exclude_image_ids (`Collection`, *optional*):
            Images to leave out: see [`~processing.data.leak_filter`].
        streaming (`bool`, *optional*, defaults to `False`):
            Return an `IterableDataset`. Consecutive rows of an image are grouped; an image whose rows stand apart
            comes as several rows, with each expression once.
        on_bad_row (`str`, *optional*, defaults to `"skip"`):
            `"skip"` names bad rows in the log, leaves them out and logs their count at the end; `"raise"` stops at
            the first with a [`~processing.data.canonical_rows.BadRowError`].
        check_images (`bool`, *optional*, defaults to `False`):
            Open the header of every image and compare its size with the masks'.
        num_proc (`int`, *optional*):
            Processes that parse rows (map-style only).
        load_kwargs:
            Passed to `datasets.load_dataset` (`revision`, `cache_dir`, `data_files`, ...).

    Returns:
        `datasets.Dataset` or, with `streaming`, `datasets.IterableDataset`.

    Raises:
        ValueError: if the dataset is not recognised, the split does not exist, columns or `image_folder` are missing,
            a mixed split is asked for without `partition`, or no row is left.
    """
    if sentence_field not in ("sent", "raw"):
        raise ValueError(f"`sentence_field` must be 'sent' or 'raw', got {sentence_field!r}")
    BadRows("", on_bad_row)
    excluded = frozenset(str(identifier) for identifier in exclude_image_ids)
    if isinstance(name_or_path, str | Path) and is_refer_folder(name_or_path):
        unused = {"adapter": adapter, "columns": columns, "partition": partition, **load_kwargs}
        given = sorted(name for name, value in unused.items() if value is not None)
        if given:
            raise ValueError(f"{name_or_path} is a REFER folder, which has no use for {given}")
        folder = ReferFolder(name_or_path, split, split_by, image_folder, sentence_field, excluded)
        name = dataset_name or f"{_refer_folder_name(folder.folder)}_{folder.split_by}"
        return _load_refer_folder(folder, name, streaming, on_bad_row, check_images)

    if split_by is not None:
        raise ValueError(f"{name_or_path} is not a REFER folder, which alone has a use for `split_by`")
    entry = find_hub_dataset(dataset_name or str(name_or_path))
    if entry is not None:
        dataset_name = None
    source_split = entry.splits.get(split, split) if entry is not None else split
    rows = load_source_rows(name_or_path, source_split, streaming, **load_kwargs)
    column_names = _column_names(rows)
    name, usual_split = _names(entry, name_or_path, split, dataset_name)
    if adapter is None and columns is None and set(CANONICAL_COLUMNS) <= set(column_names):
        return _canonical_as_is(rows, excluded)
    chosen = _choose_adapter(adapter, columns, entry, column_names, sentence_field)
    missing = sorted(chosen.required_columns - set(column_names))
    if missing:
        raise ValueError(f"{name_or_path}: the adapter {chosen.name!r} needs the columns {missing}, which are missing")
    if chosen.image_column not in column_names and image_folder is None:
        raise ValueError(
            f"{name_or_path} has no images, only their paths: say with `image_folder` where the images of COCO "
            "(train2014 or train2017) are"
        )
    kept, partitions = None, _partitions(chosen, entry, usual_split)
    if partitions:
        kept = _partition_ranges(rows, partitions, partition, name_or_path)
        name = name if partition == _MIXED else f"{name}_{partition}"
    elif partition is not None:
        raise ValueError(f"{name_or_path}: the split {split!r} is not mixed, leave `partition` out")
    if chosen.image_column in column_names:
        rows = rows.cast_column(chosen.image_column, datasets.Image(decode=False))
    for mask_column, feature in (rows.features or {}).items():
        if isinstance(chosen, GenericAdapter) and mask_column == chosen.mask_column:
            rows = rows.cast_column(mask_column, _undecoded(feature))
    by_path = chosen.image_column not in column_names
    folder_of_images = Path(image_folder) if by_path and image_folder is not None else None
    source = RowSource(chosen, name, usual_split, folder_of_images, excluded, check_images)
    if isinstance(chosen, LmmsLabAdapter):
        _warn_of_lost_parts(rows, source)
    if isinstance(rows, datasets.IterableDataset):
        return stream_rows(rows, source, on_bad_row, kept)
    return read_rows(rows if kept is None else rows.select(kept[0]), source, on_bad_row, num_proc)


def _column_names(rows: "datasets.Dataset | datasets.IterableDataset") -> list[str]:
    if rows.column_names is not None:
        return list(rows.column_names)
    return list(next(iter(rows)))


def _names(entry: HubDataset | None, name_or_path: Any, split: str, dataset_name: str | None) -> tuple[str, str]:
    """Name for the `dataset` column and usual name of the split."""
    name = Path(name_or_path).name if isinstance(name_or_path, str | Path) else "rows"
    if entry is not None:
        name = entry.dataset
        usual = {source: usual for usual, source in entry.splits.items()}
        split = usual.get(split, split)
    if entry is not None and not entry.dataset:
        name, _, split = split.rpartition("_")
        name = name.replace("_plus", "+")
    return dataset_name or name, split


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
                f"`columns` must name image, expression and mask and may hold image_id, ref_id, several_masks and "
                f"missing_mask_means_no_target, got {sorted(columns or {})}"
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
    """The same feature with every image in it left as bytes."""
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
            "the columns are those of lmms-lab/RefCOCO, RefCOCOplus and RefCOCOg, some of whose `val` mix two "
            "partitions, and nothing in them says which of the three this is: pass its id on the hub as `dataset_name`"
        )
    return ()


def _partition_ranges(
    rows: Any, partitions: tuple[Partition, ...], wanted: str | None, name_or_path: Any
) -> list[range] | None:
    """Rows to keep of each shard; `None` for all."""
    names = [partition.name for partition in partitions]
    if wanted is None:
        raise ValueError(
            f"{name_or_path} mixes the partitions {names} in this split, and results on the mixture compare with "
            f"nothing: choose with `partition` one of {names}, or {_MIXED!r}"
        )
    if wanted == _MIXED:
        logger.warning("%s: the partitions %s are mixed in this split, as asked", name_or_path, names)
        return None
    file_names = [list(shard_column(shard, "file_name")) for shard in shards_of(rows)]
    taken = partition_rows([name for names in file_names for name in names], partitions, wanted)
    starts = [0, *itertools.accumulate(len(names) for names in file_names)]
    return [
        range(max(taken.start - start, 0), max(min(taken.stop, stop) - start, 0))
        for start, stop in itertools.pairwise(starts)
    ]


def _warn_of_lost_parts(rows: Any, source: RowSource) -> None:
    message = (
        "%s: each mask is published as one flat polygon, so the other parts of masks in several parts are lost and "
        "scores differ from those on the original annotations"
    )
    if isinstance(rows, datasets.IterableDataset) or "bbox" not in rows.column_names:
        logger.warning(message, source.label)
        return
    polygons = rows.select_columns(["segmentation", "bbox"])
    lost = sum(lost_parts(row["segmentation"], row["bbox"]) for row in polygons)
    logger.warning(message + " (%d of %d polygons fall short of their box)", source.label, lost, len(rows))


def _canonical_as_is(rows: Any, excluded: frozenset[str]) -> "datasets.Dataset | datasets.IterableDataset":
    if not excluded:
        return rows
    # Decoded images are not worth having where rows are only chosen.
    undecoded = rows.cast_column("image", datasets.Image(decode=False))
    kept = undecoded.filter(_is_kept, input_columns=["image_id"], fn_kwargs={"excluded": excluded})
    return kept.cast_column("image", datasets.Image())


def _is_kept(image_id: str, excluded: frozenset[str]) -> bool:
    return image_id not in excluded


def _refer_folder_name(folder: Path) -> str:
    return folder.resolve().name


def _load_refer_folder(
    folder: ReferFolder, name: str, streaming: bool, on_bad_row: str, check_images: bool
) -> "datasets.Dataset | datasets.IterableDataset":
    features = canonical_features(folder.has_levels, folder.has_landmarks)
    bad_rows = BadRows(f"{name} {folder.split}", on_bad_row)
    if streaming:
        count = max(1, min(_FOLDER_SHARDS, len(folder)))
        return datasets.IterableDataset.from_generator(
            functools.partial(
                _folder_rows, folder=folder, name=name, num_shards=count, bad_rows=bad_rows, check=check_images
            ),
            features=features,
            gen_kwargs={"shards": list(range(count))},
        )
    rows = list(_folder_rows([0], folder, name, 1, bad_rows, check_images))
    if not rows:
        raise ValueError(f"{name} {folder.split}: no row is left")
    return datasets.Dataset.from_list(rows, features=features)


def _folder_rows(
    shards: Iterable[int], folder: ReferFolder, name: str, num_shards: int, bad_rows: BadRows, check: bool
) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for index in range(shard, len(folder), num_shards):
            image = folder.images[index]
            try:
                path = folder.image_path(image)
                referents, problems = folder.referents(image)
                cell = {"bytes": None, "path": str(path)}
                if check:
                    check_size(referents, cell)
            except ValueError as error:
                bad_rows.report(index, f"image {image.image_id}: {error}")
                continue
            for problem in problems:
                bad_rows.report(index, f"image {image.image_id}: {problem}")
            if referents:
                columns = annotation_columns(
                    referents, image.image_id, name, folder.split, folder.has_levels, folder.has_landmarks
                )
                yield {"image": cell, **columns}
    bad_rows.summarize()
