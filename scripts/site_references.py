"""Extension of the API reference: names in docstrings, written as transformers writes them, become links.

Docstrings name classes as [`JMCELNModel`] and methods as [`~JMCELNModel.forward`]. What the reference documents gets a
link, everything else becomes code.
"""

import re
from pathlib import Path
from typing import Any

import griffe


REPOSITORY = Path(__file__).resolve().parents[1]
# The first line of an argument, such as "input_ids (`torch.LongTensor` of shape `(batch, length)`): Tokens."
ARGUMENT = re.compile(r"^(?P<name> +[*\w]+(?:, [*\w]+)* \()(?P<type>.*?)(?P<end>\):)(?= |$)", re.MULTILINE)
NAME = re.compile(r"\[`(?P<short>~?)(?P<name>[\w.]+)`\](?!\[|\()")


def documented_names() -> dict[str, str]:
    """What the pages of the reference document, as docstrings name it (`Class`, `Class.method`): its full name."""
    found = {}
    for page in sorted((REPOSITORY / "docs" / "api").glob("*.md")):
        for part in re.split(r"^::: ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            name, _, options = part.partition("\n")
            short = name.rpartition(".")[2]
            found[short] = name
            for member in re.findall(r"^ +- (\w+)$", options, re.MULTILINE):
                found[f"{short}.{member}"] = f"{name}.{member}"
    return found


def with_links(text: str, documented: dict[str, str]) -> str:
    """A docstring with links for the names in `documented`."""

    def link(match: re.Match[str]) -> str:
        name = match["name"]
        shown = name.rpartition(".")[2] if match["short"] else name
        return f"[`{shown}`][{documented[name]}]" if name in documented else f"`{shown}`"

    # The type of an argument is rendered as code, in which marks would be seen.
    text = ARGUMENT.sub(lambda match: match["name"] + re.sub(r"[`*\[\]~]", "", match["type"]) + match["end"], text)
    return NAME.sub(link, text)


class LinkNames(griffe.Extension):
    """Changes the docstrings before they are rendered."""

    def __init__(self) -> None:
        self.documented = documented_names()

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:  # noqa: ARG002 - more may come
        """Called for every module, class, function and attribute that is read."""
        if obj.docstring is not None:
            obj.docstring.value = with_links(obj.docstring.value, self.documented)
