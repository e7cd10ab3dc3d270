"""The models that the speed benchmark compares, with random weights, and their inputs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, CLIPSegConfig, CLIPSegForImageSegmentation

from modeling_jmceln import JMCELNConfig, JMCELNModel


WORDS_PER_EXPRESSION = 20
TINY_BACKBONE = {
    "model_type": "swin",
    "image_size": 32,
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [2, 2, 2, 2],
    "window_size": 2,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
TINY_TEXT = {
    "model_type": "bert",
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
TINY_CLIPSEG = {
    "text_config": {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "vision_config": {
        "image_size": 32,
        "patch_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "projection_dim": 32,
    "extract_layers": [0, 1],
    "reduce_dim": 16,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}
# The configuration of CIDAS/clipseg-rd64-refined and the image size of its processor.
CLIPSEG = {"vision_config": {"image_size": 352, "patch_size": 16}, "use_complex_transposed_convolution": True}


def speed_config(tiny: bool) -> JMCELNConfig:
    """Swin-B (window 12) and BERT-base, or tiny versions of both."""
    if not tiny:
        return JMCELNConfig()
    return JMCELNConfig(
        backbone_config=TINY_BACKBONE,
        text_config=TINY_TEXT,
        hidden_size=32,
        mask_feature_size=16,
        intermediate_size=64,
        num_attention_heads=4,
        num_stages=2,
        num_context_tokens=4,
    )


def fill_zero_biases(model: nn.Module) -> None:
    """
    Replaces biases that are all zero with small random values, as after training.

    With zero biases, the padded windows of a Swin contain denormal numbers, which are many times slower to compute
    with. The times would then differ from those of a trained model.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and not parameter.is_meta and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def build_model(tiny: bool, attention: str, device: torch.device) -> JMCELNModel:
    torch.manual_seed(0)
    with torch.device(device if device.type == "meta" else "cpu"):
        model = AutoModel.from_config(speed_config(tiny), attn_implementation=attention).eval()
    fill_zero_biases(model)
    return model.to(device)


def build_clipseg(tiny: bool, attention: str, device: torch.device) -> CLIPSegForImageSegmentation:
    torch.manual_seed(0)
    config = CLIPSegConfig(**(TINY_CLIPSEG if tiny else CLIPSEG))
    model = CLIPSegForImageSegmentation._from_config(config, attn_implementation=attention).eval()
    fill_zero_biases(model)
    return model.to(device)


class Encoders(nn.Module):
    """The floor: the encoders of a JMCELN, with its own weights, and nothing else."""

    def __init__(self, model: JMCELNModel):
        super().__init__()
        self.backbone, self.text_model = model.backbone, model.text_model

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        feature_maps = self.backbone(pixel_values).feature_maps
        words = self.text_model(input_ids=input_ids.flatten(0, 1), attention_mask=attention_mask.flatten(0, 1))
        return feature_maps, words.last_hidden_state


@dataclass
class Workload:
    """What one call is given: `images` of `size`², `expressions` per image, with `words` words each."""

    size: int
    expressions: int
    images: int = 1
    words: int = WORDS_PER_EXPRESSION

    def inputs(self, vocabulary: int, device: torch.device) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        shape = (self.images, self.expressions, self.words)
        input_ids = torch.randint(5, vocabulary, shape, generator=generator)
        attention_mask = torch.ones_like(input_ids)
        # One padded word: a mask that hides nothing is skipped, which no real batch of expressions is.
        attention_mask[..., -1] = 0
        return {
            "pixel_values": torch.randn(self.images, 3, self.size, self.size, generator=generator).to(device),
            "input_ids": input_ids.to(device),
            "attention_mask": attention_mask.to(device),
        }

    def labels(self, device: torch.device) -> torch.Tensor:
        """A rectangle of a sixth of the image, for each expression."""
        labels = torch.zeros(self.images, self.expressions, self.size, self.size, dtype=torch.long, device=device)
        labels[..., self.size // 4 : 3 * self.size // 4, self.size // 3 : 2 * self.size // 3] = 1
        return labels
