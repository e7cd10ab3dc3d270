"""Griffe extension that turns names in docstrings into links of the API reference.

Docstrings name classes as [`JMCELNModel`] and methods as [`~JMCELNModel.forward`], as in transformers. Names in the
reference become links, and all others become code.
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
    """Maps each name in the reference, as in docstrings (`Class`, `Class.method`), to its full name."""
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
    """Returns a docstring with links for the names in `documented`."""

    def link(match: re.Match[str]) -> str:
        name = match["name"]
        shown = name.rpartition(".")[2] if match["short"] else name
        return f"[`{shown}`][{documented[name]}]" if name in documented else f"`{shown}`"

    # The type of an argument is rendered as code, where Markdown would be visible.
    text = ARGUMENT.sub(lambda match: match["name"] + re.sub(r"[`*\[\]~]", "", match["type"]) + match["end"], text)
    return NAME.sub(link, text)


class LinkNames(griffe.Extension):
    """Adds the links to docstrings before they are rendered."""

    def __init__(self) -> None:
        self.documented = documented_names()

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:  # noqa: ARG002 - more may come
        """Changes the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = with_links(obj.docstring.value, self.documented)
