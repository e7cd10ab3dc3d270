"""Commands on a disk that gets full: the error names the folder, and with more room the same command completes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_jmceln import JMCELNModel
from processing import predict
from processing.app.space import write_space
from processing.data import run as benchmark_data
from processing.evaluation import run as evaluate
from processing.export.graphs import ENCODER, write_graphs
from processing.own_data import check
from processing.prediction.batch import FORMATS
from processing.shapes.dataset import shapes_dataset
from processing.training import run as train
from tests.processing.own_data.own_folders import write_good_folder
from tests.processing.training.tiny_run import write_settings
from tests.tiny import tiny_config, tiny_processor


pytestmark = pytest.mark.slow

DISK = 64 * 2**20
SAME_IN_EVERY_RUN = (".png", ".jpg", ".npy", ".jsonl", ".parquet", ".py", ".safetensors")


class SmallDisk:
    """A file system in memory, of which a file takes the rest."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._filler = folder / "filler"

    def leave(self, size: int) -> None:
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(self.folder).free - size)

    def make_room(self) -> None:
        self._filler.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount a file system")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows, photos with annotations, data of one's own, and settings of a training."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    JMCELNModel(tiny_config()).save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    shapes_dataset("test", size=12, image_size=96).to_parquet(folder / "rows.parquet")
    write_good_folder(folder / "own", 3)
    (folder / "photos").mkdir()
    images, annotations = [], []
    for number in (1, 2, 3):
        pixels = np.random.default_rng(number).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number:012d}.png")
        images.append({"id": number, "file_name": f"{number:012d}.png", "height": 90, "width": 120})
        for left in (10, 60):
            corners = [left, 20, left + 40, 20, left + 40, 70, left, 70]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "segmentation": [corners]}
                | {"bbox": [left, 20, 40, 50], "area": 2000, "iscrowd": 0}
            )
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}]}
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "training").mkdir()
    write_settings(folder / "training", max_steps=4, ema_decay=0.9)
    return folder


def run_evaluation(inputs: Path, output: Path) -> None:
    data = ["--dataset", str(inputs / "rows.parquet"), "--split", "test", "--batch-size", "2"]
    more = ["--device", "cpu", "--threshold", "0", "--save-predictions", "--sheet-cases", "2", "--no-progress"]
    evaluate.main(["--model", str(inputs / "model"), *data, *more, "--output-dir", str(output)])


def run_prediction(inputs: Path, output: Path) -> None:
    options = ["--model", str(inputs / "model"), "--device", "cpu", "--threshold", "0", "--mask-threshold", "0.1"]
    images = ["--image", str(inputs / "photos"), "--text", "the star", "--text", "a red circle"]
    predict.main([*options, *images, "--formats", *FORMATS, "--output-dir", str(output)])


def run_one_prediction(inputs: Path, output: Path) -> None:
    options = ["--model", str(inputs / "model"), "--device", "cpu", "--threshold", "0"]
    images = ["--image", str(inputs / "photos" / "000000000001.png"), "--text", "the star"]
    predict.main([*options, *images, "--output", str(output / "overlay.png"), "--masks-dir", str(output / "masks")])


def run_photos(inputs: Path, output: Path) -> None:
    sources = [str(inputs / "instances.json"), str(inputs / "photos"), str(output)]
    benchmark_data.main(["photos", *sources, "--versions", "2", "--paste", "2"])


def run_copied_photos(inputs: Path, output: Path) -> None:
    sources = [str(inputs / "instances.json"), str(inputs / "photos"), str(output)]
    benchmark_data.main(["photos", *sources, "--image-files", "copy"])


def run_shapes(inputs: Path, output: Path) -> None:
    benchmark_data.main(["shapes", str(output / "shapes.parquet"), "--images", "6"])


def run_check(inputs: Path, output: Path) -> None:
    check.main([str(inputs / "own"), "--sheet", str(output / "sheet.png"), "--model", str(inputs / "model")])


def run_training(inputs: Path, output: Path) -> None:
    train.main([str(inputs / "training" / "run.yaml"), "--output_dir", str(output)])


def run_space(inputs: Path, output: Path) -> None:
    write_space(inputs / "model", output)


def pages(folder: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def content(folder: Path) -> dict[str, bytes | None]:
    """What each file holds, if it is the same in every run."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.suffix in SAME_IN_EVERY_RUN else None
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("events.out")
    }


SHARES_OF_ROOM = {
    run_evaluation: (0.1, 0.5, 0.9),
    run_prediction: (0.1, 0.9),
    run_one_prediction: (0.5,),
    run_photos: (0.1, 0.9),
    run_copied_photos: (0.5,),
    run_shapes: (0.5,),
    run_check: (0.5,),
    run_training: (0.01, 0.8),
    run_space: (0.9,),
}


@pytest.mark.parametrize(
    ("command", "share"), [(command, share) for command, shares in SHARES_OF_ROOM.items() for share in shares]
)
def test_a_full_disk_is_named_and_the_next_run_completes(
    command: Callable[[Path, Path], None],
    share: float,
    inputs: Path,
    small_disk: SmallDisk,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    whole, output = tmp_path / "whole", small_disk.folder / "output"
    command(inputs, whole)
    small_disk.leave(int(share * pages(whole)))
    capsys.readouterr()
    with pytest.raises((OSError, SystemExit)) as ended:
        command(inputs, output)
    message = f"{ended.value} {capsys.readouterr().err if ended.type is SystemExit else ''}"
    assert str(output) in message
    assert "disk" in message
    assert " full" in message
    small_disk.make_room()
    command(inputs, output)
    assert content(output) == content(whole)


def test_a_full_disk_does_not_end_the_process_that_exports(small_disk: SmallDisk) -> None:
    # The file writer of torch does, when Python collects it.
    program = torch.export.export(torch.nn.Linear(50, 50), (torch.zeros(2, 50),))
    small_disk.leave(8192)
    with pytest.raises(OSError, match="No space left"):
        write_graphs({ENCODER: program}, small_disk.folder, num_levels=2)
    assert [path.name for path in small_disk.folder.iterdir()] == ["filler"]
