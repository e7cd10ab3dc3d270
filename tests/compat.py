"""Parts of transformers that the tests need beside the installed one: its common test suites, and older releases.

Both are fetched from the package index by pip, once, into the git-ignored `.compat/` of the checkout. What cannot be
fetched is an error, never a skip: a run that silently left these tests out would look like one that passed them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from filelock import FileLock


REPOSITORY = Path(__file__).resolve().parents[1]
COMPAT = REPOSITORY / ".compat"
ATTEMPTS = 3

SUITE_PACKAGE = "transformers_common_tests"
SUITE_FILES = (
    "test_configuration_common.py",
    "test_image_processing_common.py",
    "test_modeling_common.py",
    "test_processing_common.py",
)
# What the suites import from folders that the source distribution does not ship. None of it is a test of ours to run:
# export and generation have suites of their own, fixtures live on the hub.
SUITE_STUBS = {
    f"{SUITE_PACKAGE}/__init__.py": "",
    f"{SUITE_PACKAGE}/exporters/__init__.py": "",
    f"{SUITE_PACKAGE}/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    f"{SUITE_PACKAGE}/generation/__init__.py": "",
    f"{SUITE_PACKAGE}/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    f"{SUITE_PACKAGE}/utils/__init__.py": "",
    f"{SUITE_PACKAGE}/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def run_pip(*arguments: str) -> None:
    """Runs pip, again after a pause when it fails; in the end raises `RuntimeError` with pip's own words."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    for attempt in range(1, ATTEMPTS + 1):
        completed = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if completed.returncode == 0:
            return
        if attempt < ATTEMPTS:
            time.sleep(5 * attempt)
    raise RuntimeError(f"`{' '.join(command)}` failed {ATTEMPTS} times:\n{completed.stderr[-2000:]}")


def fetch(folder: Path, fill: Callable[[Path], None]) -> Path:
    """`folder`, filled by `fill` unless an earlier run did so. It appears whole or not at all, also among workers."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as unfinished:
                content = Path(unfinished) / "content"
                content.mkdir()
                fill(content)
                content.rename(folder)
    return folder


def unpack_suites(archive: Path, folder: Path, version: str) -> None:
    """Writes the suites of a transformers source distribution, and the stubs they import, into `folder`.

    Each file is read by its exact name and written to a path of ours, so that nothing in the archive chooses where
    it lands.
    """
    contents = dict(SUITE_STUBS)
    with tarfile.open(archive) as tar:
        for name in SUITE_FILES:
            member = tar.extractfile(f"transformers-{version}/tests/{name}")
            if member is None:
                raise RuntimeError(f"{archive.name} has no regular file tests/{name}.")
            contents[f"{SUITE_PACKAGE}/{name}"] = member.read().decode("utf-8")
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def fetch_suites() -> Path:
    """The folder that holds the common suites of the installed transformers as the package `SUITE_PACKAGE`."""
    version = importlib.metadata.version("transformers")

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as download:
            run_pip("download", "--no-deps", "--no-binary", "transformers", "-d", download, f"transformers=={version}")
            unpack_suites(next(Path(download).glob("transformers-*.tar.gz")), folder, version)

    return fetch(COMPAT / f"transformers-{version}-tests", fill)


def import_suite(name: str) -> ModuleType:
    """One file of the common suites as a module: `import_suite("test_modeling_common")`."""
    folder = str(fetch_suites())
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(f"{SUITE_PACKAGE}.{name}")


def fetch_transformers(version: str) -> Path:
    """A folder with transformers `version` and what it depends on, to be put in front of the path of a subprocess."""
    numpy = f"numpy=={importlib.metadata.version('numpy')}"

    def fill(folder: Path) -> None:
        # The same numpy as the environment's, because the environment's torch is used with it.
        run_pip("install", "--no-compile", "--target", str(folder), f"transformers=={version}", numpy)

    return fetch(COMPAT / f"transformers-{version}", fill)
