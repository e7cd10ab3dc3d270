import dataclasses
import io
import json
import logging
import zipfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from processing.data.canonical_rows import (
    BadRowError,
    canonical_features,
    coco_image_id,
    find_image,
    image_size_from_header,
)
from processing.data.hub_adapters import (
    ADAPTERS,
    HUB_DATASETS,
    Partition,
    adapter_by_columns,
    adapter_by_name,
    lost_parts,
    partition_rows,
)
from processing.data.masks import decode_mask, encode_mask, to_rle
from processing.data.referring_datasets import load_referring_dataset
from tests.processing.canonical_rows import canonical_row
from tests.processing.refer_fixtures import World, rectangle, write_parquet


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "coco")


@pytest.fixture
def repositories(world, tmp_path):
    """One folder an adapter, as a snapshot of the hub would be, and how to load it."""
    benchmark = write_parquet(tmp_path / "refcoco-benchmark", "refcoco_plus_unc_val", *world.benchmark_rows())
    by_path = write_parquet(tmp_path / "refcoco", "validation", *world.by_path_rows())
    lmms = write_parquet(tmp_path / "RefCOCOplus", "val", *world.lmms_lab_rows())
    cleaned = write_parquet(tmp_path / "refcoco-m", "validation", *world.refcoco_m_rows(encode_mask))
    return {
        "refcoco-benchmark": (benchmark, {"split": "refcoco_plus_unc_val"}),
        "refcoco-by-path": (by_path, {"split": "val", "image_folder": world.folder}),
        "lmms-lab": (lmms, {"split": "val", "dataset_name": "lmms-lab/RefCOCOplus"}),
        "refcoco-m": (cleaned, {"split": "val"}),
    }


def as_mapping(rows) -> dict[str, dict[str, np.ndarray]]:
    """Image id -> sentence -> mask; also checks that rows are consistent in themselves."""
    result: dict[str, dict[str, np.ndarray]] = {}
    for row in rows:
        assert isinstance(row["image"], Image.Image)
        assert len(row["expressions"]) == len(row["mask_index"])
        assert len(row["masks"]) == len(row["ref_ids"])
        masks = [decode_mask(mask) for mask in row["masks"]]
        assert {mask.shape for mask in masks} == {row["image"].size[::-1]}
        for expression, index in zip(row["expressions"], row["mask_index"], strict=True):
            assert expression not in result.setdefault(row["image_id"], {})
            result[row["image_id"]][expression] = masks[index]
    return result


def assert_same(actual, expected):
    assert {image: set(row) for image, row in actual.items()} == {image: set(row) for image, row in expected.items()}
    for image, row in expected.items():
        for expression, mask in row.items():
            np.testing.assert_array_equal(actual[image][expression], mask, err_msg=f"{image}: {expression}")


def expected_of(world, adapter):
    if adapter in ("refcoco-by-path", "refcoco-m"):
        return world.expected()
    return world.expected({annotation["id"] for annotation in world.polygon_annotations()})


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("adapter", ["refcoco-benchmark", "refcoco-by-path", "refcoco-m"])
def test_each_adapter_gives_the_masks_and_sentences_of_the_world(world, repositories, adapter, streaming):
    folder, options = repositories[adapter]
    rows = load_referring_dataset(folder, **options, streaming=streaming, on_bad_row="raise")
    assert isinstance(rows, datasets.IterableDataset if streaming else datasets.Dataset)
    rows = list(rows)
    assert len(rows) == len(world.images)
    assert_same(as_mapping(rows), expected_of(world, adapter))


@pytest.mark.parametrize("streaming", [False, True])
def test_lmms_lab_keeps_one_polygon_and_warns(world, repositories, caplog, streaming):
    folder, options = repositories["lmms-lab"]
    with caplog.at_level(logging.WARNING):
        rows = load_referring_dataset(folder, **options, streaming=streaming, on_bad_row="raise")
    assert "parts of masks with several parts are missing" in caplog.text
    if not streaming:
        assert "(4 of 8 polygons are smaller than their box)" in caplog.text
    actual = as_mapping(rows)
    assert len(actual) == len(world.images)
    for annotation in world.polygon_annotations():
        expected = world.masks[annotation["id"]].copy()
        if len(annotation["segmentation"]) == 2:
            expected[:] = False
            expected[15:25, 10:20] = True
        np.testing.assert_array_equal(actual[str(annotation["image_id"])][f"the thing {annotation['id']}"], expected)


