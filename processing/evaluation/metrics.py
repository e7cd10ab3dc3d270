"""The metric of referring image segmentation.

Its code is in the folder `referring_segmentation_metric` and imports nothing else from this package, so that
`evaluate.load(METRIC_PATH)` can load the folder on its own, from disk or from the Hub.
"""

from pathlib import Path

from .referring_segmentation_metric.accumulator import (
    DEFAULT_THRESHOLDS,
    NO_TARGET_RULES,
    PixelCounts,
    ReferringSegmentationMetric,
    count_pixels,
)


# An absolute path, since `evaluate.load` looks for a relative path in the current directory.
METRIC_PATH = str(Path(__file__).parent / "referring_segmentation_metric")

__all__ = [
    "DEFAULT_THRESHOLDS",
    "METRIC_PATH",
    "NO_TARGET_RULES",
    "PixelCounts",
    "ReferringSegmentationMetric",
    "count_pixels",
]
