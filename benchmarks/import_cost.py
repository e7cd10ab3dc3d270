"""Measures the cost of importing the packages beyond that of their dependencies, in separate processes."""

import ast
import json
import statistics
import subprocess
import sys
from pathlib import Path


REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("modeling_jmceln", "processing")
IMPORT_PACKAGES = f"import {', '.join(PACKAGES)}"


def modules_after(statements: str) -> set[str]:
    """Returns the names of all modules that a fresh interpreter has imported after `statements`."""
    code = f"{statements}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    return set(json.loads(_run(code).splitlines()[-1]))


def seconds_of(statements: str) -> float:
    """Returns the CPU seconds that a fresh interpreter takes for `statements`, without its start."""
    code = f"import time\nstart = time.process_time()\n{statements}\nprint(time.process_time() - start)"
    return float(_run(code).splitlines()[-1])


def _run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout


def required_imports() -> str:
    """Returns the import statements of other packages in all files that importing the packages loads."""
    own = sorted(name for name in modules_after(IMPORT_PACKAGES) if name.split(".")[0] in PACKAGES)
    statements: dict[str, None] = {}
    for name in own:
        path = REPOSITORY.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            is_foreign_from = isinstance(node, ast.ImportFrom) and node.level == 0
            if isinstance(node, ast.Import) or is_foreign_from:
                statements[ast.unparse(node)] = None
    return "\n".join(statements)


def measure_imports(rounds: int) -> dict[str, float]:
    """Returns the median seconds of both, measured in turns, and the median of their ratio over the rounds."""
    required = required_imports()
    pairs = [(seconds_of(required), seconds_of(IMPORT_PACKAGES)) for _ in range(rounds)]
    return {
        "required_seconds": statistics.median(pair[0] for pair in pairs),
        "packages_seconds": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
    }
