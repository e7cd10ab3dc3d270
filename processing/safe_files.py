"""Replaces files so that a kill or a full disk leaves the old file or the new one, never an incomplete one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path to write to, which is renamed to `path` at the end, or removed after an error."""
    path = Path(path)
    # The suffix stays the same, since some writers choose the format by it.
    unfinished = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def replace_text(path: str | Path, text: str) -> None:
    """Replaces a text file, in UTF-8."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def drop_incomplete_line(path: Path) -> None:
    """Removes an incomplete last line, left by a killed process, without writing the other lines again."""
    content = path.read_bytes()
    length = content.rfind(b"\n") + 1
    if length != len(content):
        os.truncate(path, length)
