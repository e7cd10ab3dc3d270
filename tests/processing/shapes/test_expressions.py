"""The writer of expressions against the resolver, which knows nothing of it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing.shapes.dataset import shapes_sample
from processing.shapes.expressions import LEVELS, Expression, ExpressionWriter
from processing.shapes.oracles import head_matches, labeled_scene, noun_matches, oracle_scores
from processing.shapes.queries import Phrase, Query, UnclearError, resolve
from processing.shapes.scene import Scene
from processing.shapes.wording import shapes_vocabulary


LESS = ("head phrase", "head noun", "all of the head noun", "random object", "largest object")
NEEDS_MORE_THAN_ITS_HEAD = ("position", "relation", "chain2", "chain3", "comparison")


def anchor_of(query: Query) -> Query | None:
    if query.pick is not None and query.pick.anchor is not None:
        return query.pick.anchor
    return next((condition.anchor for condition in query.conditions if hasattr(condition, "anchor")), None)


def with_anchor(query: Query, anchor: Query) -> Query:
    if query.pick is not None and query.pick.anchor is not None:
        return replace(query, pick=replace(query.pick, anchor=anchor))
    return replace(query, conditions=(replace(query.conditions[0], anchor=anchor),))


def anchors_of(query: Query) -> list[Query]:
    anchor = anchor_of(query)
    return [] if anchor is None else [anchor, *anchors_of(anchor)]


def cut_after(query: Query, hops: int) -> Query:
    """The chain with everything behind its first `hops` relations left out."""
    if hops == 0:
        return Query(query.phrase)
    return with_anchor(query, cut_after(anchor_of(query), hops - 1))


def fits_several(query: Query, scene: Scene) -> bool:
    try:
        resolve(query, scene)
    except UnclearError:
        return True
    return False


def check_level(expression: Expression, scene: Scene) -> None:
    query, targets = expression.query, expression.targets
    named = {index for anchor in anchors_of(query) for index in resolve(anchor, scene)}
    if expression.level in NEEDS_MORE_THAN_ITS_HEAD:
        assert len(targets) == 1
        assert len(set(head_matches(query, scene)) - named) >= 3
        assert not named & set(targets)
    if expression.level == "appearance":
        assert len(targets) == 1
        assert len(noun_matches(query, scene)) >= 3
        for name in ("kind", "color", "texture", "size"):
            if getattr(query.phrase, name) is not None:
                assert fits_several(Query(replace(query.phrase, **{name: None})), scene)
    if expression.level == "multiple":
        assert 2 <= len(targets) < len(scene.objects)
    if expression.level == "no_target":
        assert targets == ()
    if expression.level in ("relation", "chain2", "chain3"):
        length = {"relation": 1, "chain2": 2, "chain3": 3}[expression.level]
        assert len(anchors_of(query)) == length
        assert len(named) == length
        for hops in range(length):
            assert fits_several(cut_after(query, hops), scene)


@settings(max_examples=120)
@given(index=st.integers(0, 10**9), seed=st.integers(0, 10**6), split=st.sampled_from(["train", "test", "é"]))
def test_every_expression_means_what_the_writer_says(index, seed, split):
    scene, expressions = shapes_sample(split, index, seed)
    vocabulary = set(shapes_vocabulary())
    assert len({expression.text for expression in expressions}) == len(expressions)
    for expression in expressions:
        assert resolve(expression.query, scene) == expression.targets, expression
        assert set(expression.text.split()) <= vocabulary
        assert len(expression.text.split()) <= 32
        check_level(expression, scene)


@pytest.fixture(scope="module")
def samples() -> list[tuple[Scene, list[Expression]]]:
    return [shapes_sample("test", index) for index in range(150)]


def test_levels_get_equal_shares(samples):
    count = dict.fromkeys(LEVELS, 0)
    for _, expressions in samples:
        for expression in expressions:
            count[expression.level] += 1
    assert all(count[level] >= 0.95 * len(samples) for level in LEVELS), count


def test_wording_varies_and_uses_the_whole_vocabulary(samples):
    texts = [expression.text for _, expressions in samples for expression in expressions]
    seen = {word for text in texts for word in text.split()}
    for index in range(400):
        seen.update(
            word
            for one in shapes_sample("train", index, levels=("multiple", "comparison", "position"))[1]
            for word in one.text.split()
        )
    assert set(shapes_vocabulary()) == seen
    assert len(set(texts)) > 0.95 * len(texts)


def test_the_shape_of_a_sentence_does_not_give_the_target_away(samples):
    """Positions in the list of objects, which is the depth order, are as good as random."""
    places = [
        expression.targets[0] / (len(scene.objects) - 1)
        for scene, expressions in samples
        for expression in expressions
        if len(expression.targets) == 1
    ]
    assert abs(sum(places) / len(places) - 0.5) < 0.06


@pytest.fixture(scope="module")
def scores() -> dict[str, dict[str, dict[str, float]]]:
    return oracle_scores(labeled_scene("test", index, image_size=64) for index in range(150))


@pytest.mark.parametrize("level", NEEDS_MORE_THAN_ITS_HEAD)
@pytest.mark.parametrize(
    "reader", ["head phrase", "head noun", "all of the head noun", "random object", "largest object"]
)
def test_no_reader_of_less_scores_on_levels_that_need_more(scores, level, reader):
    assert scores[level][reader]["mIoU"] < 0.35
    assert scores[level][reader]["P@0.5"] < 0.35


@pytest.mark.parametrize("level", ["appearance", "multiple", "no_target"])
def test_the_noun_alone_is_not_enough(scores, level):
    assert scores[level]["head noun"]["mIoU"] < 0.35
    assert scores[level]["all of the head noun"]["P@0.5"] < 0.45


def test_shortcuts_of_relations_do_not_pay(scores):
    assert scores["relation"]["outermost that way"]["P@0.5"] < 0.45
    assert scores["chain2"]["last relation unread"]["P@0.5"] < 0.55
    assert scores["chain3"]["last relation unread"]["P@0.5"] < 0.55
    assert scores["no_target"]["no object"]["P@0.5"] == 1.0
    assert scores["appearance"]["head phrase"]["P@0.5"] == pytest.approx(1.0)


def test_unknown_level_is_named(samples):
    with pytest.raises(ValueError, match="'riddle'"):
        ExpressionWriter(samples[0][0], np.random.default_rng(0)).write("riddle")


def test_scores_need_expressions():
    with pytest.raises(ValueError, match="no expression"):
        oracle_scores([])


def test_head_phrases_leave_attributes_open():
    scene, _ = shapes_sample("test", 0)
    assert noun_matches(Query(Phrase(color="red")), scene) == tuple(range(len(scene.objects)))
