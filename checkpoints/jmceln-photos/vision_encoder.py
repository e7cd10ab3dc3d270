# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Vision encoders that return a pyramid of feature maps, including models without a backbone class in transformers."""

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


# Optional files next to the weights of a vision model that comes from a detector.
CATEGORY_HEADS_FILE = "category_heads.safetensors"
CATEGORY_NAMES_FILE = "category_names.json"
# Size in pixels of the image that encoders are tried on. It is not square, so that encoders with a fixed size fail.
TRIAL_HEIGHT, TRIAL_WIDTH = 256, 320


def build_vision_encoder(config: JMCELNConfig) -> nn.Module:
    """
    Builds the vision encoder of a configuration, with random weights.

    Returns:
        `nn.Module` that maps `pixel_values` to a [`BackboneOutput`] and has the numbers of its `channels`.
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
        # No feature map of Swin passes through this norm. `freeze_unused_parameters` finds such parts in other models.
        backbone.swin.layernorm.requires_grad_(False)
    return backbone


class JMCELNCategoryHeads(nn.Module):
    """
    Convolutions that score how much each cell of the two coarsest maps looks like each category of a detector. Their
    weights come from a vision model that was trained for detection: they are the class predictors of SSD (Liu et al.,
    2016), averaged over its anchor boxes.

    Args:
        channels (`list[int]`): Numbers of channels of the two maps.
        num_categories (`int`)
    """

    # In most cells, a category is absent. The logits of cells that show it start at about this value.
    lowest_logit = -6.0

    def __init__(self, channels: list[int], num_categories: int):
        super().__init__()
        self.heads = nn.ModuleList([nn.Conv2d(size, num_categories, kernel_size=3, padding=1) for size in channels])

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Two maps `(batch, channels, height, width)` to scores `(batch, categories, height, width)`, at least 0."""
        return [
            nn.functional.softplus(head(feature_map) - self.lowest_logit)
            for head, feature_map in zip(self.heads, maps, strict=True)
        ]