def test_names_of_dataset_and_split(repositories):
    names = {}
    for adapter, (folder, options) in repositories.items():
        hub_id = {
            "refcoco-benchmark": "jxu124/refcoco-benchmark",
            "refcoco-by-path": "jxu124/refcocog",
            "lmms-lab": "lmms-lab/RefCOCOplus",
            "refcoco-m": "moondream/refcoco-m",
        }[adapter]
        row = load_referring_dataset(folder, **{**options, "dataset_name": hub_id})[0]
        names[adapter] = (row["dataset"], row["split"])
    assert names == {
        "refcoco-benchmark": ("refcoco+_unc", "val"),
        "refcoco-by-path": ("refcocog_umd", "val"),
        "lmms-lab": ("refcoco+_unc", "val"),
        "refcoco-m": ("refcoco-m_unc", "val"),
    }


def test_table_is_consistent():
    identifiers = [entry.identifier for entry in HUB_DATASETS]
    assert len(set(identifiers)) == len(identifiers)
    for entry in HUB_DATASETS:
        assert adapter_by_name(entry.adapter) in ADAPTERS
        assert entry.verified
        assert set(entry.mixed_splits) <= set(entry.splits)


def test_adapters_recognize_their_own_columns_alone(world):
    for adapter in ADAPTERS:
        assert adapter_by_columns(adapter.columns) is adapter
    with pytest.raises(ValueError, match="pass an `adapter`"):
        adapter_by_columns({"image", "caption"})
    with pytest.raises(ValueError, match="unknown adapter 'lvis'"):
        adapter_by_name("lvis")


def test_raw_sentences(world, repositories):
    folder, options = repositories["refcoco-benchmark"]
    row = load_referring_dataset(folder, **options, sentence_field="raw")[0]
    assert row["expressions"][0] == "THE THING 1719310!"
    with pytest.raises(ValueError, match="sentence_field"):
        load_referring_dataset(folder, **options, sentence_field="tokens")


@pytest.mark.parametrize("adapter", ["refcoco-benchmark", "refcoco-by-path", "lmms-lab", "refcoco-m"])
def test_building_and_grouping_decode_nothing(monkeypatch, repositories, adapter):
    decoded = Counter()
    original = Image.Image.load

    def load(self, *arguments, **options):
        decoded["loads"] += 1
        return original(self, *arguments, **options)

    folder, options = repositories[adapter]
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", load, raising=False)
    rows = load_referring_dataset(folder, **options)
    assert decoded["loads"] == 0
    assert len(rows["image_id"]) == len(rows)
    assert decoded["loads"] == 0
    assert rows[0]["image"].size
    assert decoded["loads"] == 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_any_number_of_workers_sees_each_image_once(world, tmp_path, streaming, num_workers):
    folder = write_parquet(tmp_path / "refcoco-m", "validation", *world.refcoco_m_rows(encode_mask), num_files=3)
    rows = load_referring_dataset(folder, "val", streaming=streaming)
    loader = torch.utils.data.DataLoader(
        rows, batch_size=None, num_workers=num_workers, multiprocessing_context="fork" if num_workers else None
    )
    seen = Counter(row["image_id"] for row in loader)
    assert seen == Counter({str(image["id"]): 1 for image in world.images})


def test_streaming_groups_consecutive_rows_only(world, tmp_path):
    rows, features = world.by_path_rows()
    rows = [rows[0], rows[2], rows[1], *rows[3:]]
    folder = write_parquet(tmp_path / "apart", "train", rows, features)
    options = {"split": "train", "image_folder": world.folder, "on_bad_row": "raise"}
    streamed = list(load_referring_dataset(folder, streaming=True, **options))
    grouped = list(load_referring_dataset(folder, **options))
    assert len(grouped) == len(world.images)
    assert len(streamed) > len(grouped)
    assert_same(as_mapping(streamed), as_mapping(grouped))


