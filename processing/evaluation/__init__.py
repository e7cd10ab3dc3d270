"""Scores of referring image segmentation: the metric, the evaluation of a model, its controls and its reports."""
