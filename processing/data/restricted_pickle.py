"""Read pickles that hold nothing but containers, numbers and strings, and refuse every other.

The referring annotations of Yu et al. (2016) and Mao et al. (2016) are published as pickles written by Python 2. A
pickle is a program: loading one runs whatever it says. Data of this kind needs no imports at all, so none is admitted.
Plain opcodes can still ask for gigabytes, or nest so deeply that the interpreter crashes. So a process of its own with
bounded memory and time reads a pickle first, and this one only what that process has survived.
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
    """A pickle that wants to import something, and so could run code."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise UnsafePickleError(
            f"refused: this pickle asks for `{module}.{name}`, and only plain containers, numbers and strings are "
            "admitted, because anything else could run code while loading"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError(f"refused: this pickle refers to the external object {pid!r}")


def load_plain_pickle(path: str | Path) -> Any:
    """
    Load a pickle of plain data.

    Strings of Python 2, which are bytes without an encoding, are read as Latin-1: this maps every byte to a character
    and so cannot fail; the published files are ASCII but for a few sentences.

    Raises:
        UnsafePickleError: if the pickle holds anything but lists, tuples, dicts, sets, numbers, strings, bytes,
            booleans and `None`.
        ValueError: if it is not a pickle, is cut short, or takes more memory or time than its size explains.
    """
    data = Path(path).read_bytes()
    # Isolated, as it needs nothing but the standard library, and so starts quickly.
    trial = subprocess.run([sys.executable, "-I", "-S", __file__], input=data, capture_output=True, check=False)
    if trial.returncode not in (0, _REFUSED):
        raise ValueError(f"{path} is not a readable pickle: reading it takes too much memory or time, or crashes")
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise ValueError(f"{path} is not a readable pickle: {error}") from error


def _limit_resources(size: int) -> None:
    """Bound the memory, the stack and the processor time of this process; where the system cannot, leave them."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {
        "RLIMIT_AS": _BASE_MEMORY + _MEMORY_PER_BYTE * size,
        # Smaller than that of any thread, so that what nests too deeply crashes here and not there.
        "RLIMIT_STACK": _STACK,
        "RLIMIT_CPU": 20 + size // 100_000,
        "RLIMIT_CORE": 0,
    }
    for name, limit in limits.items():
        _, most = resource.getrlimit(getattr(resource, name))
        soft = limit if most == resource.RLIM_INFINITY else min(limit, most)
        with contextlib.suppress(OSError, ValueError):  # macOS has the name of a limit that it does not keep
            resource.setrlimit(getattr(resource, name), (soft, most))


def _try_to_read() -> int:
    """Read the pickle in the standard input, in a process of its own; the exit code says how that went."""
    data = sys.stdin.buffer.read()
    _limit_resources(len(data))
    try:
        _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except MemoryError:
        return 1
    except Exception:  # the caller reads it again for the reason
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_try_to_read())
