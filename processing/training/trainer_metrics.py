"""Metrics for the Trainer. Logits are reduced to pixel counts on the device, so that no masks are gathered or kept.

```python
metrics = TrainerMetrics()
trainer = Trainer(
    ...,
    args=TrainingArguments(..., batch_eval_metrics=True),
    preprocess_logits_for_metrics=metrics.reduce_logits,
    compute_metrics=metrics,
)
```

These scores are computed at the size of the labels, which is good enough to choose a checkpoint. `jmceln evaluate`
scores at the size of the original images, as in published tables.
"""

from typing import Any

import torch
from transformers import EvalPrediction

from ..evaluation.metrics import DEFAULT_THRESHOLDS, ReferringSegmentationMetric
from ..image_processing_jmceln import check_threshold, masks_and_scores


class TrainerMetrics:
    """
    Pass an instance to a Trainer as `compute_metrics`, and its [`~TrainerMetrics.reduce_logits`] as
    `preprocess_logits_for_metrics`.

    Without `reduce_logits`, the scores are the same, but the Trainer gathers every mask. Without
    `batch_eval_metrics=True`, it also keeps all of them until the end.

    Args:
        threshold (`float`, *optional*, defaults to 0.5):
            If the score of a result is below this number, its mask is empty.
        mask_threshold (`float`, *optional*, defaults to 0.5):
            A pixel belongs to the mask if its probability is above this number.
        iou_thresholds (`tuple[float, ...]`, *optional*):
            The thresholds X of P@X.

    Raises:
        ValueError: If a threshold is outside [0, 1], or if masks and labels have different shapes.
    """

    def __init__(
        self,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        iou_thresholds: tuple[float, ...] = DEFAULT_THRESHOLDS,
    ):
        check_threshold("threshold", threshold)
        check_threshold("mask_threshold", mask_threshold)
        self.threshold = threshold
        self.mask_threshold = mask_threshold
        self._metric = ReferringSegmentationMetric(iou_thresholds)

    def reduce_logits(self, logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
        """
        Reduces the outputs of the model to four integers per expression, on the device where they are.

        Args:
            logits (`torch.Tensor` or `tuple`):
                Mask logits `(batch, height, width)` or `(batch, expressions, height, width)`, or a tuple that starts
                with these and the presence logits `(batch,)` or `(batch, expressions)`.
            labels (`torch.Tensor`):
                Of the shape of the mask logits: 1 at the referent, 0 elsewhere. Any other value (255, or -100 from the
                padding between processes) is ignored.

        Returns:
            `torch.LongTensor` `(batch, expressions, 4)`: intersection, predicted area, target area, and number of
            pixels that are not ignored, which is 0 for a padded expression. For labels without a dimension of
            expressions, `expressions` is 1.
        """
        mask_logits, *rest = logits if isinstance(logits, (tuple, list)) else (logits,)
        if mask_logits.shape != labels.shape:
            raise ValueError(
                f"The mask logits {tuple(mask_logits.shape)} and the labels {tuple(labels.shape)} must have the same "
                "shape."
            )
        if mask_logits.ndim == 3:
            mask_logits, labels = mask_logits[:, None], labels[:, None]
        target = labels == 1
        counted = target | (labels == 0)
        # Ignored pixels, such as the padding of an image, must not affect the score.
        probabilities = mask_logits.float().sigmoid() * counted
        presences = probabilities.new_ones(probabilities.shape[:2])
        if rest:
            presences = rest[0].float().sigmoid().reshape(presences.shape)
        predicted, _ = masks_and_scores(probabilities, presences, self.threshold, self.mask_threshold)
        predicted &= counted
        return torch.stack([mask.sum((-2, -1)) for mask in (predicted & target, predicted, target, counted)], dim=-1)

    def __call__(self, eval_prediction: EvalPrediction, compute_result: bool = True) -> dict[str, Any]:
        """
        Adds a batch of counts from [`~TrainerMetrics.reduce_logits`], a list of such batches, or outputs of the model
        with labels. Returns `{}` unless `compute_result` is set. Otherwise, returns the scores and resets them. The
        scores are those of `ReferringSegmentationMetric` that are defined for the data, without the pixel sums. Padded
        expressions do not count.
        """
        predictions = eval_prediction.predictions
        for batch in predictions if isinstance(predictions, list) else [predictions]:
            # If other processes have more expressions per image, the gathered counts are padded with -100.
            counts = self._counts(batch, eval_prediction.label_ids).reshape(-1, 4)
            self._metric.update_counts(counts[counts[:, 3] > 0, :3].tolist())
        if not compute_result:
            return {}
        scores = self._metric.compute()
        self._metric.reset()
        return {
            name: score
            for name, score in scores.items()
            if score is not None and name not in ("intersection", "union")
        }

    def _counts(self, batch: Any, labels: Any) -> torch.Tensor:
        if not isinstance(batch, tuple):
            batch = (batch,)
        tensors = tuple(torch.as_tensor(part) for part in batch)
        if not tensors[0].is_floating_point():
            return tensors[0]
        return self.reduce_logits(tensors, torch.as_tensor(labels))
