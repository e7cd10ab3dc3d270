"""Loading what a configuration names, endless data and streams."""

import datasets
import pytest
from torch.utils.data import DataLoader

from processing.data.canonical_rows import canonical_features
from processing.training import training_data
from processing.training.training_data import EndlessSampler, GeneratedShapes, StreamedImages, join_rows, load_rows
from tests.processing.canonical_rows import canonical_row


def identity(rows):
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    rows = [canonical_row(number, (2, 1)) for number in range(12)]
    datasets.Dataset.from_list(rows, features=canonical_features()).save_to_disk(folder)
    return folder


@pytest.fixture
def stream(folder):
    def make(num_shards=4, **options):
        rows = datasets.load_from_disk(str(folder)).to_iterable_dataset(num_shards=num_shards)
        return StreamedImages(rows, **{"shuffle_buffer": 3, **options})

    return make


def test_a_dataset_is_loaded_without_the_images_held_out(folder):
    specification = {"name": str(folder), "split": "train"}
    assert len(load_rows(specification)) == 12
    kept = load_rows({**specification, "exclude_image_ids": [3]}, exclude_image_ids={"5", "7"})
    assert sorted(map(int, kept["image_id"])) == [0, 1, 2, 4, 6, 8, 9, 10, 11]


def test_shapes_come_with_and_without_an_end():
    fixed = load_rows({"name": "shapes", "split": "validation", "size": 2, "image_size": 48})
    endless = load_rows({"name": "shapes", "image_size": 48})
    assert len(fixed) == 2
    assert endless[5] == endless[5]
    assert endless[5]["image_id"] != endless[6]["image_id"]
    sampler = EndlessSampler()
    sampler.set_epoch(2)
    assert endless[next(iter(sampler))]["image_id"].endswith("-2000000")


def test_refuses_what_cannot_be_loaded_or_joined(folder):
    with pytest.raises(ValueError, match="needs a `name`"):
        load_rows({"split": "train"})
    with pytest.raises(ValueError, match=r"'shapes' takes no `levls`; did you mean `levels`\?"):
        load_rows({"name": "shapes", "levls": ["position"]})
    with pytest.raises(ValueError, match=r"'shapes' takes no `imagesize`; did you mean `image_size`\?"):
        load_rows({"name": "shapes", "split": "train", "size": 2, "imagesize": 48})
    with pytest.raises(ValueError, match="needs `split`"):
        load_rows({"name": str(folder)})
    rows = load_rows({"name": str(folder), "split": "train"})
    with pytest.raises(ValueError, match="different kinds"):
        join_rows([rows, GeneratedShapes(image_size=48)])
    with pytest.raises(ValueError, match="different kinds"):
        join_rows([rows, rows.to_iterable_dataset()])


def test_errors_within_are_not_taken_for_wrong_settings(folder, monkeypatch):
    def broken(name_or_path, split, **options):
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(training_data, "load_referring_dataset", broken)
    with pytest.raises(TypeError, match="a mistake of ours"):
        load_rows({"name": str(folder), "split": "train"})


def test_datasets_are_joined_on_the_columns_they_share(folder):
    rows = load_rows({"name": str(folder), "split": "train"})
    shapes = load_rows({"name": "shapes", "split": "train", "size": 3, "image_size": 48})
    joined = join_rows([rows, shapes])
    assert len(joined) == 15
    assert "levels" not in joined.column_names
    assert len(list(join_rows([rows.to_iterable_dataset(), rows.to_iterable_dataset()]))) == 24


def test_a_stream_goes_on_pass_after_pass_in_changing_order(stream):
    rows = iter(stream())
    passes = [[next(rows) for _ in range(12)] for _ in range(3)]
    for visit, drawn in enumerate(passes):
        assert sorted(int(row["image_id"]) for row in drawn) == list(range(12))
        assert {row["visit"] for row in drawn} == {visit}
        assert drawn[0]["image"].size == (48, 40)
    orders = [[row["image_id"] for row in drawn] for drawn in passes]
    assert orders[0] != orders[1]
    again = iter(stream())
    assert [next(again)["image_id"] for _ in range(12)] == orders[0]


def test_processes_read_different_rows(stream):
    parts = []
    for process in range(2):
        rows = iter(stream(process_index=process, num_processes=2))
        parts.append({next(rows)["image_id"] for _ in range(6)})
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 12


@pytest.mark.parametrize("num_shards", [1, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("skipped", [1, 5])
def test_a_stream_taken_up_again_gives_what_would_have_come(stream, num_shards, num_workers, skipped):
    def batches(dataset, count):
        dataset.batch_size = 2
        loader = DataLoader(dataset, batch_size=2, num_workers=num_workers, collate_fn=identity)
        iterator = iter(loader)
        return [next(iterator) for _ in range(count)]

    whole = batches(stream(num_shards), 9)
    taken_up = stream(num_shards)
    taken_up.skipped_batches = skipped
    again = batches(taken_up, 9)
    assert all(row == {"skipped": True} for batch in again[:skipped] for row in batch)
    for one, other in zip(whole[skipped:], again[skipped:], strict=True):
        assert [(row["image_id"], row["visit"]) for row in one] == [(row["image_id"], row["visit"]) for row in other]


def test_workers_without_a_shard_end_instead_of_waiting(folder):
    rows = datasets.load_from_disk(str(folder)).to_iterable_dataset(num_shards=1)
    dataset = StreamedImages(rows, shuffle_buffer=0)
    iterator = iter(DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=identity))
    assert sum(len(next(iterator)) for _ in range(6)) == 24
