"""Load the rows of a dataset as they are published, from the hub, a folder, a file or memory."""

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
    Rows of one split.

    Args:
        name_or_path (`str`, `Path`, `datasets.Dataset` or `datasets.IterableDataset`):
            An id on the hub, a folder or a file of data, a folder of `save_to_disk`, or rows.
        split (`str`):
            The source's own name of it; `val` also finds `validation`.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to return an `IterableDataset`.
        load_kwargs:
            Passed to `datasets.load_dataset`.

    Raises:
        TypeError: if `name_or_path` is of another kind.
        ValueError: if there is no such split, a stream is asked for as a map-style dataset, or rows that are loaded
            already come with `load_kwargs`.
    """
    if not isinstance(name_or_path, str | Path | datasets.Dataset | datasets.IterableDataset):
        raise TypeError(
            f"a dataset is a path, an id on the hub or the rows of one split, got {type(name_or_path).__name__}"
        )
    is_loaded = not isinstance(name_or_path, str | Path)
    saved = None if is_loaded else _saved_rows(Path(name_or_path), split)
    if (is_loaded or saved is not None) and load_kwargs:
        raise ValueError(f"rows that are loaded or saved already have no use for {sorted(load_kwargs)}")
    if isinstance(name_or_path, datasets.Dataset):
        return _as_stream(name_or_path) if streaming else name_or_path
    if isinstance(name_or_path, datasets.IterableDataset):
        if not streaming:
            raise ValueError("rows that are an IterableDataset can only be streamed: pass streaming=True")
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
        # `datasets` calls a split "validation" whose files are called "val", unless the card says otherwise.
        if split != "val":
            raise
        return load(split="validation")


def _saved_rows(folder: Path, split: str) -> Path | None:
    """The folder that `save_to_disk` made of one split, or of all of them; `None` for other folders."""
    if (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file():
        return folder
    if not (folder / "dataset_dict.json").is_file():
        return None
    splits = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
    found = [name for name in splits if same_split(name, split)]
    if not found:
        raise ValueError(f"{folder} has the splits {splits}, not {split!r}")
    return folder / found[0]


def cache_of_local_folder(folder: Path) -> str:
    """
    A cache for this folder in its present state alone.

    `datasets` keys what it caches of a local folder that has a card by the name of the folder, not by its path or
    content, so a second folder of the same name would silently give the rows of the first.
    """
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        status = path.stat()
        digest.update(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}".encode())
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "local" / digest.hexdigest()[:16])


def _as_stream(rows: datasets.Dataset) -> datasets.IterableDataset:
    return rows.to_iterable_dataset(num_shards=max(1, min(_STREAM_SHARDS, len(rows))))
