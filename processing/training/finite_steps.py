"""Stop a run before a loss or a gradient that is not finite reaches the weights, and keep the ids of its images."""

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
    A collator whose batches also hold the ids of their images, under `"image_ids"`.

    Args:
        collator (`Callable`): Makes a batch of rows. An empty batch, of rows that are passed over, stays empty.
    """

    def __init__(self, collator: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]):
        self.collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = self.collator(rows)
        return {**batch, IMAGE_IDS: [str(row.get("image_id")) for row in rows]} if batch else batch


class FiniteSteps(TrainerCallback):
    """
    Checks losses and gradients of each step before the optimizer takes it.

    With `fp16` gradients are not checked: its scaler meets infinite ones on purpose, and skips their steps.
    """

    def __init__(self) -> None:
        self.image_ids: list[str] = []

    def check_loss(
        self, loss: torch.Tensor, image_ids: Sequence[str], args: TrainingArguments, state: TrainerState
    ) -> None:
        """
        Take note of a batch of the current step.

        Raises:
            NonFiniteStepError: if its loss is not finite.
        """
        self.image_ids += image_ids
        if not torch.isfinite(loss):
            self._stop(f"the loss is {float(loss)}", args, state)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Forget the images of the step before."""
        self.image_ids = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, *_: Any, model: torch.nn.Module, **__: Any
    ) -> None:
        """
        Raises:
            NonFiniteStepError: if a gradient is not finite.
        """
        gradients: list[Any] = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        # FSDP2 gives each process its shard of a gradient, which may be empty.
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
            f"Step {step}: {reason}. The run stops before the weights take it up. {path} has the ids of the step's"
            " images: look at them, lower `learning_rate`, or train in float32 or bfloat16."
        )
