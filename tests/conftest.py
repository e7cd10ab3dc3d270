"""Settings of the whole test run, and the fixtures that more than one folder of tests uses."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path


REPOSITORY = Path(__file__).resolve().parents[1]

# Before any import of transformers or datasets, which read these once: no test may depend on a hub, nor on what
# earlier runs left in the caches of the user.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HOME", str(REPOSITORY / ".cache" / "huggingface"))
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests.transformers_suites.skips import SKIPS  # noqa: E402


# No test is timed: what is slow on a busy machine is not wrong.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

SUITES = "transformers_suites"
SUITE_MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "generate",
    "torch_compile_test",
    "torch_export_test",
)


def pytest_configure(config: pytest.Config) -> None:
    for marker in SUITE_MARKERS:
        config.addinivalue_line("markers", f"{marker}: used by the common suites of transformers")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - transformers and its suites draw from the global generator
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """A folder of COCO photographs: `COCO_MINI`, or else `coco-mini` in a `shared` folder beside the checkout."""
    folder = Path(os.environ.get("COCO_MINI", REPOSITORY.parent / "shared" / "coco-mini"))
    if not folder.is_dir():
        pytest.skip(f"no photographs at {folder}: set COCO_MINI to a folder of COCO images and their annotations")
    return folder


def reason_of(skipped: pytest.TestReport) -> str:
    _, _, reason = skipped.longrepr
    return reason.removeprefix("Skipped: ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How the common suites of transformers ended, apart from the project's own tests, and why tests were skipped."""
    reports = {name: terminalreporter.stats.get(name, []) for name in ("passed", "skipped", "failed", "error")}
    counts = {name: sum(SUITES in report.nodeid for report in ended) for name, ended in reports.items()}
    if any(counts.values()):
        terminalreporter.section("transformers common suites")
        terminalreporter.line(", ".join(f"{count} {name}" for name, count in counts.items()))
        reasons = Counter(reason_of(report) for report in reports["skipped"] if SUITES in report.nodeid)
        listed = {reason for skips in SKIPS.values() for reason in skips.values()}
        for reason, count in sorted(reasons.items(), key=lambda item: (item[0] not in listed, -item[1], item[0])):
            terminalreporter.line(f"{count:4} skipped {'by us' if reason in listed else 'by the suite'}: {reason}")
    own = [report for report in reports["skipped"] if SUITES not in report.nodeid]
    if own:
        terminalreporter.section("skipped tests of the project")
        for report in own:
            terminalreporter.line(f"{report.nodeid}: {reason_of(report)}")
