"""The memory of a pipeline that answers many photos is measured as often as asked, on the photos of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.pipeline_memory import main, read_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "first.jpg")
    Image.new("L", (30, 40), "white").save(folder / "more" / "second.PNG")
    (folder / "notes.txt").write_text("not a photo")
    return folder


def test_memory_is_measured_at_the_asked_numbers_of_photos(
    saved_model: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = main([*saved_model[:2], "--photos", str(photos), "--calls", "7", "--every", "3"])
    assert list(memory) == [3, 6]
    assert all(mebibytes > 50 for mebibytes in memory.values())
    assert "3 photos: " in capsys.readouterr().out


def test_photos_are_repeated_at_one_size(photos: Path) -> None:
    found = list(read_photos([photos / "first.jpg", photos / "more" / "second.PNG"], 5))
    assert [photo.getpixel((0, 0))[1] for photo in found] == [0, 255, 0, 255, 0]
    assert {(photo.size, photo.mode) for photo in found} == {((640, 480), "RGB")}


def test_a_folder_without_photos_is_refused(
    saved_model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        main([*saved_model[:2], "--photos", str(tmp_path / "empty")])
    assert "there is no file that ends with .jpg" in capsys.readouterr().err
