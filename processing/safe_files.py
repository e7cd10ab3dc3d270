"""Replaces files so that a kill or a full disk leaves the old file or the new one, and names a disk that is full."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from PIL import Image


# With less room than this, a writer that gives no reason failed because the disk is full.
_LEAST_ROOM = 2**16


@contextlib.contextmanager
def naming_full_disk(path: str | Path) -> Iterator[None]:
    """
    Names a folder or a file if its disk gets full while this context is active.

    Raises:
        OSError: Instead of the error of the writer, which names neither, and whose type depends on the library.
    """
    try:
        yield
    except Exception as error:
        if not _is_of_full_disk(error, Path(path)):
            raise
        raise OSError(
            f"The disk of {str(path)!r} is full. Make room there, and run the same command again: what was finished"
            " is kept."
        ) from error


def _is_of_full_disk(error: Exception, path: Path) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return True
    if number is not None or not isinstance(error, OSError):
        return False
    existing = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
    return shutil.disk_usage(existing).free < _LEAST_ROOM


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


def replace_image(path: str | Path, image: "Image.Image") -> None:
    """Replaces an image file, in the format of its suffix."""
    with replacing(path) as unfinished:
        image.save(unfinished)


def drop_incomplete_line(path: Path) -> None:
    """Removes an incomplete last line, left by a killed process, without writing the other lines again."""
    content = path.read_bytes()
    length = content.rfind(b"\n") + 1
    if length != len(content):
        os.truncate(path, length)
