"""What to segment: photos, folders, patterns, frames of videos, JSON lines of a file or of standard input, as one
stream of requests."""

import glob
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..natural_order import by_number
from .video import VIDEO_SUFFIXES, is_video, read_frames


STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Request:
    """
    Args:
        image (`str`): Path or URL. For a frame of a video, its path with the number of the frame.
        expressions (`tuple[str, ...]`): What to find.
        pixels (`np.ndarray`, *optional*): The image, if it was read already: RGB of shape `(height, width, 3)`.
        stem (`str`, *optional*): What names of files begin with. By default that of `image`.
    """

    image: str
    expressions: tuple[str, ...]
    pixels: np.ndarray | None = field(default=None, compare=False, repr=False)
    stem: str = ""

    def __post_init__(self):
        if not self.stem:
            object.__setattr__(self, "stem", Path(self.image).stem)


@dataclass(frozen=True)
class UnusableRequest:
    """A line or a video that cannot be read: what it is, and why."""

    place: str
    reason: str


def read_requests(
    sources: Sequence[str], expressions: Sequence[str], frame_step: int = 1
) -> Iterator[Request | UnusableRequest]:
    """
    Args:
        sources: each is the path or URL of a photo, a video (its frames), a folder (its photos and videos in the order
            of their numbers, as frames are), a pattern such as `photos/*.jpg`, a `.jsonl` file, or `-` for JSON lines
            from standard input. A line is `{"image": PATH, "expressions": [...]}`; a single one may stand under
            `"text"`, and without any the line takes `expressions`. Paths are relative to the file.
        expressions: asked of every photo that brings none of its own.
        frame_step: of a video every frame whose number is a multiple of it, counted from 0.

    Returns:
        An iterator. A line that is no request, or a video that cannot be read to its end, does not stop it.

    Raises:
        ValueError: a source that names nothing, or a photo without an expression.
    """
    for source in sources:
        if source == STANDARD_INPUT:
            yield from _of_lines(sys.stdin, "standard input", Path(), expressions)
        elif source.endswith(".jsonl") and Path(source).is_file():
            with Path(source).open(encoding="utf-8", errors="replace") as lines:
                yield from _of_lines(lines, source, Path(source).parent, expressions)
        else:
            if not expressions:
                raise ValueError(f"there is no expression for {source!r}: pass --text")
            for image in _images_of(source):
                if is_video(image):
                    yield from _of_video(image, expressions, frame_step)
                else:
                    yield Request(image, tuple(expressions))


def _images_of(source: str) -> list[str]:
    path = Path(source)
    if path.is_dir():
        Image.init()
        suffixes = {*Image.EXTENSION, *VIDEO_SUFFIXES}
        found = [str(file) for file in path.iterdir() if file.suffix.lower() in suffixes]
        if not found:
            raise ValueError(f"there is no photo in the folder {source!r}")
        return sorted(found, key=by_number)
    if not path.exists() and glob.has_magic(source) and "://" not in source:
        # `Path.glob` takes no absolute pattern.
        found = [name for name in glob.glob(source, recursive=True) if Path(name).is_file()]  # noqa: PTH207
        if not found:
            raise ValueError(f"no file fits the pattern {source!r}")
        return sorted(found, key=by_number)
    return [source]  # whether it can be read is found out later, and said with its name


def _of_video(path: str, expressions: Sequence[str], frame_step: int) -> Iterator[Request | UnusableRequest]:
    try:
        for number, pixels in read_frames(path, frame_step):
            stem = f"{Path(path).stem}-frame{number:06d}"
            yield Request(f"{path}#frame={number}", tuple(expressions), pixels, stem)
    except OSError as error:
        yield UnusableRequest(path, str(error))


def _of_lines(
    lines: Iterable[str], name: str, folder: Path, expressions: Sequence[str]
) -> Iterator[Request | UnusableRequest]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _of_line(line, folder, expressions)
        except ValueError as error:
            yield UnusableRequest(f"line {number} of {name}", str(error))


def _of_line(line: str, folder: Path, expressions: Sequence[str]) -> Request:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise ValueError('it must be like {"image": "photo.jpg", "expressions": ["the dog"]}')
    own = entry.get("expressions", entry.get("text"))
    own = [own] if isinstance(own, str) else own
    if own is not None and not (isinstance(own, list) and all(isinstance(text, str) for text in own)):
        raise ValueError(f"the expressions must be strings, got {own!r}")
    image = entry["image"] if "://" in entry["image"] else str(folder / entry["image"])
    if not (own or expressions):
        raise ValueError("it has no expression: write one, or pass --text")
    return Request(image, tuple(own or expressions))
