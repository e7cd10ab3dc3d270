"""Read pickles that hold nothing but containers, numbers and strings, and refuse every other.

The referring annotations of Yu et al. (2016) and Mao et al. (2016) are published as pickles written by Python 2. A
pickle is a program: loading one runs whatever it says. Data of this kind needs no imports at all, so none is admitted.
"""

import io
import pickle
from pathlib import Path
from typing import Any


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
        ValueError: if it is not a pickle or is cut short.
    """
    data = Path(path).read_bytes()
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise ValueError(f"{path} is not a readable pickle: {error}") from error
