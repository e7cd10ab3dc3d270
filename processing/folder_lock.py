"""A lock that lets only one process at a time write to an output folder."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


# The Trainer does not push files whose names begin like this.
LOCK_FILE = "_in_use.lock"


@contextlib.contextmanager
def exclusive_folder(folder: str | Path) -> Iterator[None]:
    """
    Locks a folder, which is created if it does not exist, while this context is active.

    The lock ends with the process, even if it is killed, and child processes do not inherit it. Windows has no such
    locks, so nothing is locked there.

    Raises:
        ValueError: If another process has locked the folder.
    """
    path = Path(folder) / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file is not truncated or removed here, since another process may hold its lock.
    with path.open("a+", encoding="utf-8") as file:
        if fcntl is not None:
            try:
                # Not `flock`: workers of a data loader would inherit it, and hold it for a while after a kill.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                raise ValueError(
                    f"Another process ({file.read().strip()}) writes into {folder}. Wait for its end, or name another"
                    " output folder."
                ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
