"""Every test of the common suites that this project leaves out, and why: properties of the model, no missing feature.

A test that skips itself (no accelerator, no second backend, no generation...) is not listed: the suite says why.
"""

from __future__ import annotations

import unittest


SKIPS: dict[str, dict[str, str]] = {
    # Beside these, `test_get_image_features_output` leaves out its last comparison by the suite's own switch
    # `skip_test_image_features_output_shape`: image features are a pyramid as wide as the model, not as the backbone.
    "ModelTesterMixin": {},
    "ImageProcessingTestMixin": {
        "test_pil_can_run_without_torchvision": (
            "it loads in a process that trusts no code of a folder; test_remote_code.py does it in one that does, and"
            " without torchvision"
        ),
        "test_new_models_require_torchvision_backend": (
            "one implementation gives the same pixels with and without torchvision, on every transformers since 4.57;"
            " a second backend would differ from it by up to 0.0175 a pixel"
        ),
    },
    "ProcessorTesterMixin": {
        "test_processor_text_has_no_visual": "an expression refers to something in its image: there is none without",
    },
}


def leave_out(suite: str, test_class: type[unittest.TestCase]) -> type[unittest.TestCase]:
    """Makes the listed tests of `suite` skip in `test_class`; a name that the suite does not have is an error."""
    for name, reason in SKIPS[suite].items():
        if not callable(getattr(test_class, name, None)):
            raise AttributeError(f"{suite} has no test {name}: remove it from the skips.")
        setattr(test_class, name, unittest.skip(reason)(getattr(test_class, name)))
    return test_class
