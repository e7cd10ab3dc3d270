"""The synthetic benchmark as a dataset: scenes of shapes with exact masks and expressions at several levels.

| level | similar to | example | what it needs |
| --- | --- | --- | --- |
| `appearance` | RefCOCO+ | "small striped red star" | every attribute: without one, several objects match |
| `position` | RefCOCO | "second star from the left" | the position among three or more matching objects |
| `relation` | RefCOCOg | "the star left of the red ring" | an anchor and a relation to it |
| `chain2` | RefCOCOg | "the star left of the ring above the box" | an anchor that needs another relation |
| `chain3` | RefCOCOg | "the star left of the ring above the box nearest the heart" | one more relation |
| `comparison` | RefCOCOg | "the star of the same color as the box" | a comparison of attributes or sizes |
| `multiple` | gRefCOCO | "all the small rings" | two or more targets, whose union is the mask |
| `no_target` | gRefCOCO | "the red star" where stars are blue and rings red | no object matches: the mask is empty |

In `position`, `relation`, `chain2`, `chain3` and `comparison`, the head noun phrase matches three or more objects
besides the anchors. `scripts/shapes_oracles.py` scores baselines that ignore some words.

Rows have the columns of `processing.data.canonical_rows` with `levels` and `landmarks`. Each row depends only on its
split, its index, the seed and the arguments here, so the data is the same on every machine and in every run.
`processing.shapes.queries` defines the meaning of expressions, and `processing.shapes.expressions` ensures that a
level cannot be solved without its words.
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

# A stream is split into blocks, so that workers and processes can share it and a resumed run skips less than a block.
# The number of blocks is divisible by all numbers up to 12.
STREAM_BLOCKS = 55440
STREAM_BLOCK_ROWS = 256

_SCENE_TRIES = 4


# Common variants of the names of splits. Without this check, each variant would generate other data.
_USUAL_SPLITS = {
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "training": "train",
    "testing": "test",
}


def check_split(split: str) -> None:
    """
    Checks the name of a split.

    Raises:
        ValueError: If the name is empty, or a variant of `train`, `validation` or `test`, which would give other data.
    """
    if not isinstance(split, str) or not split.strip():
        raise ValueError(f"split must be a name, got {split!r}")
    plain = split.strip().lower()
    usual = _USUAL_SPLITS.get(plain, plain)
    if split != usual and usual in ("train", "validation", "test"):
        raise ValueError(f"split {split!r} would generate other images than {usual!r}: use {usual!r}")


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
    """Generates the scene and the expressions of one row, without the image.

    Levels alternate within a row and across rows, so that each level has the same share of a dataset.

    Args:
        split: `"train"`, `"validation"`, `"test"` or any other name; each name gives other data.
        index: Index of the row, from 0.
        seed: Random seed of the dataset.
        levels: Levels to generate, from `LEVELS`.
        expressions_per_image: Number of expressions. A row has fewer only if the scene does not support more.

    Raises:
        ValueError: If a level is unknown, if the index or seed is negative, or if there is not at least one
        expression.
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
        raise RuntimeError(f"found no scene for row {index} of {split!r} that supports the levels {levels}")
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
    """Generates one row, with a `PIL.Image.Image`. For arguments and errors, see `shapes_dataset`."""
    scene, expressions = shapes_sample(split, index, seed, levels, expressions_per_image)
    pixels, owners = render_scene(scene, image_size)
    image_id = f"{split}-{seed}-{index}"
    places: dict[tuple[int, ...], int] = {}
    mask_index = [places.setdefault(expression.targets, len(places)) for expression in expressions]
    # Run lengths are in column order.
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
        # An uncompressed file, since the PNG compression of `datasets` would take longer than generating the row.
        buffer = io.BytesIO()
        row["image"].save(buffer, format="BMP")
        row["image"] = {"bytes": buffer.getvalue(), "path": None}
        yield row


def _dataset_rows(
    split: str, size: int, seed: int, options: tuple[tuple[str, Any], ...], source: str
) -> Iterator[dict[str, Any]]:
    # `source` is only used in the fingerprint that `datasets` computes from the arguments.
    del source
    yield from _encoded_rows(range(size), split, seed, **dict(options))


def _stream_rows(
    blocks: list[int], split: str, seed: int, options: tuple[tuple[str, Any], ...]
) -> Iterator[dict[str, Any]]:
    for block in blocks:
        first = block * STREAM_BLOCK_ROWS
        yield from _encoded_rows(range(first, first + STREAM_BLOCK_ROWS), split, seed, **dict(options))


# The files are listed, so that a missing file is an error and does not give an empty digest.
_MODULES_THAT_MAKE_DATA = ("expressions", "queries", "rendering", "scene", "wording")


@cache
def source_digest() -> str:
    """Digest of the files that generate the data, so that cached datasets become invalid when the code changes."""
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
    """Returns the first `size` rows of a split. They are generated once and then cached by `datasets`.

    Args:
        split: Any name, for example `"train"`, `"validation"`, `"test"`; each name gives other data.
        size: Number of rows, which is the number of images.
        seed: Random seed of the dataset.
        image_size: Height and width of the images and masks in pixels. Scenes and expressions do not depend on it.
        levels: Levels to generate, from `LEVELS`; they alternate.
        expressions_per_image: Expressions per row. A few rows have fewer, if the scene does not support more.

    Raises:
        ValueError: If the size is below 1, a level is unknown, the image is too small, or the seed is negative.
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
    """Returns an endless stream of rows, which repeats after 14 million different images.

    It can be sharded over data loader workers and over processes (`datasets.distributed.split_dataset_by_node`), and
    `state_dict` / `load_state_dict` resume it at the same row. For arguments and errors, see `shapes_dataset`.
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
    """Returns the arguments of a row as a hashable tuple, since `datasets` would treat a list as shards."""
    levels = _check(levels, expressions_per_image)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if image_size < 32:
        raise ValueError(f"image_size must be at least 32 pixels, got {image_size}")
    options = {"image_size": image_size, "levels": levels, "expressions_per_image": expressions_per_image}
    return tuple(sorted(options.items()))
