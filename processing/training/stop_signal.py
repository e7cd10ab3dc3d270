"""Saves a checkpoint when a run receives SIGTERM, which job schedulers send before they kill a run."""

import logging
import signal
import threading
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


logger = logging.getLogger(__name__)


class StopSignal(TrainerCallback):
    """
    Stops training after the step in which SIGTERM arrives, and saves a checkpoint of that step.

    If there are several processes, one signal to any of them is enough. An evaluation that is due at that step is
    skipped, since there is little time until the run is killed.

    Attributes:
        was_sent (`bool`): Whether training was stopped by the signal.
    """

    def __init__(self) -> None:
        self.was_sent = False
        self._before: Any = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Replaces the handler of the signal, which would end the process."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._receive)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Restores the previous handler."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Requests a checkpoint and the end of training if any process received the signal."""
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
