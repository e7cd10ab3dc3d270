"""`jmceln evaluate` as a user runs it, with a small JMCELN."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from modeling_jmceln import JMCELNModel
from processing.evaluation import run as evaluate
from processing.shapes.dataset import shapes_dataset
from tests.tiny import tiny_config, tiny_processor


REPOSITORY = Path(__file__).resolve().parents[3]
ROWS, IMAGES = 60, 10


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """Untrained, so that its masks are noise: whatever changes the numbers, shows."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    processor = tiny_processor()
    config = tiny_config()
    config.text_config.vocab_size = len(processor.tokenizer)
    model = JMCELNModel(config)
    for stage in model.cascade.stages:
        # A new model predicts nothing but background.
        torch.nn.init.constant_(stage.predictor.bias.bias, 1.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    shapes_dataset("test", size=ROWS, image_size=96).to_parquet(path)
    return path


@pytest.fixture
def arguments(model_folder, rows_file):
    def make(output, *more):
        return [
            *("--model", str(model_folder), "--dataset", str(rows_file), "--split", "test", "--device", "cpu"),
            *("--limit", str(IMAGES), "--threshold", "0", "--output-dir", str(output), "--no-progress"),
            *more,
        ]

    return make


def without_the_run(results):
    return {name: value for name, value in results.items() if name not in ("date", "run")}


def test_everything_is_written(arguments, tmp_path, capsys):
    more = ("--controls", "--save-predictions", "--sheet-cases", "2", "--batch-size", "2")
    results = evaluate.main(arguments(tmp_path, *more))
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["data"]["images"] == IMAGES
    assert results["data"]["parts"] == {"shapes/test": IMAGES}
    assert results["model"]["parameters"] > 0
    assert len(results["model"]["weights_sha256"]) == 64
    assert results["settings"]["threshold"] == 0
    assert results["run"]["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"appearance", "position", "relation"} <= set(results["scores"]["groups"])
    assert list(results["controls"]) == ["the object", "shuffled words", "another image"]
    assert 0 < results["scores"]["mIoU"] < 1

    table = (tmp_path / "results.md").read_text()
    assert table in capsys.readouterr().out
    assert f"{100 * results['scores']['mIoU']:.2f}" in table
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == results["data"]["expressions"]
    mean = sum(json.loads(line)["iou"] for line in lines) / len(lines)
    assert mean == pytest.approx(results["scores"]["gIoU"], rel=1e-12)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 500


def test_the_same_command_goes_on_and_another_is_refused(arguments, tmp_path):
    first = evaluate.main(arguments(tmp_path, "--sheet-cases", "0"))
    second = evaluate.main(arguments(tmp_path, "--sheet-cases", "0"))
    assert second["run"]["expressions_scored_by_main_process"] == 0
    assert without_the_run(first) == without_the_run(second)
    for option in (("--threshold", "0.6"), ("--on-bad-row", "skip")):
        with pytest.raises(ValueError, match="journal of another evaluation"):
            evaluate.main(arguments(tmp_path, "--sheet-cases", "0", *option))
    third = evaluate.main(arguments(tmp_path, "--sheet-cases", "0", "--threshold", "0.6", "--overwrite"))
    assert third["scores"] != first["scores"]


def test_weights_that_are_not_finite_are_refused_before_anything_is_written(arguments, model_folder, tmp_path):
    broken = shutil.copytree(model_folder, tmp_path / "broken")
    model = JMCELNModel.from_pretrained(broken)
    torch.nn.init.constant_(model.text_norm.bias, float("nan"))
    model.save_pretrained(broken)
    with pytest.raises(ValueError, match=r"broken has weights that are NaN or infinite, in 1 .*`text_norm.bias`"):
        evaluate.main(arguments(tmp_path / "results", "--model", str(broken)))
    assert list((tmp_path / "results").rglob("*.json*")) == []


def test_protocol_lavt_is_named_in_the_results(arguments, tmp_path):
    more = ("--protocol", "lavt", "--image-size", "64", "--sheet-cases", "1", "--limit", "2")
    results = evaluate.main(arguments(tmp_path, *more))
    assert results["settings"]["protocol"] == "lavt"
    assert "480x480" in results["settings"]["protocol_description"]
    assert results["data"]["images"] == 2
    assert results["scores"]["N-acc"] is None
    with Image.open(tmp_path / "sheet.png") as sheet:
        sheet.verify()


def test_shapes_files_and_streams_give_the_same(model_folder, arguments, tmp_path):
    (tmp_path / "rows").mkdir()
    shapes_dataset("test", size=3, image_size=96).to_parquet(tmp_path / "rows" / "test.parquet")
    all_results = []
    for name, data in {
        "shapes": ("shapes", "--shapes-images", "3", "--shapes-image-size", "96"),
        "folder": (str(tmp_path / "rows"),),
        "stream": (str(tmp_path / "rows"), "--streaming"),
    }.items():
        all_results.append(
            evaluate.main(
                [
                    *("--model", str(model_folder), "--split", "test", "--threshold", "0"),
                    *("--device", "cpu", "--output-dir", str(tmp_path / name), "--no-progress"),
                    *("--sheet-cases", "0", "--dataset", *data),
                ]
            )
        )
    first = all_results[0]
    assert first["data"]["images"] == 3
    for other in all_results[1:]:
        assert other["scores"] == first["scores"]
        assert other["data"]["annotations_sha256"] == first["data"]["annotations_sha256"]


def test_half_precision(arguments, tmp_path):
    more = ("--sheet-cases", "0", "--limit", "2")
    whole = evaluate.main(arguments(tmp_path / "float32", *more))
    half = evaluate.main(arguments(tmp_path / "bfloat16", *more, "--dtype", "bfloat16"))
    assert half["model"]["dtype"] == "bfloat16"
    assert half["model"]["weights_sha256"] != whole["model"]["weights_sha256"]
    assert half["scores"]["oIoU"] == pytest.approx(whole["scores"]["oIoU"], abs=0.02)


def test_default_output_folder():
    parsed = evaluate.parse_arguments(["--model", "runs/best", "--dataset", "a/refcoco", "--split", "val"])
    assert evaluate.default_output_folder(parsed) == Path("outputs/evaluation/best/refcoco-val-original")


def run_script(*command, wait=True):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if not wait:
        return process
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output.decode()
    return process


@pytest.mark.slow
def test_killed_and_started_again_it_gives_the_same_result(arguments, tmp_path):
    more = ("--sheet-cases", "0", "--controls", "another image", "--limit", str(ROWS))
    process = run_script("scripts/evaluate.py", *arguments(tmp_path / "killed", *more), wait=False)
    journal = tmp_path / "killed" / "journal" / "process-00000.jsonl"
    deadline = time.monotonic() + 200
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 5):
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = journal.read_bytes().count(b"\n") - 1
    assert 5 <= finished < ROWS
    resumed = evaluate.main(arguments(tmp_path / "killed", *more))
    unbroken = evaluate.main(arguments(tmp_path / "unbroken", *more))
    assert resumed["run"]["expressions_scored_by_main_process"] < unbroken["scores"]["expressions"]
    assert without_the_run(resumed) == without_the_run(unbroken)


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(arguments, tmp_path):
    more = ("--sheet-cases", "0", "--controls", "another image")
    one = evaluate.main(arguments(tmp_path / "one", *more))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    run_script(*launcher, "scripts/evaluate.py", *arguments(tmp_path / "two", *more))
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["run"]["processes"] == 2
    assert two["run"]["expressions_scored_by_main_process"] < one["scores"]["expressions"]
    assert without_the_run(two) == without_the_run(json.loads(json.dumps(one)))
