"""Every test of the common suites that this project leaves out, and why: properties of the model, no missing feature.

A test that skips itself (no accelerator, no second backend, no generation...) is not listed: the suite says why.
"""

from __future__ import annotations

import unittest


SKIPS: dict[str, dict[str, str]] = {
    # Of `test_get_image_features_output` the test case leaves out the last comparison, by the suite's own switch
    # `skip_test_image_features_output_shape`: the image features are a pyramid in the model's width, not the backbone's.
    "ModelTesterMixin": {},
    "ImageProcessingTestMixin": {},
    "ProcessorTesterMixin": {},
}


def leave_out(suite: str, test_class: type[unittest.TestCase]) -> type[unittest.TestCase]:
    """Makes the listed tests of `suite` skip in `test_class`; a name that the suite does not have is an error."""
    for name, reason in SKIPS[suite].items():
        if not callable(getattr(test_class, name, None)):
            raise AttributeError(f"{suite} has no test {name}: remove it from the skips.")
        setattr(test_class, name, unittest.skip(reason)(getattr(test_class, name)))
    return test_class
