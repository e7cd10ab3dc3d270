"""Converts the rows of a Hub dataset to canonical rows, map-style or as a stream."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from .canonical_rows import (
    DATA_ERRORS,
    BadRows,
    ParsedRow,
    Referent,
    annotation_columns,
    canonical_features,
    check_image,
    common_size,
    find_image,
    group_by_image,
    group_consecutive,
    image_cells_without_bytes,
    is_excluded,
    reason_of,
)
from .hub_adapters import Adapter
from .masks import check_address


# Part of the cache key of parsed rows in `datasets`. Increase it when an adapter reads rows in another way.
_PARSER_VERSION = 3
_STREAM_BATCH = 16


@dataclass(frozen=True)
class RowSource:
    """
    Settings for reading the rows of a Hub dataset or a Parquet folder.

    Args:
        adapter (`Adapter`): Adapter that reads a row.
        dataset, split (`str`): Values of the columns with these names.
        image_folder (`Path`, *optional*): Folder of the images, if they are not in the rows.
        exclude_image_ids (`frozenset[str]`): Images to leave out.
        check_images (`bool`): Whether each image must be complete and have the size of its masks.
    """

    adapter: Adapter
    dataset: str
    split: str
    image_folder: Path | None
    exclude_image_ids: frozenset[str]
    check_images: bool

    @property
    def label(self) -> str:
        """Name of the source in messages."""
        return f"{self.dataset} {self.split}"


def _parse(row: Mapping[str, Any], place: str, source: RowSource) -> ParsedRow | None:
    """Reads a row. Errors become problems in the result. Returns `None` for an excluded image."""
    try:
        own_id = source.adapter.image_id(row)
        if own_id and is_excluded(own_id, source.exclude_image_ids):
            return None
        # The index of a row must not look like the id of an image.
        image_id = own_id or f"row {place}"
        referents, problems = source.adapter.referents(row)
        referents = [
            referent if referent.ref_id else replace(referent, ref_id=f"{place}_{position}")
            for position, referent in enumerate(referents)
        ]
        if not referents:
            return ParsedRow(image_id, [], problems)
        height, width = common_size([referent.mask for referent in referents])
        file_name = "" if source.image_folder is None else source.adapter.image_file_name(row)
        photo = f"{height} x {width} {source.adapter.photo(row)}"
        return ParsedRow(image_id, referents, problems, photo, file_name)
    except DATA_ERRORS as error:
        return ParsedRow("", [], [reason_of(error)])


def _image_cell(
    cell: Mapping[str, Any] | None, file_name: str, image_id: str, referents: Iterable[Referent], source: RowSource
) -> dict[str, Any]:
    """Returns the undecoded image in the format of `datasets`. Raises a `ValueError` if it is missing or unusable."""
    if source.image_folder is not None:
        cell = {"bytes": None, "path": str(find_image(source.image_folder, file_name, image_id))}
    check_address(cell)
    if source.check_images:
        check_image(cell, [referent.mask for referent in referents])
    return {"bytes": cell.get("bytes"), "path": cell.get("path")}


def _parse_batch(
    batch: dict[str, list[Any]], indices: list[int], source: RowSource, version: int
) -> dict[str, list[Any]]:
    del version  # only part of the cache key
    rows = list(_rows_of(batch))
    parsed_rows = [
        _parse(row, str(index), source) or ParsedRow("", []) for index, row in zip(indices, rows, strict=True)
    ]
    return {
        "image_id": [parsed.image_id for parsed in parsed_rows],
        "photo": [parsed.photo for parsed in parsed_rows],
        "file_name": [parsed.file_name for parsed in parsed_rows],
        "problems": [parsed.problems for parsed in parsed_rows],
        "ref_ids": [[referent.ref_id for referent in parsed.referents] for parsed in parsed_rows],
        "expressions": [[referent.expressions for referent in parsed.referents] for parsed in parsed_rows],
        "masks": [[referent.mask for referent in parsed.referents] for parsed in parsed_rows],
    }


def _rows_of(batch: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))


def _parsed_features() -> datasets.Features:
    text, integer = datasets.Value("string"), datasets.Value("int32")
    return datasets.Features(
        {
            "image_id": text,
            "photo": text,
            "file_name": text,
            "problems": [text],
            "ref_ids": [text],
            "expressions": [[text]],
            "masks": [{"size": [integer], "counts": text}],
        }
    )


def read_rows(rows: datasets.Dataset, source: RowSource, on_bad_row: str, num_proc: int | None) -> datasets.Dataset:
    """
    Converts a map-style source to canonical rows, grouped by image in order of first appearance.

    Raises:
        BadRowError: At the first bad row, if `on_bad_row` is `"raise"`.
        ValueError: If no row is left.
    """
    image_column = source.adapter.image_column
    has_images = source.image_folder is None
    needed = rows
    if has_images and not source.adapter.needs_image_bytes:
        needed = rows.remove_columns([image_column])
    # `datasets` caches the result, so it must not depend on any other files.
    parsed = needed.map(
        _parse_batch,
        batched=True,
        batch_size=64,
        with_indices=True,
        remove_columns=needed.column_names,
        features=_parsed_features(),
        fn_kwargs={"source": source, "version": _PARSER_VERSION},
        num_proc=num_proc,
        desc=f"Reading {source.label}",
    )
    bad_rows = BadRows(source.label, on_bad_row)
    images = group_by_image(_parsed_rows(parsed, bad_rows))
    file_names = None if has_images else list(parsed["file_name"])
    cells: Any = None
    if has_images:
        cells = (
            rows.select_columns([image_column])[image_column]
            if source.check_images
            else list(image_cells_without_bytes(rows, image_column))
        )
    first_rows, annotations = [], []
    for index, image_id, referents in images:
        columns = annotation_columns(referents, image_id, source.dataset, source.split)
        try:
            if file_names is not None:
                columns["image"] = _image_cell(None, file_names[index], image_id, referents, source)
            elif cells is not None:
                check_address(cells[index])
                if source.check_images:
                    check_image(cells[index], [referent.mask for referent in referents])
        except DATA_ERRORS as error:
            bad_rows.report(index, reason_of(error))
            continue
        first_rows.append(index)
        annotations.append(columns)
    bad_rows.summarize()
    if not annotations:
        raise ValueError(f"{source.label}: no row is left after bad rows and excluded images are dropped")
    features = canonical_features()
    if not has_images:
        return datasets.Dataset.from_list(annotations, features=features)
    image_rows = rows.select_columns([image_column])
    if image_column != "image":
        image_rows = image_rows.rename_column(image_column, "image")
    if first_rows != list(range(len(image_rows))):
        image_rows = image_rows.select(first_rows)
    without_image = datasets.Features({name: kind for name, kind in features.items() if name != "image"})
    table = datasets.Dataset.from_list(annotations, features=without_image)
    joined = datasets.concatenate_datasets([image_rows, table], axis=1)
    return joined.cast_column("image", datasets.Image()).select_columns(list(features))


def _parsed_rows(parsed: datasets.Dataset, bad_rows: BadRows) -> Iterator[tuple[int, ParsedRow]]:
    for index, row in enumerate(parsed):
        for problem in row["problems"]:
            bad_rows.report(index, problem)
        referents = [
            Referent(*values) for values in zip(row["ref_ids"], row["expressions"], row["masks"], strict=True)
        ]
        yield index, ParsedRow(row["image_id"], referents, photo=row["photo"])


def shards_of(rows: "datasets.Dataset | datasets.IterableDataset") -> list[Any]:
    """Returns the shards of a stream in order, each as a stream. Map-style rows are one shard."""
    if isinstance(rows, datasets.Dataset):
        return [rows]
    count = rows.num_shards
    return [rows.shard(num_shards=count, index=index) for index in range(count)] if count > 1 else [rows]


def rows_of_shard(shard: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
    """Yields the rows of a shard. In a worker of a data loader, `iter(shard)` would split the shard again."""
    for batch in shard.iter(batch_size=_STREAM_BATCH):
        yield from _rows_of(batch)


def shard_column(shard: "datasets.Dataset | datasets.IterableDataset", column: str) -> Iterator[Any]:
    """Yields the values of one column of a shard."""
    for row in shard.select_columns([column]):
        yield row[column]


def stream_rows(
    rows: datasets.IterableDataset, source: RowSource, on_bad_row: str, kept: list[range] | None = None
) -> datasets.IterableDataset:
    """
    Converts a stream to canonical rows. Consecutive rows of one image in the same shard are grouped.

    Args:
        rows (`datasets.IterableDataset`): The source.
        source (`RowSource`): Settings for reading it.
        on_bad_row (`str`): `"skip"` or `"raise"`.
        kept (`list[range]`, *optional*): Rows to keep in each shard.
    """
    shards = shards_of(rows)
    return datasets.IterableDataset.from_generator(
        functools.partial(_stream_shards, source=source, bad_rows=BadRows(source.label, on_bad_row)),
        features=canonical_features(),
        gen_kwargs={"shards": list(zip(range(len(shards)), shards, kept or [None] * len(shards), strict=True))},
    )


def _stream_shards(
    shards: Iterable[tuple[int, datasets.IterableDataset, range | None]], source: RowSource, bad_rows: BadRows
) -> Iterator[dict[str, Any]]:
    for number, shard, kept in shards:
        # Rows are grouped within a shard, so that the result does not depend on which worker reads which shards.
        for cell, image_id, referents in group_consecutive(_read_shard(number, shard, kept, source, bad_rows)):
            yield {"image": cell, **annotation_columns(referents, image_id, source.dataset, source.split)}
    bad_rows.summarize()


def _read_shard(
    number: int, shard: datasets.IterableDataset, kept: range | None, source: RowSource, bad_rows: BadRows
) -> Iterator[tuple[dict[str, Any] | None, ParsedRow]]:
    for index, row in enumerate(rows_of_shard(shard)):
        if kept is not None and index not in kept:
            continue
        parsed = _parse(row, f"{number}_{index}" if number else str(index), source)
        if parsed is None:
            continue
        cell, problems = None, list(parsed.problems)
        if parsed.referents:
            try:
                found = row.get(source.adapter.image_column)
                cell = _image_cell(found, parsed.file_name, parsed.image_id, parsed.referents, source)
            except DATA_ERRORS as error:
                parsed = ParsedRow(parsed.image_id, [])
                problems.append(reason_of(error))
        for problem in problems:
            bad_rows.report(f"row {index} of shard {number}" if number else index, problem)
        yield cell, parsed
