# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""JMCELN model configuration."""

from itertools import pairwise
from math import isfinite
from typing import Any, ClassVar

from transformers import AutoConfig, PretrainedConfig
from transformers.activations import ACT2FN


# The smallest and the largest value of each whole number: with more, a model would not fit into any memory.
_RANGES = {
    "hidden_size": (1, 65536),
    "mask_feature_size": (1, 65536),
    "intermediate_size": (1, 262144),
    "num_attention_heads": (1, 1024),
    "max_key_size": (1, 1024),
    "num_stages": (1, 64),
    "num_context_tokens": (1, 1024),
    "num_image_layers": (0, 256),
    "num_fusion_layers": (0, 256),
    "num_categories": (0, 65536),
}
_LARGEST_STRIDE = 1024


def _is_whole(value: Any, smallest: int, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and smallest <= value <= largest


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _whole_numbers(values: Any, name: str) -> list[int]:
    if not isinstance(values, (list, tuple)) or not all(_is_whole(value, 0, 65536) for value in values):
        raise ValueError(f"`{name}` must be a list of whole numbers, got {values!r}.")
    return list(values)


def _as_config(
    config: dict[str, Any] | PretrainedConfig | None, default: dict[str, Any], name: str
) -> PretrainedConfig:
    if config is None:
        config = default
    if isinstance(config, dict):
        fields = dict(config)
        model_type = fields.pop("model_type", None)
        if model_type is None:
            raise ValueError(f"`{name}` is a dict without `model_type`; add it, for example {{'model_type': 'bert'}}.")
        return AutoConfig.for_model(model_type, **fields)
    if not hasattr(config, "to_dict"):
        raise TypeError(f"`{name}` must be a configuration or a dict, got {type(config).__name__}.")
    return config


class JMCELNConfig(PretrainedConfig):
    r"""
    Configuration of a [`JMCELNModel`]. The defaults give Swin-B (window 12) and BERT-base, as in most of the field.

    Args:
        backbone_config (`PretrainedConfig` or `dict`, *optional*):
            Configuration of the vision encoder: an [`AutoBackbone`] that returns three or four feature maps, each
            at twice the stride of the one before it; or, with `feature_indices` or `num_prefix_tokens`, an
            [`AutoModel`]. Defaults to Swin-B.
        text_config (`PretrainedConfig` or `dict`, *optional*):
            Configuration of an [`AutoModel`] text encoder with a `last_hidden_state`. Defaults to BERT-base.
        feature_strides (`list[int]`, *optional*):
            Strides of the backbone's feature maps in input pixels, fine to coarse. Defaults to the last entries of
            4, 8, 16, 32. The two coarsest maps are fused with the words; the finest sets the stride of the masks.
        feature_indices (`list[int]`, *optional*):
            For a vision model without a backbone class, whose hidden states get coarser with depth: the indices of
            the hidden states to use as feature maps, fine to coarse. The index after the last hidden state means
            `last_hidden_state`. [`~JMCELNModel.from_vision_text_pretrained`] sets this field and the two below.
        feature_channels (`list[int]`, *optional*):
            Number of channels of each map in `feature_indices`.
        num_prefix_tokens (`int`, *optional*):
            For a plain vision transformer: the number of class and register tokens before the patch tokens. The last
            map of the transformer is turned into a pyramid.
        num_categories (`int`, *optional*, defaults to 0):
            Number of categories of the detector that the vision model comes from, if its class heads are used. The
            two coarsest feature maps get one more channel per category.
        hidden_size (`int`, *optional*, defaults to 256):
            Width of word, pixel and context tokens in the fusion neck and the cascade.
        mask_feature_size (`int`, *optional*, defaults to 128):
            Width of the pixel embeddings at the finer strides, where the masks are predicted.
        intermediate_size (`int`, *optional*, defaults to 512):
            Width of the hidden layer of every feed-forward block.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Number of attention heads in the neck and the cascade. Half of the heads that update the contextual
            embedding attend to the pixels through the mask of the previous stage; the other half attend to all pixels.
        max_key_size (`int`, *optional*, defaults to 16):
            Maximum number of rows and columns of keys and values in the self-attention among pixels. Larger maps are
            averaged down to this size, so that the cost is linear in the number of pixels. For an image of 480 x 480
            pixels, that averages 2 x 2 cells at stride 16 and nothing at stride 32.
        num_image_layers (`int`, *optional*, defaults to 1):
            Number of self-attention layers over the two coarsest maps. They run once per image and see no words.
        num_fusion_layers (`int`, *optional*, defaults to 2):
            Number of layers in which the pixels attend to the words and to each other. They run once per expression.
        num_stages (`int`, *optional*, defaults to 3):
            Number of stages of the cascade. The last stage predicts at the finest stride, and each earlier stage at
            twice the stride of the next one, but no coarser than the working map (the second coarsest).
        num_context_tokens (`int`, *optional*, defaults to 8):
            Number of tokens of the learnable contextual embedding (LCE), at least two. The first token predicts the
            referent, the second one the landmarks, that is, the other objects that the expression names.
        use_contextual_embedding (`bool`, *optional*, defaults to `True`):
            Whether the context tokens attend to the pixels through the current mask and are passed on to the next
            stage. If `False`, they attend only to the words and to each other, and every stage starts from the same
            tokens.
        use_alignment (`bool`, *optional*, defaults to `True`):
            Whether the progressive alignment network (PAN) mixes the prediction of each stage with the previous one.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation function of the feed-forward blocks.
        dropout (`float`, *optional*, defaults to 0.0):
            Dropout after every attention and feed-forward block of the neck and the cascade.
        layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the layer normalization layers.
        binary_cross_entropy_weight (`float`, *optional*, defaults to 2.0):
            Weight of the mean binary cross entropy over the pixels.
        dice_weight (`float`, *optional*, defaults to 1.0):
            Weight of the Dice loss, which is left out for expressions without a target.
        stage_loss_weight (`float`, *optional*, defaults to 0.5):
            Weight of the two losses above for the mask of each stage, relative to 1 for the final mask.
        alignment_loss_weight (`float`, *optional*, defaults to 0.1):
            Weight of the disagreement between each stage and the next one. The next stage gets no gradient from it.
        landmark_loss_weight (`float`, *optional*, defaults to 0.5):
            Weight of the mask losses of the landmarks at every stage, for expressions with known landmarks.
        presence_loss_weight (`float`, *optional*, defaults to 0.5):
            Weight of the binary cross entropy for whether the referent is in the image.
    """

    model_type = "jmceln"
    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": AutoConfig, "text_config": AutoConfig}
    _auto_class = "AutoConfig"
    # The Trainer does not gather these outputs: only the logits and the presence logits are needed for metrics.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "stage_logits",
        "landmark_logits",
        "contextual_embeddings",
        "alignment_filters",
        "image_features",
        "hidden_states",
        "attentions",
    ]

    backbone_config: PretrainedConfig
    text_config: PretrainedConfig
    feature_strides: list[int]
    feature_indices: list[int] | None
    feature_channels: list[int] | None
    num_prefix_tokens: int | None
    num_categories: int
    hidden_size: int
    mask_feature_size: int
    intermediate_size: int
    num_attention_heads: int
    max_key_size: int
    num_image_layers: int
    num_fusion_layers: int
    num_stages: int
    num_context_tokens: int
    use_contextual_embedding: bool
    use_alignment: bool
    hidden_act: str
    dropout: float
    layer_norm_eps: float
    binary_cross_entropy_weight: float
    dice_weight: float
    stage_loss_weight: float
    alignment_loss_weight: float
    landmark_loss_weight: float
    presence_loss_weight: float

    def __init__(
        self,
        backbone_config=None,
        text_config=None,
        feature_strides=None,
        feature_indices=None,
        feature_channels=None,
        num_prefix_tokens=None,
        num_categories=0,
        hidden_size=256,
        mask_feature_size=128,
        intermediate_size=512,
        num_attention_heads=8,
        max_key_size=16,
        num_image_layers=1,
        num_fusion_layers=2,
        num_stages=3,
        num_context_tokens=8,
        use_contextual_embedding=True,
        use_alignment=True,
        hidden_act="gelu",
        dropout=0.0,
        layer_norm_eps=1e-5,
        binary_cross_entropy_weight=2.0,
        dice_weight=1.0,
        stage_loss_weight=0.5,
        alignment_loss_weight=0.1,
        landmark_loss_weight=0.5,
        presence_loss_weight=0.5,
        **kwargs,
    ):
        self.backbone_config = _as_config(
            backbone_config,
            {
                "model_type": "swin",
                "image_size": 384,
                "embed_dim": 128,
                "depths": [2, 2, 18, 2],
                "num_heads": [4, 8, 16, 32],
                "window_size": 12,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "backbone_config",
        )
        self.text_config = _as_config(text_config, {"model_type": "bert"}, "text_config")
        self.feature_indices = None if feature_indices is None else _whole_numbers(feature_indices, "feature_indices")
        self.feature_channels = (
            None if feature_channels is None else _whole_numbers(feature_channels, "feature_channels")
        )
        self.num_categories = num_categories
        if (feature_indices is None) != (feature_channels is None):
            raise ValueError("`feature_indices` and `feature_channels` belong together; give both or neither.")
        self.num_prefix_tokens = num_prefix_tokens
        num_features = self._count_features()
        self.feature_strides = (
            [4 * 2**level for level in range(4)][-num_features:]
            if feature_strides is None
            else _whole_numbers(feature_strides, "feature_strides")
        )
        self.hidden_size = hidden_size
        self.mask_feature_size = mask_feature_size
        self.intermediate_size = intermediate_size
        self.num_attention_heads = num_attention_heads
        self.max_key_size = max_key_size
        self.num_image_layers = num_image_layers
        self.num_fusion_layers = num_fusion_layers
        self.num_stages = num_stages
        self.num_context_tokens = num_context_tokens
        self.use_contextual_embedding = use_contextual_embedding
        self.use_alignment = use_alignment
        self.hidden_act = hidden_act
        self.dropout = dropout
        self.layer_norm_eps = layer_norm_eps
        self.binary_cross_entropy_weight = binary_cross_entropy_weight
        self.dice_weight = dice_weight
        self.stage_loss_weight = stage_loss_weight
        self.alignment_loss_weight = alignment_loss_weight
        self.landmark_loss_weight = landmark_loss_weight
        self.presence_loss_weight = presence_loss_weight
        self._validate_fields(num_features)

        # With this entry, `pipeline(...)` finds the task in a folder that holds this config and the processor's code.
        kwargs.setdefault(
            "custom_pipelines",
            {
                "referring-image-segmentation": {
                    "impl": "pipeline_jmceln.ReferringImageSegmentationPipeline",
                    "pt": ["AutoModel"],
                    "type": "multimodal",
                }
            },
        )
        super().__init__(**kwargs)

    def _count_features(self) -> int:
        if self.num_prefix_tokens is not None:
            return 4
        if self.feature_indices is not None:
            return len(self.feature_indices)
        # The configuration of a timm backbone has no stage names; they are known once the model is built.
        field = "out_indices" if self.backbone_config.model_type == "timm_backbone" else "out_features"
        features = getattr(self.backbone_config, field, None)
        if features is None or len(features) < 3:
            raise ValueError(
                f"The backbone `{self.backbone_config.model_type}` must return three or four feature maps, but its"
                f" `{field}` is {features}. Name the last four stages, for example"
                " `out_features=['stage1', 'stage2', 'stage3', 'stage4']`, or use"
                " `JMCELNModel.from_vision_text_pretrained`, which chooses them."
            )
        return len(features)

    def _validate_fields(self, num_features: int) -> None:
        for name, (smallest, largest) in _RANGES.items():
            value = getattr(self, name)
            if not _is_whole(value, smallest, largest):
                raise ValueError(
                    f"`{name}` must be an integer of at least {smallest} and at most {largest}, got {value!r}."
                )
        if self.num_prefix_tokens is not None and not _is_whole(self.num_prefix_tokens, 0, 1024):
            raise ValueError(
                f"`num_prefix_tokens` must be an integer of at least 0 and at most 1024, got"
                f" {self.num_prefix_tokens!r}."
            )
        for name in ("use_contextual_embedding", "use_alignment"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be `True` or `False`, got {getattr(self, name)!r}.")
        if not isinstance(self.hidden_act, str) or self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be one of {sorted(ACT2FN)}, got {self.hidden_act!r}.")
        if self.num_context_tokens < 2:
            raise ValueError(
                "`num_context_tokens` must be at least 2, one for the referent and one for the landmarks, got"
                f" {self.num_context_tokens}."
            )
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                "`hidden_size` must be divisible by 4 times `num_attention_heads`, because each head rotates pairs of"
                f" channels by row and by column; got {self.hidden_size} and {self.num_attention_heads}."
            )
        if self.num_attention_heads % 2:
            raise ValueError(
                "`num_attention_heads` must be even, because half of the heads use the mask of the previous stage; got"
                f" {self.num_attention_heads}."
            )
        if len(self.feature_strides) != num_features:
            raise ValueError(
                f"`feature_strides` has {len(self.feature_strides)} entries ({self.feature_strides}), but the"
                f" backbone returns {num_features} feature maps; give one stride per map, fine to coarse."
            )
        if self.feature_strides[-1] > _LARGEST_STRIDE:
            raise ValueError(
                f"`feature_strides` must not exceed {_LARGEST_STRIDE}, by which images are padded, got"
                f" {self.feature_strides}."
            )
        doubles = all(2 * fine == coarse for fine, coarse in pairwise(self.feature_strides))
        if self.feature_strides[0] < 1 or not doubles:
            raise ValueError(
                f"Each entry of `feature_strides` must be twice the one before it, got {self.feature_strides}."
            )
        if not _is_number(self.layer_norm_eps) or self.layer_norm_eps <= 0:
            raise ValueError(f"`layer_norm_eps` must be a number above 0, got {self.layer_norm_eps!r}.")
        if not _is_number(self.dropout) or not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` must lie in [0, 1), got {self.dropout!r}.")
        for name in (
            "binary_cross_entropy_weight",
            "dice_weight",
            "stage_loss_weight",
            "alignment_loss_weight",
            "landmark_loss_weight",
            "presence_loss_weight",
        ):
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise ValueError(f"`{name}` must be a finite number of at least 0, got {value!r}.")


__all__ = ["JMCELNConfig"]
