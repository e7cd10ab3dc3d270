"""Loads any referring dataset as canonical rows: [`load_referring_dataset`]."""

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
    Loads a referring dataset as canonical rows: one row per image, with all its expressions and masks.

    Images stay bytes or paths, and are decoded once, when a row is read.

    Args:
        name_or_path (`str`, `Path`, `datasets.Dataset` or `datasets.IterableDataset`):
            A Hub id, a folder or file that `datasets.load_dataset` reads, a folder written by `save_to_disk`, a folder
            in the format of the REFER API (see [`~processing.data.refer_folder`]), a folder of your own images, masks
            and texts (see [`~processing.own_data.entries`]), or loaded rows. Rows that are already canonical are only
            checked and filtered.
        split (`str`):
            The usual name (`train`, `val`, `test`, `testA`, `testB`) or the name in the source. Canonical rows are
            selected by their column `split`.
        dataset_name (`str`, *optional*):
            Value of the `dataset` column. Defaults to a name from the source. For a local copy of a Hub dataset, pass
            its Hub id, so that it is read like the Hub dataset.
        exclude_image_ids (`Collection`, *optional*):
            Images to leave out: COCO ids with or without leading zeros, see [`~processing.data.leak_filter`].
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to return an `IterableDataset`. It groups only consecutive rows of an image in the same shard. An
            image whose rows are not consecutive is returned as several rows, each with other expressions.
        on_bad_row (`str`, *optional*, defaults to `"skip"`):
            `"skip"` leaves bad rows out, logs each of them, and logs their number at the end. `"raise"` stops at the
            first bad row with a [`~processing.data.canonical_rows.BadRowError`].
        check_images (`bool`, *optional*, defaults to `True`):
            Whether a row is bad if its image is missing, truncated or not of the size of its masks. This reads the
            header and the end of every image file, without decoding it.

        For REFER folders:

        split_by (`str`, *optional*):
            `unc`, `umd` or `google`, if there are several.
        image_folder (`str` or `Path`, *optional*):
            Folder of the photos. Defaults to `images` inside the REFER folder.
        sentence_field (`str`, *optional*, defaults to `"sent"`):
            `"sent"` (lower case, without punctuation) or `"raw"` (as typed), if both are published.

        For folders of your own with a table or a COCO file, unless `adapter` or `columns` is given:

        image_folder (`str` or `Path`, *optional*):
            The first folder to look for images in.
        text_field (`str`, *optional*):
            For COCO files, the field or attribute of an annotation that contains its text, or `"category"` for the
            name of its category.
        validation_share (`float`, *optional*, defaults to 0.2), split_seed (`int`, *optional*, defaults to 0):
            Share of the images in the split `val`, and the random seed that selects them, if the data has no splits.

        For all other sources:

        adapter (`str` or `Adapter`, *optional*):
            Adapter that reads a row. By default, it is chosen by the Hub id or by the columns.
        columns (`Mapping`, *optional*):
            For a dataset of your own, the arguments of [`~processing.data.hub_adapters.GenericAdapter`]:
            `{"image": ..., "expression": ..., "mask": ...}` and optionally `image_id`, `ref_id`, `several_masks` and
            `missing_mask_means_no_target`.
        image_folder (`str` or `Path`, *optional*):
            Folder of COCO images, for sources that contain only the paths of images. Ignored for other sources.
        partition (`str`, *optional*):
            For splits that mix several partitions (`val` of lmms-lab/RefCOCO and RefCOCOg): one of the partitions, or
            `"mixed"` for all rows.
        sentence_field (`str`, *optional*):
            As for REFER folders.
        num_proc (`int`, *optional*):
            Number of processes that parse rows (not with `streaming`).
        load_kwargs:
            All other arguments are passed to `datasets.load_dataset` (`revision`, `cache_dir`, `data_files`, ...).

    Returns:
        `datasets.Dataset` or, with `streaming`, `datasets.IterableDataset`.

    Raises:
        TypeError: If `name_or_path` or `exclude_image_ids` has the wrong type.
        ValueError: If the dataset is not recognized, if the split does not exist, if columns or `image_folder` are
            missing, if a mixed split needs a `partition`, if an option does not apply to the source, or if no row is
            left.
    """
    options = LoadOptions(split, dataset_name, excluded_images(exclude_image_ids), streaming, on_bad_row, check_images)
    if isinstance(name_or_path, str | Path) and is_refer_folder(name_or_path):
        return load_refer_folder(name_or_path, options, **source_options)
    has_own_columns = source_options.get("adapter") is not None or source_options.get("columns") is not None
    if isinstance(name_or_path, str | Path) and not has_own_columns and is_own_folder(name_or_path):
        return load_own_folder(name_or_path, options, **source_options)
    return load_published_dataset(name_or_path, options, **source_options)
