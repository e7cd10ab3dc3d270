"""Load any referring dataset as rows of one form: [`load_referring_dataset`]."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import datasets

from ..own_data.folder import is_own_folder, load_own_folder
from .canonical_rows import excluded_images
from .load_options import LoadOptions
from .published_datasets import load_published_dataset
from .refer_folder import is_refer_folder, load_refer_folder


def load_referring_dataset(
    name_or_path: "str | Path | datasets.Dataset | datasets.IterableDataset",
    split: str,
    *,
    dataset_name: str | None = None,
    exclude_image_ids: Collection[str | int] = (),
    streaming: bool = False,
    on_bad_row: str = "skip",
    check_images: bool = True,
    **source_options: Any,
) -> "datasets.Dataset | datasets.IterableDataset":
    """
    Load a referring dataset as canonical rows: one row per image, with all its expressions and masks.

    Images are passed through as bytes or paths and decoded once, when a row is read.

    Args:
        name_or_path (`str`, `Path`, `datasets.Dataset` or `datasets.IterableDataset`):
            An id on the hub, a folder or file that `datasets.load_dataset` reads, a folder of `save_to_disk`, a folder
            in the format of the REFER API (see [`~processing.data.refer_folder`]), a folder of one's own with images,
            masks and texts (see [`~processing.own_data.entries`]), or rows that are loaded already.
            Rows that are canonical already are checked and kept as they are.
        split (`str`):
            The usual name (`train`, `val`, `test`, `testA`, `testB`) or the source's own. Of canonical rows those are
            taken whose column `split` says so.
        dataset_name (`str`, *optional*):
            For the `dataset` column; from the source if left out. Of a local copy of a hub dataset give the id on the
            hub: it is then read as that one is.
        exclude_image_ids (`Collection`, *optional*):
            Images to leave out, COCO ids with or without leading zeros: see [`~processing.data.leak_filter`].
        streaming (`bool`, *optional*, defaults to `False`):
            Return an `IterableDataset`. Consecutive rows of an image are grouped within a shard; an image whose rows
            stand apart comes as several rows, with each expression once.
        on_bad_row (`str`, *optional*, defaults to `"skip"`):
            `"skip"` names bad rows in the log, leaves them out and logs their count at the end; `"raise"` stops at
            the first with a [`~processing.data.canonical_rows.BadRowError`].
        check_images (`bool`, *optional*, defaults to `True`):
            Whether an image that is missing, cut off or not of the size of its masks makes a bad row. The header and
            the end of every image file are read, but it is not decoded.

        For REFER folders:

        split_by (`str`, *optional*):
            `unc`, `umd` or `google`, where there are several.
        image_folder (`str` or `Path`, *optional*):
            Where the photos are; `images` inside the folder if left out.
        sentence_field (`str`, *optional*, defaults to `"sent"`):
            `"sent"` (lower case, without punctuation) or `"raw"` (as typed), where both are published.

        For folders of one's own with a table or a COCO file, unless `adapter` or `columns` is given:

        image_folder (`str` or `Path`, *optional*):
            Where to look for the images first.
        text_field (`str`, *optional*):
            For COCO files, the field or attribute of an annotation that holds its text, or `"category"` for the name
            of its category.
        validation_share (`float`, *optional*, defaults to 0.2), split_seed (`int`, *optional*, defaults to 0):
            Share of the photos that become `val`, and the seed that draws them, where the data name no splits.

        For all others:

        adapter (`str` or `Adapter`, *optional*):
            How to read a row. Chosen by the hub id or recognised by the columns if left out.
        columns (`Mapping`, *optional*):
            For a dataset of one's own, the arguments of [`~processing.data.hub_adapters.GenericAdapter`]:
            `{"image": ..., "expression": ..., "mask": ...}` and, if there are, `image_id`, `ref_id`, `several_masks`
            and `missing_mask_means_no_target`.
        image_folder (`str` or `Path`, *optional*):
            Folder of COCO images, for sources that name images by path; others have no use for it.
        partition (`str`, *optional*):
            For splits in which several partitions are mixed (`val` of lmms-lab/RefCOCO and RefCOCOg): one of them, or
            `"mixed"` for all rows.
        sentence_field (`str`, *optional*):
            As for REFER folders.
        num_proc (`int`, *optional*):
            Processes that parse rows (map-style only).
        load_kwargs:
            All others are passed to `datasets.load_dataset` (`revision`, `cache_dir`, `data_files`, ...).

    Returns:
        `datasets.Dataset` or, with `streaming`, `datasets.IterableDataset`.

    Raises:
        TypeError: if `name_or_path` or `exclude_image_ids` is of another kind.
        ValueError: if the dataset is not recognised, the split does not exist, columns or `image_folder` are missing,
            a mixed split is asked for without `partition`, an option has no use, or no row is left.
    """
    options = LoadOptions(split, dataset_name, excluded_images(exclude_image_ids), streaming, on_bad_row, check_images)
    if isinstance(name_or_path, str | Path) and is_refer_folder(name_or_path):
        return load_refer_folder(name_or_path, options, **source_options)
    has_own_columns = source_options.get("adapter") is not None or source_options.get("columns") is not None
    if isinstance(name_or_path, str | Path) and not has_own_columns and is_own_folder(name_or_path):
        return load_own_folder(name_or_path, options, **source_options)
    return load_published_dataset(name_or_path, options, **source_options)
