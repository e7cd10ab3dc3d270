"""MkDocs hook that adds pages from outside docs/ to the site and adapts their links.

Links in the Markdown files are made for the repository. On the site, a link to another page leads to that page, an
image from outside docs/ is copied, and a link to any other file leads to the repository (`repo_url`), or becomes plain
text if there is no `repo_url`. A link to a file that does not exist is an error.
"""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files


REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = "docs/"
# Pages from outside docs/, and their names on the site.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "checkpoints/jmceln-photos/README.md": "models/photos.md",
    "checkpoints/jmceln-shapes/README.md": "models/shapes.md",
    "model_card.md": "model_card.md",
}
SAME_AS = {"README.md": "index.md"}
PICTURES = {".jpg", ".png"}
LINK = re.compile(
    r"(?<!\\)(?P<mark>!?)\[(?P<text>(?:[^\[\]]|!?\[[^\[\]]*\](?:\([^()]*\))?)*)\]\((?P<target>[^()\s]+)\)"
)
FENCE = re.compile(r"^(```.*?^```[^\n]*$)", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+[^`]*`+)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of `PAGES`, and the images outside docs/ that pages show."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(REPOSITORY / source)))
    sources = {DOCS + file.src_uri for file in files.documentation_pages()} - {DOCS + name for name in PAGES.values()}
    pictures = set()
    for source in sources | PAGES.keys():
        path = REPOSITORY / source
        for target in link_targets(path.read_text(encoding="utf-8")):
            found = _in_repository(source, target)
            if found is not None and _is_outside_picture(found):
                pictures.add(found)
    for picture in sorted(pictures):
        files.append(File.generated(config, _name_of_picture(picture), abs_src_path=str(REPOSITORY / picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001 - named by MkDocs
    """Rewrites the links of a page."""
    by_name = {name: source for source, name in PAGES.items()}
    source = by_name.get(page.file.src_uri, DOCS + page.file.src_uri)
    return rewrite_links(markdown, source, page.file.src_uri, config.repo_url)


def link_targets(markdown: str) -> list[str]:
    """Returns the targets of all links and images outside code."""
    found = []

    def remember(match: re.Match[str]) -> str:
        LINK.sub(remember, match["text"])  # an image may be the text of a link
        found.append(match["target"])
        return match[0]

    _outside_code(markdown, lambda text: LINK.sub(remember, text))
    return found


def rewrite_links(markdown: str, source: str, name: str, repository_url: str | None) -> str:
    """
    Args:
        markdown: The text of a page.
        source: Path of the page in the repository.
        name: Its name on the site, such as `models/photos.md`.
        repository_url: URL of the repository, for links to files that are not pages.

    Raises:
        PluginError: If a link leads to a file that does not exist.
    """

    def rewritten(match: re.Match[str]) -> str:
        text = LINK.sub(rewritten, match["text"])
        found = _in_repository(source, match["target"])
        if found is None:
            return f"{match['mark']}[{text}]({match['target']})"
        _, separator, anchor = match["target"].partition("#")
        on_site = _name_on_site(found)
        if on_site is not None:
            target = posixpath.relpath(on_site, posixpath.dirname(name) or ".")
            return f"{match['mark']}[{text}]({target}{separator}{anchor})"
        if not repository_url:
            return text
        kind = "tree" if (REPOSITORY / found).is_dir() else "blob"
        return f"[{text}]({repository_url.rstrip('/')}/{kind}/HEAD/{found}{separator}{anchor})"

    return _outside_code(markdown, lambda text: LINK.sub(rewritten, text))


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Applies `change` to the parts of `markdown` that are not code."""
    blocks = FENCE.split(markdown)
    # Code spans may be inside the text of a link, so they are hidden during `change` and restored afterward.
    for index in range(0, len(blocks), 2):
        spans: list[str] = []

        def hide(match: re.Match[str], spans: list[str] = spans) -> str:
            spans.append(match[0])
            return f"\0{len(spans) - 1}\0"

        hidden = change(CODE.sub(hide, blocks[index]))
        blocks[index] = re.sub("\0(\\d+)\0", lambda match, spans=spans: spans[int(match[1])], hidden)
    return "".join(blocks)


def _in_repository(source: str, target: str) -> str | None:
    """Returns the path in the repository that a link of the page `source` leads to, or `None` for other links."""
    path = target.partition("#")[0]
    if not path or re.match(r"[a-z]+:", target):
        return None
    found = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (REPOSITORY / found).exists():
        raise PluginError(f"{source} has a link to {target}, but {found} does not exist: correct the link.")
    return found


def _name_on_site(found: str) -> str | None:
    for path in (found, f"{found}/README.md"):
        if path in PAGES or path in SAME_AS:
            return PAGES.get(path) or SAME_AS[path]
    if found.startswith(DOCS) and not found.endswith(".py"):
        return found.removeprefix(DOCS)
    return _name_of_picture(found) if _is_outside_picture(found) else None


def _is_outside_picture(found: str) -> bool:
    return not found.startswith(DOCS) and Path(found).suffix in PICTURES


def _name_of_picture(found: str) -> str:
    return f"pictures/{found}"
