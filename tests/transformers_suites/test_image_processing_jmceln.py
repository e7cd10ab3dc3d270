"""`ImageProcessingTestMixin`, the common suite of transformers, on the image processor."""

from __future__ import annotations

import unittest
from typing import Any

from processing import JMCELNImageProcessor
from tests.compat import import_suite
from tests.transformers_suites.skips import leave_out


suite = import_suite("test_image_processing_common")


class JMCELNImageProcessingTester(suite.ImageProcessingTester):
    def __init__(self, parent: unittest.TestCase, **kwargs: Any) -> None:
        kwargs.setdefault("size", {"height": 20, "width": 24})
        kwargs.setdefault("num_labels", 4)  # the expressions of an image
        kwargs.setdefault("do_resize", True)
        kwargs.setdefault("do_rescale", True)
        kwargs.setdefault("do_normalize", True)
        kwargs.setdefault("do_convert_rgb", True)
        kwargs.setdefault("image_mean", [0.5, 0.4, 0.3])
        kwargs.setdefault("image_std", [0.3, 0.4, 0.5])
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": JMCELNImageProcessor}


class JMCELNImageProcessingTest(
    suite.ImageProcessingTestMixin, suite.PostProcessSemanticSegmentationTestMixin, unittest.TestCase
):
    image_processor_tester_class = JMCELNImageProcessingTester
    test_cast_dtype = True


leave_out("ImageProcessingTestMixin", JMCELNImageProcessingTest)
