"""The demo, cut short: everything it writes, from a model that has learned nothing."""

from __future__ import annotations

import pytest
from PIL import Image
from transformers import AutoModel

from processing.shapes.expressions import LEVELS
from scripts import demo


@pytest.mark.slow
def test_demo_writes_model_scores_and_pictures(tmp_path, capsys):
    demo.main(
        [
            *("--output-dir", str(tmp_path), "--test-images", "4", "--cases", "2", "--max_steps", "2"),
            *("--per_device_train_batch_size", "2", "--max_train_images", "8", "--max_eval_images", "2"),
        ]
    )
    table = (tmp_path / "scores.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == list(LEVELS)
    assert table in capsys.readouterr().out + "\n"
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.height > len(LEVELS) * 200
    assert AutoModel.from_pretrained(tmp_path / "model").num_parameters() > 100_000
