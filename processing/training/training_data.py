"""Loads the datasets in a configuration for the Trainer."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from ..data.refer_folder import is_refer_folder
from ..data.referring_datasets import load_referring_dataset
from ..names import check_arguments
from ..shapes.dataset import shapes_dataset, shapes_row
from .image_sampler import ImageDraw


SHAPES = "shapes"


class GeneratedShapes(Dataset):
    """
    The synthetic benchmark as an endless dataset: row `i` is generated when it is read.

    Args:
        options: Arguments of [`~processing.shapes.dataset.shapes_row`] except the index.
    """

    def __init__(self, **options: Any):
        self.options = {"split": "train", **options}
        shapes_row(index=0, **self.options)

    def __len__(self) -> int:
        return EndlessSampler.images_per_epoch

    def __getitem__(self, draw: ImageDraw | int) -> dict[str, Any]:
        return shapes_row(index=draw[0] if isinstance(draw, tuple) else draw, **self.options)


class EndlessSampler(Sampler[ImageDraw]):
    """Samples the rows of an endless dataset in order, in epochs of a million. A resumed run continues at its row."""

    images_per_epoch = 1_000_000

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.images_per_epoch

    def __iter__(self) -> Iterator[ImageDraw]:
        start = self.epoch * self.images_per_epoch
        for index in range(start, start + self.images_per_epoch):
            yield ImageDraw(index, 0)


class StreamedImages(IterableDataset):
    """
    Canonical rows from a stream, which is repeated endlessly.

    The shards are distributed over the processes and their workers. If there are fewer shards than processes, each
    process reads every `num_processes`-th row. A resumed run skips the rows of its first `skipped_batches` batches
    without decoding their images.

    Args:
        rows (`datasets.IterableDataset`):
            Canonical rows.
        shuffle_buffer (`int`, *optional*, defaults to 1000):
            Size of the buffer from which rows are sampled; shards are shuffled too. 0 keeps the order.
        seed (`int`, *optional*, defaults to 0):
            Random seed of the order, which is different in each pass.
        process_index, num_processes (`int`, *optional*):
            Index of this process, and number of processes.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        *,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.rows = rows.cast_column("image", datasets.Image(decode=False))
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self.batch_size = 1
        self.skipped_batches = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        worker_index, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # The data loader takes batches in turn from the workers that have a shard.
        num_workers = max(1, min(num_workers, self._one_pass(0).num_shards))
        to_skip = -(-max(self.skipped_batches - worker_index, 0) // num_workers) * self.batch_size
        decode = datasets.Image().decode_example
        visit = 0
        while True:
            is_empty = True
            for row in self._one_pass(visit):
                is_empty = False
                if to_skip > 0:
                    to_skip -= 1
                    yield {"skipped": True}
                else:
                    yield {**row, "image": decode(row["image"]), "visit": visit}
            # With more workers than shards, some workers have no rows.
            if is_empty:
                return
            visit += 1

    def _one_pass(self, visit: int) -> datasets.IterableDataset:
        rows = self.rows
        if self.shuffle_buffer > 0:
            rows = rows.shuffle(seed=self.seed + visit, buffer_size=self.shuffle_buffer)
        if self.num_processes > 1:
            rows = split_dataset_by_node(rows, self.process_index, self.num_processes)
        return rows


def load_rows(
    specification: Mapping[str, Any],
    *,
    image_folder: str | Path | None = None,
    exclude_image_ids: Collection[str] = (),
) -> "datasets.Dataset | datasets.IterableDataset | GeneratedShapes":
    """
    Loads one dataset of a configuration.

    Args:
        specification (`Mapping`):
            `name` and the arguments of [`~processing.data.referring_datasets.load_referring_dataset`]; or
            `name: shapes` and those of [`~processing.shapes.dataset.shapes_dataset`], endless without a `size`.
        image_folder (`str` or `Path`, *optional*):
            Folder of COCO images, for datasets without images or an image folder.
        exclude_image_ids (`Collection[str]`, *optional*):
            Images to leave out. Has no effect on shapes.

    Raises:
        ValueError: If the specification has no `name`, or if an argument does not apply to the dataset.
    """
    options = dict(specification)
    name = options.pop("name", None)
    if name is None:
        raise ValueError(f"A dataset needs a `name`, got only {sorted(specification)}.")
    title = f"The dataset {name!r}"
    if name == SHAPES and "size" in options:
        check_arguments(shapes_dataset, options, title)
        return shapes_dataset(**options)
    if name == SHAPES:
        check_arguments(shapes_row, {"split": "train", "index": 0, **options}, title)
        return GeneratedShapes(**options)
    has_own_images = is_refer_folder(name) and (Path(name) / "images").is_dir()
    options.setdefault("image_folder", None if has_own_images else image_folder)
    options["exclude_image_ids"] = {*map(str, options.get("exclude_image_ids", ())), *exclude_image_ids}
    check_arguments(load_referring_dataset, {"name_or_path": name, **options}, title)
    return load_referring_dataset(name, **options)


def join_rows(parts: Sequence[Any]) -> Any:
    """
    Joins several datasets to one. Datasets are concatenated, streams are interleaved, and shorter streams are repeated
    until all have ended.

    Raises:
        ValueError: If streams and datasets of known length are mixed, or endless shapes and anything else.
    """
    if len(parts) == 1:
        return parts[0]
    kinds = {type(part) for part in parts}
    if len(kinds) != 1 or GeneratedShapes in kinds:
        raise ValueError(
            "Datasets of different kinds cannot be joined: use streams (`streaming: true`) for all or none, and give"
            " shapes a `size`."
        )
    common = set.intersection(*(set(part.column_names) for part in parts))
    parts = [part.select_columns([name for name in part.column_names if name in common]) for part in parts]
    if kinds == {datasets.IterableDataset}:
        return datasets.interleave_datasets(parts, stopping_strategy="all_exhausted")
    return datasets.concatenate_datasets(parts)
