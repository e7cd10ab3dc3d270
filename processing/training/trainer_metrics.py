"""Scores inside the Trainer: logits are reduced to pixel counts on the device, so that no mask is gathered or kept.

```python
metrics = TrainerMetrics()
trainer = Trainer(
    ...,
    args=TrainingArguments(..., batch_eval_metrics=True),
    preprocess_logits_for_metrics=metrics.reduce_logits,
    compute_metrics=metrics,
)
```

These scores are at the resolution of the labels, which suits the choice of a checkpoint; `jmceln evaluate` scores
at the size of the original images, which is what tables compare.
"""

from typing import Any

import torch
from transformers import EvalPrediction

from ..evaluation.metrics import DEFAULT_THRESHOLDS, ReferringSegmentationMetric
from ..image_processing_jmceln import check_threshold, masks_and_scores


class TrainerMetrics:
    """
    `compute_metrics` of a Trainer, and its `preprocess_logits_for_metrics` as [`~TrainerMetrics.reduce_logits`].

    Without the second the scores are the same, but the Trainer gathers every mask first; without
    `batch_eval_metrics=True` it also keeps what it gathers until the end.

    Args:
        threshold (`float`, *optional*, defaults to 0.5):
            Score below which a result counts as absent.
        mask_threshold (`float`, *optional*, defaults to 0.5):
            Probability above which a pixel belongs to the mask.
        iou_thresholds (`tuple[float, ...]`, *optional*):
            The X of P@X.

    Raises:
        ValueError: for a threshold outside [0, 1], or shapes of masks and labels that differ.
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
                Of the shape of the mask logits: 1 where the referent is, 0 elsewhere, any other value (255 or the -100
                with which processes are padded) where pixels do not count.

        Returns:
            `torch.LongTensor` `(batch, expressions, 4)`: intersection, predicted area, target area, and number of
            pixels that count; the last is 0 for a padded expression. One expression per image gives `expressions = 1`.
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
        # What does not count, such as the padding of an image, takes no part in the score either.
        probabilities = mask_logits.float().sigmoid() * counted
        presences = probabilities.new_ones(probabilities.shape[:2])
        if rest:
            presences = rest[0].float().sigmoid().reshape(presences.shape)
        predicted, _ = masks_and_scores(probabilities, presences, self.threshold, self.mask_threshold)
        predicted &= counted
        return torch.stack([mask.sum((-2, -1)) for mask in (predicted & target, predicted, target, counted)], dim=-1)

    def __call__(self, eval_prediction: EvalPrediction, compute_result: bool = True) -> dict[str, Any]:
        """
        Adds a batch of counts from [`~TrainerMetrics.reduce_logits`], a list of such batches, or the outputs of the
        model with their labels, and returns `{}` until `compute_result` asks for the scores, after which the next
        evaluation starts from nothing. The scores are those of `ReferringSegmentationMetric` that are defined for the
        data, without the pixel sums. Padded expressions count for nothing.
        """
        predictions = eval_prediction.predictions
        for batch in predictions if isinstance(predictions, list) else [predictions]:
            # Other processes may have had more expressions per image: what is gathered is then filled up with -100.
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
