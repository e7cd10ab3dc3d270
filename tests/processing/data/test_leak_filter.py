import json

import datasets
import pytest

from processing.data.leak_filter import drop_images, held_out_by_all, held_out_image_ids, is_evaluation_split
from processing.data.masks import encode_mask
from processing.data.referring_datasets import load_referring_dataset
from tests.processing.refer_fixtures import World, write_parquet


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "coco", num_images=6)


def ids(world, *positions):
    return {str(world.images[position]["id"]) for position in positions}


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", False),
        ("val", True),
        ("validation", True),
        ("testA", True),
        ("refcoco_plus_unc_testB", True),
        ("refcocog_umd_val", True),
        ("contest", False),
    ],
)
def test_names_of_evaluation_splits(split, expected):
    assert is_evaluation_split(split) is expected


def test_a_mixture_loses_every_image_that_any_of_its_datasets_holds_out(world):
    first = world.write_refer_folder()  # train, train, val, testA, train, train
    second = world.folder / "refcoco+"
    second.mkdir()
    (second / "instances.json").write_bytes((first / "instances.json").read_bytes())
    references = world.references(splits=("val", "train", "train", "train", "testB", "train"))
    (second / "refs(unc).json").write_text(json.dumps(references), "utf-8")

    assert held_out_image_ids(first) == ids(world, 2, 3)
    assert held_out_image_ids(second) == ids(world, 0, 4)
    assert held_out_image_ids(second, splits=["testB"]) == ids(world, 4)
    held_out = held_out_by_all([first, {"name_or_path": second, "split_by": "unc"}])
    assert held_out == ids(world, 0, 2, 3, 4)

    options = {"image_folder": world.folder, "exclude_image_ids": held_out}
    assert set(load_referring_dataset(first, "train", **options)["image_id"]) == ids(world, 1, 5)
    assert set(load_referring_dataset(second, "train", **options)["image_id"]) == ids(world, 1, 5)
    streamed = load_referring_dataset(second, "train", streaming=True, **options)
    assert {row["image_id"] for row in streamed} == ids(world, 1, 5)
    for folder, split in ((first, "val"), (first, "testA"), (second, "val"), (second, "testB")):
        evaluation = load_referring_dataset(folder, split, image_folder=world.folder)
        assert not set(evaluation["image_id"]) & ids(world, 1, 5)


def test_every_reference_file_of_a_folder_counts(world):
    folder = world.write_refer_folder()
    other = world.references(splits=("train", "val", "train", "train", "train", "train"))
    (folder / "refs(google).json").write_text(json.dumps(other), "utf-8")
    assert held_out_image_ids(folder, split_by="unc") == ids(world, 2, 3)
    assert held_out_image_ids(folder) == ids(world, 1, 2, 3)
    with pytest.raises(ValueError, match="has only the splits"):
        held_out_image_ids(folder, splits=["dev"])


def test_a_broken_reference_rather_holds_an_image_out(world):
    folder = world.write_refer_folder()
    references = world.references()
    references[0]["split"] = None
    del references[-1]["image_id"]
    references.append(5)
    (folder / "refs(unc).json").write_text(json.dumps(references), "utf-8")
    assert held_out_image_ids(folder) == ids(world, 0, 2, 3)


def test_rows_without_an_id_hold_nothing_out(world, tmp_path):
    rows = datasets.Dataset.from_dict({"image_id": ["000000581857", "5"]})
    assert drop_images(rows, [581857])["image_id"][:] == ["5"]


def test_parquet_folders(world, tmp_path):
    rows, features = world.refcoco_m_rows(encode_mask)
    folder = write_parquet(tmp_path / "refcoco-m", "validation", rows[:2], features)
    assert held_out_image_ids(folder) == ids(world, 0, 1)
    rows, features = world.by_path_rows()
    folder = write_parquet(tmp_path / "refcoco", "train", rows[:3], features)
    write_parquet(folder, "test", rows[-2:], features)
    assert held_out_image_ids(folder, dataset_name=None, splits=None) == ids(world, 5)


def test_rows_themselves_and_dropping(world):
    folder = world.write_refer_folder()
    train = load_referring_dataset(folder, "train", image_folder=world.folder)
    validation = load_referring_dataset(folder, "val", image_folder=world.folder)
    assert held_out_image_ids(validation) == ids(world, 2)
    both = datasets.concatenate_datasets([train, validation])
    assert drop_images(both, held_out_image_ids(validation))["image_id"][:] == train["image_id"][:]
    validation.to_parquet(world.folder / "rows" / "validation.parquet")
    assert held_out_image_ids(world.folder / "rows") == ids(world, 2)
    stream = load_referring_dataset(folder, "train", image_folder=world.folder, streaming=True)
    with pytest.raises(TypeError, match="exclude_image_ids"):
        drop_images(stream, {"1"})
