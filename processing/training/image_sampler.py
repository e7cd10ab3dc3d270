"""Training by image: which image is drawn when, and how many expressions make an epoch.

The field counts an epoch in referents: every referent once, with one sentence of it drawn at random (LAVT, Yang et al.
2022, and most code after it). Here an item is an *image* with several of its expressions, so that the image encoder
runs once for all of them. An epoch of images would show about seven sentences of an image of RefCOCO at a time, almost
three epochs of the field in one. `ImageSampler` therefore ends an epoch when as many expressions have been drawn as
the field draws: `epoch_unit="referents"`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from torch.utils.data import Dataset, Sampler


EpochUnit = Literal["referents", "sentences", "images"]


class ImageDraw(NamedTuple):
    """One draw of an image: its row, and how often the sampler has gone through all rows before."""

    index: int
    visit: int


class ImageSampler(Sampler[ImageDraw]):
    """
    Draws the images of a dataset in an endless sequence of shuffled passes and cuts it into epochs of equal length.

    Epoch `e` is the part of the sequence from `e * len(self)` on, and each pass has its own order, given by the seed
    and the number of the pass alone. A run that is taken up again therefore draws what the unbroken run would have
    drawn, with any number of workers and processes. No image is left out: an epoch that ends within a pass is followed
    by one that goes on there.

    Args:
        expression_counts (`Sequence[int]`):
            The number of expressions of each row.
        referent_counts (`Sequence[int]`):
            The number of referents of each row (masks, those of absent referents included).
        max_expressions_per_image (`int`, *optional*):
            The most expressions of an image that the collator takes at a time. `None` takes all.
        epoch_unit (`str`, *optional*, defaults to `"referents"`):
            What an epoch holds as many expressions as: `"referents"` (the practice of the field), or `"sentences"`.
            With `"images"`, an epoch is one pass over the images.
        seed (`int`, *optional*, defaults to 0):
            Seed of the order.
        shuffle (`bool`, *optional*, defaults to `True`):
            Whether each pass is shuffled.

    Raises:
        ValueError: for an empty dataset, an unknown unit, counts of different lengths or a cap below 1.
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
                f"`expression_counts` and `referent_counts` must describe the same rows, got {len(expression_counts)}"
                f" and {len(referent_counts)} of them."
            )
        if len(expression_counts) == 0:
            raise ValueError("There is no image to draw: the training dataset is empty.")
        check_expression_cap(max_expressions_per_image)
        if epoch_unit not in ("referents", "sentences", "images"):
            raise ValueError(f"`epoch_unit` must be 'referents', 'sentences' or 'images', got {epoch_unit!r}.")
        counts = np.asarray(expression_counts, dtype=np.int64)
        drawn = counts if max_expressions_per_image is None else np.minimum(counts, max_expressions_per_image)
        if drawn.sum() == 0:
            raise ValueError("No row of the training dataset has an expression.")
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
        """Expressions in an epoch, on average over epochs."""
        return self._length * self.expressions_per_pass / self.num_images

    def set_epoch(self, epoch: int) -> None:
        """Choose the part of the sequence that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Images in an epoch."""
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
    The rows of a map-style dataset by [`ImageDraw`]: each row comes with its `visit`, from which the collator derives
    what it draws at random. Nothing depends on the worker that reads the row.

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
    The rows of a map-style dataset in parts of at most `max_expressions_per_image` expressions, in order, and filled
    up with rows without an expression to a multiple of `multiple_of`.

    Every expression comes exactly once. The samplers of distributed evaluation fill up the last batch by repeating
    images, which counts some of them twice; the rows without an expression leave them nothing to fill.

    Args:
        rows (`Sequence[Mapping]`):
            Canonical rows, such as a `datasets.Dataset`.
        expression_counts (`Sequence[int]`):
            The number of expressions of each row.
        max_expressions_per_image (`int`, *optional*):
            The most expressions in an item. `None` leaves each image whole.
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
            raise ValueError("No row of the evaluation dataset has an expression.")
        self.num_expressions = sum(stop - start for _, start, stop in self.parts)
        self.parts += [(self.parts[0][0], 0, 0)] * (-len(self.parts) % multiple_of)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index, start, stop = self.parts[item]
        return cut_expressions(self.rows[index], start, stop)


def cut_expressions(row: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """A canonical row with its expressions from `start` to `stop` alone, and all that belongs to each of them."""
    columns = ("expressions", "mask_index", "levels", "landmarks")
    return {**row, **{column: row[column][start:stop] for column in columns if row.get(column) is not None}}


def check_expression_cap(max_expressions_per_image: int | None) -> None:
    """
    Raises:
        ValueError: if a cap on the expressions of an image leaves none.
    """
    if max_expressions_per_image is not None and max_expressions_per_image < 1:
        raise ValueError(f"`max_expressions_per_image` must be at least 1 or None, got {max_expressions_per_image}.")


def count_expressions(rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """
    Count the expressions and the referents of every row without decoding an image.

    Args:
        rows (`Sequence[Mapping]`):
            Canonical rows; a `datasets.Dataset` or any sequence of mappings.

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
