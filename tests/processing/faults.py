"""What goes wrong on real machines, for tests: kills, and disks that are full."""

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator
from typing import Any


def kill_this_process(*_: Any, **__: Any) -> None:
    """Ends this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def assert_is_killed(action: Callable[[], Any]) -> None:
    """Runs `action` in a copy of this process, which it must end by `kill_this_process`."""
    process = os.fork()
    if process == 0:
        try:
            action()
        finally:
            os._exit(1)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, and writing more is an error in the midst of the file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
