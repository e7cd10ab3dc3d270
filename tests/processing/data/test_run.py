"""`jmceln benchmark-data shapes`; that of photographs is tested with the writer in tests/processing/photos."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from processing.data.referring_datasets import load_referring_dataset
from processing.data.run import main
from processing.shapes.dataset import shapes_row
from tests.processing.faults import assert_is_killed, kill_this_process


def test_writes_the_benchmark_as_a_file_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "shapes.parquet"
    main(
        [
            *("shapes", str(path), "--split", "validation", "--images", "3", "--image-size", "64"),
            *("--levels", "position", "chain2"),
        ]
    )
    rows = load_referring_dataset(path, "validation", on_bad_row="raise")
    for index, row in enumerate(rows):
        made = shapes_row("validation", index, image_size=64, levels=("position", "chain2"))
        assert row["expressions"] == made["expressions"]
        assert row["image"].tobytes() == made["image"].tobytes()
        assert row["masks"] == made["masks"]
    assert f"3 images, {sum(map(len, rows['expressions']))} expressions" in capsys.readouterr().out


def test_scenes_that_a_kill_left_are_not_read_and_the_next_run_writes_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "test.parquet"
    arguments = ["shapes", str(path), "--images", "3", "--image-size", "64"]
    to_parquet = datasets.Dataset.to_parquet

    def killed(self: datasets.Dataset, unfinished: Path) -> None:
        to_parquet(self.select([0]), unfinished)
        kill_this_process()

    with monkeypatch.context() as patched:
        patched.setattr(datasets.Dataset, "to_parquet", killed)
        assert_is_killed(lambda: main(arguments))
    assert any(tmp_path.iterdir())
    for name in (path, tmp_path):
        with pytest.raises((ValueError, OSError)):
            load_referring_dataset(name, "test")
    main(arguments)
    for name in (path, tmp_path):
        assert len(load_referring_dataset(name, "test", on_bad_row="raise")) == 3


@pytest.mark.parametrize("arguments", [[], ["shapes"], ["shapes", "a.parquet", "--image", "3"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "jmceln benchmark-data" in capsys.readouterr().err
