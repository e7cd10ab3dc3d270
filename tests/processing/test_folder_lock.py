"""A folder has one writer at a time, and a killed writer leaves it free."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from processing import folder_lock
from processing.folder_lock import exclusive_folder


# Holds the folder, starts a process of its own as a data loader does, and tells both numbers.
HOLDER = """
import os, runpy, sys, time
exclusive_folder = runpy.run_path(sys.argv[1])["exclusive_folder"]
with exclusive_folder(sys.argv[2]):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-I", "-S", "-c", HOLDER, str(Path(folder_lock.__file__)), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        yield process
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_the_folder_of_another_process_is_refused_until_that_is_killed(holder, tmp_path):
    with (
        pytest.raises(ValueError, match=f"process {holder.pid} on .* writes into .*run"),
        exclusive_folder(tmp_path / "run"),
    ):
        pass
    holder.kill()
    holder.wait()
    # Its child still runs.
    with exclusive_folder(tmp_path / "run"):
        assert f"process {os.getpid()} on " in (tmp_path / "run" / folder_lock.LOCK_FILE).read_text("utf-8")


def test_a_folder_is_free_again_after_use(tmp_path):
    with pytest.raises(KeyError), exclusive_folder(tmp_path / "run"):
        raise KeyError
    with exclusive_folder(tmp_path / "run"):
        pass
