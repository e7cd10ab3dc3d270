"""Many photos into a folder: every source, every format, going on after a kill, and broken photos."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_jmceln import JMCELNModel
from processing import predict
from processing.data.masks import decode_mask, encode_mask, polygons_to_rle
from processing.prediction.batch import FORMATS, coco_annotations
from processing.prediction.polygons import mask_to_polygons
from processing.prediction.requests import Request, UnusableRequest, read_requests
from tests.tiny import tiny_config, tiny_processor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    JMCELNModel(tiny_config()).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in (10, 2):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"frame{number}.png")
    return folder


def run(checkpoint: Path, output: Path, *arguments: str) -> int:
    options = ["--model", str(checkpoint), "--device", "cpu", "--output-dir", str(output), "--threshold", "0"]
    try:
        predict.main([*options, "--mask-threshold", "0.1", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_format_says_the_same(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "found"
    assert run(checkpoint, output, "--image", str(photos), "--text", "the star", "--formats", *FORMATS) == 0
    entries = lines(output)
    assert [Path(entry["image"]).name for entry in entries] == ["frame2.png", "frame10.png"]
    annotations = json.loads((output / "annotations.json").read_text(encoding="utf-8"))
    assert len(annotations["images"]) == 2
    for entry in entries:
        mask = decode_mask(entry["results"][0]["segmentation"])
        assert mask.shape == (40, 60)
        assert mask.any()
        stem = Path(entry["image"]).stem
        (png,) = (output / "masks").glob(f"{stem}-*-01-the-star.png")
        assert np.array_equal(np.asarray(Image.open(png)) > 0, mask)
        (cut,) = (output / "cut-outs").glob(f"{stem}-*-01-the-star.png")
        assert np.array_equal(np.asarray(Image.open(cut))[..., 3] > 0, mask)
        (saved,) = (output / "probabilities").glob(f"{stem}-*-01-the-star.npy")
        assert ((np.load(saved) > 0.1) == mask).mean() > 0.999  # half precision
        (overlay,) = (output / "overlays").glob(f"{stem}-*.png")
        assert Image.open(overlay).size == (60, 40)


def test_a_damaged_line_is_named_and_its_image_done_again(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found"
    arguments = ("--image", str(photos / "*.png"), "--text", "the star")
    assert run(checkpoint, output, *arguments) == 0
    whole = (output / "predictions.jsonl").read_text(encoding="utf-8")
    first, second = whole.splitlines(keepends=True)
    (output / "predictions.jsonl").write_text(first[:20] + "\n" + second, encoding="utf-8")
    capsys.readouterr()
    assert run(checkpoint, output, *arguments) == 0
    captured = capsys.readouterr()
    assert "1 images done, 1 done before, 0 failed" in captured.out
    assert "predictions.jsonl, line 1 is damaged" in captured.err
    assert (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[1:] == [second, first]


def test_it_goes_on_where_it_stopped(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found"
    arguments = ("--image", str(photos / "*.png"), "--text", "the star")
    assert run(checkpoint, output, *arguments) == 0
    whole = (output / "predictions.jsonl").read_text(encoding="utf-8")
    first, second = whole.splitlines(keepends=True)
    (output / "predictions.jsonl").write_text(first + second[:50], encoding="utf-8")  # as a kill leaves it
    capsys.readouterr()
    assert run(checkpoint, output, *arguments) == 0
    assert "1 images done, 1 done before, 0 failed" in capsys.readouterr().out
    assert (output / "predictions.jsonl").read_text(encoding="utf-8") == whole
    assert run(checkpoint, output, *arguments, "--formats", "overlays") == 1
    assert "another formats" in capsys.readouterr().err


def test_a_broken_photo_is_named_and_counted(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "frame5.png").write_bytes(b"no picture")
    assert run(checkpoint, tmp_path / "found", "--image", str(photos), "--text", "the star") == 1
    captured = capsys.readouterr()
    assert "frame5.png" in captured.err
    assert "2 images done, 1 failed" in captured.out
    assert len(lines(tmp_path / "found")) == 2


def test_lines_of_json_from_standard_input(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [{"image": "frame2.png", "expressions": ["the star"] * 9 + ["the circle"]}, {"image": "frame10.png"}]
    monkeypatch.chdir(photos)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(json.dumps, texts))))
    assert run(checkpoint, tmp_path / "found", "--image", "-", "--text", "the square") == 0
    first, second = lines(tmp_path / "found")
    assert [result["expression"] for result in first["results"]] == texts[0]["expressions"]
    assert second["expressions"] == ["the square"]


def test_paths_in_a_file_of_lines_are_relative_to_it(photos: Path) -> None:
    (photos / "questions.jsonl").write_text('{"image": "frame2.png", "text": "the star"}\n\n', encoding="utf-8")
    requests = list(read_requests([str(photos / "questions.jsonl")], []))
    assert requests == [Request(str(photos / "frame2.png"), ("the star",))]


def test_lines_that_ask_nothing_are_named_and_passed_over(tmp_path: Path) -> None:
    lines = [
        ("{", "not JSON"),
        ('{"photo": "a.png"}', "it must be like"),
        ('{"image": "a.png", "expressions": [1]}', "must be strings"),
        ('{"image": "a.png"}', "pass --text"),
    ]
    good = '{"image": "a.png", "text": "it"}'
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join([*(line for line, _ in lines), good]), encoding="utf-8")
    *unusable, last = read_requests([str(path)], [])
    assert last == Request(str(tmp_path / "a.png"), ("it",))
    for number, (request, (_, said)) in enumerate(zip(unusable, lines, strict=True), start=1):
        assert isinstance(request, UnusableRequest)
        assert request.place == f"line {number} of {path}"
        assert said in request.reason


def test_a_malformed_line_is_counted_and_the_exit_code_says_so(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = photos / "questions.jsonl"
    path.write_text('{"image": "frame2.png",\n{"image": "frame10.png", "text": "the star"}\n', encoding="utf-8")
    assert run(checkpoint, tmp_path / "found", "--image", str(path)) == 1
    captured = capsys.readouterr()
    assert f"line 1 of {path}: not JSON" in captured.err
    assert "1 images done, 1 failed" in captured.out


def test_a_phrase_is_encoded_once_for_all_images(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    encode = JMCELNModel.get_text_features
    monkeypatch.setattr(
        JMCELNModel,
        "get_text_features",
        lambda self, *args, **kwargs: calls.append(1) or encode(self, *args, **kwargs),
    )
    assert run(checkpoint, tmp_path / "found", "--image", str(photos), "--text", "the star") == 0
    assert len(lines(tmp_path / "found")) == 2
    assert len(calls) == 1


@pytest.mark.parametrize("source", ["", "*.png"])
def test_a_folder_or_pattern_without_photos_is_named(tmp_path: Path, source: str) -> None:
    with pytest.raises(ValueError, match=r"no image in the folder|no file matches"):
        list(read_requests([str(tmp_path / source)], ["the star"]))


def test_polygons_cover_exactly_the_mask() -> None:
    generator = np.random.default_rng(0)
    with_holes = 0
    for density in np.linspace(0.05, 0.8, 60):
        mask = generator.random((12, 15)) < density
        polygons = mask_to_polygons(mask)
        if polygons is None:
            with_holes += 1
        elif mask.any():
            assert np.array_equal(decode_mask(polygons_to_rle(polygons, 12, 15)), mask)
    assert 5 < with_holes < 55


def test_annotations_keep_holes_and_leave_out_what_is_absent() -> None:
    ring = np.ones((5, 6), dtype=bool)
    ring[2, 2:4] = False
    assert mask_to_polygons(ring) is None
    square = np.zeros((5, 6), dtype=bool)
    square[1:3, 2:5] = True
    assert mask_to_polygons(square) == [[2, 1, 5, 1, 5, 3, 2, 3]]
    results = [
        {"expression": name, "score": 0.5, "area": int(mask.sum()), "segmentation": encode_mask(mask)}
        for name, mask in (("ring", ring), ("nothing", np.zeros_like(ring)), ("square", square))
    ]
    coco = coco_annotations([{"image": "a.png", "size": [5, 6], "results": results}])
    assert [annotation["expression"] for annotation in coco["annotations"]] == ["ring", "square"]
    assert coco["annotations"][0]["segmentation"]["size"] == [5, 6]
    assert coco["annotations"][1]["bbox"] == [2, 1, 3, 2]


def test_several_photos_want_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        predict.main(["--image", "a.png", "b.png", "--text", "the star"])
    assert stop.value.code == 2
    assert "--output-dir" in capsys.readouterr().err
