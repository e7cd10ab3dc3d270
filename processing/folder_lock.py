"""One process at a time writes into an output folder."""

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
    Keep other processes from entering this context with the same folder, which is created if it does not exist.

    The lock dies with the process, however that ends, and does not pass on to processes that it starts. Where the
    system has no such locks, nothing is refused.

    Raises:
        ValueError: If another process is in this context.
    """
    path = Path(folder) / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    # Neither truncated nor removed: both would take the file from the process that holds it.
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
