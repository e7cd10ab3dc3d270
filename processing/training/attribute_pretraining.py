"""Pretraining of a vision backbone on scenes of shapes: it predicts the kind, color, texture and size at each pixel.

For photographs, backbones are pretrained on ImageNet; this is the equivalent for scenes of shapes. Each feature map,
at its own stride, gets a linear layer that predicts the attributes of the object in each cell.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoBackbone, PretrainedConfig

from ..image_processing_jmceln import JMCELNImageProcessor
from ..shapes.rendering import render_scene
from ..shapes.scene import COLORS, KINDS, SIZES, TEXTURES, Scene, sample_scene


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "color": tuple(COLORS),
    "texture": TEXTURES,
    "size": tuple(SIZES),
}
# Low, since most pixels are background, which is easy to predict.
_BACKGROUND_WEIGHT = 0.05


def attribute_maps(scene: Scene, owners: np.ndarray) -> np.ndarray:
    """
    Returns the class of every pixel in each of `ATTRIBUTES`: 0 for the background, otherwise 1 or more.

    Args:
        scene (`Scene`)
        owners (`np.ndarray` of shape `(height, width)`): Index of the visible object at each pixel, -1 for none.

    Returns:
        `np.ndarray` of shape `(4, height, width)` and type int64.
    """
    classes = np.zeros((len(ATTRIBUTES), len(scene.objects) + 1), dtype=np.int64)
    for row, (attribute, names) in enumerate(ATTRIBUTES.items()):
        classes[row, :-1] = [1 + names.index(getattr(shape, attribute)) for shape in scene.objects]
    return classes[:, np.where(owners < 0, len(scene.objects), owners)]


class AttributeScenes(Dataset):
    """Scenes with their attribute maps. Each depends only on the split, the seed and its index."""

    def __init__(self, split: str, size: int, seed: int = 0, image_size: int = 96):
        self.split, self.size, self.seed, self.image_size = split, size, seed, image_size
        self.image_processor = JMCELNImageProcessor(size={"height": image_size, "width": image_size})

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        # Not the scenes of `shapes_row`, which are sampled until they support all requested expressions.
        rng = np.random.default_rng([zlib.crc32(f"attributes {self.split}".encode()), self.seed, index])
        scene = sample_scene(rng)
        pixels, owners = render_scene(scene, self.image_size)
        return {
            "pixel_values": self.image_processor(pixels, return_tensors="pt")["pixel_values"][0],
            "labels": torch.from_numpy(attribute_maps(scene, owners)),
        }


class AttributeReader(nn.Module):
    """
    A backbone with a linear layer on each feature map.

    Args:
        backbone_config (`PretrainedConfig`): Configuration of an [`AutoBackbone`].
    """

    def __init__(self, backbone_config: PretrainedConfig):
        super().__init__()
        self.backbone = AutoBackbone.from_config(backbone_config)
        self.num_classes = [1 + len(names) for names in ATTRIBUTES.values()]
        self.readers = nn.ModuleList(
            [nn.Conv2d(channels, sum(self.num_classes), kernel_size=1) for channels in self.backbone.channels]
        )

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`)
            labels (`torch.Tensor` of shape `(batch, 4, height, width)`): Classes as in [`attribute_maps`].

        Returns:
            `dict`: The `loss`, and `correct` and `counted` of shape `(maps, 4)`: `counted` is the number of cells that
            are mostly covered by objects, and `correct` how many of them have the correct attribute.
        """
        one_hot = [nn.functional.one_hot(labels[:, row], size) for row, size in enumerate(self.num_classes)]
        # (batch, classes of all attributes, height, width)
        targets = torch.cat(one_hot, dim=-1).permute(0, 3, 1, 2).to(pixel_values.dtype)
        losses, correct, counted = [], [], []
        for feature_map, reader in zip(self.backbone(pixel_values).feature_maps, self.readers, strict=True):
            logits = reader(feature_map)
            shares = nn.functional.adaptive_avg_pool2d(targets, logits.shape[-2:])
            objectness = 1 - shares[:, 0]
            is_object = objectness > 0.5
            weights = objectness + _BACKGROUND_WEIGHT
            pairs = zip(logits.split(self.num_classes, dim=1), shares.split(self.num_classes, dim=1), strict=True)
            for attribute_logits, attribute_shares in pairs:
                cross_entropy = -(attribute_shares * attribute_logits.log_softmax(1)).sum(1)
                losses.append((cross_entropy * weights).sum() / weights.sum())
                is_right = attribute_logits.argmax(1) == attribute_shares.argmax(1)
                correct.append((is_right & is_object).sum())
                counted.append(is_object.sum())
        shape = (len(self.readers), len(ATTRIBUTES))
        return {
            "loss": torch.stack(losses).sum(),
            "correct": torch.stack(correct).view(shape),
            "counted": torch.stack(counted).view(shape),
        }


@torch.no_grad()
def attribute_accuracy(model: AttributeReader, scenes: Sequence | Dataset, batch_size: int = 32) -> list[dict]:
    """Returns the accuracy of each attribute in object cells: a dict per feature map, fine to coarse."""
    model.eval()
    correct, counted = 0, 0
    for batch in torch.utils.data.DataLoader(scenes, batch_size=batch_size):  # pyrefly: ignore[bad-argument-type]
        outputs = model(**{name: tensor.to(model.readers[0].weight.device) for name, tensor in batch.items()})
        correct, counted = correct + outputs["correct"], counted + outputs["counted"]
    return [dict(zip(ATTRIBUTES, shares, strict=True)) for shares in (correct / counted).tolist()]
