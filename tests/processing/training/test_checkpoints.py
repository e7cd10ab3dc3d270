"""Which checkpoints are intact, and the newest to go on from."""

import json
import logging
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from processing.training.checkpoints import (
    CHECKSUMS_FILE,
    DamagedCheckpointError,
    check_files,
    check_resumable,
    delete_old_checkpoints,
    newest_intact_checkpoint,
    write_checksums,
)


def write_checkpoint(folder, step, with_checksums=True):
    folder = folder / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"weight": torch.full((1000,), float(step))}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": step, "moment": torch.full((1000,), float(step))}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if with_checksums:
        write_checksums(folder)
    return folder


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def zero(path):
    content = path.read_bytes()
    path.write_bytes(content[:1500] + bytes(200) + content[1700:])


def forget(path):
    path.write_text("{}")


def remove(path):
    path.unlink()


DAMAGE = [
    (cut_off, "model.safetensors"),
    (empty, "model.safetensors"),
    (remove, "model.safetensors"),
    (zero, "optimizer.pt"),
    (remove, "optimizer.pt"),
    (remove, "scheduler.pt"),
    (empty, "rng_state.pth"),
    (forget, "trainer_state.json"),
]


@pytest.mark.parametrize(("damage", "name"), [*DAMAGE, (zero, "model.safetensors"), (remove, "rng_state.pth")])
def test_a_damaged_checkpoint_is_named_and_an_older_one_taken(tmp_path, caplog, damage, name):
    older, newest = write_checkpoint(tmp_path, 5), write_checkpoint(tmp_path, 10)
    assert newest_intact_checkpoint(tmp_path) == str(newest)
    damage(newest / name)
    with caplog.at_level(logging.WARNING):
        assert newest_intact_checkpoint(tmp_path) == str(older)
    assert f"checkpoint-10' is damaged: `{name}` " in caplog.text
    shutil.rmtree(older)
    with pytest.raises(DamagedCheckpointError, match="--resume_from_checkpoint never` starts again"):
        newest_intact_checkpoint(tmp_path)


@pytest.mark.parametrize(("damage", "name"), DAMAGE)
def test_checkpoints_of_earlier_releases_are_checked_as_far_as_their_formats_allow(tmp_path, caplog, damage, name):
    older, newest = write_checkpoint(tmp_path, 5, False), write_checkpoint(tmp_path, 10, False)
    assert newest_intact_checkpoint(tmp_path) == str(newest)
    damage(newest / name)
    with caplog.at_level(logging.WARNING):
        assert newest_intact_checkpoint(tmp_path) == str(older)
    assert "checkpoint-10" in caplog.text


def test_a_run_killed_in_its_first_checkpoint_starts_again(tmp_path, caplog):
    assert newest_intact_checkpoint(tmp_path / "nowhere") is None
    unfinished = write_checkpoint(tmp_path, 5, False)
    (unfinished / "trainer_state.json").write_text('{"global_step": 5')
    assert newest_intact_checkpoint(tmp_path) is None
    assert "killed while writing" in caplog.text


def test_weights_without_a_state_of_the_optimizer_are_named(tmp_path, caplog):
    folder = write_checkpoint(tmp_path, 5, False)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).unlink()
    write_checksums(folder)
    check_files(folder)
    for check in (lambda: check_resumable(folder), lambda: newest_intact_checkpoint(tmp_path)):
        with pytest.raises(DamagedCheckpointError, match="`save_only_model`"):
            check()


def test_a_checkpoint_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DamagedCheckpointError, match=r"There is no checkpoint '.*checkpoint-7'"):
        check_resumable(tmp_path / "checkpoint-7")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model.safetensors": 5}'])
def test_damaged_checksums_are_damage(tmp_path, text):
    folder = write_checkpoint(tmp_path, 5)
    (folder / CHECKSUMS_FILE).write_text(text)
    with pytest.raises(DamagedCheckpointError, match=r"`checksums\.json` cannot be read"):
        check_files(folder)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_old_checkpoints_are_deleted_by_their_steps_whatever_the_clock_says(tmp_path):
    for step in (2, 4, 10, 12):
        folder = write_checkpoint(tmp_path, step)
        os.utime(folder, (1e9 - step, 1e9 - step))  # a clock that runs backwards
    (tmp_path / "checkpoint-notes").mkdir()
    delete_old_checkpoints(folder, 3)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-12", "checkpoint-4", "checkpoint-notes"]
    delete_old_checkpoints(folder, 2, keep=str(tmp_path / "checkpoint-4"))
    assert names(tmp_path) == ["checkpoint-12", "checkpoint-4", "checkpoint-notes"]
    delete_old_checkpoints(folder, 1, keep=str(folder))
    assert names(tmp_path) == ["checkpoint-12", "checkpoint-notes"]


def test_checkpoints_of_an_earlier_run_are_deleted_before_those_of_this_one(tmp_path):
    for step in (2, 4, 6, 8):
        write_checkpoint(tmp_path, step)
    delete_old_checkpoints(tmp_path / "checkpoint-4", 3)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-8"]
    delete_old_checkpoints(tmp_path / "checkpoint-4", 1)
    assert names(tmp_path) == ["checkpoint-4"]
