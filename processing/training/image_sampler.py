"""Sampling of images for training, and the length of an epoch.

Most code for this task (LAVT, Yang et al. 2022, and its successors) defines an epoch by referents: each referent is
used once, with one random expression. Here, a training example is an *image* with several of its expressions, so that
the image is encoded once for all of them. A pass over the images of RefCOCO uses about seven expressions per image,
which is almost three epochs in the usual sense. `ImageSampler` therefore ends an epoch after as many expressions as
there are referents: `epoch_unit="referents"`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from torch.utils.data import Dataset, Sampler


EpochUnit = Literal["referents", "sentences", "images"]


class ImageDraw(NamedTuple):
    """A sampled image: the index of its row, and the number of complete passes over all rows before it."""

    index: int
    visit: int


class ImageSampler(Sampler[ImageDraw]):
    """
    Samples the images of a dataset in an endless sequence of shuffled passes, which is split into epochs of equal
    length.

    Epoch `e` starts at position `e * len(self)` of the sequence. The order of each pass depends only on the seed and
    the number of the pass, so a resumed run samples the same images as an uninterrupted one, with any number of
    workers and processes. No image is left out: if an epoch ends within a pass, the next epoch continues there.

    Args:
        expression_counts (`Sequence[int]`):
            The number of expressions of each row.
        referent_counts (`Sequence[int]`):
            The number of referents (masks, including empty ones) of each row.
        max_expressions_per_image (`int`, *optional*):
            Maximum number of expressions per image that the collator uses at a time. `None` uses all.
        epoch_unit (`str`, *optional*, defaults to `"referents"`):
            An epoch has as many expressions as the dataset has `"referents"` (the usual definition) or `"sentences"`.
            With `"images"`, an epoch is one pass over the images.
        seed (`int`, *optional*, defaults to 0):
            Random seed of the order.
        shuffle (`bool`, *optional*, defaults to `True`):
            Whether each pass is shuffled.

    Raises:
        ValueError: If the dataset is empty, if the unit is unknown, if the counts have different lengths, or if
            `max_expressions_per_image` is below 1.
    """

    def __init__(
        self,
        expression_counts: Sequence[int],
        referent_counts: Sequence[int],
        *,
        max_expressions_per_image: int | None = None,
        epoch_unit: EpochUnit = "referents",
        seed: int = 0,
        shuffle: bool = True,
    ):
        if len(expression_counts) != len(referent_counts):
            raise ValueError(
                "`expression_counts` and `referent_counts` must have the same length, got"
                f" {len(expression_counts)} and {len(referent_counts)}."
            )
        if len(expression_counts) == 0:
            raise ValueError("The training dataset is empty: name a dataset with images.")
        check_expression_cap(max_expressions_per_image)
        if epoch_unit not in ("referents", "sentences", "images"):
            raise ValueError(f"`epoch_unit` must be 'referents', 'sentences' or 'images', got {epoch_unit!r}.")
        counts = np.asarray(expression_counts, dtype=np.int64)
        drawn = counts if max_expressions_per_image is None else np.minimum(counts, max_expressions_per_image)
        if drawn.sum() == 0:
            raise ValueError("No row of the training dataset has an expression: check the dataset.")
        self.num_images = len(counts)
        self.expressions_per_pass = int(drawn.sum())
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        targets = {"referents": int(np.sum(referent_counts)), "sentences": int(counts.sum())}
        if epoch_unit == "images":
            self._length = self.num_images
        else:
            self._length = max(1, round(targets[epoch_unit] * self.num_images / self.expressions_per_pass))

    @property
    def expressions_per_epoch(self) -> float:
        """Average number of expressions in an epoch."""
        return self._length * self.expressions_per_pass / self.num_images

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of images in an epoch."""
        return self._length

    def __iter__(self) -> Iterator[ImageDraw]:
        start = self.epoch * self._length
        stop = start + self._length
        for visit in range(start // self.num_images, math.ceil(stop / self.num_images)):
            order = self._order(visit)
            first = visit * self.num_images
            for position in range(max(start, first), min(stop, first + self.num_images)):
                yield ImageDraw(int(order[position - first]), visit)

    def _order(self, visit: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_images)
        return np.random.default_rng([self.seed, visit]).permutation(self.num_images)


class DrawnImages(Dataset):
    """
    The rows of a map-style dataset, indexed by [`ImageDraw`]. Each row gets its `visit`, from which the collator
    derives its random choices, so that they do not depend on the worker.

    Args:
        rows (`Sequence[Mapping]`):
            Canonical rows, such as a `datasets.Dataset`.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: ImageDraw | int) -> dict[str, Any]:
        index, visit = draw if isinstance(draw, tuple) else (draw, 0)
        return {**self.rows[index], "visit": visit}


class EvaluatedImages(Dataset):
    """
    The rows of a map-style dataset in order, split into parts of at most `max_expressions_per_image` expressions, and
    padded with rows without expressions to a multiple of `multiple_of`.

    Every expression occurs exactly once. In distributed evaluation, samplers complete the last batch by repeating
    images, which would then count twice. The rows without expressions make every batch complete.

    Args:
        rows (`Sequence[Mapping]`):
            Canonical rows, such as a `datasets.Dataset`.
        expression_counts (`Sequence[int]`):
            The number of expressions of each row.
        max_expressions_per_image (`int`, *optional*):
            Maximum number of expressions per item. `None` does not split images.
        multiple_of (`int`, *optional*, defaults to 1):
            The batch size times the number of processes.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        expression_counts: Sequence[int],
        max_expressions_per_image: int | None = None,
        multiple_of: int = 1,
    ):
        check_expression_cap(max_expressions_per_image)
        if multiple_of < 1:
            raise ValueError(f"`multiple_of` must be at least 1, got {multiple_of}.")
        self.rows = rows
        self.parts = [
            (index, start, min(count, start + (max_expressions_per_image or count)))
            for index, count in enumerate(expression_counts)
            for start in range(0, count, max_expressions_per_image or max(count, 1))
        ]
        if not self.parts:
            raise ValueError("No row of the evaluation dataset has an expression: check the dataset.")
        self.num_expressions = sum(stop - start for _, start, stop in self.parts)
        self.parts += [(self.parts[0][0], 0, 0)] * (-len(self.parts) % multiple_of)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index, start, stop = self.parts[item]
        return cut_expressions(self.rows[index], start, stop)


def cut_expressions(row: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Returns a canonical row with only the expressions from `start` to `stop`, and their other columns."""
    columns = ("expressions", "mask_index", "levels", "landmarks")
    return {**row, **{column: row[column][start:stop] for column in columns if row.get(column) is not None}}


def check_expression_cap(max_expressions_per_image: int | None) -> None:
    """
    Checks the maximum number of expressions per image.

    Raises:
        ValueError: If it is below 1.
    """
    if max_expressions_per_image is not None and max_expressions_per_image < 1:
        raise ValueError(f"`max_expressions_per_image` must be at least 1 or None, got {max_expressions_per_image}.")


def count_expressions(rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """
    Counts the expressions and the referents of every row, without decoding images.

    Args:
        rows (`Sequence[Mapping]`):
            Canonical rows, as a `datasets.Dataset` or any sequence of mappings.

    Returns:
        `tuple[list[int], list[int]]`: expressions and referents of each row.
    """
    if hasattr(rows, "select_columns"):
        rows = rows.select_columns(["mask_index", "ref_ids"])
    expressions, referents = [], []
    for row in rows:
        expressions.append(len(row["mask_index"]))
        referents.append(len(row["ref_ids"]))
    return expressions, referents
