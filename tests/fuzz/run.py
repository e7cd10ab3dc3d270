"""Fuzz for a given time: `make fuzz ARGS="--minutes 5"`.

Prints a table of the targets with their cases, the longest case in seconds of processor time, and what was found. The
exit code is 1 if anything was. A case that takes too long or too much memory is a finding.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings


MOST_SECONDS = 10.0  # of processor time, for one case
MOST_MEMORY = 2 * 2**30  # beyond that of the start
CASES_PER_ROUND = 100


class SlowCaseError(Exception):
    """A case that took longer than `MOST_SECONDS`."""


@dataclass
class Tally:
    cases: int = 0
    slowest: float = 0.0
    findings: list[str] = field(default_factory=list)


@contextmanager
def timed(tally: Tally) -> Iterator[None]:
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        tally.cases += 1
        tally.slowest = max(tally.slowest, time.process_time() - start)


def too_slow(*_: Any) -> None:
    raise SlowCaseError(f"a case took more than {MOST_SECONDS} seconds")


def fuzz(target: Any, tally: Tally, number: int, cases: int) -> None:
    """Tries some cases of one target, and keeps the smallest that fails."""
    strategy, check = target

    def attempt(value: Any) -> None:
        with timed(tally):
            check(value)

    limits = settings(
        max_examples=cases,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    try:
        limits(seed(number)(given(strategy)(attempt)))()
    except Exception:  # whatever it is, it is a finding
        tally.findings.append(f"seed {number}\n{traceback.format_exc()[-3000:]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzzes in turns until the time is over."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="make fuzz ARGS=...", description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    # Damaged files are the point here, and Pillow warns of them.
    warnings.simplefilter("ignore")
    logging.disable()
    faulthandler.enable()
    signal.signal(signal.SIGPROF, too_slow)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, resource.RLIM_INFINITY))

    tallies = {name: Tally() for name in options.targets}
    end, number = time.monotonic() + 60 * options.minutes, options.seed
    while time.monotonic() < end:
        number += 1
        for name, tally in tallies.items():
            if time.monotonic() < end and not tally.findings:
                fuzz(TARGETS[name], tally, number, CASES_PER_ROUND)
    print(f"{'target':20} {'cases':>7} {'slowest':>8} {'findings':>8}")
    for name, tally in tallies.items():
        print(f"{name:20} {tally.cases:7d} {tally.slowest:7.2f}s {len(tally.findings):8d}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{sum(tally.cases for tally in tallies.values())} cases, peak memory {peak:.0f} MiB")
    for name, tally in tallies.items():
        for finding in tally.findings:
            print(f"\n{name}, {finding}")
    return int(any(tally.findings for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
