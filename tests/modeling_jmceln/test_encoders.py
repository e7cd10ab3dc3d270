"""Which encoders work, how pretrained ones are taken over, and what is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, SwinBackbone

from modeling_jmceln import JMCELNModel
from tests.modeling_jmceln.inputs import random_inputs, random_labels


SMALL = {"hidden_size": 32, "mask_feature_size": 16, "intermediate_size": 64, "num_attention_heads": 4}
HIERARCHY = {"depths": [1, 1, 1, 1]}
WINDOWS = {"image_size": 64, "embed_dim": 16, "num_heads": [1, 2, 2, 4], "window_size": 4, **HIERARCHY}
WIDTHS = {"hidden_sizes": [8, 16, 24, 32], **HIERARCHY}
BACKBONES = {
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "convnext": WIDTHS,
    "convnextv2": WIDTHS,
    "resnet": {"embedding_size": 8, "layer_type": "basic", **WIDTHS},
    "pvt_v2": {"num_attention_heads": [1, 2, 2, 4], **WIDTHS},
}
PYRAMIDS = {
    "mobilenet_v2": {"depth_multiplier": 0.1},
}
SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT_ENCODERS = {
    "bert": {"intermediate_size": 37, **SIZES},
    "roberta": {"intermediate_size": 37, **SIZES},
    "mpnet": {"intermediate_size": 37, **SIZES},
    "modernbert": {"intermediate_size": 37, "pad_token_id": 0, "global_attn_every_n_layers": 1, **SIZES},
    "distilbert": {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 37},
    "clip_text_model": {"intermediate_size": 37, "max_position_embeddings": 40, **SIZES},
}


def config_of(model_type: str, fields: dict):
    return AutoConfig.for_model(model_type, **fields)


def check_one_training_step(model: JMCELNModel) -> None:
    inputs = random_inputs(2, 2, height=70, width=100)
    outputs = model.train()(**inputs, labels=random_labels(inputs))
    assert outputs.logits.shape == (2, 2, 70, 100)
    outputs.loss.backward()
    without_gradient = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert without_gradient == [], "DistributedDataParallel refuses parameters without a gradient"


@pytest.mark.parametrize("model_type", sorted(BACKBONES))
def test_backbones(model_type):
    backbone = config_of(model_type, BACKBONES[model_type])
    model = JMCELNModel.from_vision_text_pretrained(backbone, config_of("bert", TEXT_ENCODERS["bert"]), **SMALL)
    assert model.config.feature_strides == [4, 8, 16, 32]
    check_one_training_step(model)


@pytest.mark.parametrize("model_type", sorted(PYRAMIDS))
def test_hidden_state_pyramids(model_type):
    vision = config_of(model_type, PYRAMIDS[model_type])
    model = JMCELNModel.from_vision_text_pretrained(vision, config_of("bert", TEXT_ENCODERS["bert"]), **SMALL)
    assert model.config.feature_strides == [4, 8, 16, 32]
    check_one_training_step(model)


@pytest.mark.parametrize("model_type", sorted(TEXT_ENCODERS))
def test_text_encoders(model_type):
    text = config_of(model_type, TEXT_ENCODERS[model_type])
    model = JMCELNModel.from_vision_text_pretrained(config_of("swin", BACKBONES["swin"]), text, **SMALL)
    check_one_training_step(model)


def test_three_feature_maps():
    backbone = config_of("resnet", {**BACKBONES["resnet"], "out_features": ["stage2", "stage3", "stage4"]})
    model = JMCELNModel.from_vision_text_pretrained(backbone, config_of("bert", TEXT_ENCODERS["bert"]), **SMALL)
    assert model.config.feature_strides == [8, 16, 32]
    check_one_training_step(model)


def test_pretrained_weights_are_copied_from_folders(tmp_path):
    vision = AutoModel.from_config(config_of("swin", WINDOWS))
    vision.save_pretrained(tmp_path / "vision")
    text = AutoModel.from_config(config_of("bert", TEXT_ENCODERS["bert"]))
    text.save_pretrained(tmp_path / "text")
    model = JMCELNModel.from_vision_text_pretrained(tmp_path / "vision", str(tmp_path / "text"), **SMALL)

    backbone = SwinBackbone.from_pretrained(
        tmp_path / "vision", out_features=["stage1", "stage2", "stage3", "stage4"]
    ).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(
            model.backbone(pixel_values).feature_maps, backbone(pixel_values).feature_maps, strict=True
        ):
            assert torch.equal(ours, theirs)
        ids = torch.randint(5, 99, (2, 6))
        assert torch.equal(model.text_model(ids).last_hidden_state, text.eval()(ids).last_hidden_state)


def test_text_tower_is_taken_out_of_clip(tmp_path):
    tower = TEXT_ENCODERS["clip_text_model"]
    vision_tower = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = AutoModel.from_config(config_of("clip", {"text_config": tower, "vision_config": vision_tower}))
    clip.save_pretrained(tmp_path)
    model = JMCELNModel.from_vision_text_pretrained(config_of("swin", WINDOWS), tmp_path, **SMALL)
    assert model.config.text_config.model_type == "clip_text_model"
    ours = model.text_model.get_input_embeddings().weight
    assert torch.equal(ours, clip.text_model.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("vision", "text", "message"),
    [
        ("dinov2", "bert", "single stride"),
        ("swin", "t5", "decoder"),
    ],
)
def test_refused_encoders(vision, text, message):
    fields = {"swin": WINDOWS, "dinov2": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}}
    with pytest.raises(ValueError, match=message):
        JMCELNModel.from_vision_text_pretrained(
            config_of(vision, fields.get(vision, {})), config_of(text, TEXT_ENCODERS.get(text, {})), **SMALL
        )
