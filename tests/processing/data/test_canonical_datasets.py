import io
import json
import logging

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing.data.canonical_rows import BadRowError, canonical_features, check_canonical_row
from processing.data.masks import mask_area
from processing.data.referring_datasets import load_referring_dataset
from processing.shapes.dataset import shapes_dataset, shapes_row
from tests.processing.canonical_rows import canonical_row


SPLITS = ["train", "val", "train", "validation", "test", "train"]


@pytest.fixture(scope="module")
def rows():
    """Six rows of four splits."""
    return datasets.Dataset.from_list(
        [{**canonical_row(number, (1, 2)), "split": split} for number, split in enumerate(SPLITS)],
        features=canonical_features(),
    )


@pytest.fixture
def sources(rows, tmp_path):
    """The same rows in memory, saved to disk, and in a file."""
    rows.save_to_disk(str(tmp_path / "saved"))
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    return [rows, tmp_path / "saved", tmp_path / "rows.parquet"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("split", "expected"), [("train", "025"), ("val", "13"), ("validation", "13"), ("test", "4")])
def test_the_split_of_canonical_rows_is_chosen_by_their_column(sources, split, expected, streaming):
    for source in sources:
        loaded = load_referring_dataset(source, split, streaming=streaming, on_bad_row="raise")
        assert [row["image_id"] for row in loaded] == list(expected)
        assert all(row["image"].size == (48, 40) for row in loaded)


def test_a_split_that_no_row_has_is_refused(sources):
    for source in sources:
        with pytest.raises(ValueError, match=r"no row of the split 'testA' is left; .*'train', 'val', 'validation'"):
            load_referring_dataset(source, "testA")


def test_options_that_rows_have_no_use_for_are_refused(sources):
    rows, saved, file = sources
    for source in (rows, saved, file):
        with pytest.raises(ValueError, match="not mixed, omit `partition`"):
            load_referring_dataset(source, "val", partition="unc")
    for source in (rows, saved):
        with pytest.raises(ValueError, match=r"\['revision'\] have no effect"):
            load_referring_dataset(source, "val", revision="main")
    with pytest.raises(TypeError, match="rows of one split, got DatasetDict"):
        load_referring_dataset(datasets.DatasetDict({"val": rows}), "val")


def test_a_saved_dictionary_of_splits_is_opened_by_split(rows, tmp_path):
    parts = datasets.DatasetDict({"train": rows.select([0, 2, 5]), "test": rows.select([4])})
    parts.save_to_disk(str(tmp_path / "both"))
    assert load_referring_dataset(tmp_path / "both", "test")["image_id"][:] == ["4"]
    with pytest.raises(ValueError, match=r"has no split 'val': choose one of \['train', 'test'\]"):
        load_referring_dataset(tmp_path / "both", "val")


BAD_VALUES = [
    ("mask_index", [7, 0, 0], "contains 7, but there are 2 masks"),
    ("mask_index", [-1, 0, 0], "contains -1, but there are"),
    ("mask_index", [0], "3 expressions but 1 entries in `mask_index`"),
    ("expressions", ["a", "", "b"], "an expression is empty"),
    ("expressions", [], "no expression"),
    ("ref_ids", ["a"], "2 masks but 1 entries in `ref_ids`"),
    ("masks", [{"size": [40, 48], "counts": "0"}, {"size": [40, 48], "counts": "0"}], "add up"),
    ("masks", [{"size": [10**6, 10**6], "counts": "0"}] * 2, "more than the limit"),
    ("image_id", None, "`image_id` must be a string"),
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("column", "value", "reason"), BAD_VALUES)
def test_bad_canonical_rows_are_named_and_skipped_or_fatal(column, value, reason, caplog, streaming):
    made = [canonical_row(number, (1, 2)) for number in range(3)]
    made[1][column] = value
    rows = datasets.Dataset.from_list(made, features=canonical_features())
    with caplog.at_level(logging.WARNING):
        loaded = load_referring_dataset(rows, "train", streaming=streaming)
        assert [row["image_id"] for row in loaded] == ["0", "2"]
    place = "row 0 of shard 1" if streaming else "row 1"
    assert f"rows train, {place}: image {made[1]['image_id']!r}: " in caplog.text
    assert reason in caplog.text
    with pytest.raises(BadRowError, match=reason):
        list(load_referring_dataset(rows, "train", streaming=streaming, on_bad_row="raise"))


def test_integers_as_expressions_are_no_text(tmp_path):
    row = {**canonical_row(0), "expressions": [5]}
    with pytest.raises(ValueError, match="must be a string, got 5"):
        check_canonical_row(row)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_images_of_canonical_rows_are_checked(caplog, streaming):
    made = [canonical_row(number) for number in range(3)]
    buffer = io.BytesIO()
    made[1]["image"].save(buffer, "PNG")
    made[1]["image"] = {"bytes": buffer.getvalue()[:-40], "path": None}
    made[2]["image"] = made[2]["image"].resize((20, 20))
    rows = datasets.Dataset.from_list(made, features=canonical_features())
    with caplog.at_level(logging.WARNING):
        (kept,) = load_referring_dataset(rows, "train", streaming=streaming)
    assert kept["image_id"] == "0"
    assert ": image '1': image cannot be opened: image file is truncated" in caplog.text
    assert ": image '2': masks of (height, width) = [(40, 48)] for an image of (20, 20)" in caplog.text
    assert len(load_referring_dataset(rows, "train", check_images=False)) == 3


def test_levels_and_landmarks_pass_through():
    rows = shapes_dataset("validation", 3, image_size=48)
    loaded = load_referring_dataset(rows, "validation", on_bad_row="raise")
    assert loaded.column_names == rows.column_names
    for index in range(3):
        expected = {**shapes_row("validation", index, image_size=48)}
        found = loaded[index]
        assert found.pop("image").tobytes() == expected.pop("image").tobytes()
        assert found == expected


junk = st.none() | st.integers(-3, 9) | st.text(max_size=3) | st.floats() | st.lists(st.integers(-2, 3), max_size=4)


@settings(max_examples=200)
@given(column=st.sampled_from(sorted(set(canonical_features()) - {"image"})), value=junk, data=st.data())
def test_a_row_that_passes_the_check_can_be_used(column, value, data):
    row = canonical_row(0, (2, -1))
    place = data.draw(st.integers(-1, len(row[column]) - 1)) if isinstance(row[column], list) else -1
    row[column] = value if place < 0 else [*row[column][:place], value, *row[column][place + 1 :]]
    try:
        check_canonical_row(row)
    except (ValueError, TypeError, KeyError):
        return
    for expression, index in zip(row["expressions"], row["mask_index"], strict=True):
        assert expression.strip()
        assert mask_area(row["masks"][index]) >= 0
    assert len(row["ref_ids"]) == len(row["masks"])
    json.dumps({name: row[name] for name in canonical_features() if name != "image"})
