# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Text encoders, without the pooler of BERT and similar models."""

import os
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PretrainedConfig


def build_text_encoder(config: PretrainedConfig) -> nn.Module:
    """Builds the text encoder of a configuration, with random weights. The model does not use a pooler."""
    return _without_pooler(AutoModel.from_config(config))


def load_text_encoder(text_model: str | os.PathLike | PretrainedConfig, hub_kwargs: dict[str, Any]) -> nn.Module:
    """
    Loads a text encoder.

    Args:
        text_model (`str`, `os.PathLike` or `PretrainedConfig`):
            Hub id or folder; or a configuration, for random weights. Of a two-tower model such as CLIP, the text tower
            is used.
        hub_kwargs (`dict`): `revision`, `token` and so on, for loading from the Hub.

    Raises:
        ValueError: If the model has a decoder, or `AutoModel` does not know it.
    """
    is_config = isinstance(text_model, PretrainedConfig)
    config = text_model if is_config else AutoConfig.from_pretrained(text_model, **hub_kwargs)
    config = getattr(config, "text_config", config)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"`{config.model_type}` is an encoder-decoder model, and its decoder would be unused. Choose a text"
            " encoder, for example BERT, RoBERTa, DistilBERT, MPNet, ModernBERT or the text tower of CLIP."
        )
    if type(config) not in MODEL_MAPPING:
        raise ValueError(
            f"`AutoModel` has no class for `{config.model_type}`. Choose another text encoder, for example BERT or the"
            " text tower of CLIP."
        )
    if is_config:
        return build_text_encoder(config)
    return _without_pooler(
        AutoModel.from_pretrained(str(text_model), config=config, dtype=torch.float32, **hub_kwargs)
    )


def _without_pooler(encoder: nn.Module) -> nn.Module:
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return encoder
