"""scripts/evaluate.py as a user runs it, with a small JMCELN."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from modeling_jmceln import JMCELNModel
from processing.shapes import shapes_dataset
from processing.word_tokenizer import build_word_tokenizer
from scripts import evaluate
from tests.tiny import tiny_config, tiny_processor


REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = 12


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """Untrained, so that its masks are noise: whatever changes the numbers, shows."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    processor = tiny_processor()
    config = tiny_config()
    config.text_config.vocab_size = len(processor.tokenizer)
    JMCELNModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def arguments(model_folder, output, *more):
    return [
        *("--model", str(model_folder), "--dataset", "shapes", "--split", "test", "--device", "cpu"),
        *("--shapes-images", str(IMAGES), "--shapes-image-size", "96", "--presence-threshold", "0"),
        *("--output-dir", str(output), "--no-progress", *more),
    ]


def without_the_run(results):
    return {name: value for name, value in results.items() if name not in ("date", "run")}


def test_everything_is_written(model_folder, tmp_path, capsys):
    more = ("--controls", "--save-predictions", "--sheet-cases", "2", "--batch-size", "2")
    results = evaluate.main(arguments(model_folder, tmp_path, *more))
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["data"]["images"] == IMAGES
    assert results["data"]["parts"] == {"shapes/test": IMAGES}
    assert results["model"]["parameters"] > 0
    assert len(results["model"]["weights_sha256"]) == 64
    assert results["settings"]["presence_threshold"] == 0
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


def test_the_same_command_goes_on_and_another_is_refused(model_folder, tmp_path):
    first = evaluate.main(arguments(model_folder, tmp_path, "--sheet-cases", "0"))
    second = evaluate.main(arguments(model_folder, tmp_path, "--sheet-cases", "0"))
    assert second["run"]["expressions_scored_by_main_process"] == 0
    assert without_the_run(first) == without_the_run(second)
    with pytest.raises(ValueError, match="journal of another evaluation"):
        evaluate.main(arguments(model_folder, tmp_path, "--sheet-cases", "0", "--threshold", "0.6"))
    third = evaluate.main(arguments(model_folder, tmp_path, "--sheet-cases", "0", "--threshold", "0.6", "--overwrite"))
    assert third["scores"] != first["scores"]


def test_protocol_lavt_is_named_in_the_results(model_folder, tmp_path):
    more = ("--protocol", "lavt", "--image-size", "64", "--sheet-cases", "1", "--limit", "2")
    results = evaluate.main(arguments(model_folder, tmp_path, *more))
    assert results["settings"]["protocol"] == "lavt"
    assert "480x480" in results["settings"]["protocol_description"]
    assert results["data"]["images"] == 2
    assert results["scores"]["N-acc"] is None
    with Image.open(tmp_path / "sheet.png") as sheet:
        sheet.verify()


def test_datasets_of_ones_own(model_folder, tmp_path):
    rows = shapes_dataset("test", size=IMAGES, image_size=96)
    rows.to_parquet(tmp_path / "rows.parquet")
    from_shapes = evaluate.main(arguments(model_folder, tmp_path / "shapes", "--sheet-cases", "0"))
    for name, more in {"file": (), "stream": ("--streaming",)}.items():
        results = evaluate.main(
            [
                *("--model", str(model_folder), "--dataset", str(tmp_path / "rows.parquet"), "--split", "train"),
                *("--presence-threshold", "0", "--device", "cpu", "--output-dir", str(tmp_path / name)),
                *("--no-progress", "--sheet-cases", "0", *more),
            ]
        )
        assert results["scores"] == from_shapes["scores"]
        assert results["data"]["annotations_sha256"] == from_shapes["data"]["annotations_sha256"]


def test_another_vocabulary_and_half_precision(tmp_path):
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer(["red", "circle"])
    config = tiny_config()
    config.text_config.vocab_size = len(tokenizer)
    processor = tiny_processor()
    processor.tokenizer = tokenizer
    JMCELNModel(config).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    more = ("--dtype", "bfloat16", "--limit", "2", "--sheet-cases", "0")
    results = evaluate.main(arguments(tmp_path / "model", tmp_path / "results", *more))
    assert results["model"]["dtype"] == "bfloat16"
    assert results["scores"]["expressions"] > 0


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
def test_killed_and_started_again_it_gives_the_same_result(model_folder, tmp_path):
    more = ("--sheet-cases", "0", "--controls", "another image", "--shapes-images", "60")
    process = run_script("scripts/evaluate.py", *arguments(model_folder, tmp_path / "killed", *more), wait=False)
    journal = tmp_path / "killed" / "journal" / "process-00000.jsonl"
    deadline = time.monotonic() + 200
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 5):
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = journal.read_bytes().count(b"\n") - 1
    assert 5 <= finished < 60
    resumed = evaluate.main(arguments(model_folder, tmp_path / "killed", *more))
    unbroken = evaluate.main(arguments(model_folder, tmp_path / "unbroken", *more))
    assert resumed["run"]["expressions_scored_by_main_process"] < unbroken["scores"]["expressions"]
    assert without_the_run(resumed) == without_the_run(unbroken)


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(model_folder, tmp_path):
    more = ("--sheet-cases", "0", "--controls", "another image")
    one = evaluate.main(arguments(model_folder, tmp_path / "one", *more))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    run_script(*launcher, "scripts/evaluate.py", *arguments(model_folder, tmp_path / "two", *more))
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["run"]["processes"] == 2
    assert two["run"]["expressions_scored_by_main_process"] < one["scores"]["expressions"]
    assert without_the_run(two) == without_the_run(json.loads(json.dumps(one)))
