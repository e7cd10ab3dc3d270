"""A JMCELN small enough for any test: the real parts at the least sizes they take."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerFast

from modeling_jmceln import JMCELNConfig, JMCELNModel
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


def tiny_model_with_batch_norm() -> JMCELNModel:
    """A model on a MobileNetV2, whose layers keep statistics of the images that they see in training mode."""
    fields = tiny_config().to_dict()
    backbone = AutoConfig.for_model("mobilenet_v2", depth_multiplier=0.1)
    text_encoder = AutoConfig.for_model(**fields["text_config"])
    sizes = ("hidden_size", "mask_feature_size", "intermediate_size", "num_attention_heads", "num_stages")
    return JMCELNModel.from_vision_text_pretrained(backbone, text_encoder, **{name: fields[name] for name in sizes})


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return build_word_tokenizer([WORDS], max_length=128)


def tiny_processor(**overrides: Any) -> JMCELNProcessor:
    image_processor = JMCELNImageProcessor(**{"size": {"height": 64, "width": 64}, **overrides})
    return JMCELNProcessor(image_processor=image_processor, tokenizer=tiny_tokenizer())