def test_a_stream_resumes_where_it_stopped(world, tmp_path):
    folder = write_parquet(tmp_path / "refcoco-m", "validation", *world.refcoco_m_rows(encode_mask), num_files=2)
    stream = load_referring_dataset(folder, "val", streaming=True)
    whole = [row["image_id"] for row in stream]
    iterator = iter(stream)
    first = next(iterator)["image_id"]
    state = stream.state_dict()
    resumed = load_referring_dataset(folder, "val", streaming=True)
    resumed.load_state_dict(state)
    assert [first, *(row["image_id"] for row in resumed)] == whole


def bad_rows_of(world):
    rows, features = world.by_path_rows()
    rows[1]["raw_anns"] = rows[1]["raw_anns"].replace("segmentation", "polygon")
    rows[2]["raw_anns"] = "{"
    rows[3]["sentences"] = []
    rows[4]["image_path"] = "coco/train2014/COCO_train2014_000000000001.jpg"
    rows[4]["image_id"] = 1
    return rows, features


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_rows_are_named_and_counted_or_fatal(world, tmp_path, caplog, streaming):
    folder = write_parquet(tmp_path / "refcoco", "train", *bad_rows_of(world))
    options = {"split": "train", "image_folder": world.folder, "streaming": streaming}
    with caplog.at_level(logging.WARNING):
        kept = as_mapping(load_referring_dataset(folder, **options))
    assert sum(len(row) for row in kept.values()) == 2 * (len(world.annotations) - 4)
    for index, reason in {
        1: "missing 'segmentation'",
        2: "Expecting property name",
        3: "no expression",
        4: "not found in",
    }.items():
        assert any(f"refcoco train, row {index}: " in line and reason in line for line in caplog.messages), reason
    assert "refcoco train: 4 bad rows or referents skipped so far" in caplog.text
    with pytest.raises(BadRowError, match="refcoco train, row 1: missing 'segmentation'"):
        list(load_referring_dataset(folder, **options, on_bad_row="raise"))
    with pytest.raises(ValueError, match="on_bad_row"):
        load_referring_dataset(folder, **options, on_bad_row="ignore")


def test_one_bad_referent_spares_the_rest_of_its_image(world, tmp_path, caplog):
    rows, features = world.benchmark_rows()
    rows[0]["ref_list"][0]["ann_info"] = {**rows[0]["ref_list"][0]["ann_info"], "segmentation": [[1.0, 2.0]]}
    folder = write_parquet(tmp_path / "refcoco-benchmark", "refcoco_unc_val", rows, features)
    with caplog.at_level(logging.WARNING):
        loaded = load_referring_dataset(folder, "refcoco_unc_val")
    assert "row 0: referent 0: a polygon needs x and y of at least three points" in caplog.text
    assert len(loaded[0]["masks"]) == 1
    assert len(loaded) == len(world.images)


def test_check_images_finds_masks_of_another_size(world, tmp_path):
    rows, features = world.refcoco_m_rows(encode_mask)
    rows[1]["image"] = rows[2]["image"]
    folder = write_parquet(tmp_path / "refcoco-m", "validation", rows, features)
    assert len(load_referring_dataset(folder, "val", on_bad_row="raise", check_images=False)) == 4
    with pytest.raises(BadRowError, match=r"row 1: masks of \(height, width\) = \[\(42, 57\)\] for an image of"):
        load_referring_dataset(folder, "val", on_bad_row="raise")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_that_is_cut_off_is_named_and_skipped(world, tmp_path, caplog, kind, streaming):
    rows, features = world.refcoco_m_rows(encode_mask)
    for row in rows:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(row["image"]["bytes"])).save(buffer, kind)
        row["image"] = {"bytes": buffer.getvalue(), "path": None}
    # Zeros behind the end, as cameras leave them, are no damage.
    rows[0]["image"]["bytes"] += bytes(500)
    rows[2]["image"]["bytes"] = rows[2]["image"]["bytes"][: len(rows[2]["image"]["bytes"]) // 2]
    folder = write_parquet(tmp_path / "refcoco-m", "validation", rows, features)
    with caplog.at_level(logging.WARNING):
        loaded = list(load_referring_dataset(folder, "val", streaming=streaming))
    assert [row["image_id"] for row in loaded] == [str(rows[index]["image_id"]) for index in (0, 1, 3)]
    assert "row 2: image cannot be " in caplog.text
    with pytest.raises(BadRowError, match="row 2: image cannot be "):
        list(load_referring_dataset(folder, "val", streaming=streaming, on_bad_row="raise"))


def own_rows(world, image_ids, images=None):
    """Rows of a dataset of one's own, an expression each: for each an id, and which image of the world it shows."""
    images = range(len(image_ids)) if images is None else images
    rows = [
        {
            "image": world.image_cell(world.images[image]["id"]),
            "id": image_id,
            "text": f"thing {number}",
            "mask": [[1.0, 1, 9, 1, 9, 9]],
        }
        for number, (image_id, image) in enumerate(zip(image_ids, images, strict=True))
    ]
    polygons = [[datasets.Value("float64")]]
    text = datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "id": text, "text": text, "mask": polygons})
    return rows, features


