"""Frames of video files: in order, upright, one by one, and named where a file is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_jmceln import JMCELNModel
from processing import predict
from processing.prediction.video import read_frames, upright
from tests.tiny import tiny_config, tiny_processor


av = pytest.importorskip("av")

SHADES = (30, 90, 150, 210)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Four frames of one gray each."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in SHADES:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_frames_come_in_order(video: Path) -> None:
    frames = list(read_frames(str(video)))
    assert [number for number, _ in frames] == [0, 1, 2, 3]
    for (_, pixels), shade in zip(frames, SHADES, strict=True):
        assert pixels.shape == (48, 64, 3)
        assert abs(pixels.astype(int) - shade).max() < 12
    assert [number for number, _ in read_frames(str(video), step=3)] == [0, 3]


def test_frames_are_turned_as_the_file_asks() -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert upright(pixels, 90)[..., 0].tolist() == [[2, 5], [1, 4], [0, 3]]
    assert upright(pixels, -90)[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]
    assert upright(pixels, 0) is not None
    assert np.array_equal(upright(pixels, 0), pixels)


def test_predict_writes_masks_of_frames_and_names_a_broken_video(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, output = tmp_path / "model", tmp_path / "found"
    torch.manual_seed(0)
    JMCELNModel(tiny_config()).save_pretrained(checkpoint)
    tiny_processor().save_pretrained(checkpoint)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    options = ["--model", str(checkpoint), "--device", "cpu", "--output-dir", str(output), "--text", "the star"]
    arguments = [*options, "--image", str(broken), str(video), "--frame-step", "2"]
    with pytest.raises(SystemExit) as stop:
        predict.main(arguments)
    assert stop.value.code == 1
    assert f"{broken}: the video cannot be read" in capsys.readouterr().err
    entries = [json.loads(line) for line in (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["image"] for entry in entries] == [f"{video}#frame=0", f"{video}#frame=2"]
    assert all(entry["size"] == [48, 64] for entry in entries)
    assert len(list((output / "masks").glob("clip-frame000002-*.png"))) == 1


def test_a_video_wants_a_folder(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        predict.main(["--image", str(video), "--text", "the star"])
    assert stop.value.code == 2
    assert "--output-dir" in capsys.readouterr().err
