"""Reads images and expressions from files, folders, patterns, videos, JSON lines or standard input as a stream."""

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
    An image with its expressions.

    Args:
        image (`str`): Path or URL. For a frame of a video, the path of the video with the number of the frame.
        expressions (`tuple[str, ...]`): Expressions for the image.
        pixels (`np.ndarray`, *optional*): The image, if it is already loaded: RGB of shape `(height, width, 3)`.
        stem (`str`, *optional*): Prefix of the names of output files. Defaults to the stem of `image`.
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
    """A line or a video that cannot be read, and the reason."""

    place: str
    reason: str


def read_requests(
    sources: Sequence[str], expressions: Sequence[str], frame_step: int = 1
) -> Iterator[Request | UnusableRequest]:
    """
    Reads requests from one or more sources.

    Args:
        sources: Each is the path or URL of an image, a video (all its frames), a folder (its images and videos, sorted
            by their numbers), a pattern such as `photos/*.jpg`, a `.jsonl` file, or `-` for JSON lines from standard
            input. A line is `{"image": PATH, "expressions": [...]}`, or has a single expression under `"text"`. Paths
            are relative to the `.jsonl` file.
        expressions: Expressions for every image that has none of its own.
        frame_step: Only frames of a video whose number is a multiple of this step are read, counted from 0.

    Returns:
        An iterator. Invalid lines and videos that cannot be read to the end are yielded as [`UnusableRequest`].

    Raises:
        ValueError: If a source has no images, or if an image has no expression.
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
            raise ValueError(f"there is no image in the folder {source!r}")
        return sorted(found, key=by_number)
    if not path.exists() and glob.has_magic(source) and "://" not in source:
        # `Path.glob` takes no absolute pattern.
        found = [name for name in glob.glob(source, recursive=True) if Path(name).is_file()]  # noqa: PTH207
        if not found:
            raise ValueError(f"no file matches the pattern {source!r}")
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
