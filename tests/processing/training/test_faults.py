"""What ends a run early costs it what was done since its last checkpoint, and nothing else."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from processing import folder_lock
from processing.training import run as train
from processing.training.checkpoints import newest_intact_checkpoint
from tests.processing.faults import full_disk
from tests.processing.training.tiny_run import write_settings


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the settings of a run, and a run of them that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs")
    write_settings(folder, ema_decay=0.9, max_steps=4, eval_steps=2)
    train.main([str(folder / "run.yaml"), "--output_dir", str(folder / "whole")])
    return folder


def before_step(monkeypatch, step, action):
    """Lets `action` happen once, when training has taken `step` steps."""
    training_step, done = Trainer.training_step, []

    def disturbed(self, *args, **kwargs):
        if self.state.global_step == step and not done:
            done.append(step)
            action()
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", disturbed)


def steps_of(folder):
    state = json.loads((folder / "trainer_state.json").read_text())
    return [(entry["step"], entry["loss"]) for entry in state["log_history"] if "loss" in entry]


def assert_goes_on_to_the_same_end(folder, command):
    broken, whole = Path(command[-1]), folder / "whole"
    assert not (broken / WEIGHTS).exists()
    assert not (broken / "all_results.json").exists()
    train.main(command)
    assert steps_of(broken) == steps_of(whole)
    first, second = load_file(broken / WEIGHTS), load_file(whole / WEIGHTS)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    results = [json.loads((run / "all_results.json").read_text()) for run in (broken, whole)]
    assert results[0]["eval_made_mIoU"] == results[1]["eval_made_mIoU"]


def test_sigterm_ends_a_run_with_a_checkpoint_of_its_last_step(folder, tmp_path, monkeypatch):
    command = [str(folder / "run.yaml"), "--output_dir", str(tmp_path / "run")]
    handler = signal.getsignal(signal.SIGTERM)
    before_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        train.main(command)
    assert ended.value.code == 128 + signal.SIGTERM
    assert newest_intact_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-3")
    assert signal.getsignal(signal.SIGTERM) == handler
    assert_goes_on_to_the_same_end(folder, command)


def test_a_full_disk_is_named_and_costs_no_earlier_checkpoint(folder, tmp_path, monkeypatch):
    command = [str(folder / "run.yaml"), "--output_dir", str(tmp_path / "run")]
    save = Trainer._save_checkpoint

    def save_on_full_disk(self, *args, **kwargs):
        # Room for the weights, and not for all that comes after them.
        room = 2**40 if self.state.global_step == 2 else (folder / "whole" / WEIGHTS).stat().st_size + 1000
        with full_disk(room):
            save(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save_checkpoint", save_on_full_disk)
        with pytest.raises(OSError, match=r"checkpoint-4' cannot be written: .* If the disk is full, make room"):
            train.main(command)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert_goes_on_to_the_same_end(folder, command)


def test_a_data_loader_worker_that_dies_ends_the_run_with_an_error(folder, tmp_path, monkeypatch):
    command = [str(folder / "run.yaml"), "--dataloader_num_workers", "1", "--dataloader_prefetch_factor", "1"]
    command += ["--output_dir", str(tmp_path / "run")]

    def kill_workers():
        workers = multiprocessing.active_children()
        assert workers
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)

    before_step(monkeypatch, 2, kill_workers)
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* (killed by signal|exited unexpectedly)"):
        train.main(command)
    assert newest_intact_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-2")
    assert_goes_on_to_the_same_end(folder, command)


def test_a_second_run_in_the_same_folder_is_refused(folder, tmp_path):
    program = (
        "import runpy, sys, time\n"
        "with runpy.run_path(sys.argv[1])['exclusive_folder'](sys.argv[2]):\n"
        "    print(flush=True), time.sleep(60)"
    )
    command = [sys.executable, "-I", "-S", "-c", program, folder_lock.__file__, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match=f"process {other.pid} on .* name another output folder"):
            train.main([str(folder / "run.yaml"), "--output_dir", str(tmp_path / "run")])
        other.kill()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [folder_lock.LOCK_FILE]


def test_results_that_a_kill_cut_short_are_made_again(folder):
    results = folder / "whole" / "all_results.json"
    whole = results.read_text()
    results.write_text(whole[: len(whole) // 2])
    train.main([str(folder / "run.yaml"), "--output_dir", str(folder / "whole")])
    assert json.loads(results.read_text())["eval_made_mIoU"] == json.loads(whole)["eval_made_mIoU"]
