"""The metric of referring image segmentation for the `evaluate` library."""

import datasets
import evaluate

from .accumulator import DEFAULT_THRESHOLDS, ReferringSegmentationMetric, count_pixels
from .run_lengths import check_compressed


# `evaluate` copies only the files that this file imports, so this file also imports what the accumulator needs.
__all__ = ["ReferringSegmentation", "check_compressed"]


_DESCRIPTION = """
Scores of referring image segmentation. oIoU is the sum of the intersections divided by the sum of the unions, mIoU the
mean of the IoUs. Papers report one or the other as "IoU", so the metric always returns both. P@X is the fraction of
the expressions whose IoU reaches X. For datasets with expressions that refer to nothing (gRefCOCO), gIoU, cIoU, N-acc
and T-acc follow the rules of GRES.
"""

_CITATION = """
@inproceedings{yang2022lavt,
  title={LAVT: Language-Aware Vision Transformer for Referring Image Segmentation},
  author={Yang, Zhao and Wang, Jiaqi and Tang, Yansong and Chen, Kai and Zhao, Hengshuang and Torr, Philip H. S.},
  booktitle={CVPR}, year={2022}
}
@inproceedings{liu2023gres,
  title={GRES: Generalized Referring Expression Segmentation},
  author={Liu, Chang and Ding, Henghui and Jiang, Xudong},
  booktitle={CVPR}, year={2023}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: list of masks, one per expression, each of the size of its reference (that of the original image):
        numpy arrays, torch tensors, PIL images or nested lists of booleans or of 0 and 1, or COCO compressed RLE
        {"size": [height, width], "counts": ...} (needs pycocotools).
    references: list of masks of the same kinds. An empty mask means that the expression refers to nothing.
    groups (optional): list of names; the scores of each group are also returned.
    identifiers (optional): list of strings; samples with the same identifier, in any process, count once.
    ignored (optional): list of masks (or None) of pixels to ignore.
    thresholds (optional, for `compute`): the thresholds X of P@X, 0.5 to 0.9 by default.
    inclusive (optional, for `compute`): whether an IoU equal to X counts for P@X (default: yes).
    no_target (optional, for `compute`): "grefcoco" (default), or "zero" to score an empty reference as IoU 0.
Returns:
    oIoU, mIoU, mIoU_standard_error, P@0.5 ... P@0.9, gIoU, cIoU, N-acc, T-acc as fractions (None without any samples),
    expressions, targets, no_targets, intersection, union, and groups if there are any.
Examples:
    >>> metric = evaluate.load(METRIC_PATH)  # from processing.evaluation import METRIC_PATH
    >>> scores = metric.compute(predictions=[[[1, 1], [0, 0]]], references=[[[1, 0], [0, 0]]])
    >>> scores["oIoU"], scores["mIoU"]
    (0.5, 0.5)
"""


class ReferringSegmentation(evaluate.Metric):
    """
    Keeps three integers per sample instead of the masks: `add` and `add_batch` count pixels at once and pass the
    counts to `evaluate`. The cache files of `evaluate` then contain only a few bytes per expression.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "intersection": datasets.Value("int64"),
                    "prediction_area": datasets.Value("int64"),
                    "target_area": datasets.Value("int64"),
                    "group": datasets.Value("string"),
                    "identifier": datasets.Value("string"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2112.02244", "https://arxiv.org/abs/2306.00968"],
        )

    def add_batch(self, *, predictions, references, groups=None, identifiers=None, ignored=None):
        """Adds samples. Their pixels are counted at once, and the masks are not kept."""
        columns = {"references": references, "groups": groups, "identifiers": identifiers, "ignored": ignored}
        for name, column in columns.items():
            if column is not None and len(column) != len(predictions):
                raise ValueError(
                    f"Got {len(predictions)} predictions but {len(column)} {name}: give one per prediction."
                )
        nothing = [None] * len(predictions)
        # Not `or`, since an array has no truth value.
        groups, identifiers, ignored = (
            nothing if column is None else column for column in (groups, identifiers, ignored)
        )
        counts = [count_pixels(*masks) for masks in zip(predictions, references, ignored, strict=True)]
        super().add_batch(
            intersection=[sample.intersection for sample in counts],
            prediction_area=[sample.prediction_area for sample in counts],
            target_area=[sample.target_area for sample in counts],
            # `evaluate` does not accept None for a string.
            group=[group or "" for group in groups],
            identifier=[identifier or "" for identifier in identifiers],
        )

    def add(self, *, prediction, reference, group=None, identifier=None, ignored=None):
        """Adds one sample."""
        self.add_batch(
            predictions=[prediction],
            references=[reference],
            groups=[group],
            identifiers=[identifier],
            ignored=[ignored],
        )

    def compute(
        self, *, predictions=None, references=None, groups=None, identifiers=None, ignored=None, **settings
    ) -> dict | None:
        """Adds the given samples, if any, and returns the scores of all samples (on the main process)."""
        if (predictions is None) != (references is None):
            raise ValueError("Pass both `predictions` and `references`, or, after `add` or `add_batch`, neither.")
        if predictions is not None:
            self.add_batch(
                predictions=predictions,
                references=references,
                groups=groups,
                identifiers=identifiers,
                ignored=ignored,
            )
        return super().compute(**settings)

    def _compute(
        self,
        intersection,
        prediction_area,
        target_area,
        group,
        identifier,
        thresholds=DEFAULT_THRESHOLDS,
        inclusive=True,
        no_target="grefcoco",
    ) -> dict:
        accumulator = ReferringSegmentationMetric(thresholds, inclusive, no_target)
        counts = zip(intersection, prediction_area, target_area, strict=True)
        accumulator.update_counts(counts, [name or None for name in group], [name or None for name in identifier])
        return accumulator.compute()
