"""Scores of referring image segmentation: the metric, the evaluation of a model, its controls and its reports."""

from .metrics import METRIC_PATH, ReferringSegmentationMetric, count_pixels


__all__ = ["METRIC_PATH", "ReferringSegmentationMetric", "count_pixels"]
