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
    annotations = ["photos", str(coco_mini / "instances.json"), str(coco_mini / "images"), str(refer)]
    benchmark_data.main([*annotations, "--max-images", "4", "--max-per-level", "1"])
    train.main(
        [
            *("configs/coco_mini.yaml", "--output_dir", str(run), "--image_size", "64", "--max_steps", "50"),
            *("--train_data.0.name", str(refer), "--eval_data", "{}", "--eval_strategy", "no", "--warmup_steps", "5"),
            *("--per_device_train_batch_size", "4", "--dataloader_num_workers", "0", "--report_to", "none"),
        ]
    )
    results = evaluate.main(
        ["--model", str(run), "--dataset", str(refer), "--split", "train", "--output-dir", str(scores)]
    )
    references = json.loads((refer / "refs(coco).json").read_text(encoding="utf-8"))
    assert results["scores"]["expressions"] == sum(len(reference["sentences"]) for reference in references)
    # A few photographs are soon known by heart, with what is in none of them; without learning all of it is 0.
    assert results["scores"]["mIoU"] > 0.5
    assert results["scores"]["N-acc"] > 0.5
    assert results["scores"]["T-acc"] > 0.5
    assert (scores / "sheet.png").stat().st_size > 10_000
