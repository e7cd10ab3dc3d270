"""Models and datasets by their ids on a hub, through the real clients: online, with faults on the way, and offline."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_jmceln import JMCELNModel
from processing import JMCELNProcessor
from processing.data.masks import encode_mask
from processing.data.referring_datasets import load_referring_dataset
from tests.hub_server import FAILING, SHORT, STALLED, TRUNCATED, Hub
from tests.processing.refer_fixtures import World, write_parquet
from tests.test_remote_code import EXPRESSIONS, INSTALLED, REPOSITORY, SCRIPT, picture
from tests.tiny import tiny_config, tiny_processor


pytestmark = pytest.mark.slow

MODEL = "org/tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    torch.manual_seed(0)
    JMCELNModel(tiny_config()).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    picture().save(folder.parent / "picture.png")
    return folder


def environment(hub: Hub, home: Path, **variables: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home / "huggingface"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "OMP_NUM_THREADS": "1",
        **variables,
    }


def run(command: list[str], variables: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def load(hub: Hub, saved: Path, home: Path, name: str = MODEL, **variables: str) -> Any:
    """What a process without this package computes with a model by its id and revision: the tensors, or its errors."""
    output = home / "tensors.safetensors"
    output.unlink(missing_ok=True)
    request = {
        "path": [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")],
        "transformers": INSTALLED,
        "folders": {"hub": name},
        "revision": "v1",
        "image": str(saved.parent / "picture.png"),
        "expressions": EXPRESSIONS,
        "thresholds": {"hub": {"threshold": 0.0}},
        "output": str(output),
    }
    variables = environment(hub, home, **variables)
    completed = run(["-I", "-S", str(SCRIPT), json.dumps(request)], variables, home)
    return load_file(output) if completed.returncode == 0 else completed.stderr


def act(action: str, request: dict[str, Any], hub: Hub, home: Path, **variables: str) -> None:
    variables = environment(hub, home, PYTHONPATH=str(REPOSITORY), **variables)
    completed = run(["-m", "tests.hub_client", action, json.dumps(request)], variables, home)
    assert completed.returncode == 0, completed.stderr


def logits_of(folder: Path) -> torch.Tensor:
    inputs = JMCELNProcessor.from_pretrained(folder)(images=picture(), text=EXPRESSIONS, return_tensors="pt")
    with torch.no_grad():
        return JMCELNModel.from_pretrained(folder).eval()(**inputs).logits


def assert_same_logits(tensors: Any, folder: Path) -> None:
    assert isinstance(tensors, dict), tensors
    torch.testing.assert_close(tensors["hub.logits"], logits_of(folder), rtol=0.0, atol=1e-5)


def publish_two_revisions(hub: Hub, saved: Path, folder: Path, name: str) -> None:
    """`v1` is the saved model. `main` came later, and has other weights and code that cannot be imported."""
    hub.publish("models", name, saved, "v1")
    newer = folder / "newer"
    shutil.copytree(saved, newer)
    weights = {key: tensor + 1 for key, tensor in load_file(newer / WEIGHTS).items() if tensor.is_floating_point()}
    save_file({**load_file(newer / WEIGHTS), **weights}, newer / WEIGHTS, metadata={"format": "pt"})
    (newer / "modeling_jmceln.py").write_text("raise ImportError('this is the code of main')\n", encoding="utf-8")
    hub.publish("models", name, newer, "main")


def cached_weights(home: Path) -> list[Path]:
    return sorted((home / "huggingface").rglob(WEIGHTS))


def test_a_revision_loads_in_spite_of_broken_downloads_and_then_offline(hub, saved, tmp_path):
    publish_two_revisions(hub, saved, tmp_path, MODEL)
    hub.break_next(WEIGHTS, TRUNCATED, STALLED)
    hub.break_next("config.json", TRUNCATED)
    assert_same_logits(load(hub, saved, tmp_path), saved)
    assert not any(hub.faults.values())
    assert [path.read_bytes() for path in cached_weights(tmp_path)] == [(saved / WEIGHTS).read_bytes()]

    asked = len(hub.requests)
    assert_same_logits(load(hub, saved, tmp_path, HF_HUB_OFFLINE="1"), saved)
    assert len(hub.requests) == asked


def test_a_download_that_fails_is_named_and_leaves_nothing_that_loads(hub, saved, tmp_path):
    hub.publish("models", "org/failing", saved)
    hub.break_next(WEIGHTS, FAILING, SHORT)
    output = tmp_path / "attempts.json"
    act("load", {"name": "org/failing", "output": str(output)}, hub, tmp_path)
    (failing, after_failing), (short, after_short) = json.loads(output.read_text("utf-8"))
    assert "the server is not well" in failing
    assert "Consistency check failed" in short
    assert after_failing == after_short == 0
    assert [path.read_bytes() for path in cached_weights(tmp_path)] == [(saved / WEIGHTS).read_bytes()]


def test_what_is_pushed_loads_from_there(hub, saved, tmp_path):
    act("push", {"folder": str(saved), "name": "org/pushed"}, hub, tmp_path, HF_TOKEN="hf_of_this_test")
    repository = hub.repositories["models", "org/pushed"]
    files = repository.commits[repository.references["main"]]
    assert files[WEIGHTS] == (saved / WEIGHTS).read_bytes()
    assert {path.name for path in saved.iterdir()} <= set(files)
    repository.references["v1"] = repository.references["main"]
    assert_same_logits(load(hub, saved, tmp_path, "org/pushed"), saved)


def push_until(hub: Hub, saved: Path, home: Path, name: str, place: str, times: int) -> None:
    """Pushes in a process that is killed when the hub gets the request number `times` with `place` in its path."""
    met = []

    def kill_there(request: str) -> bool:
        met.extend([request] * (place in request))
        if len(met) < times:
            return False
        client.kill()
        client.wait()
        return True

    command = [sys.executable, "-m", "tests.hub_client", "push", json.dumps({"folder": str(saved), "name": name})]
    variables = environment(hub, home, PYTHONPATH=str(REPOSITORY), HF_TOKEN="hf_of_this_test")
    hub.on_request = kill_there
    try:
        client = subprocess.Popen(command, cwd=home, env=variables, stderr=subprocess.DEVNULL)
        assert client.wait(300) == -signal.SIGKILL
    finally:
        hub.on_request = None


def test_a_killed_push_leaves_whole_commits_and_the_next_one_completes(hub, saved, tmp_path):
    name = "org/killed"
    hub.large_files.clear()  # or nothing is left to upload
    for place, times, model_is_there in (
        ("PUT /large-files/", 1, False),
        ("/commit/", 1, False),
        ("/commit/", 2, True),
    ):
        push_until(hub, saved, tmp_path, name, place, times)
        repository = hub.repositories["models", name]
        files = repository.commits[repository.references["main"]]
        assert all((file in files) == model_is_there for file in (WEIGHTS, "config.json", "modeling_jmceln.py"))
        assert "tokenizer.json" not in files
    repository.references["v1"] = repository.references["main"]
    refused = load(hub, saved, tmp_path, name)  # the model alone
    assert isinstance(refused, str)
    assert name in refused

    act("push", {"folder": str(saved), "name": name}, hub, tmp_path, HF_TOKEN="hf_of_this_test")
    repository.references["v1"] = repository.references["main"]
    assert_same_logits(load(hub, saved, tmp_path, name), saved)


def test_published_datasets_by_their_ids_and_then_offline(hub, tmp_path):
    world = World(tmp_path / "coco")
    folders = {
        "jxu124/refcoco-benchmark": ("refcoco_plus_unc_val", world.benchmark_rows()),
        "jxu124/refcoco": ("validation", world.by_path_rows()),
        "lmms-lab/RefCOCOplus": ("val", world.lmms_lab_rows()),
        "moondream/refcoco-m": ("validation", world.refcoco_m_rows(encode_mask)),
    }
    sources, expected = [], []
    for name, (split, (rows, features)) in folders.items():
        # Not where the processes run, which would take the id for the path of this folder.
        folder = write_parquet(tmp_path / "local" / name, split, rows, features)
        hub.publish("datasets", name, folder)
        options: dict[str, Any] = {"split": split if name.endswith("benchmark") else "val"}
        if name == "jxu124/refcoco":
            options["image_folder"] = str(world.folder)
        local = load_referring_dataset(folder, **options, dataset_name=name, on_bad_row="raise")
        expected.append([{**row, "image": list(row["image"].size)} for row in local])
        sources.append({"name_or_path": name, **options})
    assert all(expected)
    output = tmp_path / "rows.json"
    files = sorted(path.name for path in (tmp_path / "local" / "moondream").rglob("*.parquet"))
    hub.break_next(files[0], TRUNCATED)
    streams = [{**source, "streaming": True} for source in sources]
    act("rows", {"sources": [*sources, *streams], "output": str(output)}, hub, tmp_path)
    assert not any(hub.faults.values())
    assert json.loads(output.read_text("utf-8")) == [*expected, *expected]

    asked = len(hub.requests)
    output.unlink()
    act("rows", {"sources": sources, "output": str(output)}, hub, tmp_path, HF_HUB_OFFLINE="1")
    assert json.loads(output.read_text("utf-8")) == expected
    assert len(hub.requests) == asked
