"""Reads pickles that contain only containers, numbers and strings, and rejects all others.

The referring annotations of Yu et al. (2016) and Mao et al. (2016) are published as pickles written by Python 2. A
pickle is a program that can run any code when it is loaded. These files need no imports, so none are allowed. Even
without imports, a pickle can allocate gigabytes or nest so deeply that the interpreter crashes. Therefore, a child
process with limited memory and time loads the pickle first, and this process loads it only if that succeeds.
"""

import contextlib
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any


_REFUSED = 3
_BASE_MEMORY = 512 << 20
_MEMORY_PER_BYTE = 64
_STACK = 1 << 20


class UnsafePickleError(pickle.UnpicklingError, ValueError):
    """A pickle that imports something, and could therefore run code."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise UnsafePickleError(
            f"refused: this pickle imports `{module}.{name}`. Only plain containers, numbers and strings are allowed, "
            "because anything else could run code while loading"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError(f"refused: this pickle refers to the external object {pid!r}")


def load_plain_pickle(path: str | Path) -> Any:
    """
    Loads a pickle of plain data.

    Strings of Python 2 are bytes without an encoding. They are read as Latin-1, which maps every byte to a character
    and cannot fail. The published files are ASCII except for a few sentences.

    Raises:
        UnsafePickleError: If the pickle contains anything but lists, tuples, dicts, sets, numbers, strings, bytes,
            booleans and `None`.
        ValueError: If it is not a pickle, is truncated, or takes more memory or time than plausible for its size.
    """
    data = Path(path).read_bytes()
    # With `-I -S`, the child starts quickly: it needs only the standard library.
    trial = subprocess.run([sys.executable, "-I", "-S", __file__], input=data, capture_output=True, check=False)
    if trial.returncode not in (0, _REFUSED):
        raise ValueError(f"{path} is not a readable pickle: reading it takes too much memory or time, or crashes")
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise almost any error
        raise ValueError(f"{path} is not a readable pickle: {error}") from error


def _limit_resources(size: int) -> None:
    """Limits the memory, the stack and the CPU time of this process, as far as the system supports it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {
        "RLIMIT_AS": _BASE_MEMORY + _MEMORY_PER_BYTE * size,
        # Smaller than the stack of any thread, so that deep nesting crashes this process instead of the parent.
        "RLIMIT_STACK": _STACK,
        "RLIMIT_CPU": 20 + size // 100_000,
        "RLIMIT_CORE": 0,
    }
    for name, limit in limits.items():
        _, most = resource.getrlimit(getattr(resource, name))
        soft = limit if most == resource.RLIM_INFINITY else min(limit, most)
        with contextlib.suppress(OSError, ValueError):  # macOS defines a limit that it does not support
            resource.setrlimit(getattr(resource, name), (soft, most))


def _try_to_read() -> int:
    """Loads the pickle from standard input in this child process and returns the exit code."""
    data = sys.stdin.buffer.read()
    _limit_resources(len(data))
    try:
        _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except MemoryError:
        return 1
    except Exception:  # the parent loads it again and reports the reason
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_try_to_read())
