"""Saves small models for `scripts/check_versions.py`: `python -m tests.saved_models FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import AutoConfig

from modeling_jmceln import JMCELNConfig, JMCELNModel
from tests.modeling_jmceln.inputs import random_model
from tests.tiny import tiny_config, tiny_processor


LAYERS = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {"image_size": 64, "patch_size": 16, **LAYERS}
TEXT = {"vocab_size": 99, "max_position_embeddings": 40, **LAYERS}
# Encoders whose weights have other names in other releases of transformers.
ENCODERS = {
    "clip": ("clip_vision_model", "clip_text_model"),
    "siglip": ("siglip_vision_model", "bert"),
    "siglip2": ("siglip2_vision_model", "bert"),
}


def config_with(vision: str, text: str) -> JMCELNConfig:
    """The configuration of a tiny model with these encoders."""
    # The vision encoder of SigLIP 2 has no image size, since it takes images of any size.
    vision_fields = {name: VISION[name] for name in VISION if vision != "siglip2_vision_model" or name != "image_size"}
    sizes = ("hidden_size", "mask_feature_size", "intermediate_size", "num_attention_heads", "num_stages")
    model = JMCELNModel.from_vision_text_pretrained(
        AutoConfig.for_model(vision, **vision_fields),
        AutoConfig.for_model(text, **TEXT),
        **{name: getattr(tiny_config(), name) for name in sizes},
    )
    return model.config


def save_models(folder: Path) -> None:
    """Saves each model with a processor into a folder of its own in `folder`."""
    models = {"swin": random_model()}
    models |= {name: random_model(config=config_with(*encoders)) for name, encoders in ENCODERS.items()}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        # A loaded model: some releases save it with the names of its file, or with those of older releases.
        JMCELNModel.from_pretrained(folder / name).save_pretrained(folder / f"{name}-loaded")
        for saved in (name, f"{name}-loaded"):
            tiny_processor().save_pretrained(folder / saved)


if __name__ == "__main__":
    save_models(Path(sys.argv[1]))
