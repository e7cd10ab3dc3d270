"""The journal of an evaluation: finished results as lines of JSON, so that an interrupted evaluation can resume.

A journal is a folder in which each process appends to its own file. The first line of a file is a header with the
settings of the evaluation; every other line is one image with all its expressions. An incomplete last line, left by a
killed process, is ignored.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..safe_files import drop_incomplete_line


logger = logging.getLogger(__name__)

_ROW_KEYS = {"row", "image_id", "part", "sha256", "expressions"}


class EvaluationJournal:
    """
    The journal in `folder` of the evaluation that `header` describes.

    Args:
        folder (`Path`):
            Folder of the journal. It is created if it does not exist.
        header (`dict`):
            Settings of the evaluation, as JSON values. A journal with another header belongs to another evaluation.
        process_index (`int`, *optional*, defaults to 0):
            Number of the file that this process appends to.

    Raises:
        ValueError: If the folder contains the journal of another evaluation.
    """

    def __init__(self, folder: Path, header: dict[str, Any], process_index: int = 0):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._header = json.loads(json.dumps(header))
        self._path = self.folder / f"process-{process_index:05d}.jsonl"
        for path in self._paths():
            self._check_header(path)

    def rows(self) -> Iterator[dict[str, Any]]:
        """
        Yields the line of each image once, from the files of all processes, in no particular order.

        Skips lines that cannot be read and logs a warning, so that their images are evaluated again.
        """
        seen = set()
        for path in self._paths():
            for number, line in enumerate(_whole_lines(path)):
                if number == 0:
                    continue
                row = _parse(line)
                if not isinstance(row, dict) or not row.keys() >= _ROW_KEYS:
                    logger.warning("skipped line %d of %s, which is damaged", number + 1, path)
                elif row["row"] not in seen:
                    seen.add(row["row"])
                    yield row

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Appends the lines of a batch of images."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        if not self._path.exists() or not self._path.stat().st_size:
            lines.insert(0, json.dumps(self._header, ensure_ascii=False) + "\n")
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write("".join(lines))

    def drop_incomplete_line(self) -> None:
        """Removes an incomplete last line that a killed process left. Call this before the first `append`."""
        if self._path.exists():
            drop_incomplete_line(self._path)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("process-*.jsonl"))

    def _check_header(self, path: Path) -> None:
        line = next(_whole_lines(path), None)
        if line is None:
            return
        header = _parse(line)
        if not isinstance(header, dict):
            raise ValueError(
                f"{path} is damaged: its first line is not a header. Remove the file to evaluate its images again, or"
                " choose another output folder."
            )
        if header != self._header:
            keys = sorted(header.keys() | self._header.keys())
            changes = [
                f"{key}: {header.get(key)!r} then, {self._header.get(key)!r} now"
                for key in keys
                if header.get(key) != self._header.get(key)
            ]
            raise ValueError(
                f"{self.folder} contains the journal of another evaluation ({'; '.join(changes)}). Choose another "
                "output folder, or start over with `--overwrite`."
            )


def _parse(line: str) -> Any:
    """Returns the value of a line of JSON, or `None` if it is not valid."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _whole_lines(path: Path) -> Iterator[str]:
    # With `errors="replace"`, damaged bytes make only their own line unreadable, not the whole file.
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for line in file:
            if line.endswith("\n"):
                yield line
