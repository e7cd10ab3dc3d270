"""The reduction of logits to counts, and the scores that a real Trainer logs from them."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import EvalPrediction, Trainer, TrainingArguments

from processing.evaluation.metrics import ReferringSegmentationMetric
from processing.training.trainer_metrics import TrainerMetrics


def random_batch(seed, batch=3, expressions=2, size=8):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, expressions, size, size, generator=generator)
    labels = torch.randint(0, 2, (batch, expressions, size, size), generator=generator)
    presence = torch.full((batch, expressions), 5.0)
    return logits, presence, labels


def test_counts_equal_those_of_the_masks():
    logits, presence, labels = random_batch(0)
    presence[1, 0] = -5.0
    counts = TrainerMetrics().reduce_logits((logits, presence), labels)
    metric = ReferringSegmentationMetric()
    masks = (logits > 0) & (presence > 0)[:, :, None, None]
    expected = metric.update(list(masks.flatten(0, 1)), list(labels.flatten(0, 1)))
    assert counts[..., :3].reshape(-1, 3).tolist() == [list(sample) for sample in expected]
    assert (counts[..., 3] == 64).all()


@pytest.mark.parametrize("ignored", [255, -100])
def test_ignored_pixels_and_padded_expressions(ignored):
    logits, presence, labels = random_batch(1)
    labels[0, 1] = ignored
    labels[2, 0, :4] = ignored
    counts = TrainerMetrics().reduce_logits((logits, presence), labels)
    assert counts[0, 1].tolist() == [0, 0, 0, 0]
    assert counts[2, 0].tolist()[3] == 32
    half = TrainerMetrics().reduce_logits((logits[2:, :1, 4:], presence[2:, :1]), labels[2:, :1, 4:])
    assert counts[2, 0].tolist() == half[0, 0].tolist()


def test_one_expression_an_image_and_logits_alone():
    logits, presence, labels = random_batch(2, expressions=1)
    expected = TrainerMetrics().reduce_logits((logits, presence), labels)
    assert torch.equal(TrainerMetrics().reduce_logits(logits[:, 0], labels[:, 0]), expected)
    assert torch.equal(TrainerMetrics().reduce_logits((logits[:, 0], presence[:, 0]), labels[:, 0]), expected)


def test_thresholds():
    logits, presence = torch.full((1, 1, 2, 2), 1.0), torch.ones(1, 1)
    labels = torch.ones(1, 1, 2, 2)
    # Pixels and presence have the probability 0.73, and their product, the score, 0.53.
    assert TrainerMetrics().reduce_logits((logits, presence), labels)[0, 0, 1] == 4
    assert TrainerMetrics(threshold=0.6).reduce_logits((logits, presence), labels)[0, 0, 1] == 0
    assert TrainerMetrics(threshold=0.6).reduce_logits(logits, labels)[0, 0, 1] == 4
    assert TrainerMetrics(mask_threshold=0.8).reduce_logits((logits, presence), labels)[0, 0, 1] == 0
    for name in ("threshold", "mask_threshold"):
        with pytest.raises(ValueError, match=f"`{name}` must lie between 0 and 1"):
            TrainerMetrics(**{name: 2})


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="same shape"):
        TrainerMetrics().reduce_logits(torch.zeros(1, 4, 4), torch.zeros(1, 8, 8))


@pytest.mark.parametrize("as_numpy", [False, True])
def test_batches_add_up_and_the_next_evaluation_starts_from_nothing(as_numpy):
    counts = torch.tensor([[[5, 10, 5, 64], [0, 0, 0, 0]], [[8, 8, 8, 64], [-100, -100, -100, -100]]])
    counts = counts.numpy() if as_numpy else counts
    metrics = TrainerMetrics()
    for _ in range(2):
        assert metrics(EvalPrediction(predictions=counts[:1], label_ids=None), compute_result=False) == {}
        scores = metrics(EvalPrediction(predictions=counts[1:], label_ids=None), compute_result=True)
        assert (scores["mIoU"], scores["oIoU"], scores["expressions"]) == (0.75, 13 / 18, 2)
        assert "N-acc" not in scores


class Thresholds(nn.Module):
    """Logits are the pixels themselves; the weight only gives the Trainer something to hold."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, pixel_values, labels):
        logits = pixel_values * self.weight
        return {"loss": logits.mean(), "logits": logits, "presence_logits": torch.full(logits.shape[:2], 9.0)}


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("batch_eval_metrics", [True, False])
def test_the_trainer_logs_the_scores_of_every_sample(tmp_path, reduced, batch_eval_metrics):
    generator = np.random.default_rng(3)
    rows = []
    # The last batch is smaller than the others, and some images have one expression less.
    for index in range(7):
        labels = generator.integers(0, 2, (2, 6, 6))
        if index % 3 == 0:
            labels[1] = 255
        rows.append({"pixel_values": generator.normal(size=(2, 6, 6)).astype(np.float32), "labels": labels})
    metrics = TrainerMetrics()
    trainer = Trainer(
        model=Thresholds(),
        args=TrainingArguments(
            output_dir=str(tmp_path),
            per_device_eval_batch_size=3,
            batch_eval_metrics=batch_eval_metrics,
            report_to=[],
            use_cpu=True,
            remove_unused_columns=False,
        ),
        eval_dataset=rows,
        preprocess_logits_for_metrics=metrics.reduce_logits if reduced else None,
        compute_metrics=metrics,
    )
    metric = ReferringSegmentationMetric()
    for row in rows:
        for pixels, labels in zip(row["pixel_values"], row["labels"], strict=True):
            if labels[0, 0] != 255:
                metric.update([pixels > 0], [labels])
    expected = metric.compute()
    for _ in range(2):
        logged = trainer.evaluate()
        assert logged["eval_expressions"] == 11
        for name in ("oIoU", "mIoU", "P@0.5", "mIoU_standard_error"):
            assert logged[f"eval_{name}"] == expected[name]
