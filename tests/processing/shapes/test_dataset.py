import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from processing.data.canonical_rows import canonical_features
from processing.data.masks import decode_mask, mask_area
from processing.shapes import dataset
from processing.shapes.ceiling import resolution_ceiling, upsampled_prediction
from processing.shapes.dataset import (
    STREAM_BLOCK_ROWS,
    STREAM_BLOCKS,
    shapes_dataset,
    shapes_row,
    shapes_sample,
    shapes_stream,
)
from processing.shapes.expressions import LEVELS
from processing.shapes.oracles import labeled_scene
from processing.shapes.queries import landmarks_of
from processing.shapes.sheet import draw_sheet


REPOSITORY = Path(__file__).resolve().parents[3]
DIGEST = """
import hashlib, json
from processing.shapes.dataset import shapes_row
digest = hashlib.sha256()
for index in range(4):
    row = shapes_row("validation", index, seed=3, image_size=48)
    digest.update(row.pop("image").tobytes())
    digest.update(json.dumps(row, sort_keys=True).encode())
print(digest.hexdigest())
"""


def as_comparable(row: dict) -> dict:
    return {**row, "image": np.asarray(row["image"]).tolist()}


def test_rows_do_not_depend_on_the_process():
    found = subprocess.run(
        [sys.executable, "-c", DIGEST],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(REPOSITORY)},
    ).stdout.strip()
    digest = hashlib.sha256()
    for index in (0, 1, 2, 3):
        row = shapes_row("validation", index, seed=3, image_size=48)
        digest.update(row.pop("image").tobytes())
        digest.update(json.dumps(row, sort_keys=True).encode())
    assert digest.hexdigest() == found


def test_rows_do_not_depend_on_the_version_of_python():
    digest = hashlib.sha256()
    for index in range(4):
        _, expressions = shapes_sample("test", index)
        written = [(expression.text, list(map(int, expression.targets))) for expression in expressions]
        digest.update(repr(written).encode())
    # The first row once had other expressions since Python 3.12, where `sum` rounds otherwise.
    assert digest.hexdigest()[:16] == "b587c39315634047"


@pytest.fixture
def copied_sources(tmp_path, monkeypatch):
    """A copy of the modules that make the data, where `source_digest` looks for them."""
    folder = tmp_path / "shapes"
    shutil.copytree(Path(dataset.__file__).parent, folder)
    monkeypatch.setattr(dataset, "__file__", str(folder / "dataset.py"))
    dataset.source_digest.cache_clear()
    yield folder
    dataset.source_digest.cache_clear()


@pytest.mark.parametrize("module", ["expressions", "queries", "rendering", "scene", "wording", "dataset"])
def test_the_digest_of_the_sources_changes_with_each_of_them(copied_sources, module):
    before = dataset.source_digest()
    path = copied_sources / f"{module}.py"
    path.write_bytes(path.read_bytes() + b"\n")
    dataset.source_digest.cache_clear()
    assert dataset.source_digest() != before
    dataset.source_digest.cache_clear()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=module):
        dataset.source_digest()


def test_every_module_that_makes_data_is_digested():
    """Whatever the dataset imports from its own folder decides over its rows."""
    found, waiting = set(), ["dataset"]
    while waiting:
        module = waiting.pop()
        found.add(module)
        source = (Path(dataset.__file__).parent / f"{module}.py").read_text()
        waiting += set(re.findall(r"^from \.(\w+) import", source, flags=re.MULTILINE)) - found
    assert found == {*dataset._MODULES_THAT_MAKE_DATA, "dataset"}


@pytest.mark.parametrize(
    ("split", "usual"),
    [("val", "validation"), ("Test", "test"), ("TRAIN", "train"), ("test ", "test"), ("dev", "valid")],
)
def test_a_split_that_looks_like_another_is_refused(split, usual):
    for make in (lambda: shapes_row(split, 0), lambda: shapes_dataset(split, 2), lambda: shapes_stream(split)):
        with pytest.raises(ValueError, match=f"use '{usual}"):
            make()


@pytest.mark.parametrize("split", ["", " ", None, 3])
def test_a_split_needs_a_name(split):
    with pytest.raises(ValueError, match="must be a name"):
        shapes_row(split, 0)


def test_split_index_and_seed_each_change_the_row():
    texts = {
        tuple(one.text for one in shapes_sample(*arguments)[1])
        for arguments in (("train", 0, 0), ("test", 0, 0), ("train", 1, 0), ("train", 0, 1))
    }
    assert len(texts) == 4


def test_a_row_holds_the_exact_masks_of_its_targets():
    for index in range(6):
        row, item = shapes_row("test", index), labeled_scene("test", index)
        assert row["image"].size == (128, 128)
        np.testing.assert_array_equal(np.asarray(row["image"]), item.image)
        assert len(row["masks"]) == len(row["ref_ids"]) == len(set(row["mask_index"]))
        assert row["levels"] == [expression.level for expression in item.expressions]
        for place, expression in zip(row["mask_index"], item.expressions, strict=True):
            expected = item.masks[list(expression.targets)].any(0)
            np.testing.assert_array_equal(decode_mask(row["masks"][place]), expected)
            assert (mask_area(row["masks"][place]) == 0) == (expression.level == "no_target")
        assert len(row["landmarks"]) == len(item.expressions)
        for landmarks, expression in zip(row["landmarks"], item.expressions, strict=True):
            named = list(landmarks_of(expression.query, item.scene))
            np.testing.assert_array_equal(decode_mask(landmarks), item.masks[named].any(0))
            if expression.level in ("relation", "chain2", "chain3"):
                assert len(named) == {"relation": 1, "chain2": 2, "chain3": 3}[expression.level]
            elif expression.level in ("appearance", "position"):
                assert not named


