"""Keep the images of every validation and test split out of the training data.

RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO draw on the same photos of COCO train2014, each with its own splits: an image
of one's test split is often in another's training split. Training on a mixture, or on COCO itself, therefore shows a
model the images it is later evaluated on, unless every image that is held out anywhere is left out everywhere.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets

from .canonical_rows import CANONICAL_COLUMNS, DATA_ERRORS, excluded_images, is_excluded
from .hub_adapters import adapter_by_columns, adapter_by_name, find_hub_dataset
from .refer_folder import is_refer_folder, load_references, reference_files, reference_image_id, reference_split
from .source_rows import cache_of_local_folder, load_source_rows


logger = logging.getLogger(__name__)


def is_evaluation_split(split: str) -> bool:
    """Whether the name of a split is that of a validation or test split, alone or behind the name of its dataset."""
    return any(split == kind or split.rpartition("_")[2].startswith(kind) for kind in ("val", "test"))


def held_out_image_ids(
    name_or_path: "str | Path | datasets.Dataset | datasets.IterableDataset",
    *,
    split_by: str | None = None,
    splits: Iterable[str] | None = None,
    dataset_name: str | None = None,
    **load_kwargs: Any,
) -> set[str]:
    """
    COCO ids of all images in the validation and test splits of a dataset. No mask is made and no image read.

    Args:
        name_or_path (`str`, `Path`, `datasets.Dataset` or `datasets.IterableDataset`):
            A REFER folder, an id on the hub, a folder of Parquet files, or canonical rows all of which are held out.
        split_by (`str`, *optional*):
            For REFER folders: one file of references; all of them if left out.
        splits (`Iterable[str]`, *optional*):
            Splits to hold out; all whose name begins with `val` or `test` if left out.
        dataset_name (`str`, *optional*):
            Of a local copy, its id on the hub.
        load_kwargs:
            Passed to `datasets.load_dataset`.

    Returns:
        `set[str]`: to be passed to `load_referring_dataset(..., exclude_image_ids=...)`.

    Raises:
        ValueError: if the dataset has no split to hold out.
    """
    wanted = None if splits is None else set(splits)
    if isinstance(name_or_path, datasets.Dataset | datasets.IterableDataset):
        return {row["image_id"] for row in name_or_path.select_columns(["image_id"])}
    if is_refer_folder(name_or_path):
        return _ids_of_refer_folder(name_or_path, split_by, wanted)
    entry = find_hub_dataset(dataset_name or str(name_or_path))
    if entry is not None:
        chosen = [source for usual, source in entry.splits.items() if _is_wanted(usual, source, wanted)]
    else:
        is_folder = Path(name_or_path).is_dir()
        cache = {"cache_dir": cache_of_local_folder(Path(name_or_path))} if is_folder else {}
        names = datasets.get_dataset_split_names(str(name_or_path), **cache, **load_kwargs)
        chosen = [name for name in names if _is_wanted(name, name, wanted)]
    if not chosen:
        raise ValueError(f"{name_or_path} has no split to hold out: name them with `splits`")
    ids: set[str] = set()
    for split in chosen:
        rows = load_source_rows(name_or_path, split, **load_kwargs)
        if entry is None and set(CANONICAL_COLUMNS) <= set(rows.column_names):
            ids |= held_out_image_ids(rows)
            continue
        kind = adapter_by_name(entry.adapter) if entry is not None else adapter_by_columns(rows.column_names)
        adapter = kind()
        found = {adapter.image_id(row) for row in rows.select_columns(list(adapter.identity_columns))}
        ids |= {image_id for image_id in found if image_id is not None}
    return ids


def held_out_by_all(sources: Iterable[Mapping[str, Any] | str | Path]) -> set[str]:
    """
    Images held out by any of several datasets.

    Args:
        sources: paths, ids or the arguments of [`held_out_image_ids`] as mappings with `name_or_path`.
    """
    ids: set[str] = set()
    for source in sources:
        options = dict(source) if isinstance(source, Mapping) else {"name_or_path": source}
        ids |= held_out_image_ids(options.pop("name_or_path"), **options)
    return ids


def drop_images(rows: datasets.Dataset, image_ids: Collection[str]) -> datasets.Dataset:
    """
    Canonical rows without those of the given images; no image is read.

    Raises:
        TypeError: if `rows` is a stream: filter it where it is loaded, with `exclude_image_ids`, before images are
            decoded.
    """
    if not isinstance(rows, datasets.Dataset):
        raise TypeError("a stream is filtered where it is loaded: load_referring_dataset(..., exclude_image_ids=...)")
    dropped = excluded_images(image_ids)
    kept = [
        index
        for index, row in enumerate(rows.select_columns(["image_id"]))
        if not is_excluded(row["image_id"], dropped)
    ]
    return rows.select(kept)


def _is_wanted(usual: str, source: str, wanted: set[str] | None) -> bool:
    return is_evaluation_split(usual) if wanted is None else bool(wanted & {usual, source})


def _ids_of_refer_folder(folder: str | Path, split_by: str | None, wanted: set[str] | None) -> set[str]:
    """A reference whose split cannot be read holds its image out, and one whose image cannot be read is no use."""
    found, ids = set(), set()
    for name in [split_by] if split_by is not None else reference_files(folder):
        for reference in load_references(folder, name)[0]:
            try:
                image_id = str(reference_image_id(reference))
            except DATA_ERRORS as error:
                logger.warning("%s: a reference without an image that can be held out: %s", folder, error)
                continue
            try:
                split = reference_split(reference)
            except DATA_ERRORS:
                ids.add(image_id)
                continue
            found.add(split)
            if _is_wanted(split, split, wanted):
                ids.add(image_id)
    if not ids:
        raise ValueError(f"{folder} has the splits {sorted(found)}, none of them to hold out: name them with `splits`")
    return ids
