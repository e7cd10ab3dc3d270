"""Write files such that a kill or a full disk leaves the old file or the new one, never half of one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to. After the context it takes the name `path`; if the context fails, it is removed."""
    path = Path(path)
    # With the same suffix, by which some writers choose the format.
    unfinished = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def replace_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def drop_incomplete_line(path: Path) -> None:
    """Cut off what a killed process wrote after the last whole line of a file. Whole lines are not written again."""
    content = path.read_bytes()
    length = content.rfind(b"\n") + 1
    if length != len(content):
        os.truncate(path, length)
