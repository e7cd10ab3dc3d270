"""The scores of referring image segmentation.

They live in the folder `referring_segmentation_metric`, which imports nothing of this package, so that `evaluate.load`
can take that folder by itself, from a disk or from the Hub: `evaluate.load(METRIC_PATH)`.
"""

from pathlib import Path

from .referring_segmentation_metric.accumulator import (
    DEFAULT_THRESHOLDS,
    NO_TARGET_RULES,
    PixelCounts,
    ReferringSegmentationMetric,
    count_pixels,
)


# For `evaluate.load`, which looks for a relative path in the current directory.
METRIC_PATH = str(Path(__file__).parent / "referring_segmentation_metric")

__all__ = [
    "DEFAULT_THRESHOLDS",
    "METRIC_PATH",
    "NO_TARGET_RULES",
    "PixelCounts",
    "ReferringSegmentationMetric",
    "count_pixels",
]
