# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Vision encoders as a pyramid of feature maps, also those that transformers does not offer as a backbone."""

import inspect
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoBackbone, AutoConfig, AutoModel, PretrainedConfig
from transformers.modeling_outputs import BackboneOutput

from .configuration_jmceln import JMCELNConfig


# Beside the weights of a vision model that comes with them.
CATEGORY_HEADS_FILE = "category_heads.safetensors"
CATEGORY_NAMES_FILE = "category_names.json"
# An image on which encoders are tried, in pixels. It is not square, so that no encoder of a fixed size passes.
TRIAL_HEIGHT, TRIAL_WIDTH = 256, 320


def build_vision_encoder(config: JMCELNConfig) -> nn.Module:
    """
    The vision encoder of a configuration, with random weights.

    Returns:
        `nn.Module` that maps `pixel_values` to a [`BackboneOutput`] and names the `channels` of its feature maps.
    """
    if config.num_prefix_tokens is not None:
        return JMCELNSimpleFeaturePyramid(AutoModel.from_config(config.backbone_config), config.num_prefix_tokens)
    if config.feature_indices is not None:
        encoder = AutoModel.from_config(config.backbone_config)
        return JMCELNHiddenStatePyramid(
            encoder, config.feature_indices, config.feature_channels, config.num_categories
        )
    backbone = AutoBackbone.from_config(config.backbone_config)
    if hasattr(backbone, "swin"):
        # The default encoder has a norm that no feature map passes; `freeze_unused_parameters` finds those of others.
        backbone.swin.layernorm.requires_grad_(False)
    return backbone


