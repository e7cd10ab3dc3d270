"""What was written before is never lost by writing again."""

import errno
import shutil
from types import SimpleNamespace

import pytest

from processing.safe_files import drop_incomplete_line, naming_full_disk, replace_text, replacing
from tests.processing.faults import assert_is_killed, full_disk, kill_this_process


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    replace_text(path, "old")

    def write():
        with replacing(path) as unfinished:
            unfinished.write_text("new")
            kill_this_process()

    assert_is_killed(write)
    assert path.read_text("utf-8") == "old"
    replace_text(path, "new")
    assert path.read_text("utf-8") == "new"


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    replace_text(path, "old")
    with full_disk(100), pytest.raises(OSError, match="File too large"):
        replace_text(path, "new" * 100_000)
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),  # as of safetensors
    ],
)
def test_a_full_disk_is_named_whatever_the_writer_raised(tmp_path, error):
    message = r"The disk of .*out' is full\. Make room there"
    with pytest.raises(OSError, match=message) as raised, naming_full_disk(tmp_path / "new" / "out"):
        raise error
    assert raised.value.__cause__ is error


def test_a_writer_that_gives_no_reason_failed_for_lack_of_room(tmp_path, monkeypatch):
    error = OSError("10800 requested and 1984 written")  # as of numpy
    for free, message in ((2**30, "requested"), (100, "is full")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with pytest.raises(OSError, match=message), naming_full_disk(tmp_path / "new" / "out"):
            raise error


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "No such file"), ValueError("a bad value")])
def test_other_errors_stay_as_they_are(tmp_path, monkeypatch, error):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(type(error)) as raised, naming_full_disk(tmp_path):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(("before", "after"), [("ä\nö\nhalf", "ä\nö\n"), ("ä\n", "ä\n"), ("half", ""), ("", "")])
def test_only_an_incomplete_line_is_dropped(tmp_path, before, after):
    path = tmp_path / "journal.jsonl"
    path.write_text(before, "utf-8")
    drop_incomplete_line(path)
    assert path.read_text("utf-8") == after
