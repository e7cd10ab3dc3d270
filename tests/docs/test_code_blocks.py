"""The code in the documentation runs as it stands, on the models that come with the project."""

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def code_blocks(page: str) -> list[tuple[int, str]]:
    """The Python blocks of a page, each with the line that it begins at."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return [
        (text[: match.start(1)].count("\n"), match[1])
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write to that looks like the checkout."""
    for name in ("checkpoints", "examples"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "written"),
    [
        ("docs/index.md", ["mask.png"]),
        ("docs/inference.md", ["mask.png", "mask.json", "overlay.png"]),
        ("docs/pipeline.md", []),
        ("README.md", []),
    ],
)
def test_blocks_of_a_page_run_from_top_to_bottom(checkout: Path, page: str, written: list[str]) -> None:
    names: dict[str, object] = {}
    blocks = code_blocks(page)
    assert blocks
    for line, code in blocks:
        if "microsoft/swin" in code:  # downloads encoders from the hub
            continue
        # Empty lines before the code: an error then names the line of the page.
        exec(compile("\n" * line + code, page, "exec"), names)
    for name in written:
        assert (checkout / name).stat().st_size > 0
