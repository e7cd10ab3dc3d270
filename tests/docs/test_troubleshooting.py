"""The page on error messages has those of the package, and no others."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


PAGE = REPOSITORY / "docs" / "troubleshooting.md"
# Every message of these files is on the page.
FILES_OF_USERS = (
    "modeling_jmceln/configuration_jmceln.py",
    "modeling_jmceln/modeling_jmceln.py",
    "processing/image_loading_jmceln.py",
    "processing/image_processing_jmceln.py",
    "processing/pipeline_jmceln.py",
    "processing/processing_jmceln.py",
)
REPORTS = {"warning", "warning_once"}


def quoted_messages() -> list[str]:
    blocks = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def as_text(node: ast.expr) -> str:
    """A message as the page writes it: `...` for what is known only at run time."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(as_text(part) if isinstance(part, ast.Constant) else "..." for part in node.values)
    return "..."


def messages(path: Path) -> Iterator[str]:
    """What a file raises or warns of."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call) or not call.args:
            continue
        is_report = isinstance(call.func, ast.Attribute) and call.func.attr in REPORTS
        if isinstance(node, ast.Raise) or is_report:
            text = as_text(call.args[0])
            if text.strip("."):
                yield text


def fits(quoted: str, message: str) -> bool:
    """Whether two messages are the same, but for what they end in."""
    return _normalized(quoted) == _normalized(message)


def _normalized(text: str) -> str:
    return re.sub(r"\.{3,}", "...", text).removesuffix("...").rstrip(".: ")


@pytest.fixture(scope="module")
def raised() -> dict[str, list[str]]:
    files = sorted(
        path for folder in ("modeling_jmceln", "processing") for path in (REPOSITORY / folder).rglob("*.py")
    )
    return {path.relative_to(REPOSITORY).as_posix(): list(messages(path)) for path in files}


def test_every_message_on_the_page_is_raised(raised: dict[str, list[str]]) -> None:
    all_messages = [message for of_file in raised.values() for message in of_file]
    gone = [quoted for quoted in quoted_messages() if not any(fits(quoted, message) for message in all_messages)]
    assert not gone, "docs/troubleshooting.md quotes what no code raises"


def test_the_page_has_every_message_of_what_users_call(raised: dict[str, list[str]]) -> None:
    quoted = quoted_messages()
    missing = [
        message
        for file in FILES_OF_USERS
        for message in raised[file]
        if not any(fits(each, message) for each in quoted)
    ]
    assert not missing, "docs/troubleshooting.md lacks messages"


def test_a_message_that_changes_is_noticed() -> None:
    assert fits("There are ... cats.", "There are ... cats.")
    assert not fits("There are ... cats.", "There are ... dogs.")
