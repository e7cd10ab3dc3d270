"""What an evaluation has done so far, as lines of JSON, so that a killed one goes on where it stopped.

A journal is a folder: each process appends to a file of its own. The first line of a file says what was evaluated and
how; every other line is one image with all its expressions. A line is a whole result or, cut off by a kill, none.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class EvaluationJournal:
    """
    The journal in `folder`, for the run that `header` describes.

    Args:
        folder (`Path`):
            Is created if it does not exist.
        header (`dict`):
            JSON values. A journal with another header belongs to another evaluation.
        process_index (`int`, *optional*, defaults to 0):
            Which file this process appends to.

    Raises:
        ValueError: If the folder holds the journal of another evaluation.
    """

    def __init__(self, folder: Path, header: dict[str, Any], process_index: int = 0):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._header = json.loads(json.dumps(header))
        self._path = self.folder / f"process-{process_index:05d}.jsonl"
        for path in self._paths():
            self._check_header(path)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields every image's line once, of all processes, in no particular order."""
        seen = set()
        for path in self._paths():
            for number, line in enumerate(_whole_lines(path)):
                row = json.loads(line)
                if number > 0 and row["row"] not in seen:
                    seen.add(row["row"])
                    yield row

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Writes the lines of a batch of images."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        if not self._path.exists() or not self._path.stat().st_size:
            lines.insert(0, json.dumps(self._header, ensure_ascii=False) + "\n")
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write("".join(lines))

    def drop_incomplete_line(self) -> None:
        """Cuts off what a killed process left behind its last whole line; to be called before the first `append`."""
        if self._path.exists():
            content = self._path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                self._path.write_bytes(whole)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("process-*.jsonl"))

    def _check_header(self, path: Path) -> None:
        header = json.loads(next(_whole_lines(path), "null"))
        if header is not None and header != self._header:
            keys = sorted(header.keys() | self._header.keys())
            changes = [
                f"{key}: {header.get(key)!r} then, {self._header.get(key)!r} now"
                for key in keys
                if header.get(key) != self._header.get(key)
            ]
            raise ValueError(
                f"{self.folder} holds the journal of another evaluation ({'; '.join(changes)}). Choose another output "
                "folder, or start over with `overwrite`."
            )


def _whole_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as file:
        for line in file:
            if line.endswith("\n"):
                yield line
