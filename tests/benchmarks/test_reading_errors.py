"""Which readers would have given a wrong answer too, on answers that are made to be theirs."""

from __future__ import annotations

import pytest

from benchmarks.reading_errors import COMPARED, reading_errors, reading_errors_table
from processing.shapes.oracles import BASELINES, head_matches, labeled_scene


@pytest.fixture(scope="module")
def scenes():
    return [labeled_scene("test", index, image_size=64, levels=("chain2", "chain3")) for index in range(12)]


def records_of(scenes, answer):
    return [{"object": answer(scene, expression)} for scene in scenes for expression in scene.expressions]


def test_right_answers_are_no_errors(scenes):
    errors = reading_errors(scenes, records_of(scenes, lambda _, expression: expression.targets[0]))
    assert not any(found for found in errors.values())
    assert "| chain2 | 0 | - | - | - | - |" in reading_errors_table(
        scenes, records_of(scenes, lambda _, e: e.targets[0])
    )


@pytest.mark.parametrize("reader", COMPARED)
def test_a_reader_is_known_by_its_errors(scenes, reader):
    def answer(scene, expression):
        answers = [index for _, objects in BASELINES[reader][1](scene, expression.query) for index in objects]
        return next((index for index in answers if index not in expression.targets), expression.targets[0])

    counted = 0
    for found in reading_errors(scenes, records_of(scenes, answer)).values():
        counted += len(found[reader])
        assert all(found[reader])
        assert all(0 < share <= 1 for share in found[f"{reader}, chance"])
    assert counted > 5


def test_an_answer_that_does_not_fit_the_head_phrase(scenes):
    def answer(scene, expression):
        heads = head_matches(expression.query, scene.scene)
        # "The thing left of the ring": every object fits the head phrase.
        return next((index for index in range(len(scene.masks)) if index not in heads), expression.targets[0])

    errors = reading_errors(scenes, records_of(scenes, answer))
    for level in ("chain2", "chain3"):
        assert errors[level]["fits the head phrase"]
        assert not any(errors[level]["fits the head phrase"])
        assert not any(errors[level][reader] for reader in COMPARED)