OWN_COLUMNS = {"image": "image", "expression": "text", "mask": "mask", "image_id": "id"}


@pytest.mark.parametrize("streaming", [False, True])
def test_photos_without_an_id_or_with_the_id_of_another_stay_apart(world, tmp_path, caplog, streaming):
    rows, features = own_rows(world, [None, None, "", "a", "a", "a"], [0, 1, 2, 3, 3, 0])
    folder = write_parquet(tmp_path / "own", "train", rows, features)
    with caplog.at_level(logging.WARNING):
        loaded = list(load_referring_dataset(folder, "train", columns=OWN_COLUMNS, streaming=streaming))
    assert [row["expressions"] for row in loaded] == [
        ["thing 0"], ["thing 1"], ["thing 2"], ["thing 3", "thing 4"], ["thing 5"],
    ]  # fmt: skip
    sizes = [(image["width"], image["height"]) for image in world.images]
    assert [row["image"].size for row in loaded] == [sizes[index] for index in (0, 1, 2, 3, 0)]
    assert [row["image_id"] for row in loaded] == ["row 0", "row 1", "row 2", "a", "a"]
    if not streaming:
        assert "1 image ids are used for several images, which are not grouped: ['a']" in caplog.text


def test_two_photos_of_one_size_and_one_id_stay_apart(world, tmp_path):
    rows, features = own_rows(world, ["a", "a", "a"], [0, 0, 0])
    other = Image.open(io.BytesIO(rows[1]["image"]["bytes"])).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    buffer = io.BytesIO()
    other.save(buffer, "PNG")
    rows[1]["image"] = {"bytes": buffer.getvalue(), "path": None}
    folder = write_parquet(tmp_path / "own", "train", rows, features)
    loaded = load_referring_dataset(folder, "train", columns=OWN_COLUMNS)
    assert loaded["expressions"][:] == [["thing 0", "thing 2"], ["thing 1"]]


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_the_rows_of_a_stream_do_not_depend_on_the_number_of_workers(world, tmp_path, num_workers):
    # The second shard begins with the image that the first one ends with.
    rows, features = own_rows(world, ["a", "a", "a", "b", "b", "c"], [0, 0, 0, 1, 1, 2])
    folder = write_parquet(tmp_path / "own", "train", rows, features, num_files=3)
    stream = load_referring_dataset(folder, "train", columns=OWN_COLUMNS, streaming=True)
    assert stream.num_shards == 3
    loader = torch.utils.data.DataLoader(
        stream, batch_size=None, num_workers=num_workers, multiprocessing_context="fork" if num_workers else None
    )
    found = sorted(row["expressions"] for row in loader)
    assert found == [["thing 0", "thing 1"], ["thing 2"], ["thing 3"], ["thing 4"], ["thing 5"]]


@pytest.mark.parametrize("excluded", [["000000581858"], ["581858"], [581858], {"COCO_train2014_000000581858.jpg"}])
def test_an_image_is_excluded_however_its_id_is_written(world, repositories, tmp_path, excluded):
    folder, options = repositories["refcoco-m"]
    expected = [str(image["id"]) for image in world.images if image["id"] != 581858]
    whole = load_referring_dataset(folder, **options)
    for source in (folder, whole):
        for streaming in (False, True):
            kept = load_referring_dataset(source, "val", exclude_image_ids=excluded, streaming=streaming)
            assert [row["image_id"] for row in kept] == expected
    refer = world.write_refer_folder()
    kept = load_referring_dataset(refer, "train", image_folder=world.folder, exclude_image_ids=excluded)
    assert kept["image_id"][:] == ["581857"]


