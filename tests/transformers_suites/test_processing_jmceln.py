"""`ProcessorTesterMixin`, the common suite of transformers, on the processor."""

from __future__ import annotations

import unittest

from transformers import PreTrainedTokenizerFast

from processing import JMCELNImageProcessor, JMCELNProcessor
from tests.compat import import_suite
from tests.tiny import tiny_tokenizer
from tests.transformers_suites.skips import leave_out


suite = import_suite("test_processing_common")


class JMCELNProcessorTest(suite.ProcessorTesterMixin, unittest.TestCase):
    processor_class = JMCELNProcessor

    @classmethod
    def _setup_image_processor(cls) -> JMCELNImageProcessor:
        return JMCELNImageProcessor(size={"height": 20, "width": 24})

    @classmethod
    def _setup_tokenizer(cls) -> PreTrainedTokenizerFast:
        return tiny_tokenizer()


leave_out("ProcessorTesterMixin", JMCELNProcessorTest)
