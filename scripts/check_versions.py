"""Runs the tests on several releases of transformers, and loads a model that each release saved in each other one.

    python scripts/check_versions.py                           # the fast tests on all releases; an hour on two cores
    python scripts/check_versions.py --versions 4.57.6 5.24.0 --tests tests/modeling_jmceln

Each release gets an environment in `.compat/`, with its own `huggingface_hub` and `datasets`. All other packages, such
as torch, come from the environment of this script. The table is printed and, with `--output`, written to a file. The
exit code is 1 if a test fails or logits differ.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any


REPOSITORY = Path(__file__).resolve().parents[1]
COMPAT = REPOSITORY / ".compat"
INSTALLED = importlib.metadata.version("transformers")
VERSIONS = ("4.57.6", "5.0.0", "5.17.0", INSTALLED, "5.24.0")
TESTS = ("tests/modeling_jmceln", "tests/processing")
# Packages that are installed with transformers, since they depend on the release of `huggingface_hub`.
TOGETHER = ("accelerate", "datasets", "evaluate", "peft")
TOLERANCE = 1e-5

SAVE = """
import sys
from tests.modeling_jmceln.inputs import random_model
from tests.tiny import tiny_processor
random_model().save_pretrained(sys.argv[1])
tiny_processor().save_pretrained(sys.argv[1])
"""

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
    environment.require(
        "-m", "pip", "install", "--quiet", "--disable-pip-version-check", torch, numpy, f"transformers=={version}",
        *TOGETHER,
    )  # fmt: skip
    (folder / "complete").touch()
    return environment


def count_tests(environment: Environment, tests: list[str], folder: Path) -> dict[str, int]:
    """Runs the tests that are not slow, and returns their number and how many were skipped or failed."""
    report = folder / f"{environment.version}.xml"
    completed = environment.run("-m", "pytest", "-q", "-m", "not slow", f"--junitxml={report}", *tests)
    if not report.exists():
        raise RuntimeError(f"transformers {environment.version}: {completed.stdout[-3000:]}{completed.stderr[-3000:]}")
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {name: int(suite.attrib[name]) for name in ("tests", "skipped", "failures", "errors")}
    if counts["failures"] or counts["errors"]:
        print(completed.stdout[-6000:], file=sys.stderr)
    return counts


def load_all(environment: Environment, folders: dict[str, str], cache: Path) -> dict[str, list[float]]:
    """Returns the logits of saved models, which run their saved code."""
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
    parser.add_argument("--output", type=Path, help="file for the table, in Markdown")
    options = parser.parse_args(arguments)

    lines = ["| transformers | huggingface_hub | datasets | tests | skipped | failed | largest difference of logits |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    is_good = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environments = [make_environment(version) for version in options.versions]
        saved = {environment.version: str(folder / environment.version) for environment in environments}
        for environment in environments:
            environment.require("-c", SAVE, saved[environment.version])
        answers = {
            environment.version: load_all(environment, saved, folder / f"cache-{environment.version}")
            for environment in environments
        }
        for environment in environments:
            # A saved model must have the same logits in this release as in the release that saved it.
            difference = max(
                abs(one - other)
                for saver, logits in answers[environment.version].items()
                for one, other in zip(logits, answers[saver][saver], strict=True)
            )
            counts = count_tests(environment, options.tests, folder) if options.tests else {}
            failed = counts.get("failures", 0) + counts.get("errors", 0)
            is_good &= failed == 0 and difference <= TOLERANCE
            releases = [release_of(environment, package) for package in ("huggingface_hub", "datasets")]
            cells = [environment.version, *releases, counts.get("tests", 0), counts.get("skipped", 0), failed]
            lines.append("| " + " | ".join(map(str, cells)) + f" | {difference:.1e} |")
            print(lines[-1], file=sys.stderr, flush=True)
    table = "\n".join(lines) + "\n"
    print(table)
    if options.output is not None:
        options.output.write_text(table, encoding="utf-8")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