def test_one_id_as_a_string_is_no_collection_of_characters(repositories):
    folder, options = repositories["refcoco-m"]
    with pytest.raises(TypeError, match="collection of ids, got the string '581858'"):
        load_referring_dataset(folder, **options, exclude_image_ids="581858")


def test_data_cannot_make_this_machine_ask_for_an_address(world, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket", lambda *_, **__: pytest.fail("a connection was opened"))
    for path in ("http://127.0.0.1:9/a.png", "https://localhost/a.png", "zip://a.png::http://localhost/b.zip"):
        with pytest.raises(ValueError, match="not read from URLs"):
            image_size_from_header({"bytes": None, "path": path})
        with pytest.raises(ValueError, match="not read from URLs"):
            to_rle({"bytes": None, "path": path}, 4, 5)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("check_images", [False, True])
@pytest.mark.parametrize("is_canonical", [False, True])
def test_an_address_in_a_row_is_named_and_never_asked_for(
    world, tmp_path, monkeypatch, caplog, is_canonical, check_images, streaming
):
    if is_canonical:
        rows, features = [canonical_row(number) for number in range(3)], canonical_features()
    else:
        rows, features = world.refcoco_m_rows(encode_mask)
    folder = write_parquet(tmp_path / "refcoco-m", "train", rows, features)
    rows[1]["image"] = {"bytes": None, "path": "http://127.0.0.1:9/photo.png"}
    # `to_parquet` itself would ask for the photo.
    table = datasets.Dataset.from_list(rows, features=features).data.table
    pyarrow.parquet.write_table(table, next((folder / "data").glob("*.parquet")))
    monkeypatch.setattr("socket.socket.connect", lambda *_, **__: pytest.fail("a connection was opened"))
    options = {"streaming": streaming, "check_images": check_images}
    loaded = list(load_referring_dataset(folder, "train", **options))
    assert [row["image_id"] for row in loaded] == [str(row["image_id"]) for row in rows if row is not rows[1]]
    assert "not read from URLs such as 'http://127.0.0.1:9/photo.png'" in caplog.text


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "..\\secret.jpg", 7, None])
def test_a_file_name_does_not_lead_out_of_the_folder_of_images(tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.jpg").touch()
    with pytest.raises(ValueError, match=r"leads out of the image folder|must be a string"):
        find_image(tmp_path / "images", name, "1")


def test_excluded_images_are_left_out(world, repositories):
    for folder, options in repositories.values():
        for streaming in (False, True):
            rows = load_referring_dataset(
                folder, **options, exclude_image_ids=[world.images[1]["id"]], streaming=streaming
            )
            assert [row["image_id"] for row in rows] == [
                str(image["id"]) for index, image in enumerate(world.images) if index != 1
            ]


def test_images_by_path_need_a_folder(world, repositories):
    folder, _ = repositories["refcoco-by-path"]
    with pytest.raises(ValueError, match="image_folder"):
        load_referring_dataset(folder, "val")
    with pytest.raises(ValueError, match="`split_by`"):
        load_referring_dataset(folder, "val", image_folder=world.folder, split_by="unc")


def test_images_inside_a_by_path_dataset_need_no_folder(world, tmp_path):
    rows, features = world.by_path_rows()
    rows = [{**row, "image": world.image_cell(row["image_id"])} for row in rows]
    folder = write_parquet(
        tmp_path / "debug", "validation", rows, datasets.Features({**features, "image": datasets.Image()})
    )
    assert_same(as_mapping(load_referring_dataset(folder, "val", on_bad_row="raise")), world.expected())


def test_missing_columns_are_named(world, tmp_path):
    rows, features = world.refcoco_m_rows(encode_mask)
    folder = write_parquet(tmp_path / "refcoco-m", "validation", rows, features)
    with pytest.raises(ValueError, match=r"needs the columns .*'ref_list'"):
        load_referring_dataset(folder, "val", adapter="refcoco-benchmark")


def mixed_file_names(*parts: tuple[int, int]) -> list[str]:
    """File names of partitions of so many references over so many images, each image's rows side by side."""
    names, first = [], 1
    for references, images in parts:
        names += [f"COCO_train2014_{first + row * images // references:012d}_{row}.jpg" for row in range(references)]
        first += images
    return names


def test_partitions_are_told_apart_by_their_published_counts():
    for hub_id, first, start in (("lmms-lab/RefCOCO", "unc", 3811), ("lmms-lab/RefCOCOg", "umd", 2573)):
        (partitions,) = (entry.mixed_splits["val"] for entry in HUB_DATASETS if entry.identifier == hub_id)
        counts = [(partition.references, partition.images) for partition in partitions]
        names = mixed_file_names(*counts)
        assert partition_rows(names, partitions, first) == range(start)
        assert partition_rows(names, partitions, "google") == range(start, start + 5000)
        turned = mixed_file_names(*counts[::-1])
        assert partition_rows(turned, partitions, first) == range(5000, 5000 + start)
        shuffled = [names[index] for index in np.random.default_rng(0).permutation(len(names))]
        for refused in (shuffled, names[:-1], [*names, names[0]]):
            with pytest.raises(ValueError, match=r"cannot split the .* rows into their partitions"):
                partition_rows(refused, partitions, first)
        with pytest.raises(ValueError, match="unknown partition 'berkeley'"):
            partition_rows(names, partitions, "berkeley")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mixed_split_is_refused_until_a_partition_is_chosen(world, tmp_path, monkeypatch, streaming):
    rows, features = world.lmms_lab_rows()
    google = [rows[1], rows[5]]
    folder = write_parquet(tmp_path / "RefCOCO", "val", rows + google, features, num_files=2)
    small = (Partition("unc", len(rows), len(world.images)), Partition("google", 2, 2))
    table = tuple(
        dataclasses.replace(entry, mixed_splits={"val": small}) if entry.mixed_splits else entry
        for entry in HUB_DATASETS
    )
    monkeypatch.setattr("processing.data.hub_adapters.HUB_DATASETS", table)
    options = {"split": "val", "dataset_name": "lmms-lab/RefCOCO", "streaming": streaming}
    with pytest.raises(ValueError, match=r"mixes the partitions \['unc', 'google'\]"):
        load_referring_dataset(folder, **options)
    with pytest.raises(ValueError, match="pass its Hub id as `dataset_name`"):
        load_referring_dataset(folder, "val", streaming=streaming)
    unc = list(load_referring_dataset(folder, **options, partition="unc"))
    assert {row["dataset"] for row in unc} == {"refcoco_unc"}
    assert {row["image_id"] for row in unc} == {str(image["id"]) for image in world.images}
    assert sum(len(row["expressions"]) for row in unc) == 2 * len(rows)
    google_rows = list(load_referring_dataset(folder, **options, partition="google"))
    assert [ref_id for row in google_rows for ref_id in row["ref_ids"]] == [row["question_id"] for row in google]
    mixed = list(load_referring_dataset(folder, **options, partition="mixed"))
    assert sum(len(row["expressions"]) for row in mixed) == 2 * (len(rows) + 2)
    with pytest.raises(ValueError, match="not mixed"):
        load_referring_dataset(
            folder, "val", dataset_name="lmms-lab/RefCOCOplus", partition="unc", streaming=streaming
        )


def test_two_folders_of_one_name_are_not_confused(world, tmp_path):
    rows, features = world.refcoco_m_rows(encode_mask)
    for name, part in (("first", rows[:1]), ("second", rows[1:])):
        folder = write_parquet(tmp_path / name / "refcoco-m", "validation", part, features)
        loaded = load_referring_dataset(folder, "val")
        assert loaded["image_id"][:] == [str(row["image_id"]) for row in part]


def test_lost_parts():
    assert not lost_parts(rectangle(2, 3, 10, 11), [2, 3, 8, 8])
    assert lost_parts(rectangle(2, 3, 10, 11), [2, 3, 20, 8])
    assert not lost_parts([], [2, 3, 20, 8])


def png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    return buffer.getvalue()


MASK_FORMS = {
    "image": (lambda mask: {"bytes": png(mask), "path": None}, datasets.Image()),
    "PNG bytes": (png, datasets.Value("binary")),
    "run lengths": (encode_mask, {"size": [datasets.Value("int64")], "counts": datasets.Value("string")}),
    "array": (lambda mask: mask.tolist(), [[datasets.Value("bool")]]),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", MASK_FORMS)
def test_generic_adapter_reads_every_form_of_mask(world, tmp_path, form, streaming):
    convert, feature = MASK_FORMS[form]
    rows = [
        {
            "photo": world.image_cell(annotation["image_id"]),
            "photo_id": str(annotation["image_id"]),
            "texts": [f"the thing {annotation['id']}", f"thing {annotation['id']} here"],
            "region": convert(world.masks[annotation["id"]]),
            "number": annotation["id"],
        }
        for annotation in world.annotations
    ]
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "photo_id": datasets.Value("string"),
            "texts": [datasets.Value("string")],
            "region": feature,
            "number": datasets.Value("int64"),
        }
    )
    folder = write_parquet(tmp_path / "own", "train", rows, features)
    columns = {
        "image": "photo",
        "expression": "texts",
        "mask": "region",
        "image_id": "photo_id",
        "ref_id": "number",
    }
    loaded = list(load_referring_dataset(folder, "train", columns=columns, streaming=streaming, on_bad_row="raise"))
    assert len(loaded) == len(world.images)
    assert_same(as_mapping(loaded), world.expected())
    assert loaded[0]["ref_ids"][0] == "1719310"


