"""Batches: which expressions are drawn, what they become, and that chance depends on the row alone."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from processing.data.masks import decode_mask, encode_mask
from processing.training.augmentation import MaskingAugmentation
from processing.training.collator import ReferringCollator, select_expressions
from tests.processing.canonical_rows import canonical_row
from tests.tiny import tiny_processor


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@given(sentences=st.lists(st.integers(1, 5), min_size=1, max_size=6), cap=st.none() | st.integers(1, 12))
@settings(max_examples=60)
def test_every_referent_comes_once_before_any_comes_twice(sentences, cap):
    mask_index = [referent for referent, count in enumerate(sentences) for _ in range(count)]
    chosen = select_expressions(mask_index, cap, np.random.default_rng(0))
    assert len(chosen) == len(set(chosen)) == min(len(mask_index), cap or len(mask_index))
    drawn = Counter(mask_index[position] for position in chosen)
    most = max(drawn.values())
    for referent, count in enumerate(sentences):
        assert drawn[referent] >= min(count, most - 1)


def test_all_sentences_of_a_referent_are_equally_likely():
    mask_index = [0, 0, 0, 1]
    drawn = Counter(
        position for seed in range(1500) for position in select_expressions(mask_index, 2, np.random.default_rng(seed))
    )
    assert drawn[3] == 1500
    for position in (0, 1, 2):
        assert drawn[position] == pytest.approx(500, abs=75)


def test_a_batch_has_the_shapes_of_the_model_and_masks_of_its_expressions(processor):
    rows = [canonical_row(0, (2, 1), size=(64, 64)), canonical_row(1, (-1,), size=(64, 64))]
    batch = ReferringCollator(processor)(rows)
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels"}
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert batch["labels"].shape == (2, 3, 64, 64)
    assert batch["labels"].dtype == torch.uint8
    for position, referent in enumerate(rows[0]["mask_index"]):
        expected = torch.from_numpy(decode_mask(rows[0]["masks"][referent]))
        assert torch.equal(batch["labels"][0, position] == 1, expected)
    assert not (batch["labels"][1, 0] == 1).any()
    assert (batch["labels"][1, 1:] == 255).all()
    assert batch["attention_mask"].any(-1).tolist() == [[True] * 3, [True, False, False]]
    texts = processor.tokenizer.batch_decode(batch["input_ids"][0], skip_special_tokens=True)
    assert texts == rows[0]["expressions"]


def test_a_row_without_expressions_counts_for_nothing(processor):
    empty = {**canonical_row(0), "expressions": [], "mask_index": []}
    batch = ReferringCollator(processor)([empty, canonical_row(1)])
    assert not batch["attention_mask"][0].any()
    assert (batch["labels"][0] == 255).all()
    assert batch["attention_mask"][1].any()


def test_landmarks_come_with_their_expressions_in_training(processor):
    row, plain = (canonical_row(number, (2, 1), size=(64, 64)) for number in range(2))
    named = [encode_mask(np.eye(64, k=offset, dtype=bool)) for offset in range(3)]
    row["expressions"] = ["the red square", "the green square", "the blue square"]
    rows = [{**row, "landmarks": named}, {**plain, "expressions": [], "mask_index": []}, plain]
    batch = ReferringCollator(processor, training=True)(rows)
    assert batch["landmark_masks"].shape == batch["labels"].shape
    texts = processor.tokenizer.batch_decode(batch["input_ids"][0], skip_special_tokens=True)
    for text, landmarks, label in zip(texts, batch["landmark_masks"][0], batch["labels"][0], strict=True):
        place = row["expressions"].index(text)
        assert torch.equal(landmarks, torch.from_numpy(decode_mask(named[place])).to(torch.uint8))
        expected = decode_mask(row["masks"][row["mask_index"][place]])
        assert torch.equal(label == 1, torch.from_numpy(expected))
    assert (batch["landmark_masks"][1:] == 255).all()
    assert "landmark_masks" not in ReferringCollator(processor)(rows)
    with pytest.raises(ValueError, match="'0' has 3 expressions but 2 masks of `landmarks`"):
        ReferringCollator(processor)([{**rows[0], "landmarks": named[:2]}])


def test_training_draws_anew_at_each_visit_and_alike_for_one(processor):
    rows = [{**canonical_row(number, (4, 4)), "visit": 0} for number in range(4)]
    collator = ReferringCollator(processor, training=True, max_expressions_per_image=2, seed=5)
    first = collator(rows)
    assert first["labels"].shape[1] == 2
    # What one row becomes does not depend on its company or on what was drawn before.
    alone = collator([rows[2]])
    assert torch.equal(alone["input_ids"][0], first["input_ids"][2])
    assert torch.equal(alone["labels"][0], first["labels"][2])
    later = collator([{**row, "visit": 1} for row in rows])
    assert not torch.equal(first["input_ids"], later["input_ids"])
    other = ReferringCollator(processor, training=True, max_expressions_per_image=2, seed=6)(rows)
    assert not torch.equal(first["input_ids"], other["input_ids"])


def test_masked_words_do_not_depend_on_the_company(processor):
    augmentation = MaskingAugmentation(image_mask_ratio=0.5, text_mask_ratio=0.5, word_dropout=0.2, probability=1.0)
    rows = [{**canonical_row(number, (1 + number,)), "visit": 0} for number in range(4)]
    rows[3]["expressions"] = ["the large red square left of the small blue circle"] * 4
    collator = ReferringCollator(processor, training=True, augmentation=augmentation)
    together, alone = collator(rows), collator(rows[:1])
    own = alone["attention_mask"][0].bool()
    assert torch.equal(together["input_ids"][0, :1, : own.shape[-1]][own], alone["input_ids"][0][own])
    assert torch.equal(together["pixel_values"][0], alone["pixel_values"][0])


def test_padding_and_its_mask(processor):
    padding = tiny_processor(keep_aspect_ratio=True)
    batch = ReferringCollator(padding)([canonical_row(0, (2,), size=(32, 64))])
    assert set(batch) == {"pixel_values", "pixel_mask", "input_ids", "attention_mask", "labels"}
    assert torch.equal((batch["labels"][0, 0] != 255).long(), batch["pixel_mask"][0])


def test_training_without_cap_shows_all_expressions(processor):
    row = canonical_row(0, (3, 2))
    batch = ReferringCollator(processor, training=True)([row])
    texts = processor.tokenizer.batch_decode(batch["input_ids"][0], skip_special_tokens=True)
    assert sorted(texts) == sorted(row["expressions"])


def test_long_expressions_are_cut_off():
    processor = tiny_processor()
    processor.tokenizer.model_max_length = 6
    row = {**canonical_row(0), "expressions": ["the red square left of the large blue circle"]}
    assert ReferringCollator(processor)([row])["input_ids"].shape == (1, 1, 6)


def test_masking_applies_to_the_share_of_visits_that_was_asked_for(processor):
    augmentation = MaskingAugmentation(image_mask_ratio=0.5, image_patch_size=16, text_mask_ratio=0.5, probability=0.5)
    row = canonical_row(0, (2,))
    plain = ReferringCollator(processor, training=True)
    masked = ReferringCollator(processor, training=True, augmentation=augmentation)
    changed = 0
    for visit in range(60):
        a, b = (collator([{**row, "visit": visit}]) for collator in (plain, masked))
        # Masking blanks half of 16 patches and leaves labels alone.
        blank = (b["pixel_values"][0] == 0).all(0)
        assert int(blank.sum()) in (0, 8 * 16 * 16)
        changed += bool(blank.any())
        assert (a["labels"] == 1).sum() == (b["labels"] == 1).sum()
    assert 18 <= changed <= 42
    evaluated = ReferringCollator(processor, augmentation=augmentation)([row])
    assert torch.equal(evaluated["pixel_values"], plain([row])["pixel_values"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": None}, "no column"),
        ({"mask_index": []}, "0 entries"),
        ({"mask_index": [3]}, r"contains \[3\]"),
        ({"masks": [{"size": [10**5, 10**4], "counts": "PPYak0"}]}, r"\[\(100000, 10000\)\] for an image of"),
        ({"landmarks": [{"size": [9, 9], "counts": "a2"}]}, r"\[\(9, 9\)\] for an image of \(40, 48\)"),
    ],
)
def test_refuses_rows_that_do_not_fit(processor, change, message):
    row = {**canonical_row(0), **change}
    row = {key: value for key, value in row.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        ReferringCollator(processor)([row])


def test_refuses_a_cap_of_nothing(processor):
    with pytest.raises(ValueError, match="at least 1"):
        ReferringCollator(processor, max_expressions_per_image=0)
