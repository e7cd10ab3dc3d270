"""The command that draws predictions, run in process on a tiny model, and once as a user runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_jmceln import JMCELNModel
from processing import predict, shipped_models
from processing.shapes.dataset import shapes_row
from tests.tiny import tiny_config, tiny_processor


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    JMCELNModel(tiny_config()).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(path)
    return path


def test_writes_overlay_masks_and_table(
    checkpoint: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, masks = tmp_path / "new" / "overlay.png", tmp_path / "masks"
    arguments = ["--model", str(checkpoint), "--image", str(image), "--output", str(output), "--masks-dir", str(masks)]
    arguments += ["--text", "the red star", "--text", "a/b", "--threshold", "0", "--mask-threshold", "0"]
    predict.main([*arguments, "--device", "cpu"])
    with Image.open(output) as overlay:
        assert overlay.width >= 120  # a legend that is wider than the picture is drawn whole
        assert overlay.height > 90  # the legend
        assert not np.array_equal(np.asarray(overlay)[:90, :120], np.asarray(Image.open(image)))
    assert [path.name for path in sorted(masks.iterdir())] == ["01-the-red-star.png", "02-a-b.png"]
    with Image.open(masks / "01-the-red-star.png") as mask:
        assert mask.size == (120, 90)
        assert np.asarray(mask).all()  # threshold 0
    printed = capsys.readouterr().out
    assert "100.0%  the red star" in printed
    assert str(output) in printed


def test_says_when_nothing_is_found(
    checkpoint: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(checkpoint), "--image", str(image), "--output", str(tmp_path / "overlay.png")]
    arguments += ["--text", "star", "--threshold", "1", "--dtype", "bfloat16", "--device", "cpu"]
    predict.main(arguments)
    assert "star  (nothing found)" in capsys.readouterr().out


def test_sixteen_bit_picture_is_drawn_as_it_looks(checkpoint: Path, tmp_path: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    output = tmp_path / "overlay.png"
    arguments = ["--model", str(checkpoint), "--image", str(tmp_path / "deep.png"), "--output", str(output)]
    predict.main([*arguments, "--text", "star", "--threshold", "1", "--device", "cpu"])
    with Image.open(output) as overlay:
        assert np.array_equal(np.asarray(overlay)[:40, :60], np.repeat(gray[..., None], 3, axis=2))


def test_default_model_finds_a_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = shapes_row("test", 2, image_size=96)
    row["image"].save(tmp_path / "scene.png")
    monkeypatch.chdir(tmp_path)
    predict.main(["--image", "scene.png", "--text", row["expressions"][0], "--device", "cpu"])
    assert Path("overlay.png").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--image": "nowhere.jpg"}, "nowhere.jpg"),
        ({"--text": " "}, "blank"),
        ({"--model": "no/such-folder"}, "no/such-folder"),
        ({"--output": "overlay.unknown"}, "unknown"),
        ({"--device": "abacus"}, "abacus"),
    ],
)
def test_errors_are_one_line(
    checkpoint: Path,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"--model": str(checkpoint), "--image": str(image), "--text": "star", "--device": "cpu", **changes}
    with pytest.raises(SystemExit) as stop:
        predict.main([part for pair in options.items() for part in pair])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "arguments", [[], ["--image", "x.png"], ["--image", "x.png", "--text", "a", "--threshold", "2"]]
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        predict.main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_without_a_shipped_checkpoint_it_asks_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shipped_models, "CHECKPOINTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        predict.main(["--image", "x.png", "--text", "a"])
    assert stop.value.code == 2
    assert "no shipped checkpoints: pass --model FOLDER_OR_HUB_ID" in capsys.readouterr().err
