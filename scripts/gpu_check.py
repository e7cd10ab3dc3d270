"""Tests this package on a CUDA device, then measures its speed and writes it to docs/performance.md.

    python scripts/gpu_check.py

1. The tests marked `gpu`: forward and backward in float32, bfloat16 and float16 against the CPU, `torch.compile`,
   gradient checkpointing, FSDP, the pipeline and resuming a run.
2. `benchmarks/speed.py --preset gpu --document`, if all tests passed.
"""

import subprocess
import sys
from pathlib import Path

import torch


REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = (
    ["-m", "pytest", "-m", "gpu", "tests/gpu"],
    ["benchmarks/speed.py", "--preset", "gpu", "--document"],
)


def main() -> int:
    """Runs all steps and returns 0, or the exit status of the first step that fails."""
    if not torch.cuda.is_available():
        print("torch finds no CUDA device: run `make gpu-check` on a machine that has one.", file=sys.stderr)
        return 1
    for step in STEPS:
        status = subprocess.run([sys.executable, *step], cwd=REPOSITORY, check=False).returncode
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
