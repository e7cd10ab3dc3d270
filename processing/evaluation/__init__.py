"""Evaluation of referring image segmentation: the metric, the evaluation of a model, controls and reports."""

from .metrics import METRIC_PATH, ReferringSegmentationMetric, count_pixels


__all__ = ["METRIC_PATH", "ReferringSegmentationMetric", "count_pixels"]
