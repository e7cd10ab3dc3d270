"""Settings of the whole test run, and the fixtures that more than one folder of tests uses."""

from __future__ import annotations

import os
import random
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How the common suites of transformers ended, apart from the project's own tests."""
    counts = {
        outcome: sum(SUITES in report.nodeid for report in terminalreporter.stats.get(outcome, []))
        for outcome in ("passed", "skipped", "failed", "error")
    }
    if any(counts.values()):
        terminalreporter.section("transformers common suites")
        terminalreporter.line(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
