"""Loads canonical rows: checks them and selects the split and the images."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import datasets

from .canonical_rows import (
    DATA_ERRORS,
    BadRows,
    canonical_features,
    check_canonical_row,
    check_image,
    image_cells_without_bytes,
    is_excluded,
    reason_of,
)
from .hub_rows import rows_of_shard, shards_of
from .load_options import LoadOptions, same_split
from .masks import check_address


def load_canonical_rows(
    rows: "datasets.Dataset | datasets.IterableDataset", name: str, options: LoadOptions
) -> "datasets.Dataset | datasets.IterableDataset":
    """
    Selects the canonical rows whose column `split` is the split in `options`, without bad rows.

    Args:
        rows (`datasets.Dataset` or `datasets.IterableDataset`): Canonical rows.
        name (`str`): Name of the dataset in messages.
        options (`LoadOptions`): The split and the images to keep.

    Raises:
        ValueError: If no row is left. A stream is empty instead.
    """
    bad_rows = options.bad_rows(f"{name} {options.split}")
    undecoded = rows.cast_column("image", datasets.Image(decode=False))
    if isinstance(undecoded, datasets.IterableDataset):
        # Not `filter`, since the decoding of images can no longer be changed in its result.
        shards = shards_of(undecoded)
        columns = undecoded.column_names or ()
        features = undecoded.features or canonical_features("levels" in columns, "landmarks" in columns)
        return datasets.IterableDataset.from_generator(
            functools.partial(_usable_rows, options=options, bad_rows=bad_rows),
            features=datasets.Features({**features, "image": datasets.Image()}),
            gen_kwargs={"shards": list(enumerate(shards))},
        )
    read: Iterable[dict[str, Any]] = undecoded
    if not options.check_images:
        annotations = undecoded.remove_columns(["image"])
        read = (
            {**row, "image": cell} for row, cell in zip(annotations, image_cells_without_bytes(undecoded), strict=True)
        )
    chosen = [index for index, row in enumerate(read) if _is_usable(row, index, options, bad_rows)]
    bad_rows.summarize()
    if not chosen:
        splits = sorted(set(map(str, undecoded["split"])))
        raise ValueError(
            f"{name}: no row of the split {options.split!r} is left; the rows have the splits {splits}, and"
            f" {len(bad_rows.places)} rows are bad (see the log)"
        )
    # `select` only if rows were dropped, since reading a selection is slower.
    kept = undecoded if len(chosen) == len(undecoded) else undecoded.select(chosen)
    return kept.cast_column("image", datasets.Image())


def _usable_rows(
    shards: Iterable[tuple[int, datasets.IterableDataset]], options: LoadOptions, bad_rows: BadRows
) -> Iterator[dict[str, Any]]:
    for number, shard in shards:
        for index, row in enumerate(rows_of_shard(shard)):
            if _is_usable(row, f"row {index} of shard {number}" if number else index, options, bad_rows):
                yield row
    bad_rows.summarize()


def _is_usable(row: Mapping[str, Any], place: int | str, options: LoadOptions, bad_rows: BadRows) -> bool:
    try:
        if not same_split(row["split"], options.split) or is_excluded(row["image_id"], options.excluded):
            return False
        check_canonical_row(row)
        check_address(row["image"])
        if options.check_images:
            check_image(row["image"], [*row["masks"], *(row.get("landmarks") or [])])
    except DATA_ERRORS as error:
        bad_rows.report(place, f"image {row.get('image_id')!r}: {reason_of(error)}")
        return False
    return True
