"""A saved model that the measurements of trained models take."""

import pytest

from modeling_jmceln import JMCELNModel
from tests.tiny import tiny_config, tiny_processor


SIZE = 64


@pytest.fixture
def saved_model(tmp_path):
    processor = tiny_processor(size={"height": SIZE, "width": SIZE})
    config = tiny_config(num_stages=3)
    config.text_config.vocab_size = len(processor.tokenizer)
    JMCELNModel(config).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return ["--model", str(tmp_path / "model"), "--scenes", "4"]
