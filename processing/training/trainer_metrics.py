"""Scores inside the Trainer: logits are reduced to pixel counts on the device, so that no mask is gathered or kept.

```python
trainer = Trainer(
    ...,
    args=TrainingArguments(..., batch_eval_metrics=True),
    preprocess_logits_for_metrics=reduce_logits,
    compute_metrics=TrainerMetrics(),
)
```

These scores are at the resolution of the labels, which suits the choice of a checkpoint; `jmceln evaluate` scores
at the size of the original images, which is what tables compare.
"""

from typing import Any

import torch
from transformers import EvalPrediction

from ..evaluation.metrics import DEFAULT_THRESHOLDS, ReferringSegmentationMetric


def reduce_logits(
    logits: torch.Tensor | tuple[torch.Tensor, ...],
    labels: torch.Tensor,
    threshold: float = 0.5,
    presence_threshold: float = 0.5,
) -> torch.Tensor:
    """
    Reduces the model's outputs to four integers an expression, on the device where they are.

    Args:
        logits (`torch.Tensor` or `tuple`):
            Mask logits `(batch, height, width)` or `(batch, expressions, height, width)`, or a tuple of these and the
            presence logits `(batch,)` or `(batch, expressions)`.
        labels (`torch.Tensor`):
            Of the shape of the mask logits: 1 where the referent is, 0 elsewhere, any other value (255 or the -100
            with which processes are padded) where pixels do not count.
        threshold (`float`, *optional*, defaults to 0.5):
            Probability above which a pixel belongs to the mask.
        presence_threshold (`float`, *optional*, defaults to 0.5):
            Probability of presence below which the mask is empty.

    Returns:
        `torch.LongTensor` `(batch, expressions, 4)`: intersection, predicted area, target area, and number of pixels
        that count; the last is 0 for a padded expression. One expression an image gives `expressions = 1`.
    """
    mask_logits, *rest = logits if isinstance(logits, (tuple, list)) else (logits,)
    if mask_logits.shape != labels.shape:
        raise ValueError(
            f"The mask logits {tuple(mask_logits.shape)} and labels {tuple(labels.shape)} must have the same shape."
        )
    if mask_logits.ndim == 3:
        mask_logits, labels = mask_logits[:, None], labels[:, None]
    predicted = mask_logits.float().sigmoid() > threshold
    if rest:
        present = rest[0].float().sigmoid() >= presence_threshold
        predicted &= present.reshape(predicted.shape[:2])[:, :, None, None]
    target = labels == 1
    counted = target | (labels == 0)
    predicted &= counted
    return torch.stack([mask.sum((-2, -1)) for mask in (predicted & target, predicted, target, counted)], dim=-1)


class TrainerMetrics:
    """
    `compute_metrics` for a Trainer with `batch_eval_metrics=True` whose logits went through `reduce_logits`.

    Returns the scores of `ReferringSegmentationMetric` that are defined for the data, without the pixel sums. Padded
    expressions count for nothing; the Trainer itself drops the rows with which the last batch is filled up.
    """

    def __init__(self, thresholds: tuple[float, ...] = DEFAULT_THRESHOLDS):
        self._metric = ReferringSegmentationMetric(thresholds)

    def __call__(self, eval_prediction: EvalPrediction, compute_result: bool = True) -> dict[str, Any]:
        """
        Adds a batch of counts `(batch, expressions, 4)`, or a list of such batches, and returns `{}` until
        `compute_result` asks for the scores, after which the next evaluation starts from nothing.
        """
        batches = eval_prediction.predictions
        for batch in batches if isinstance(batches, list) else [batches]:
            counts = torch.as_tensor(batch).reshape(-1, 4)
            # Other processes may have had more expressions an image: the gathered tensor is then filled up with -100.
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
