"""Random inputs of the model, for every test of this folder."""

from __future__ import annotations

import torch

from modeling_jmceln import JMCELNConfig, JMCELNModel
from tests.tiny import tiny_config


def random_model(seed: int = 0, config: JMCELNConfig | None = None, **overrides) -> JMCELNModel:
    """A tiny model whose biases are random too, so that no path through it is silent."""
    torch.manual_seed(seed)
    model = JMCELNModel(tiny_config(**overrides) if config is None else config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def random_inputs(
    batch: int = 2, expressions: int | None = 3, length: int = 6, height: int = 64, width: int = 64, seed: int = 0
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text_shape = (batch, length) if expressions is None else (batch, expressions, length)
    return {
        "pixel_values": torch.randn(batch, 3, height, width, generator=generator),
        "input_ids": torch.randint(5, 99, text_shape, generator=generator),
        "attention_mask": torch.ones(text_shape, dtype=torch.long),
    }


def random_labels(inputs: dict[str, torch.Tensor], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (*inputs["input_ids"].shape[:-1], *inputs["pixel_values"].shape[-2:])
    return torch.randint(0, 2, shape, generator=generator)
