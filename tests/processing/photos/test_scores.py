"""Scores of photographs: what they count, and how their errors come about."""

import json
from pathlib import Path

import numpy as np
import pytest

from processing.data.masks import encode_mask
from processing.photos.refer_writer import REFERENCES_FILE
from processing.photos.scores import (
    ScoredExpression,
    bootstrap_error,
    controls_table,
    head_nouns,
    mean_iou,
    no_target_accuracy,
    overall_iou,
    precision_at_half,
    score_largest_objects,
    scores_table,
    target_accuracy,
)


def expression(
    photo: str, intersection: int, predicted: int, wanted: int, level: str = "category"
) -> ScoredExpression:
    return ScoredExpression(photo, level, intersection, predicted, wanted)


def test_scores_by_hand() -> None:
    scored = [expression("1", 50, 100, 100), expression("1", 0, 0, 40), expression("2", 30, 30, 30)]
    scored += [expression("2", 0, 0, 0, "absent"), expression("2", 0, 9, 0, "absent")]
    assert mean_iou(scored) == pytest.approx((50 / 150 + 0 + 1) / 3)
    assert overall_iou(scored) == pytest.approx(80 / (150 + 40 + 30))
    assert precision_at_half(scored) == pytest.approx(1 / 3)
    assert target_accuracy(scored) == pytest.approx(2 / 3)
    assert no_target_accuracy(scored) == pytest.approx(1 / 2)


def test_errors_are_those_of_photos_and_not_of_expressions() -> None:
    # A hundred expressions of two photos, all right on one and all wrong on the other, tell what two draws tell.
    scored = [expression("1", 10, 10, 10)] * 50 + [expression("2", 0, 10, 10)] * 50
    assert bootstrap_error(scored, precision_at_half) == pytest.approx(0.5 / np.sqrt(2), abs=0.02)
    assert bootstrap_error(scored[:50], precision_at_half) == 0


def test_head_nouns_and_largest_objects(tmp_path: Path) -> None:
    small, large = np.zeros((2, 8, 10), dtype=bool)
    small[:2, :2], large[3:, 2:] = True, True
    annotations = [
        {"id": number, "image_id": 7, "category_id": 3, "area": int(mask.sum()), "segmentation": encode_mask(mask)}
        for number, mask in enumerate((small, large))
    ]
    instances = {
        "images": [{"id": 7, "height": 8, "width": 10}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "dog"}],
    }
    references = [
        {"image_id": 7, "ann_id": [0], "category_id": [3], "no_target": False, "sentences": [{"sent": "small one"}]},
        {"image_id": 7, "ann_id": [-1], "category_id": [-1], "no_target": True, "sentences": [{"sent": "the cat"}]},
    ]
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    (tmp_path / REFERENCES_FILE).write_text(json.dumps(references))
    assert head_nouns(tmp_path) == {("7", "small one"): "the dog"}

    row = {
        "image_id": "7",
        "masks": [encode_mask(small), encode_mask(large)],
        "mask_index": [0, 1],
        "levels": ["size"] * 2,
    }
    wrong, right = score_largest_objects([row], tmp_path)
    assert wrong == ScoredExpression("7", "size", 0, 40, 4)
    assert right.iou == 1


def test_table_has_a_line_for_each_level_and_control() -> None:
    own = [expression("1", 5, 10, 10), expression("2", 8, 10, 10, "position"), expression("2", 0, 0, 0, "absent")]
    table = scores_table({"model": own, "the object": own[:2]})
    assert [line[0] for line in table] == [
        "expressions",
        "all with a target",
        "category",
        "position",
        "no target",
        "control: the object",
    ]
    assert len({len(line) for line in table}) == 1
    assert table[4][-1] == "100.0 ± 0.0"
    assert controls_table({"model": own, "the object": own[:2]}) == [
        ["level", "model", "the object"],
        ["category", "33.3", "33.3"],
        ["position", "66.7", "66.7"],
    ]