def test_scene_and_expressions_do_not_depend_on_the_image_size():
    small, large = shapes_row("test", 5, image_size=64), shapes_row("test", 5, image_size=192)
    assert small["expressions"] == large["expressions"]
    assert small["image"].size == (64, 64)
    for one, other in zip(small["masks"], large["masks"], strict=True):
        np.testing.assert_array_equal(decode_mask(one), decode_mask(other)[1::3, 1::3])


def test_levels_take_turns():
    dataset = shapes_dataset("train", 6, image_size=32, levels=("relation", "position"), expressions_per_image=3)
    levels = [level for row in dataset.remove_columns("image") for level in row["levels"]]
    assert set(levels) == {"relation", "position"}
    assert abs(levels.count("relation") - 9) <= 1


def test_the_dataset_has_the_canonical_columns():
    dataset = shapes_dataset("test", 5, image_size=48)
    assert dataset.features == canonical_features(with_levels=True, with_landmarks=True)
    assert len(dataset) == 5
    for index in range(5):
        assert as_comparable(dataset[index]) == as_comparable(shapes_row("test", index, image_size=48))
    assert set(dataset[0]["levels"]) == set(LEVELS)
    again = shapes_dataset("test", 5, image_size=48)
    assert again.cache_files == dataset.cache_files


def test_the_stream_gives_the_rows_in_order():
    stream = shapes_stream("train", image_size=32)
    assert isinstance(stream, datasets.IterableDataset)
    assert stream.features == canonical_features(with_levels=True, with_landmarks=True)
    for index, row in enumerate(islice(stream, 3)):
        assert as_comparable(row) == as_comparable(shapes_row("train", index, image_size=32))


def test_the_stream_resumes_at_the_same_row():
    stream = shapes_stream("train", image_size=32, expressions_per_image=1)
    rows = iter(stream)
    for _ in range(5):
        next(rows)
    state = json.loads(json.dumps(stream.state_dict()))
    following = [next(rows)["image_id"] for _ in range(3)]
    resumed = shapes_stream("train", image_size=32, expressions_per_image=1)
    resumed.load_state_dict(state)
    assert [row["image_id"] for row in islice(resumed, 3)] == following == ["train-0-5", "train-0-6", "train-0-7"]


def test_workers_and_processes_share_the_stream():
    stream = shapes_stream("train", image_size=32, expressions_per_image=1).select_columns(["image_id"])
    seen = []
    for rank in range(2):
        node = split_dataset_by_node(stream, rank=rank, world_size=2)
        loader = DataLoader(node, batch_size=2, num_workers=2)
        seen.append([name for batch in islice(loader, 4) for name in batch["image_id"]])
    flat = [name for names in seen for name in names]
    assert len(set(flat)) == len(flat) == 16
    blocks = {int(name.rsplit("-", 1)[1]) // STREAM_BLOCK_ROWS for name in flat}
    assert len(blocks) == 4


def test_the_number_of_blocks_splits_evenly():
    assert all(STREAM_BLOCKS % world_size == 0 for world_size in range(1, 13))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"levels": ("relation", "riddle")}, "riddle"),
        ({"levels": ()}, "at least one"),
        ({"expressions_per_image": 0}, "at least 1, got 0"),
        ({"image_size": 16}, "at least 32 pixels, got 16"),
        ({"seed": -1}, "must not be negative, got -1"),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        shapes_dataset(**({"split": "test", "size": 2} | arguments))
    arguments.pop("size", None)
    if arguments:
        with pytest.raises(ValueError, match=message):
            shapes_stream("test", **arguments)


def test_levels_must_not_be_one_string():
    with pytest.raises(TypeError, match="'relation'"):
        shapes_stream(levels="relation")


def test_negative_index():
    with pytest.raises(ValueError, match="-1"):
        shapes_sample("test", -1)


def test_ceiling_falls_with_the_stride():
    masks = [mask for index in range(12) for mask in labeled_scene("test", index).masks]
    ceilings = [resolution_ceiling(masks, stride) for stride in (1, 2, 4, 8)]
    assert ceilings[0] == 1.0
    assert sorted(ceilings, reverse=True) == ceilings
    assert ceilings[1] > 0.95
    assert 0.85 < ceilings[2] < 0.95


def test_upsampling_a_half_plane_is_exact():
    mask = np.zeros((16, 16), dtype=bool)
    mask[:, 8:] = True
    np.testing.assert_array_equal(upsampled_prediction(mask, 4), mask)


def test_impossible_ceilings():
    with pytest.raises(ValueError, match="multiples of the stride, 3"):
        upsampled_prediction(np.ones((16, 16), dtype=bool), 3)
    with pytest.raises(ValueError, match="all masks are empty"):
        resolution_ceiling([np.zeros((8, 8), dtype=bool)], 2)


def test_the_sheet_shows_every_level():
    items = [labeled_scene("test", index, image_size=64) for index in range(3)]
    sheet = np.asarray(draw_sheet(items, columns=2))
    outlined = (sheet == (255, 0, 255)).all(-1)
    # A row of tiles a level; only the last, no_target, has nothing outlined.
    heights = np.array_split(outlined[: sheet.shape[0] - 8], len(LEVELS))
    assert [bool(rows.any()) for rows in heights] == [True] * (len(LEVELS) - 1) + [False]
    with pytest.raises(ValueError, match="columns"):
        draw_sheet(items, columns=0)
    with pytest.raises(ValueError, match="no expression"):
        draw_sheet([])
