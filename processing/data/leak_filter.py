"""Keeps the images of all validation and test splits out of the training data.

RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO use the same photos of COCO train2014, but each has its own splits: an image
in the test split of one is often in the training split of another. A model that is trained on a mixture of them, or on
COCO itself, has therefore seen images that it is later evaluated on, unless every image that is held out in any of the
datasets is left out of all of them.
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
    """Whether a split is a validation or test split. Its name can start with the name of the dataset."""
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
    Returns the COCO ids of all images in the validation and test splits of a dataset. It reads no masks and images.

    Args:
        name_or_path (`str`, `Path`, `datasets.Dataset` or `datasets.IterableDataset`):
            A REFER folder, a Hub id, a folder of Parquet files, or canonical rows that are all held out.
        split_by (`str`, *optional*):
            For REFER folders: one file of references. Defaults to all of them.
        splits (`Iterable[str]`, *optional*):
            Splits to hold out. Defaults to all splits whose name begins with `val` or `test`.
        dataset_name (`str`, *optional*):
            For a local copy of a Hub dataset, its Hub id.
        load_kwargs:
            Passed to `datasets.load_dataset`.

    Returns:
        `set[str]`: ids for `load_referring_dataset(..., exclude_image_ids=...)`.

    Raises:
        ValueError: If the dataset has no split to hold out.
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
        raise ValueError(f"{name_or_path} has no validation or test split: pass the splits to hold out as `splits`")
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
    Returns the ids of the images that are held out in any of several datasets.

    Args:
        sources: Paths, Hub ids, or arguments of [`held_out_image_ids`] as mappings with `name_or_path`.
    """
    ids: set[str] = set()
    for source in sources:
        options = dict(source) if isinstance(source, Mapping) else {"name_or_path": source}
        ids |= held_out_image_ids(options.pop("name_or_path"), **options)
    return ids


def drop_images(rows: datasets.Dataset, image_ids: Collection[str]) -> datasets.Dataset:
    """
    Removes the rows of the given images from canonical rows, without reading any image.

    Raises:
        TypeError: If `rows` is a stream. Pass `exclude_image_ids` to `load_referring_dataset` instead.
    """
    if not isinstance(rows, datasets.Dataset):
        raise TypeError(
            "`drop_images` does not work on a stream: use load_referring_dataset(..., exclude_image_ids=...)"
        )
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
    """Returns the held-out ids of a REFER folder. An image whose split cannot be read is held out as well."""
    found, ids = set(), set()
    for name in [split_by] if split_by is not None else reference_files(folder):
        for reference in load_references(folder, name)[0]:
            try:
                image_id = str(reference_image_id(reference))
            except DATA_ERRORS as error:
                logger.warning(
                    "%s: cannot hold out the image of a reference, whose id is unreadable: %s", folder, error
                )
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
        raise ValueError(f"{folder} has only the splits {sorted(found)}: pass the splits to hold out as `splits`")
    return ids