def test_generic_adapter_with_several_masks_a_row_and_no_target(world, tmp_path):
    by_image = {image["id"]: [] for image in world.images}
    for annotation in world.polygon_annotations():
        by_image[annotation["image_id"]].append(annotation)
    rows = [
        {
            "image": world.image_cell(image_id),
            "text": [*(f"the thing {annotation['id']}" for annotation in annotations), "a unicorn"],
            "masks": [*(annotation["segmentation"] for annotation in annotations), []],
        }
        for image_id, annotations in by_image.items()
    ]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": [datasets.Value("string")],
            "masks": [[[datasets.Value("float64")]]],
        }
    )
    folder = write_parquet(tmp_path / "own", "train", rows, features)
    columns = {"image": "image", "expression": "text", "mask": "masks", "several_masks": True}
    strict = load_referring_dataset(folder, "train", columns=columns)
    assert strict[0]["expressions"] == ["the thing 1719310", "the thing 1719311"]
    columns["missing_mask_means_no_target"] = True
    loaded = load_referring_dataset(folder, "train", columns=columns, on_bad_row="raise")
    assert loaded[1]["image_id"] == "row 1"
    assert loaded[0]["ref_ids"] == ["0_0", "0_1", "0_2"]
    masks = [decode_mask(mask) for mask in loaded[0]["masks"]]
    np.testing.assert_array_equal(masks[1], world.masks[1719311])
    assert not masks[2].any()
    with pytest.raises(ValueError, match="`columns` must contain image, expression and mask"):
        load_referring_dataset(folder, "train", columns={"image": "image", "caption": "text"})


