"""`jmceln benchmark-data shapes`; that of photographs is tested with the writer in tests/processing/photos."""

from __future__ import annotations

from pathlib import Path

import pytest

from processing.data.referring_datasets import load_referring_dataset
from processing.data.run import main
from processing.shapes.dataset import shapes_row


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


@pytest.mark.parametrize("arguments", [[], ["shapes"], ["shapes", "a.parquet", "--image", "3"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "jmceln benchmark-data" in capsys.readouterr().err
