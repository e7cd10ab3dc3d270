"""Defaults, copies and refusals of the configuration."""

from __future__ import annotations

import pytest

from modeling_jmceln import JMCELNConfig
from tests.tiny import tiny_config


def test_defaults_are_swin_base_and_bert_base():
    config = JMCELNConfig()
    assert config.backbone_config.embed_dim == 128
    assert config.backbone_config.window_size == 12
    assert config.text_config.hidden_size == 768
    assert config.feature_strides == [4, 8, 16, 32]


def test_saved_config_comes_back_equal(tmp_path):
    config = tiny_config(num_stages=4, use_alignment=False)
    config.save_pretrained(tmp_path)
    loaded = JMCELNConfig.from_pretrained(tmp_path)
    assert {**loaded.to_dict(), "transformers_version": None} == {**config.to_dict(), "transformers_version": None}
    assert "referring-image-segmentation" in loaded.custom_pipelines


def test_dict_of_a_sub_config_is_not_changed():
    text_config = {"model_type": "bert", "vocab_size": 99, "hidden_size": 32, "num_attention_heads": 2}
    tiny_config(text_config=text_config)
    assert text_config["model_type"] == "bert"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_stages": 0}, "`num_stages` must be an integer of at least 1 and at most 64, got 0"),
        ({"num_stages": 1.5}, "got 1.5"),
        ({"num_context_tokens": -1}, "`num_context_tokens`"),
        ({"num_context_tokens": 1}, "at least 2, one for the referent"),
        ({"num_fusion_layers": -1}, "at least 0 and at most 256, got -1"),
        ({"hidden_size": 36}, "divisible by 4 times `num_attention_heads`"),
        ({"num_attention_heads": 1}, "must be even"),
        ({"dropout": 1.0}, r"`dropout` must lie in \[0, 1\), got 1.0"),
        ({"dice_weight": -1.0}, "`dice_weight` must be a finite number of at least 0, got -1.0"),
        ({"dice_weight": float("nan")}, "`dice_weight`.*got nan"),
        ({"landmark_loss_weight": "1"}, "`landmark_loss_weight`.*got '1'"),
        ({"dropout": "a"}, "`dropout`.*got 'a'"),
        ({"layer_norm_eps": "x"}, "`layer_norm_eps` must be a number above 0, got 'x'"),
        ({"layer_norm_eps": 0.0}, "`layer_norm_eps`"),
        ({"use_alignment": "no"}, "`use_alignment` must be `True` or `False`, got 'no'"),
        ({"use_contextual_embedding": None}, "`use_contextual_embedding`.*got None"),
        ({"hidden_act": "gulu"}, "`hidden_act` must be one of .*got 'gulu'"),
        ({"hidden_act": ["gelu"]}, "`hidden_act`"),
        ({"num_stages": 10**6}, "`num_stages`.*at most 64, got 1000000"),
        ({"hidden_size": 10**9}, "`hidden_size`.*at most 65536, got 1000000000"),
        ({"num_context_tokens": 10**7}, "at most 1024"),
        ({"num_image_layers": 10**6}, "at most 256"),
        ({"num_categories": -1}, "`num_categories` must be an integer of at least 0"),
        ({"num_prefix_tokens": "x"}, "`num_prefix_tokens`.*got 'x'"),
        ({"feature_strides": [4, 8, 16]}, "has 3 entries"),
        ({"feature_strides": "abc"}, "`feature_strides` must be a list of whole numbers, got 'abc'"),
        ({"feature_strides": [512, 1024, 2048, 4096]}, "`feature_strides` must not exceed 1024"),
        ({"feature_indices": 3}, "`feature_indices` must be a list of whole numbers, got 3"),
        ({"feature_strides": [14, 14, 14, 14]}, "twice the one before"),
        ({"text_config": {"vocab_size": 99}}, "without `model_type`"),
        ({"backbone_config": {"model_type": "swin", "out_features": ["stage4"]}}, "three or four feature maps"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


def test_wrong_type_of_sub_config_is_refused():
    with pytest.raises(TypeError, match="`text_config` must be a configuration or a dict, got str"):
        tiny_config(text_config="google-bert/bert-base-uncased")
