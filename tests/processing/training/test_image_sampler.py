"""Which images an epoch draws."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing.training.image_sampler import (
    DrawnImages,
    EvaluatedImages,
    ImageSampler,
    count_expressions,
    cut_expressions,
)
from tests.processing.canonical_rows import canonical_row


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    cap=st.none() | st.integers(1, 5),
    unit=st.sampled_from(["referents", "sentences", "images"]),
    epochs=st.integers(1, 6),
)
@settings(max_examples=60)
def test_epochs_join_to_passes_without_a_gap(counts, cap, unit, epochs):
    sampler = ImageSampler(counts, [1] * len(counts), max_expressions_per_image=cap, epoch_unit=unit, seed=3)
    draws = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert len(drawn) == len(sampler)
        draws += drawn
    by_visit = Counter(draw.visit for draw in draws)
    whole = [visit for visit, count in by_visit.items() if count == len(counts)]
    for visit in whole:
        assert sorted(draw.index for draw in draws if draw.visit == visit) == list(range(len(counts)))
    # Only the last pass may be unfinished.
    assert sorted(by_visit) == list(range(len(by_visit)))
    assert len(whole) >= len(by_visit) - 1


def test_an_epoch_holds_as_many_expressions_as_there_are_referents():
    # RefCOCO in small: 2.5 referents an image and 2.84 sentences a referent.
    referents = [2, 3] * 500
    sentences = [count * 3 for count in referents]
    sampler = ImageSampler(sentences, referents, max_expressions_per_image=8)
    assert sampler.expressions_per_epoch == pytest.approx(sum(referents), abs=8)
    drawn = sum(min(sentences[draw.index], 8) for draw in sampler)
    assert drawn == pytest.approx(sum(referents), rel=0.02)
    assert len(sampler) < len(referents)


def test_units_of_an_epoch():
    sampler = ImageSampler([4, 4], [2, 2], epoch_unit="images")
    assert (len(sampler), sampler.expressions_per_epoch) == (2, 8)
    assert len(ImageSampler([4, 4], [2, 2], epoch_unit="sentences", max_expressions_per_image=2)) == 4
    assert len(ImageSampler([4, 4], [2, 2], epoch_unit="referents", max_expressions_per_image=2)) == 2


def test_the_order_is_given_by_seed_and_pass():
    counts = [1] * 50
    first, again, other = (ImageSampler(counts, counts, seed=seed) for seed in (1, 1, 2))
    assert list(first) == list(again)
    assert list(first) != list(other)
    again.set_epoch(1)
    assert [draw.index for draw in first] != [draw.index for draw in again]
    assert [draw.index for draw in ImageSampler(counts, counts, shuffle=False)] == list(range(50))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expression_counts": [], "referent_counts": []}, "empty"),
        ({"expression_counts": [0], "referent_counts": [0]}, "No row"),
        ({"expression_counts": [1], "referent_counts": [1, 1]}, "same length"),
        ({"expression_counts": [1], "referent_counts": [1], "max_expressions_per_image": 0}, "at least 1"),
        ({"expression_counts": [1], "referent_counts": [1], "epoch_unit": "hours"}, "'hours'"),
    ],
)
def test_sampler_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageSampler(**arguments)


def test_drawn_images_carry_their_visit():
    rows = [canonical_row(number) for number in range(3)]
    sampler = ImageSampler([1] * 3, [1] * 3, epoch_unit="images")
    sampler.set_epoch(2)
    drawn = [DrawnImages(rows)[draw] for draw in sampler]
    assert {row["visit"] for row in drawn} == {2}
    assert sorted(row["image_id"] for row in drawn) == ["0", "1", "2"]
    assert DrawnImages(rows)[1]["visit"] == 0


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    cap=st.none() | st.integers(1, 4),
    multiple=st.integers(1, 5),
)
@settings(max_examples=40)
def test_evaluation_sees_every_expression_once(counts, cap, multiple):
    rows = [
        {"image_id": str(number), "expressions": [f"{number}-{i}" for i in range(count)], "mask_index": [0] * count}
        for number, count in enumerate(counts)
    ]
    dataset = EvaluatedImages(rows, counts, cap, multiple)
    assert len(dataset) % multiple == 0
    seen = [expression for item in range(len(dataset)) for expression in dataset[item]["expressions"]]
    assert seen == [expression for row in rows for expression in row["expressions"]]
    assert dataset.num_expressions == sum(counts)
    if cap is not None:
        assert max(len(dataset[item]["expressions"]) for item in range(len(dataset))) <= cap


def test_counts_are_read_without_the_image():
    datasets = pytest.importorskip("datasets")
    rows = [canonical_row(0, (2, 1)), canonical_row(1, (1,))]
    assert count_expressions(rows) == ([3, 1], [2, 1])
    plain = [{key: value for key, value in row.items() if key != "image"} for row in rows]
    assert count_expressions(datasets.Dataset.from_list(plain)) == ([3, 1], [2, 1])


def test_a_row_is_cut_with_all_that_belongs_to_its_expressions():
    row = {**canonical_row(0, (2, 1)), "levels": ["a", "b", "c"], "landmarks": ["first", "second", "third"]}
    cut = cut_expressions(row, 1, 3)
    assert cut["expressions"] == row["expressions"][1:]
    assert cut["mask_index"] == [0, 1]
    assert (cut["levels"], cut["landmarks"]) == (["b", "c"], ["second", "third"])
    assert (cut["masks"], cut["ref_ids"]) == (row["masks"], row["ref_ids"])
    assert cut_expressions({**canonical_row(1), "landmarks": None}, 0, 1)["landmarks"] is None
