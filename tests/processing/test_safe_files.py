"""What was written before is never lost by writing again."""

import pytest

from processing.safe_files import drop_incomplete_line, replace_text, replacing
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


@pytest.mark.parametrize(("before", "after"), [("ä\nö\nhalf", "ä\nö\n"), ("ä\n", "ä\n"), ("half", ""), ("", "")])
def test_only_an_incomplete_line_is_dropped(tmp_path, before, after):
    path = tmp_path / "journal.jsonl"
    path.write_text(before, "utf-8")
    drop_incomplete_line(path)
    assert path.read_text("utf-8") == after
