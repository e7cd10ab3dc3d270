"""The synthetic benchmark as rows: scenes of shapes with exact masks and expressions in graded levels.

| level | mirrors | example | what it takes |
| --- | --- | --- | --- |
| `appearance` | RefCOCO+ | "small striped red star" | every attribute named: dropping one lets another object in |
| `position` | RefCOCO | "second star from the left" | place in the picture, of three or more that fit the head |
| `relation` | RefCOCOg | "the star left of the red ring" | one anchor and one relation to it |
| `chain2` | RefCOCOg | "the star left of the ring above the box" | an anchor found by its own relation |
| `chain3` | RefCOCOg | "the star left of the ring above the box nearest the heart" | the same, once more |
| `comparison` | RefCOCOg | "the star of the same color as the box" | attributes and sizes held together |
| `multiple` | gRefCOCO | "all the small rings" | two or more targets, their union is the mask |
| `no_target` | gRefCOCO | "the red star" where stars are blue and rings red | a near miss: the mask is empty |

On `position`, `relation`, `chain2`, `chain3` and `comparison` the head noun phrase fits three or more objects besides
the anchors; `scripts/shapes_oracles.py` measures what readers score who ignore words.

Rows have the columns of `processing.data.canonical_rows` with `levels` and `landmarks`. Each depends on nothing but
its split, its index, the seed and the arguments given here, so two machines, or two runs, see the same data. What the
words mean is written in `processing.shapes.queries`, how a level is kept from being solved without its words in
`processing.shapes.expressions`.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..data.canonical_rows import canonical_features
from ..data.masks import encode_mask
from .expressions import LEVELS, Expression, ExpressionWriter
from .queries import landmarks_of
from .rendering import render_scene
from .scene import Scene, sample_scene


DATASET_NAME = "shapes"

# A stream is cut into blocks so that workers and processes can share it, and so that resuming skips less than a block.
# The number of blocks has every divisor up to 12.
STREAM_BLOCKS = 55440
STREAM_BLOCK_ROWS = 256

_SCENE_TRIES = 4


# Names that people mean by one another, though each would make other data.
_USUAL_SPLITS = {
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "training": "train",
    "testing": "test",
}


def check_split(split: str) -> None:
    """
    Check the name of a split, which chooses its data.

    Raises:
        ValueError: for no name, or one that looks like `train`, `validation` or `test` but would make other data.
    """
    if not isinstance(split, str) or not split.strip():
        raise ValueError(f"split must be a name, got {split!r}")
    plain = split.strip().lower()
    usual = _USUAL_SPLITS.get(plain, plain)
    if split != usual and usual in ("train", "validation", "test"):
        raise ValueError(f"split {split!r} would make other images than {usual!r}: write {usual!r}")


def _check(levels: Sequence[str], expressions_per_image: int) -> tuple[str, ...]:
    if isinstance(levels, str):
        raise TypeError(f"levels must be a sequence of level names, got the string {levels!r}")
    unknown = [level for level in levels if level not in LEVELS]
    if unknown or not levels:
        raise ValueError(f"levels must name at least one of {', '.join(LEVELS)}; got {list(levels)}")
    if expressions_per_image < 1:
        raise ValueError(f"expressions_per_image must be at least 1, got {expressions_per_image}")
    return tuple(levels)


def shapes_sample(
    split: str,
    index: int,
    seed: int = 0,
    levels: Sequence[str] = LEVELS,
    expressions_per_image: int = 8,
) -> tuple[Scene, list[Expression]]:
    """The scene and the expressions of one row, before anything is drawn.

    Levels take turns over the expressions of a row and over rows, so that each gets the same share of a dataset.

    Args:
        split: `"train"`, `"validation"`, `"test"` or any other name; each names its own data.
        index: number of the row, from 0.
        seed: chooses another dataset.
        levels: levels to write, from `LEVELS`.
        expressions_per_image: how many expressions to write. A row has fewer only if the scene supports no more.

    Raises:
        ValueError: for an unknown level, a negative index or seed, or fewer than one expression.
    """
    check_split(split)
    levels = _check(levels, expressions_per_image)
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must not be negative, got {index} and {seed}")
    rng = np.random.default_rng([zlib.crc32(split.encode()), seed, index])
    first = index * expressions_per_image
    wanted = [levels[(first + turn) % len(levels)] for turn in range(expressions_per_image)]
    best: tuple[Scene, list[Expression]] | None = None
    for _ in range(_SCENE_TRIES):
        scene = sample_scene(rng)
        writer = ExpressionWriter(scene, rng)
        written: dict[str, Expression] = {}
        for level in wanted:
            expression = writer.write(level)
            if expression is not None:
                written.setdefault(expression.text, expression)
        if best is None or len(written) > len(best[1]):
            best = scene, list(written.values())
        if len(written) == len(wanted):
            break
    if best is None or not best[1]:
        raise RuntimeError(f"no expression of the levels {levels} fits any scene tried for row {index} of {split!r}")
    return best


def _union(owners: np.ndarray, targets: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(owners.shape, dtype=bool)
    for target in targets:
        mask |= owners == target
    return mask


def shapes_row(
    split: str,
    index: int,
    seed: int = 0,
    image_size: int = 128,
    levels: Sequence[str] = LEVELS,
    expressions_per_image: int = 8,
) -> dict[str, Any]:
    """One row of the benchmark, its image a `PIL.Image.Image`. Arguments and errors as in `shapes_dataset`."""
    scene, expressions = shapes_sample(split, index, seed, levels, expressions_per_image)
    pixels, owners = render_scene(scene, image_size)
    image_id = f"{split}-{seed}-{index}"
    places: dict[tuple[int, ...], int] = {}
    mask_index = [places.setdefault(expression.targets, len(places)) for expression in expressions]
    # Run lengths go column by column.
    columns = np.ascontiguousarray(owners.T)
    masks = [encode_mask(_union(columns, targets).T) for targets in places]
    return {
        "image": Image.fromarray(pixels),
        "image_id": image_id,
        "dataset": DATASET_NAME,
        "split": split,
        "expressions": [expression.text for expression in expressions],
        "masks": masks,
        "mask_index": mask_index,
        "ref_ids": [f"{image_id}-{place}" for place in range(len(places))],
        "levels": [expression.level for expression in expressions],
        "landmarks": [
            encode_mask(_union(columns, landmarks_of(expression.query, scene)).T) for expression in expressions
        ],
    }


def _encoded_rows(indices: Iterable[int], split: str, seed: int, **options: Any) -> Iterator[dict[str, Any]]:
    for index in indices:
        row = shapes_row(split, index, seed, **options)
        # An uncompressed file: `datasets` would compress to PNG, which takes longer than making the whole row.
        buffer = io.BytesIO()
        row["image"].save(buffer, format="BMP")
        row["image"] = {"bytes": buffer.getvalue(), "path": None}
        yield row


def _dataset_rows(
    split: str, size: int, seed: int, options: tuple[tuple[str, Any], ...], source: str
) -> Iterator[dict[str, Any]]:
    # `source` only takes part in the fingerprint that `datasets` makes of the arguments.
    del source
    yield from _encoded_rows(range(size), split, seed, **dict(options))


def _stream_rows(
    blocks: list[int], split: str, seed: int, options: tuple[tuple[str, Any], ...]
) -> Iterator[dict[str, Any]]:
    for block in blocks:
        first = block * STREAM_BLOCK_ROWS
        yield from _encoded_rows(range(first, first + STREAM_BLOCK_ROWS), split, seed, **dict(options))


# Named one by one, so that a file that was moved or renamed is an error and not an empty digest.
_MODULES_THAT_MAKE_DATA = ("expressions", "queries", "rendering", "scene", "wording")


@cache
def source_digest() -> str:
    """Digest of the files that make the data, so that a cached dataset never outlives the code that made it."""
    digest = hashlib.sha256()
    for module in (*_MODULES_THAT_MAKE_DATA, Path(__file__).stem):
        digest.update((Path(__file__).parent / f"{module}.py").read_bytes())
    return digest.hexdigest()


def shapes_dataset(
    split: str,
    size: int,
    seed: int = 0,
    image_size: int = 128,
    levels: Sequence[str] = LEVELS,
    expressions_per_image: int = 8,
) -> datasets.Dataset:
    """The first `size` rows of a split. Made once, then read from the cache of `datasets`.

    Args:
        split: any name, for example `"train"`, `"validation"`, `"test"`; each names its own data.
        size: number of rows, which is the number of images.
        seed: chooses another dataset.
        image_size: side of the images and masks in pixels. The scenes and expressions do not depend on it.
        levels: levels to write, from `LEVELS`; they take turns.
        expressions_per_image: expressions a row. A few rows have fewer, where the scene supports no more.

    Raises:
        ValueError: for a size below 1, an unknown level, an image too small, a negative seed.
    """
    check_split(split)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    options = _options(seed, image_size, levels, expressions_per_image)
    arguments = {"split": split, "size": size, "seed": seed, "options": options, "source": source_digest()}
    return datasets.Dataset.from_generator(
        _dataset_rows, features=canonical_features(with_levels=True, with_landmarks=True), gen_kwargs=arguments
    )


def shapes_stream(
    split: str = "train",
    seed: int = 0,
    image_size: int = 128,
    levels: Sequence[str] = LEVELS,
    expressions_per_image: int = 8,
) -> datasets.IterableDataset:
    """An endless stream of rows: 14 million different images, then the same again.

    It shards over data loader workers and over processes (`datasets.distributed.split_dataset_by_node`), and
    `state_dict` / `load_state_dict` resume it at the same row. Arguments and errors as in `shapes_dataset`.
    """
    check_split(split)
    options = _options(seed, image_size, levels, expressions_per_image)
    arguments = {"blocks": list(range(STREAM_BLOCKS)), "split": split, "seed": seed, "options": options}
    stream = datasets.IterableDataset.from_generator(
        _stream_rows, features=canonical_features(with_levels=True, with_landmarks=True), gen_kwargs=arguments
    )
    return stream.repeat(None)


def _options(
    seed: int, image_size: int, levels: Sequence[str], expressions_per_image: int
) -> tuple[tuple[str, Any], ...]:
    """Arguments of a row as a hashable tuple; `datasets` would take a list for shards."""
    levels = _check(levels, expressions_per_image)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if image_size < 32:
        raise ValueError(f"image_size must be at least 32 pixels, got {image_size}")
    options = {"image_size": image_size, "levels": levels, "expressions_per_image": expressions_per_image}
    return tuple(sorted(options.items()))
