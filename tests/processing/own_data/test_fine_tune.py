"""`jmceln fine-tune`: from a folder to a new model, with scores and a picture of before and after."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jmceln import main
from modeling_jmceln import JMCELNModel
from tests.processing.own_data.own_folders import write_good_folder
from tests.tiny import tiny_config, tiny_processor


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    JMCELNModel(tiny_config()).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora", [(), ("--lora", "2")])
def test_from_a_folder_to_a_model(
    model: Path, tmp_path: Path, lora: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_good_folder(tmp_path / "data", count=5)
    (folder / "masks" / "1-left.png").unlink()
    output = tmp_path / "new"
    arguments = ["fine-tune", str(folder), "--model", str(model), "--output-dir", str(output), *lora]
    arguments += ["--num_train_epochs", "2", "--warmup_steps", "0", "--disable_tqdm", "true"]
    main([*arguments, "--learning_rate", "1e-3"])
    printed = capsys.readouterr().out
    assert "problems: 1; these entries are left out" in printed
    assert "held out: 1 photos, 3 expressions" in printed
    for line in ("before: mIoU", "after:  mIoU"):
        assert line in printed
    # Not from the files: transformers 5.0 gives some weights their old names when it saves a loaded model.
    before, after = (JMCELNModel.from_pretrained(folder).state_dict() for folder in (model, output))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    settings = json.loads((output / "settings.json").read_text(encoding="utf-8"))
    assert settings["training"]["freeze_batch_norm"]
    assert settings["training"]["early_stopping_patience"] == 5
    with Image.open(output / "before_after.png") as picture:
        assert picture.width > 2 * 3 * 200
        assert np.asarray(picture).std() > 10
    photo, found = str(folder / "photos" / "1.png"), str(tmp_path / "found.png")
    main(["predict", "--model", str(output), "--image", photo, "--text", "the star", "--output", found])


@pytest.mark.parametrize(
    ("further", "said"),
    [
        (["--learning_rat", "1"], "did you mean `learning_rate`?"),
        (["--validation-share", "0"], "no image is left in the split 'val'"),
        (["--model", "no/model"], "no/model"),
    ],
)
def test_errors_are_one_line(
    model: Path, tmp_path: Path, further: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_good_folder(tmp_path / "data", count=3)
    with pytest.raises(SystemExit) as stop:
        main(["fine-tune", str(folder), "--model", str(model), "--output-dir", str(tmp_path / "new"), *further])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
