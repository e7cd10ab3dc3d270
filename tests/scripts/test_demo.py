"""The demo, cut short: one step of training that changes nothing, on a model that knows the benchmark."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModel

from processing.predict import DEFAULT_MODEL
from processing.shapes.expressions import LEVELS
from scripts import demo


@pytest.mark.slow
def test_demo_writes_model_scores_and_pictures(tmp_path, capsys):
    demo.main(
        [
            *("--output-dir", str(tmp_path), "--test-images", "8", "--cases", "2", "--max_steps", "1"),
            *("--model_name_or_path", str(DEFAULT_MODEL), "--learning_rate", "0", "--optim", "sgd"),
            *("--per_device_train_batch_size", "2", "--max_train_images", "8", "--max_eval_images", "2"),
        ]
    )
    table = (tmp_path / "scores.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == list(LEVELS)
    assert table in capsys.readouterr().out + "\n"
    # Far above what is reached without a look at the image (0.1) or with nothing found (0).
    scores = json.loads((tmp_path / "evaluation" / "results.json").read_text(encoding="utf-8"))["scores"]
    assert scores["mIoU"] > 0.5
    assert scores["groups"]["appearance"]["mIoU"] > 0.6
    row = next(line for line in table.splitlines() if "appearance" in line)
    assert f"{scores['groups']['appearance']['mIoU']:.3f}" in row
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.height > len(LEVELS) * 200
        # Not all of it is paper.
        assert (np.asarray(picture.convert("L")) < 200).mean() > 0.2
    saved = AutoModel.from_pretrained(tmp_path / "model").state_dict()
    for name, value in AutoModel.from_pretrained(DEFAULT_MODEL).named_parameters():
        assert value.equal(saved[name]), name