def test_rows_without_ids_stay_apart_in_every_shard(world, tmp_path):
    rows = [
        {"image": world.image_cell(image["id"]), "text": "it", "mask": [[1.0, 1, 9, 1, 9, 9]]}
        for image in world.images
    ]
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "mask": [[datasets.Value("float64")]]}
    )
    folder = write_parquet(tmp_path / "own", "train", rows, features, num_files=4)
    columns = {"image": "image", "expression": "text", "mask": "mask"}
    loaded = list(load_referring_dataset(folder, "train", columns=columns, streaming=True))
    assert [row["expressions"] for row in loaded] == [["it"]] * 4
    assert len({row["image_id"] for row in loaded}) == len({row["ref_ids"][0] for row in loaded}) == 4


def test_an_image_that_comes_later_is_found(world, tmp_path):
    folder = write_parquet(tmp_path / "refcoco", "train", *world.by_path_rows())
    path = world.folder / "train2014" / world.images[0]["file_name"]
    content = path.read_bytes()
    path.unlink()
    options = {"split": "train", "image_folder": world.folder}
    assert len(load_referring_dataset(folder, **options)) == 3
    path.write_bytes(content)
    assert len(load_referring_dataset(folder, **options)) == 4


def test_loaded_rows_and_saved_rows_load_again(world, repositories, tmp_path):
    folder, options = repositories["refcoco-m"]
    first = load_referring_dataset(folder, **options)
    first.save_to_disk(str(tmp_path / "saved"))
    first.to_parquet(str(tmp_path / "rows.parquet"))
    for source in (first, tmp_path / "saved", tmp_path / "rows.parquet"):
        for streaming in (False, True):
            again = load_referring_dataset(source, "val", streaming=streaming)
            assert_same(as_mapping(again), world.expected())
    excluded = load_referring_dataset(first, "val", exclude_image_ids=["581857"])
    assert len(excluded) == len(first) - 1


