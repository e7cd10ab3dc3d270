"""A few inputs of each kind in each run of the tests; `make fuzz ARGS="--minutes 5"` tries more."""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.targets import TARGETS


# Each case of these starts a process or reads a folder.
EXPENSIVE = ("REFER annotations", "REFER files", "pickles", "tables", "settings files", "model configurations",
             "model weights", "headers of weights", "processors")  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_a_right_answer_or_a_refusal_in_our_words(name):
    strategy, check = TARGETS[name]
    limits = settings(
        max_examples=10 if name in EXPENSIVE else 60,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    limits(given(strategy)(check))()
