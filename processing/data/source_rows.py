"""Loads the rows of a dataset in their published format, from the Hub, a folder, a file or memory."""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets

from .load_options import same_split


_STREAM_SHARDS = 64


def load_source_rows(
    name_or_path: Any, split: str, streaming: bool = False, **load_kwargs: Any
) -> "datasets.Dataset | datasets.IterableDataset":
    """
    Loads the rows of one split.

    Args:
        name_or_path (`str`, `Path`, `datasets.Dataset` or `datasets.IterableDataset`):
            A Hub id, a folder or a data file, a folder written by `save_to_disk`, or loaded rows.
        split (`str`):
            The name of the split in the source; `val` also finds `validation`.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to return an `IterableDataset`.
        load_kwargs:
            Passed to `datasets.load_dataset`.

    Raises:
        TypeError: If `name_or_path` is of another kind.
        ValueError: If there is no such split, if `streaming` is `False` for an `IterableDataset`, or if `load_kwargs`
            are given for rows that are already loaded or saved.
    """
    if not isinstance(name_or_path, str | Path | datasets.Dataset | datasets.IterableDataset):
        raise TypeError(
            f"a dataset must be a path, a Hub id or the rows of one split, got {type(name_or_path).__name__}"
        )
    is_loaded = not isinstance(name_or_path, str | Path)
    saved = None if is_loaded else _saved_rows(Path(name_or_path), split)
    if (is_loaded or saved is not None) and load_kwargs:
        raise ValueError(f"{sorted(load_kwargs)} have no effect on rows that are already loaded or saved: omit them")
    if isinstance(name_or_path, datasets.Dataset):
        return _as_stream(name_or_path) if streaming else name_or_path
    if isinstance(name_or_path, datasets.IterableDataset):
        if not streaming:
            raise ValueError("an IterableDataset can only be streamed: pass streaming=True")
        return name_or_path
    path = Path(name_or_path)
    if saved is not None:
        rows: Any = datasets.load_from_disk(str(saved))
        return _as_stream(rows) if streaming else rows
    if path.exists() and not path.is_dir():
        load_kwargs = {"data_files": {split: str(path)}, **load_kwargs}
        kind = path.suffix.lstrip(".").lower()
        name_or_path = "json" if kind in ("jsonl", "ndjson") else kind
    elif path.is_dir():
        load_kwargs = {"cache_dir": cache_of_local_folder(path), **load_kwargs}
    load: Callable[..., Any] = functools.partial(
        datasets.load_dataset, str(name_or_path), streaming=streaming, **load_kwargs
    )
    try:
        return load(split=split)
    except ValueError:
        # Unless the card says otherwise, `datasets` names a split "validation" if its files are called "val".
        if split != "val":
            raise
        return load(split="validation")


def _saved_rows(folder: Path, split: str) -> Path | None:
    """Returns the folder in which `save_to_disk` saved the split, or `None` for other folders."""
    if (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file():
        return folder
    if not (folder / "dataset_dict.json").is_file():
        return None
    splits = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
    found = [name for name in splits if same_split(name, split)]
    if not found:
        raise ValueError(f"{folder} has no split {split!r}: choose one of {splits}")
    return folder / found[0]


def cache_of_local_folder(folder: Path) -> str:
    """
    Returns a cache directory for this folder in its current state.

    If a local folder has a card, the cache key of `datasets` is the name of the folder, not its path or content.
    Without a separate cache, a second folder of the same name would silently return the rows of the first.
    """
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        status = path.stat()
        digest.update(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}".encode())
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "local" / digest.hexdigest()[:16])


def _as_stream(rows: datasets.Dataset) -> datasets.IterableDataset:
    return rows.to_iterable_dataset(num_shards=max(1, min(_STREAM_SHARDS, len(rows))))