def test_parsing_in_processes_gives_the_same_rows(world, repositories):
    folder, options = repositories["refcoco-by-path"]
    one = load_referring_dataset(folder, **options)
    two = load_referring_dataset(folder, **options, num_proc=2)
    assert one["expressions"] == two["expressions"]
    assert one["masks"] == two["masks"]


@pytest.mark.parametrize("streaming", [False, True])
def test_exclusion_goes_by_ids_of_photos_and_not_by_numbers_of_rows(world, tmp_path, streaming):
    image_ids = [str(image["id"]) for image in world.images]
    rows = [
        {
            "image": world.image_cell(int(image_id)),
            "id": f"{int(image_id):012d}",
            "text": "it",
            "mask": [[1, 1, 9, 1, 9, 9]],
        }
        for image_id in image_ids
    ]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "id": datasets.Value("string"),
            "text": datasets.Value("string"),
            "mask": [[datasets.Value("float64")]],
        }
    )
    folder = write_parquet(tmp_path / "own", "train", rows, features)
    options = {"exclude_image_ids": ["1", image_ids[2]], "streaming": streaming}
    columns = {"image": "image", "expression": "text", "mask": "mask"}
    assert len(list(load_referring_dataset(folder, "train", columns=columns, **options))) == len(rows)
    columns["image_id"] = "id"
    kept = [row["image_id"] for row in load_referring_dataset(folder, "train", columns=columns, **options)]
    assert kept == [row["id"] for row in rows if int(row["id"]) != int(image_ids[2])]


def test_rows_in_files_of_lines(world, tmp_path):
    path = world.folder / "train2014" / world.images[0]["file_name"]
    row = {"image": str(path), "text": "it", "mask": [[1, 1, 9, 1, 9, 9]]}
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    columns = {"image": "image", "expression": "text", "mask": "mask"}
    (loaded,) = load_referring_dataset(tmp_path / "own.jsonl", "train", columns=columns, on_bad_row="raise")
    assert loaded["expressions"] == ["it"]


def test_image_in_an_archive_has_a_size(world, tmp_path):
    path = world.folder / "train2014" / world.images[0]["file_name"]
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(path, "a.jpg")
    cell = {"bytes": None, "path": f"zip://a.jpg::{tmp_path / 'photos.zip'}"}
    assert image_size_from_header(cell) == (world.images[0]["height"], world.images[0]["width"])


def test_image_ids_of_file_names():
    assert coco_image_id("COCO_train2014_000000581857_16.jpg") == "581857"
    assert coco_image_id("000000000009.jpg") == "9"
    assert coco_image_id(42) == "42"
    with pytest.raises(ValueError, match="no COCO image id"):
        coco_image_id("holiday_16.jpg")


@pytest.mark.parametrize("name", ["train2014/COCO_train2014_000000000009.jpg", "train2017/000000000009.jpg", "9.jpg"])
def test_photos_are_found_in_every_edition(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    file_name = "9.jpg" if name == "9.jpg" else "COCO_train2014_000000000009.jpg"
    assert find_image(tmp_path, file_name, "9") == path
    with pytest.raises(ValueError, match="not found"):
        find_image(tmp_path, "10.jpg", "10")
    with pytest.raises(ValueError, match="not found"):
        find_image(tmp_path, "holiday.jpg", "9")  # the ninth of other images


def test_the_documentation_lists_every_hub_dataset():
    text = (Path(__file__).resolve().parents[3] / "docs" / "datasets.md").read_text("utf-8")
    for entry in HUB_DATASETS:
        (line,) = (line for line in text.splitlines() if line.startswith(f"| `{entry.identifier}`"))
        assert f"| {entry.images} |" in line