class JMCELNCategoryHeads(nn.Module):
    """
    Convolutions that say how much each cell of the two coarsest maps looks like each category of a detector. They come
    with a vision model that was trained to detect: the class predictors of SSD (Liu et al., 2016), averaged over its
    anchor boxes.

    Args:
        channels (`list[int]`): Of the two maps.
        num_categories (`int`)
    """

    # Most cells show none of a category: the logits of those that do begin at about this one.
    lowest_logit = -6.0

    def __init__(self, channels: list[int], num_categories: int):
        super().__init__()
        self.heads = nn.ModuleList([nn.Conv2d(size, num_categories, kernel_size=3, padding=1) for size in channels])

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Maps of shape `(batch, channels, height, width)` to `(batch, num_categories, height, width)`, from 0 on."""
        return [
            nn.functional.softplus(head(feature_map) - self.lowest_logit)
            for head, feature_map in zip(self.heads, maps, strict=True)
        ]


class JMCELNHiddenStatePyramid(nn.Module):
    """
    A vision model without a backbone class whose hidden states get coarser with depth, such as MobileNetV2: some of
    them are its feature maps.

    Args:
        encoder (`PreTrainedModel`): Returns hidden states of shape `(batch, channels, height, width)`.
        feature_indices (`list[int]`): Which of [`all_feature_maps`] to take, fine to coarse.
        channels (`list[int]`): Channels of each.
        num_categories (`int`): If not 0, [`JMCELNCategoryHeads`] add so many channels to the two coarsest maps; the
            encoder must be a MobileNetV2.
    """

    def __init__(self, encoder: nn.Module, feature_indices: list[int], channels: list[int], num_categories: int = 0):
        super().__init__()
        self.encoder = encoder
        self.feature_indices = list(feature_indices)
        self.channels = list(channels)
        self.category_heads = None
        if num_categories > 0:
            expanded = self._expansion().convolution.out_channels
            self.category_heads = JMCELNCategoryHeads([expanded, self.channels[-1]], num_categories)
            self.channels[-2:] = [size + num_categories for size in self.channels[-2:]]

    def _expansion(self) -> nn.Module:
        """The layer behind the second coarsest map, whose wide output SSD reads."""
        return self.encoder.layer[self.feature_indices[-2] + 1].expand_1x1

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BackboneOutput:
        """`pixel_values` of shape `(batch, 3, height, width)`; keyword arguments go to the encoder."""
        wants_hidden_states = kwargs.pop("output_hidden_states", False)
        outputs = self.encoder(pixel_values, output_hidden_states=True, **kwargs)
        maps = all_feature_maps(outputs)
        maps = [maps[index] for index in self.feature_indices]
        if self.category_heads is not None:
            evidence = self.category_heads([self._expansion()(maps[-2]), maps[-1]])
            maps[-2:] = [torch.cat(pair, dim=1) for pair in zip(maps[-2:], evidence, strict=True)]
        return BackboneOutput(
            feature_maps=tuple(maps),
            hidden_states=outputs.hidden_states if wants_hidden_states else None,
            attentions=getattr(outputs, "attentions", None),
        )


class JMCELNSimpleFeaturePyramid(nn.Module):
    """
    A plain vision transformer, such as ViT, DINOv2, DINOv3, CLIP or SigLIP: its last map, at the stride of the
    patches, becomes four by deconvolutions and a pooling, as in ViTDet (Li et al., 2022).

    Where the patch size is no power of two (14 pixels in DINOv2), the image is resized a little, so that the strides
    are those of the next power (16).

    Args:
        encoder (`PreTrainedModel`): Returns one token per patch, row by row, after `num_prefix_tokens` others.
        num_prefix_tokens (`int`): Class and register tokens, which belong to no place and are left out.
    """

    def __init__(self, encoder: nn.Module, num_prefix_tokens: int):
        super().__init__()
        self.encoder = encoder
        self.num_prefix_tokens = num_prefix_tokens
        self.patch_size = encoder.config.patch_size
        self.stride = patch_stride(self.patch_size)
        size = encoder.config.hidden_size
        self.channels = [size // 4, size // 2, size, size]
        self.first_upsampling = nn.ConvTranspose2d(size, size // 2, kernel_size=2, stride=2)
        self.first_norm = nn.LayerNorm(size // 2)
        self.second_upsampling = nn.ConvTranspose2d(size // 2, size // 4, kernel_size=2, stride=2)
        self.single_upsampling = nn.ConvTranspose2d(size, size // 2, kernel_size=2, stride=2)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BackboneOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): Multiples of twice the stride.
            kwargs: Go to the encoder.
        """
        rows, columns = (size // self.stride for size in pixel_values.shape[-2:])
        if self.patch_size != self.stride:
            size = (rows * self.patch_size, columns * self.patch_size)
            pixel_values = nn.functional.interpolate(pixel_values, size=size, mode="bilinear", align_corners=False)
        outputs = run_plain_transformer(self.encoder, pixel_values, **kwargs)
        last = outputs.last_hidden_state
        if last.ndim == 3:
            last = last[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, (rows, columns))
        finer = self.first_norm(self.first_upsampling(last).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        maps = (
            self.second_upsampling(nn.functional.gelu(finer)),
            self.single_upsampling(last),
            last,
            nn.functional.max_pool2d(last, 2),
        )
        return BackboneOutput(
            feature_maps=maps,
            hidden_states=getattr(outputs, "hidden_states", None),
            attentions=getattr(outputs, "attentions", None),
        )


def patch_stride(patch_size: int) -> int:
    """The smallest power of two that is at least `patch_size`."""
    return 1 << (patch_size - 1).bit_length()


def run_plain_transformer(encoder: nn.Module, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
    """
    Calls a plain vision transformer on images of any size: position embeddings are interpolated where the model has to
    be asked for it, and SigLIP 2, which wants the patches themselves, gets them.

    Args:
        encoder (`PreTrainedModel`)
        pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): Multiples of the patch size.
        kwargs: Go to the encoder.

    Returns:
        What the encoder returns.
    """
    parameters = inspect.signature(encoder.forward).parameters
    if "interpolate_pos_encoding" in parameters:
        kwargs["interpolate_pos_encoding"] = True
    if "spatial_shapes" in parameters:
        batch_size = len(pixel_values)
        patch_size = encoder.config.patch_size
        rows, columns = (size // patch_size for size in pixel_values.shape[-2:])
        patches = pixel_values.reshape(batch_size, -1, rows, patch_size, columns, patch_size)
        # The values of a patch go row by row, pixel by pixel, channel by channel.
        pixel_values = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        kwargs["pixel_attention_mask"] = pixel_values.new_ones(pixel_values.shape[:2], dtype=torch.long)
        kwargs["spatial_shapes"] = torch.tensor([[rows, columns]] * batch_size, device=pixel_values.device)
    return encoder(pixel_values, **kwargs)


def all_feature_maps(outputs: Any) -> tuple[torch.Tensor, ...]:
    """The hidden states of a vision model, and its last one after the layers that follow the last block."""
    return (*outputs.hidden_states, outputs.last_hidden_state)


class JMCELNPretrainedVision(NamedTuple):
    """
    A vision encoder to start from: the fields of [`JMCELNConfig`] that describe it, weights to copy, and the names of
    the categories that its detector knows, if it comes with one.
    """

    config_fields: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    category_names: list[str] | None = None


def load_vision_encoder(
    vision_model: str | os.PathLike | PretrainedConfig, hub_kwargs: dict[str, Any]
) -> JMCELNPretrainedVision:
    """
    Loads any vision encoder and finds out, by trying it on an image, how its feature maps are to be had.

    Args:
        vision_model (`str`, `os.PathLike` or `PretrainedConfig`):
            Hub id or folder; or a configuration, for random weights. Of a two-tower model such as CLIP the vision
            tower is taken.
        hub_kwargs (`dict`): `revision`, `token` and so on, for loading from the hub.

    Returns:
        [`JMCELNPretrainedVision`]

    Raises:
        ValueError: If the encoder takes images of one size only, or its maps do not get coarser by factors of two.
    """
    is_config = isinstance(vision_model, PretrainedConfig)
    config = vision_model if is_config else AutoConfig.from_pretrained(vision_model, **hub_kwargs)
    config = getattr(config, "vision_config", config)
    if config.model_type == "timm_backbone":
        return _load_timm_backbone(config, None if is_config else Path(vision_model))

    name = None if is_config else str(vision_model)
    if is_plain_transformer(config):
        return _load_plain_transformer(_load_model(config, name, hub_kwargs))
    if getattr(config, "stage_names", None) is not None:
        return _load_backbone(config, name, hub_kwargs)
    heads_file = None if is_config else Path(vision_model) / CATEGORY_HEADS_FILE
    return _load_hidden_state_pyramid(_load_model(config, name, hub_kwargs), heads_file)


def is_plain_transformer(config: PretrainedConfig) -> bool:
    """Whether all layers of a vision model have one width and one stride."""
    sizes = (getattr(config, field, None) for field in ("hidden_size", "num_hidden_layers", "patch_size"))
    return all(isinstance(size, int) for size in sizes) and not hasattr(config, "depths")


def _load_model(config: PretrainedConfig, name: str | None, hub_kwargs: dict[str, Any]) -> nn.Module:
    if name is None:
        return AutoModel.from_config(config).eval()
    return AutoModel.from_pretrained(name, config=config, dtype=torch.float32, **hub_kwargs).eval()


def _load_plain_transformer(encoder: nn.Module) -> JMCELNPretrainedVision:
    patch_size = encoder.config.patch_size
    stride = patch_stride(patch_size)
    rows, columns = TRIAL_HEIGHT // stride, TRIAL_WIDTH // stride
    outputs = _try(encoder, run_plain_transformer, rows * patch_size, columns * patch_size)
    last = outputs.last_hidden_state
    if last.ndim == 3:
        num_prefix_tokens = last.shape[1] - rows * columns
    else:
        num_prefix_tokens = 0 if tuple(last.shape[-2:]) == (rows, columns) else -1
    if num_prefix_tokens < 0:
        raise ValueError(
            f"`{encoder.config.model_type}` returned {tuple(last.shape)} for {rows} x {columns} patches: it leaves"
            " some out or joins them. Load its weights into a class that keeps one token per patch, such as `ViTModel`"
            " for those of ViTMAE."
        )
    fields = {
        "backbone_config": encoder.config.to_dict(),
        "num_prefix_tokens": num_prefix_tokens,
        "feature_strides": [stride // 4, stride // 2, stride, 2 * stride],
    }
    return JMCELNPretrainedVision(fields, {f"encoder.{key}": value for key, value in encoder.state_dict().items()})


def _load_hidden_state_pyramid(encoder: nn.Module, heads_file: Path | None) -> JMCELNPretrainedVision:
    outputs = _try(encoder, lambda model, pixels: model(pixels, output_hidden_states=True))
    maps = all_feature_maps(outputs) if outputs.hidden_states else ()
    indices = last_at_each_stride(maps, encoder.config.model_type)
    fields = {
        "backbone_config": encoder.config.to_dict(),
        "feature_indices": indices,
        "feature_channels": [maps[index].shape[1] for index in indices],
        "feature_strides": [TRIAL_HEIGHT // maps[index].shape[2] for index in indices],
    }
    weights = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    if heads_file is not None and heads_file.is_file():
        heads = load_file(heads_file)
        fields["num_categories"] = len(heads["heads.0.bias"])
        weights |= {f"category_heads.{key}": value for key, value in heads.items()}
        names_file = heads_file.parent / CATEGORY_NAMES_FILE
        if names_file.is_file():
            return JMCELNPretrainedVision(fields, weights, json.loads(names_file.read_text(encoding="utf-8")))
    return JMCELNPretrainedVision(fields, weights)


def _load_backbone(config: PretrainedConfig, name: str | None, hub_kwargs: dict[str, Any]) -> JMCELNPretrainedVision:
    def load(out_features: list[str]) -> nn.Module:
        if name is None:
            fields = {**config.to_dict(), "out_features": out_features, "out_indices": None}
            return AutoBackbone.from_config(type(config).from_dict(fields)).eval()
        # `AutoBackbone.from_pretrained` itself takes no folder: it asks the hub whether the name is a repository.
        with torch.device("meta"):
            backbone_class = type(AutoBackbone.from_config(config))
        return backbone_class.from_pretrained(
            name, out_features=out_features, dtype=torch.float32, **hub_kwargs
        ).eval()

    stages = list(config.stage_names)
    out_features = list(config.out_features)
    is_chosen = len(out_features) >= 3
    if not is_chosen:
        out_features = [stage for stage in stages if stage != "stem"][-4:]
    backbone = load(out_features)
    maps = _try(backbone, lambda model, pixels: model(pixels)).feature_maps
    if not is_chosen and not doubles([feature_map.shape[2] for feature_map in reversed(maps)]):
        # FocalNet halves its map at the end of a stage, so that its last two have one stride.
        all_maps = _try(load(stages), lambda model, pixels: model(pixels)).feature_maps
        backbone = load([stages[index] for index in last_at_each_stride(all_maps, config.model_type)])
        maps = _try(backbone, lambda model, pixels: model(pixels)).feature_maps
    return _describe_backbone(backbone, maps)


def _load_timm_backbone(config: PretrainedConfig, folder: Path | None) -> JMCELNPretrainedVision:
    """timm names no stages before a model is built, and loads weights by names of its own."""

    def build(out_indices: list[int]) -> nn.Module:
        return AutoBackbone.from_config(
            type(config).from_dict({**config.to_dict(), "out_indices": out_indices})
        ).eval()

    out_indices = list(config.out_indices)
    if len(out_indices) < 3:
        # `-1` alone is the default: the last map of the model, whose number says how many there are.
        num_maps = len(build([0]).stage_names)
        maps = _try(build(list(range(num_maps))), lambda model, pixels: model(pixels)).feature_maps
        out_indices = last_at_each_stride(maps, config.backbone)
    backbone = build(out_indices)
    if folder is not None:
        backbone.load_state_dict(load_file(folder / "model.safetensors"))
    return _describe_backbone(backbone, _try(backbone, lambda model, pixels: model(pixels)).feature_maps)


def _describe_backbone(backbone: nn.Module, maps: tuple[torch.Tensor, ...]) -> JMCELNPretrainedVision:
    channels = [feature_map.shape[1] for feature_map in maps]
    if channels != list(backbone.channels):
        raise ValueError(
            f"`{backbone.config.model_type}` gave feature maps of {channels} channels but says that they have"
            f" {list(backbone.channels)}: fields of its configuration contradict each other."
        )
    fields = {
        "backbone_config": backbone.config.to_dict(),
        "feature_strides": [TRIAL_HEIGHT // feature_map.shape[2] for feature_map in maps],
    }
    return JMCELNPretrainedVision(fields, backbone.state_dict())


def _try(encoder: nn.Module, run: Any, height: int = TRIAL_HEIGHT, width: int = TRIAL_WIDTH) -> Any:
    """What `run(encoder, pixel_values)` gives on an image of zeros."""
    try:
        with torch.no_grad():
            return run(encoder, torch.zeros(1, 3, height, width))
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        name = getattr(encoder.config, "backbone", None) or encoder.config.model_type
        raise ValueError(
            f"`{name}` cannot encode an image of {height} x {width} pixels ({error}). JMCELN"
            " gives its vision encoder images of any height and width; models that are made for one size only cannot"
            " be used."
        ) from error


def doubles(sizes: list[int]) -> bool:
    """Whether each of `sizes` is twice the one before."""
    return all(2 * small == large for small, large in pairwise(sizes))


def last_at_each_stride(maps: tuple[torch.Tensor, ...], name: str) -> list[int]:
    """
    Chooses feature maps: the last at each stride, the four coarsest of them.

    Args:
        maps (`tuple` of `torch.Tensor`): Of an image of [`TRIAL_HEIGHT`] rows; those that are no maps are left out.
        name (`str`): The model's, for the message.

    Returns:
        Indices into `maps`, fine to coarse.

    Raises:
        ValueError: If fewer than three strides are found, or they are not each twice the one before.
    """
    last_at_stride = {
        TRIAL_HEIGHT // feature_map.shape[2]: index
        for index, feature_map in enumerate(maps)
        if feature_map.ndim == 4
        and feature_map.shape[2] < TRIAL_HEIGHT
        and feature_map.shape[2] * TRIAL_WIDTH == feature_map.shape[3] * TRIAL_HEIGHT
    }
    strides = sorted(last_at_stride)[-4:]
    if len(strides) < 3 or not doubles(strides):
        raise ValueError(
            f"`{name}` gives no pyramid: its maps lie at the strides {sorted(last_at_stride)}, and three or four are"
            " needed, each twice the one before."
        )
    return [last_at_stride[stride] for stride in strides]
