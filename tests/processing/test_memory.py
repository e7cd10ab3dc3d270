"""A process that served or trained for long takes no more memory than one that did so shortly."""

import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Trainer

from modeling_jmceln import JMCELNModel
from processing import ReferringImageSegmentationPipeline
from processing.training import run as train
from tests.processing.training.tiny_run import write_settings
from tests.tiny import tiny_config, tiny_processor


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

# `JMCELN_MEMORY_CALLS=2000` asks for longer.
CALLS = int(os.environ.get("JMCELN_MEMORY_CALLS", "150"))
WARM_UP = 50
# What 150 calls may add: as much as the masks of 17 of them, were they kept.
MEBIBYTES = 6


def resident() -> float:
    """Memory of this process in MiB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def assert_steady(before: float) -> None:
    growth = resident() - before
    print(f"{CALLS} calls added {growth:.1f} MiB to {before:.0f} MiB")
    assert growth < MEBIBYTES


def test_memory_is_steady_over_calls_of_the_pipeline():
    torch.manual_seed(0)
    pipe = ReferringImageSegmentationPipeline(model=JMCELNModel(tiny_config()).eval(), processor=tiny_processor())
    generator = np.random.default_rng(0)
    before = 0.0
    for call in range(WARM_UP + CALLS):
        if call == WARM_UP:
            before = resident()
        # Each image has a size of its own, as those of users.
        height, width = 300 + call % 37, 400 + call % 41
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        answers = pipe(image, ["the red circle", "a star", f"circle {call}"], threshold=0.0)
        assert len(answers) == 3
    assert_steady(before)


def test_memory_is_steady_over_steps_of_training(tmp_path, monkeypatch):
    training_step, measured = Trainer.training_step, {}

    def measured_step(self, *args, **kwargs):
        step = self.state.global_step
        if step == WARM_UP:
            measured["before"] = resident()
        loss = training_step(self, *args, **kwargs)
        if step == WARM_UP + CALLS - 1:
            assert_steady(measured["before"])
            measured["checked"] = step
        return loss

    monkeypatch.setattr(Trainer, "training_step", measured_step)
    # Evaluations and checkpoints come with the steps, as in a run of a user.
    steps = {"max_steps": WARM_UP + CALLS, "eval_steps": 40, "save_steps": 40, "save_total_limit": 1}
    train.main([str(write_settings(tmp_path, **steps))])
    assert measured["checked"]
