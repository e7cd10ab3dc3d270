"""`jmceln check-data`: its sheet, its words, and its exit code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jmceln import main
from tests.processing.own_data.own_folders import write_good_folder
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 5
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_good_folder_is_shown(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_good_folder(tmp_path / "data", count=3)
    with (folder / "pairs.csv").open("a", encoding="utf-8") as table:
        table.write("photos/0.png,none,the large red zebra left of the zebu\n")
    main(["check-data", str(folder), "--sheet", str(tmp_path / "sheet.png"), "--model", model])
    printed = capsys.readouterr().out
    assert "3 images, 9 masks, 10 expressions" in printed
    assert "does not know 2 of 32 words (6.2%): zebra, zebu" in printed
    assert "1 expressions are longer than the 5 tokens" in printed
    assert "no problems found" in printed
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    is_outline = (pixels[..., 0] > 240) & (pixels[..., 1] < 30) & (pixels[..., 2] > 240)
    assert is_outline.sum() > 100


def test_what_is_wrong_is_listed_and_the_exit_code_says_so(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_good_folder(tmp_path / "data", count=3)
    (folder / "masks" / "1-left.png").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["check-data", str(folder), "--sheet", str(tmp_path / "sheet.png"), "--model", model])
    assert stop.value.code == 1
    printed = capsys.readouterr().out
    assert "problems: 1" in printed
    assert "pairs.csv, line 5: there is no file 'masks/1-left.png'" in printed


def test_a_folder_without_data_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["check-data", str(tmp_path)])
    assert stop.value.code == 1
    assert "neither a table" in capsys.readouterr().err
