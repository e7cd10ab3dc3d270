"""End a run that is told to stop (SIGTERM, as job schedulers send it) with a checkpoint."""

import logging
import signal
import threading
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


logger = logging.getLogger(__name__)


class StopSignal(TrainerCallback):
    """
    Stops training after the step in which SIGTERM comes, and saves a checkpoint of that step.

    With several processes it is enough that one of them gets the signal. An evaluation that is due at that step is
    left out, since those who send the signal do not wait long before they kill.

    Attributes:
        was_sent (`bool`): Whether training was stopped by the signal.
    """

    def __init__(self) -> None:
        self.was_sent = False
        self._before: Any = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Wait for the signal instead of dying of it."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._receive)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Die of the signal again."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint and for the end if the signal came to any process."""
        if args.world_size > 1:
            sent = torch.tensor(float(self.was_sent), device=args.device)
            torch.distributed.all_reduce(sent, torch.distributed.ReduceOp.MAX)
            self.was_sent = bool(sent)
        if self.was_sent:
            logger.warning("Told to stop (SIGTERM): saving a checkpoint of step %d", state.global_step)
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True

    def _receive(self, *_: Any) -> None:
        self.was_sent = True
