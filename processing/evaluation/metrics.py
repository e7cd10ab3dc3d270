"""The scores of referring image segmentation, for the package's own use.

They live in the folder `referring_segmentation_metric`, which imports nothing of this package, so that `evaluate.load`
can take that folder by itself, from a disk or from the Hub.
"""

from .referring_segmentation_metric.accumulator import (
    DEFAULT_THRESHOLDS,
    NO_TARGET_RULES,
    PixelCounts,
    ReferringSegmentationMetric,
    count_pixels,
)


__all__ = ["DEFAULT_THRESHOLDS", "NO_TARGET_RULES", "PixelCounts", "ReferringSegmentationMetric", "count_pixels"]
