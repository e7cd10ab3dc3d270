"""Stops a run at a loss or gradient that is not finite, before it changes the weights, and logs the image ids."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState, TrainingArguments


IMAGE_IDS = "image_ids"


class NonFiniteStepError(RuntimeError):
    """The loss or a gradient of a step is NaN or infinite."""


class NamedBatches:
    """
    Wraps a collator so that its batches also contain the ids of their images, under `"image_ids"`.

    Args:
        collator (`Callable`): Makes a batch from rows. An empty batch, from skipped rows, stays empty.
    """

    def __init__(self, collator: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]):
        self.collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = self.collator(rows)
        return {**batch, IMAGE_IDS: [str(row.get("image_id")) for row in rows]} if batch else batch


class FiniteSteps(TrainerCallback):
    """
    Checks the losses and gradients of each step before the step of the optimizer.

    With `fp16`, gradients are not checked: the gradient scaler expects infinite gradients and skips their steps.
    """

    def __init__(self) -> None:
        self.image_ids: list[str] = []

    def check_loss(
        self, loss: torch.Tensor, image_ids: Sequence[str], args: TrainingArguments, state: TrainerState
    ) -> None:
        """
        Checks the loss of a batch of the current step and remembers its images.

        Raises:
            NonFiniteStepError: If the loss is not finite.
        """
        self.image_ids += image_ids
        if not torch.isfinite(loss):
            self._stop(f"the loss is {float(loss)}", args, state)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Forgets the images of the previous step."""
        self.image_ids = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, *_: Any, model: torch.nn.Module, **__: Any
    ) -> None:
        """
        Checks the gradients of the current step.

        Raises:
            NonFiniteStepError: If a gradient is not finite.
        """
        gradients: list[Any] = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        # With FSDP2, each process has a shard of each gradient, which may be empty.
        gradients = [grad.to_local() if hasattr(grad, "to_local") else grad for grad in gradients]
        gradients = [grad for grad in gradients if grad.numel() > 0]
        if not args.fp16 and not torch.isfinite(torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))):
            self._stop("a gradient is NaN or infinite", args, state)

    def _stop(self, reason: str, args: TrainingArguments, state: TrainerState) -> None:
        step = state.global_step + 1
        path = Path(args.output_dir) / f"non_finite_step_{step}_process_{args.process_index}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"step": step, "reason": reason, "image_ids": self.image_ids}
        path.write_text(json.dumps(record, indent=2), encoding="utf-8")
        raise NonFiniteStepError(
            f"Step {step}: {reason}. The run stops before the weights change. {path} has the ids of the images in this"
            " step: check these images, lower `learning_rate`, or train in float32 or bfloat16."
        )
