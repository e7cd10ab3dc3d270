from __future__ import annotations

import re
from pathlib import Path

import pytest
from mkdocs.exceptions import PluginError

from scripts.site_links import link_targets, rewrite_links
from scripts.site_references import documented_names, with_links
from tests.compat import REPOSITORY


def on_site(markdown: str, source: str = "docs/training.md", name: str = "training.md", url: str | None = None) -> str:
    return rewrite_links(markdown, source, name, url)


def test_links_between_pages_lead_to_pages() -> None:
    assert on_site("[a](datasets.md#leaks)") == "[a](datasets.md#leaks)"
    assert on_site("[a](../CONTRIBUTING.md)") == "[a](contributing.md)"
    assert on_site("[a](../checkpoints/jmceln-photos)") == "[a](models/photos.md)"
    card = on_site("[a](docs/architecture.md)", "model_card.md", "model_card.md")
    assert card == "[a](architecture.md)"
    assert on_site("![a](random.jpg)", "checkpoints/jmceln-photos/README.md", "models/photos.md") == (
        "![a](../pictures/checkpoints/jmceln-photos/random.jpg)"
    )


def test_links_to_other_files_lead_to_the_repository_or_become_text() -> None:
    link = "see [`scripts/demo.py`](../scripts/demo.py), [configs](../configs)"
    assert on_site(link) == "see `scripts/demo.py`, configs"
    assert on_site(link, url="https://example.org/us/jmceln") == (
        "see [`scripts/demo.py`](https://example.org/us/jmceln/blob/HEAD/scripts/demo.py), "
        "[configs](https://example.org/us/jmceln/tree/HEAD/configs)"
    )


def test_addresses_anchors_and_code_stay() -> None:
    text = "[a](https://example.org) [b](#here) `[c](nowhere.md)`\n\n```text\n[d](nowhere.md)\n```\n"
    assert on_site(text) == text
    assert link_targets(text) == ["https://example.org", "#here"]


def test_a_link_to_nothing_is_an_error() -> None:
    with pytest.raises(PluginError, match=r"docs/training\.md has a link to nowhere\.md"):
        on_site("[a](nowhere.md)")


def test_names_in_docstrings_become_links_where_they_are_documented() -> None:
    documented = documented_names()
    assert documented["JMCELNModel"] == "modeling_jmceln.JMCELNModel"
    assert with_links("See [`~JMCELNModel.forward`] and [`BatchFeature`].", documented) == (
        "See [`forward`][modeling_jmceln.JMCELNModel.forward] and `BatchFeature`."
    )


def test_types_of_arguments_are_plain() -> None:
    line = "    processor ([`JMCELNProcessor`], *optional*): Of [`JMCELNProcessor`]."
    assert with_links(line, {"JMCELNProcessor": "processing.JMCELNProcessor"}) == (
        "    processor (JMCELNProcessor, optional): Of [`JMCELNProcessor`][processing.JMCELNProcessor]."
    )
    line = "    input_ids (`torch.LongTensor` of shape `(batch, length)`): Tokens."
    assert with_links(line, {}) == "    input_ids (torch.LongTensor of shape (batch, length)): Tokens."


def pages_of_the_repository() -> list[Path]:
    folders = (REPOSITORY, REPOSITORY / "docs", REPOSITORY / "examples")
    return sorted(path for folder in folders for path in folder.glob("**/*.md" if folder.name == "docs" else "*.md"))


def anchors(page: Path) -> set[str]:
    """The anchors that a repository's page gives its headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", pages_of_the_repository(), ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_work_on_the_pages_of_the_repository(page: Path) -> None:
    for target in link_targets(page.read_text(encoding="utf-8")):
        if re.match("[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target
