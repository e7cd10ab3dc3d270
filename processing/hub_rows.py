"""Turn the rows of a hub dataset into canonical rows, map-style or as a stream."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from .hub_datasets import Adapter
from .referring_rows import (
    BadRows,
    ParsedRow,
    Referent,
    annotation_columns,
    canonical_features,
    find_image,
    group_by_image,
    group_consecutive,
    image_size_from_header,
)


# Part of the key under which `datasets` caches parsed rows: raised when an adapter reads a row differently.
_PARSER_VERSION = 1
_STREAM_BATCH = 16


@dataclass(frozen=True)
class RowSource:
    """
    All that is needed to read the rows of a hub dataset or a Parquet folder.

    Args:
        adapter (`Adapter`): Reads a row.
        dataset, split (`str`): For the columns of these names.
        image_folder (`Path`, *optional*): Where the images are, if they are not in the rows.
        exclude_image_ids (`frozenset[str]`): Images to leave out.
        check_images (`bool`): Whether to compare the size of each image with its masks'.
    """

    adapter: Adapter
    dataset: str
    split: str
    image_folder: Path | None
    exclude_image_ids: frozenset[str]
    check_images: bool

    @property
    def label(self) -> str:
        """Name for messages."""
        return f"{self.dataset} {self.split}"


def _parse(row: Mapping[str, Any], index: int, source: RowSource) -> ParsedRow | None:
    """Read a row; what goes wrong becomes a problem in the result. `None` for an image that is left out."""
    try:
        image_id = source.adapter.image_id(row) or str(index)
        if image_id in source.exclude_image_ids:
            return None
        referents, problems = source.adapter.referents(row)
        referents = [
            referent if referent.ref_id else replace(referent, ref_id=f"{index}_{position}")
            for position, referent in enumerate(referents)
        ]
        parsed = ParsedRow(image_id, referents, problems)
        if source.check_images:
            check_size(parsed, _image_cell(row, image_id, source))
        return parsed
    except KeyError as error:
        return ParsedRow("", [], [f"missing {error}"])
    except (ValueError, TypeError, AttributeError) as error:
        return ParsedRow("", [], [str(error)])


def check_size(parsed: ParsedRow, cell: Mapping[str, Any]) -> None:
    """
    Compare the size of an undecoded image with that of its masks.

    Raises:
        ValueError: if they differ or the image cannot be opened.
    """
    size = image_size_from_header(cell)
    wrong = {tuple(referent.mask["size"]) for referent in parsed.referents} - {size}
    if wrong:
        raise ValueError(f"masks of (height, width) = {sorted(wrong)} for an image of {size}")


def _image_cell(row: Mapping[str, Any], image_id: str, source: RowSource) -> dict[str, Any]:
    """The image as `datasets` stores it, undecoded; raises ValueError where it is missing."""
    cell = row.get(source.adapter.image_column)
    if cell is not None and (cell.get("bytes") is not None or cell.get("path")):
        return {"bytes": cell.get("bytes"), "path": cell.get("path")}
    if source.image_folder is None:
        raise ValueError("no image")
    path = find_image(source.image_folder, source.adapter.image_file_name(row), image_id)
    return {"bytes": None, "path": str(path)}


def _parse_batch(
    batch: dict[str, list[Any]], indices: list[int], source: RowSource, version: int
) -> dict[str, list[Any]]:
    del version  # only a part of the cache key
    parsed_rows, paths = [], []
    for index, row in zip(indices, _rows_of(batch), strict=True):
        parsed, path = _parse(row, index, source), ""
        if parsed is not None and parsed.referents and source.image_folder is not None:
            try:
                path = _image_cell(row, parsed.image_id, source)["path"] or ""
            except ValueError as error:
                parsed = ParsedRow(parsed.image_id, [], [*parsed.problems, str(error)])
        parsed_rows.append(parsed or ParsedRow("", []))
        paths.append(path)
    return {
        "image_id": [parsed.image_id for parsed in parsed_rows],
        "path": paths,
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
            "path": text,
            "problems": [text],
            "ref_ids": [text],
            "expressions": [[text]],
            "masks": [{"size": [integer], "counts": text}],
        }
    )


def read_rows(rows: datasets.Dataset, source: RowSource, on_bad_row: str, num_proc: int | None) -> datasets.Dataset:
    """
    Canonical rows of a map-style source, grouped by image in order of first appearance.

    Raises:
        BadRowError: at the first bad row, if `on_bad_row` is `"raise"`.
        ValueError: if no row is left.
    """
    adapter = source.adapter
    has_images = adapter.image_column in rows.column_names
    needed = rows
    if has_images and not adapter.needs_image_bytes and not source.check_images and source.image_folder is None:
        needed = rows.remove_columns([adapter.image_column])
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
    bad_rows.summarize()
    if not images:
        raise ValueError(f"{source.label}: no row is left")
    annotations = [
        annotation_columns(referents, image_id, source.dataset, source.split)
        for image_id, (_, referents) in images.items()
    ]
    first_rows = [index for index, _ in images.values()]
    features = canonical_features()
    if has_images and source.image_folder is None:
        pictures = rows.select_columns([adapter.image_column])
        if adapter.image_column != "image":
            pictures = pictures.rename_column(adapter.image_column, "image")
        if first_rows != list(range(len(pictures))):
            pictures = pictures.select(first_rows)
        without_image = datasets.Features({name: kind for name, kind in features.items() if name != "image"})
        table = datasets.Dataset.from_list(annotations, features=without_image)
        joined = datasets.concatenate_datasets([pictures, table], axis=1)
        return joined.cast_column("image", datasets.Image()).select_columns(list(features))
    paths = parsed.select(first_rows)["path"]
    return datasets.Dataset.from_list(
        [{"image": {"bytes": None, "path": path}, **row} for path, row in zip(paths, annotations, strict=True)],
        features=features,
    )


def _parsed_rows(parsed: datasets.Dataset, bad_rows: BadRows) -> Iterator[tuple[int, ParsedRow]]:
    for index, row in enumerate(parsed):
        for problem in row["problems"]:
            bad_rows.report(index, problem)
        referents = [
            Referent(*values) for values in zip(row["ref_ids"], row["expressions"], row["masks"], strict=True)
        ]
        yield index, ParsedRow(row["image_id"], referents)


def shards_of(rows: "datasets.Dataset | datasets.IterableDataset") -> list[Any]:
    """The shards of a stream, each a stream of its own, in order; map-style rows are one shard."""
    if isinstance(rows, datasets.Dataset):
        return [rows]
    count = rows.num_shards
    return [rows.shard(num_shards=count, index=index) for index in range(count)] if count > 1 else [rows]


def shard_column(shard: "datasets.Dataset | datasets.IterableDataset", column: str) -> Iterator[Any]:
    """Values of one column of a shard."""
    for row in shard.select_columns([column]):
        yield row[column]


def stream_rows(
    rows: datasets.IterableDataset, source: RowSource, on_bad_row: str, kept: list[range] | None = None
) -> datasets.IterableDataset:
    """
    Canonical rows of a stream; consecutive rows of one image are grouped within a shard.

    Args:
        rows (`datasets.IterableDataset`): The source.
        source (`RowSource`): How to read it.
        on_bad_row (`str`): `"skip"` or `"raise"`.
        kept (`list[range]`, *optional*): Rows to keep of each shard.
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

    def read() -> Iterator[tuple[dict[str, Any] | None, ParsedRow]]:
        for number, shard, kept in shards:
            # Not iter(shard): in a worker of a data loader that would hand out the shard a second time.
            batches = shard.iter(batch_size=_STREAM_BATCH)
            for index, row in enumerate(row for batch in batches for row in _rows_of(batch)):
                if kept is not None and index not in kept:
                    continue
                parsed = _parse(row, index, source)
                if parsed is None:
                    continue
                cell = None
                if parsed.referents:
                    try:
                        cell = _image_cell(row, parsed.image_id, source)
                    except ValueError as error:
                        parsed = ParsedRow(parsed.image_id, [], [*parsed.problems, str(error)])
                place = f"{index} of shard {number}" if number else index
                for problem in parsed.problems:
                    bad_rows.report(place, problem)
                yield cell, parsed

    for cell, image_id, referents in group_consecutive(read()):
        yield {"image": cell, **annotation_columns(referents, image_id, source.dataset, source.split)}
    bad_rows.summarize()
