"""Photographs all the way: COCO annotations to expressions, a training run, an evaluation at the original sizes."""

from __future__ import annotations

import json

import pytest

from processing.data import run as benchmark_data
from processing.evaluation import run as evaluate
from processing.training import run as train


@pytest.mark.slow
def test_photographs_from_annotations_to_scores(coco_mini, tmp_path):
    refer, run, scores = (tmp_path / name for name in ("refer", "run", "scores"))
    benchmark_data.main(
        ["photos", str(coco_mini / "instances.json"), str(coco_mini / "images"), str(refer), "--max-images", "6"]
    )
    train.main(
        [
            *("configs/coco_mini.yaml", "--output_dir", str(run), "--image_size", "64", "--max_steps", "2"),
            *("--train_data.0.name", str(refer), "--eval_data.train.name", str(refer), "--eval_steps", "2"),
        ]
    )
    results = evaluate.main(
        ["--model", str(run), "--dataset", str(refer), "--split", "train", "--output-dir", str(scores)]
    )
    references = json.loads((refer / "refs(coco).json").read_text(encoding="utf-8"))
    assert results["scores"]["expressions"] == sum(len(reference["sentences"]) for reference in references)
    assert 0 <= results["scores"]["mIoU"] <= 1
    assert (scores / "sheet.png").stat().st_size > 10_000
