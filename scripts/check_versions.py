"""Runs the tests on several releases of transformers, and loads models that each release saved in each other one.

    python scripts/check_versions.py                           # the fast tests on all releases; 20 minutes on a core
    python scripts/check_versions.py --versions 4.57.6 5.24.0 --tests tests/modeling_jmceln

Each release gets an environment in `.compat/`, with its own `huggingface_hub` and `datasets`. All other packages, such
as torch, come from the environment of this script. `oldest` as a version means the lowest release of each dependency
that `pyproject.toml` allows. The table is printed and, with `--document`, written into docs/versions.md. The exit code
is 1 if a test fails or logits differ.
"""

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from processing.evaluation.report import fill_page


REPOSITORY = Path(__file__).resolve().parents[1]
COMPAT = REPOSITORY / ".compat"
INSTALLED = importlib.metadata.version("transformers")
OLDEST = "oldest"
VERSIONS = (OLDEST, "4.57.6", "5.0.0", "5.17.0", INSTALLED, "5.24.0")
TESTS = ("tests/modeling_jmceln", "tests/processing")
# Packages that are installed with transformers, since they depend on the release of `huggingface_hub`.
TOGETHER = ("accelerate", "datasets", "evaluate", "peft")
# The columns of the table.
PACKAGES = ("transformers", "huggingface_hub", "datasets", "accelerate")
PAGE = REPOSITORY / "docs" / "versions.md"
MARKERS = ("<!-- versions: begin -->\n", "<!-- versions: end -->")
TOLERANCE = 1e-5

LOAD = """
import json, sys
import numpy as np, torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
answers = {}
for name, folder in json.loads(sys.argv[1]).items():
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(images=Image.fromarray(pixels), text=["the red circle", "a star"], return_tensors="pt")
    with torch.no_grad():
        answers[name] = model(**inputs).logits.flatten().tolist()
print(json.dumps(answers))
"""


@dataclass
class Environment:
    """An environment with one release of transformers."""

    version: str
    python: Path

    def run(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Runs the Python of this environment in the repository."""
        command = [str(self.python), *arguments]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, **options)

    def require(self, *arguments: str, **options: Any) -> str:
        """Runs as `run`, and returns the output. Raises a `RuntimeError` with the last lines if it fails."""
        completed = self.run(*arguments, **options)
        if completed.returncode:
            raise RuntimeError(f"transformers {self.version}: {completed.stderr[-3000:]}")
        return completed.stdout


def lowest_releases() -> list[str]:
    """Returns the requirement `name==lowest` for each dependency in `pyproject.toml` and for PEFT, without torch."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    found = dict(re.findall(r'"([a-z]+)>=([0-9.]+)[^"]*"', text))
    names = ("transformers", "datasets", "accelerate", "evaluate", "safetensors", "pillow", "peft")
    return [f"{name}=={found[name]}" for name in names]


def make_environment(version: str) -> Environment:
    """Returns the environment of a release, which is created if it does not exist."""
    folder = COMPAT / f"environment-{version}"
    environment = Environment(version, folder / "bin" / "python")
    if (folder / "complete").exists():
        return environment
    venv.create(folder, with_pip=True, clear=True)
    own = Path(environment.require("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A .pth file adds this path after the packages of the environment, which have priority.
    (own / "inherited.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
    numpy = f"numpy=={importlib.metadata.version('numpy')}"
    releases = lowest_releases() if version == OLDEST else [f"transformers=={version}", *TOGETHER]
    environment.require("-m", "pip", "install", "--quiet", "--disable-pip-version-check", torch, numpy, *releases)
    (folder / "complete").touch()
    return environment


def count_tests(environment: Environment, tests: list[str], folder: Path) -> dict[str, int]:
    """Runs the tests that are not slow, and returns their number and how many were skipped or failed."""
    report = folder / f"{environment.version}.xml"
    completed = environment.run("-m", "pytest", "-q", "-m", "not slow", f"--junitxml={report}", *tests)
    # 1: some tests failed; any other number means that not all of them were run.
    if completed.returncode not in (0, 1):
        raise RuntimeError(f"transformers {environment.version}: {completed.stdout[-3000:]}{completed.stderr[-3000:]}")
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {name: int(suite.attrib[name]) for name in ("tests", "skipped", "failures", "errors")}
    if counts["failures"] or counts["errors"]:
        print(completed.stdout[-6000:], file=sys.stderr)
    return counts


def load_all(environment: Environment, folders: dict[str, str], cache: Path) -> dict[str, list[float]]:
    """Returns the logits of saved models, by the names of `folders`. The models run their saved code."""
    with tempfile.TemporaryDirectory() as elsewhere:
        # `-I` keeps this repository off the path, so that the saved code runs.
        program = f"import os, sys; os.chdir({elsewhere!r}); os.environ['HF_HOME'] = {str(cache)!r}\n{LOAD}"
        return json.loads(environment.require("-I", "-c", program, json.dumps(folders)).splitlines()[-1])


def release_of(environment: Environment, package: str) -> str:
    program = f"import importlib.metadata as m; print(m.version({package!r}))"
    return environment.require("-c", program).strip()


def main(arguments: list[str] | None = None) -> int:
    """Checks the releases, prints the table, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", default=sorted(set(VERSIONS), key=VERSIONS.index))
    parser.add_argument(
        "--tests",
        nargs="*",
        default=list(TESTS),
        help="tests to run; without a value, models are only saved and loaded",
    )
    parser.add_argument("--document", action="store_true", help="write the table into docs/versions.md")
    options = parser.parse_args(arguments)

    columns = [*PACKAGES, "tests", "skipped", "failed", "largest difference of logits"]
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    is_good = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environments = [make_environment(version) for version in options.versions]
        for environment in environments:
            environment.require("-m", "tests.saved_models", str(folder / environment.version))
        saved = {str(path.relative_to(folder)): str(path) for path in sorted(folder.glob("*/*"))}
        answers = {
            environment.version: load_all(environment, saved, folder / f"cache-{environment.version}")
            for environment in environments
        }
        for environment in environments:
            # A saved model must have the same logits in this release as in the release that saved it.
            difference = np.max(
                [
                    np.abs(np.subtract(logits, answers[name.partition("/")[0]][name])).max()
                    for name, logits in answers[environment.version].items()
                ]
            )
            counts = count_tests(environment, options.tests, folder) if options.tests else {}
            failed = counts.get("failures", 0) + counts.get("errors", 0)
            is_good &= failed == 0 and bool(difference <= TOLERANCE)
            releases = [release_of(environment, package) for package in PACKAGES]
            cells = [*releases, counts.get("tests", 0), counts.get("skipped", 0), failed]
            lines.append("| " + " | ".join(map(str, cells)) + f" | {difference:.1e} |")
            print(lines[-1], file=sys.stderr, flush=True)
    table = "\n".join(lines) + "\n"
    print(table)
    if options.document:
        fill_page(PAGE, *MARKERS, table)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
