"""A JMCELN small enough for any test: the real parts at the least sizes they take."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from modeling_jmceln import JMCELNConfig
from processing import JMCELNImageProcessor, JMCELNProcessor
from processing.training.word_tokenizer import build_word_tokenizer


WORDS = (
    "the a small large red green blue circle square star left right of above below"
    " lower newer upper older longer string"
)


def tiny_config(**overrides: Any) -> JMCELNConfig:
    fields: dict[str, Any] = {
        "backbone_config": {
            "model_type": "swin",
            "image_size": 32,
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [2, 2, 2, 2],
            "window_size": 2,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        "text_config": {
            "model_type": "bert",
            "vocab_size": 99,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 37,
            "max_position_embeddings": 128,
        },
        "hidden_size": 32,
        "mask_feature_size": 16,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_image_layers": 1,
        "num_fusion_layers": 1,
        "num_stages": 2,
        "num_context_tokens": 4,
    }
    return JMCELNConfig(**{**fields, **overrides})


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return build_word_tokenizer([WORDS], max_length=128)


def tiny_processor(**overrides: Any) -> JMCELNProcessor:
    image_processor = JMCELNImageProcessor(**{"size": {"height": 64, "width": 64}, **overrides})
    return JMCELNProcessor(image_processor=image_processor, tokenizer=tiny_tokenizer())
