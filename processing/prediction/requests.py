"""What to segment: photos, folders, patterns, JSON lines of a file or of standard input, as one stream of requests."""

import glob
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..natural_order import by_number


STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Request:
    image: str  # path or URL
    expressions: tuple[str, ...]


def read_requests(sources: Sequence[str], expressions: Sequence[str]) -> Iterator[Request]:
    """
    Args:
        sources: each is the path or URL of a photo, a folder (its photos, in the order of their numbers, as frames of
            a video are), a pattern such as `photos/*.jpg`, a `.jsonl` file, or `-` for JSON lines from standard input.
            A line is `{"image": PATH, "expressions": [...]}`; a single one may stand under `"text"`, and without any
            the line takes `expressions`. Paths are relative to the file.
        expressions: asked of every photo that brings none of its own.

    Raises:
        ValueError: a source that names nothing, a line that is no request, or a photo without an expression.
    """
    for source in sources:
        if source == STANDARD_INPUT:
            yield from _of_lines(sys.stdin, "standard input", Path(), expressions)
        elif source.endswith(".jsonl") and Path(source).is_file():
            with Path(source).open(encoding="utf-8") as lines:
                yield from _of_lines(lines, source, Path(source).parent, expressions)
        else:
            for image in _images_of(source):
                yield _request(image, expressions, source)


def _images_of(source: str) -> list[str]:
    path = Path(source)
    if path.is_dir():
        Image.init()
        found = [str(file) for file in path.iterdir() if file.suffix.lower() in Image.EXTENSION]
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


def _of_lines(lines: Iterable[str], name: str, folder: Path, expressions: Sequence[str]) -> Iterator[Request]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"line {number} of {name}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place} is no JSON: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise ValueError(f'{place} must be like {{"image": "photo.jpg", "expressions": ["the dog"]}}')
        own = entry.get("expressions", entry.get("text"))
        own = [own] if isinstance(own, str) else own
        if own is not None and not (isinstance(own, list) and all(isinstance(text, str) for text in own)):
            raise ValueError(f"the expressions in {place} must be strings, got {own!r}")
        image = entry["image"] if "://" in entry["image"] else str(folder / entry["image"])
        yield _request(image, own or expressions, place)


def _request(image: str, expressions: Sequence[str], place: str) -> Request:
    if not expressions:
        raise ValueError(f"there is no expression for {image!r} ({place}): pass --text")
    return Request(image, tuple(expressions))