class JMCELNHiddenStatePyramid(nn.Module):
    """
    Wraps a vision model without a backbone class whose hidden states get coarser with depth, such as MobileNetV2, and
    returns some of its hidden states as feature maps.

    Args:
        encoder (`PreTrainedModel`): Returns hidden states of shape `(batch, channels, height, width)`.
        feature_indices (`list[int]`): Indices into [`all_feature_maps`], fine to coarse.
        channels (`list[int]`): Number of channels of each of these maps.
        num_categories (`int`): If not 0, [`JMCELNCategoryHeads`] add this many channels to the two coarsest maps. The
            encoder must then be a MobileNetV2.
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
        """The layer after the second coarsest map. SSD predicts classes from its output."""
        return self.encoder.layer[self.feature_indices[-2] + 1].expand_1x1

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BackboneOutput:
        """Takes `pixel_values` of shape `(batch, 3, height, width)` and keyword arguments for the encoder."""
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
    Wraps a plain vision transformer, such as ViT, DINOv2, DINOv3, CLIP or SigLIP. Deconvolutions and a pooling turn
    its last map into four feature maps, as in ViTDet (Li et al., 2022).

    If the patch size is not a power of two (14 pixels in DINOv2), the image is resized slightly, so that the strides
    are those of the next power of two (16).

    Args:
        encoder (`PreTrainedModel`): Returns one token per patch, row by row, after `num_prefix_tokens` other tokens.
        num_prefix_tokens (`int`): Number of class and register tokens, which are dropped.
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
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`):
                Height and width must be multiples of twice the stride.
            kwargs: Passed on to the encoder.
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
    """Returns the smallest power of two that is at least `patch_size`."""
    return 1 << (patch_size - 1).bit_length()


def run_plain_transformer(encoder: nn.Module, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
    """
    Calls a plain vision transformer on images of any size. Models that interpolate their position embeddings only on
    request are told to do so, and SigLIP 2 gets the flattened patches that it takes as its input.

    Args:
        encoder (`PreTrainedModel`)
        pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`):
            Height and width must be multiples of the patch size.
        kwargs: Passed on to the encoder.

    Returns:
        The output of the encoder.
    """
    parameters = inspect.signature(encoder.forward).parameters
    if "interpolate_pos_encoding" in parameters:
        kwargs["interpolate_pos_encoding"] = True
    if "spatial_shapes" in parameters:
        batch_size = len(pixel_values)
        patch_size = encoder.config.patch_size
        rows, columns = (size // patch_size for size in pixel_values.shape[-2:])
        patches = pixel_values.reshape(batch_size, -1, rows, patch_size, columns, patch_size)
        # The values of a patch are ordered by row, then by column, then by channel.
        pixel_values = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        kwargs["pixel_attention_mask"] = pixel_values.new_ones(pixel_values.shape[:2], dtype=torch.long)
        kwargs["spatial_shapes"] = torch.tensor([[rows, columns]] * batch_size, device=pixel_values.device)
    return encoder(pixel_values, **kwargs)


def all_feature_maps(outputs: Any) -> tuple[torch.Tensor, ...]:
    """Returns the hidden states of a vision model and, after them, its `last_hidden_state`."""
    return (*outputs.hidden_states, outputs.last_hidden_state)


class JMCELNPretrainedVision(NamedTuple):
    """
    A pretrained vision encoder: the fields of [`JMCELNConfig`] that describe it, the weights to copy, and, if it comes
    from a detector, the names of the detector's categories.
    """

    config_fields: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    category_names: list[str] | None = None


def load_vision_encoder(
    vision_model: str | os.PathLike | PretrainedConfig, hub_kwargs: dict[str, Any]
) -> JMCELNPretrainedVision:
    """
    Loads a vision encoder and runs it on a blank image to find out which feature maps it returns.

    Args:
        vision_model (`str`, `os.PathLike` or `PretrainedConfig`):
            Hub id or folder; or a configuration, for random weights. Of a two-tower model such as CLIP, the vision
            tower is used.
        hub_kwargs (`dict`): `revision`, `token` and so on, for loading from the Hub.

    Returns:
        [`JMCELNPretrainedVision`]

    Raises:
        ValueError: If the encoder accepts only one image size, or if the strides of its maps are not each twice the
            one before.
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
    """Whether all layers of a vision model have the same width and stride."""
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
            f"`{encoder.config.model_type}` returned an output of shape {tuple(last.shape)} for {rows} x {columns}"
            " patches: it drops or merges some of them. Load its weights into a class that keeps one token per patch,"
            " for example those of ViTMAE into `ViTModel`."
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
        # `AutoBackbone.from_pretrained` does not work with a folder: it looks the name up on the Hub.
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
        # FocalNet halves its map at the end of a stage, so that its last two maps have the same stride.
        all_maps = _try(load(stages), lambda model, pixels: model(pixels)).feature_maps
        backbone = load([stages[index] for index in last_at_each_stride(all_maps, config.model_type)])
        maps = _try(backbone, lambda model, pixels: model(pixels)).feature_maps
    return _describe_backbone(backbone, maps)


def _load_timm_backbone(config: PretrainedConfig, folder: Path | None) -> JMCELNPretrainedVision:
    """Loads a timm backbone, which has no stage names until it is built, and its own names for the weights."""

    def build(out_indices: list[int]) -> nn.Module:
        return AutoBackbone.from_config(
            type(config).from_dict({**config.to_dict(), "out_indices": out_indices})
        ).eval()

    out_indices = list(config.out_indices)
    if len(out_indices) < 3:
        # The default, `-1`, means the last map. The model knows how many maps there are.
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
            f"`{backbone.config.model_type}` returned feature maps with {channels} channels, but its `channels` are"
            f" {list(backbone.channels)}: check the configuration for fields that contradict each other."
        )
    fields = {
        "backbone_config": backbone.config.to_dict(),
        "feature_strides": [TRIAL_HEIGHT // feature_map.shape[2] for feature_map in maps],
    }
    return JMCELNPretrainedVision(fields, backbone.state_dict())


def _try(encoder: nn.Module, run: Any, height: int = TRIAL_HEIGHT, width: int = TRIAL_WIDTH) -> Any:
    """Returns `run(encoder, pixel_values)` for an image of zeros."""
    try:
        with torch.no_grad():
            return run(encoder, torch.zeros(1, 3, height, width))
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        name = getattr(encoder.config, "backbone", None) or encoder.config.model_type
        raise ValueError(
            f"`{name}` cannot encode an image of {height} x {width} pixels ({error}). JMCELN passes images of any"
            " height and width to its vision encoder: choose a model that is not limited to one size."
        ) from error


def doubles(sizes: list[int]) -> bool:
    """Whether each of `sizes` is twice the one before it."""
    return all(2 * small == large for small, large in pairwise(sizes))


def last_at_each_stride(maps: tuple[torch.Tensor, ...], name: str) -> list[int]:
    """
    Chooses feature maps: of the last map at each stride, the four coarsest.

    Args:
        maps (`tuple` of `torch.Tensor`): Outputs for an image of [`TRIAL_HEIGHT`] rows. Other tensors are ignored.
        name (`str`): Name of the model for the error message.

    Returns:
        Indices into `maps`, fine to coarse.

    Raises:
        ValueError: If there are fewer than three strides, or if they are not each twice the one before.
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
            f"`{name}` returns no pyramid of feature maps: its maps have the strides {sorted(last_at_stride)}. Choose"
            " a model with three or four strides, each twice the one before."
        )
    return [last_at_stride[stride] for stride in strides]
