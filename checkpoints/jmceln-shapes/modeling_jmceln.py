# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""PyTorch JMCELN: joint mask contextual embedding learning network for referring image segmentation."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import MODEL_MAPPING, AutoBackbone, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

# Every file of the package is named here: transformers 4.57 copies into a saved folder what its entry file imports.
from .alignment import JMCELNAlignmentFilter
from .attention import JMCELNAttention  # noqa: F401
from .cascade import JMCELNCascade, JMCELNMaskBias
from .configuration_jmceln import JMCELNConfig
from .contextual_embedding import JMCELNComparisonWeights, JMCELNContextWriter  # noqa: F401
from .fusion import JMCELNFusionLayer
from .losses import expression_losses, landmark_loss
from .pixel_decoder import JMCELNPixelDecoder
from .presence import JMCELNPresenceHead
from .upsampling import JMCELNConvexUpsampler, JMCELNUpsamplingWeights
from .vision_encoder import CATEGORY_HEADS_FILE, JMCELNHiddenStatePyramid, build_vision_encoder, find_pyramid


@dataclass
class JMCELNImageFeatures(ModelOutput):
    """
    All that the model knows of an image before any word is read: compute it once, use it for many expressions.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, num_pixels, hidden)`):
            Tokens of the working map (the second coarsest), then of the coarsest.
        pooler_output (`torch.FloatTensor`, *optional*):
            Always `None`; transformers expects the field of every `get_image_features`.
        pixel_features (`tuple` of `torch.FloatTensor` of shape `(batch, height, width, mask_features)`):
            Pixel embeddings, fine to coarse, the last at the working map.
        upsampling_weights (`torch.FloatTensor` of shape `(batch, 9, height, width)`):
            At the size of the input: how each pixel mixes the 3 x 3 coarse logits around it.
        hidden_states (`tuple` of `torch.FloatTensor`, *optional*): The backbone's, if asked for.
        attentions (`tuple` of `torch.FloatTensor`, *optional*): The backbone's, if asked for.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    pixel_features: tuple[torch.FloatTensor, ...] | None = None
    upsampling_weights: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class JMCELNOutput(ModelOutput):
    """
    Output of [`JMCELNModel`]. The dimension `expressions` is there if `input_ids` had it.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned with `labels`):
            Mean over the expressions that are not padding.
        logits (`torch.FloatTensor` of shape `(batch[, expressions], height, width)`):
            Mask logits at the size of the input.
        presence_logits (`torch.FloatTensor` of shape `(batch[, expressions])`):
            Whether the referent is in the image at all.
        stage_logits (`tuple` of `torch.FloatTensor` of shape `(batch[, expressions], h, w)`):
            One a stage, coarse to fine, before the learned upsampling. They cover the input padded to a multiple of
            the coarsest stride.
        landmark_logits (`tuple` of `torch.FloatTensor` of shape `(batch[, expressions], h, w)`):
            One a stage, as `stage_logits`: where the other objects are that the expression names. They mean something
            only if the model was trained with `landmark_masks`.
        contextual_embeddings (`tuple` of `torch.FloatTensor` of shape `(batch[, expressions], tokens, hidden)`):
            One a stage.
        alignment_filters (`tuple` of `torch.FloatTensor` of shape `(batch[, expressions], h, w)`, *optional*):
            One a stage after the first: 1 where the stage's own prediction counts, 0 where the previous one does.
            `None` without alignment or with a single stage.
        image_features ([`JMCELNImageFeatures`]): To be passed on for further expressions of the same images.
        hidden_states (`tuple` of `torch.FloatTensor` of shape `(batch[, expressions], pixels, hidden)`, *optional*):
            The working map after the neck and after each stage, if asked for.
        attentions (`tuple` of `torch.FloatTensor` of shape `(batch[, expressions], heads, tokens, keys)`, *optional*):
            One a stage, if asked for: what the context tokens attend to. The keys are the words, the context tokens
            and, with `use_contextual_embedding`, the pixels of the working map.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    presence_logits: torch.FloatTensor | None = None
    stage_logits: tuple[torch.FloatTensor, ...] | None = None
    landmark_logits: tuple[torch.FloatTensor, ...] | None = None
    contextual_embeddings: tuple[torch.FloatTensor, ...] | None = None
    alignment_filters: tuple[torch.FloatTensor, ...] | None = None
    image_features: JMCELNImageFeatures | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class JMCELNPreTrainedModel(PreTrainedModel):
    config_class = JMCELNConfig
    base_model_prefix = "jmceln"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["JMCELNImageLayer", "JMCELNFusionLayer", "JMCELNStage"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        # Only modules with parameters of their own are asked: transformers takes the others of custom code for loaded.
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            if isinstance(module, JMCELNAlignmentFilter):
                # Open at first (0.88 everywhere), or the untrained mask before halves the gradient of every stage.
                nn.init.zeros_(module.weight)
                nn.init.constant_(module.bias, 2.0)
                return
            if isinstance(module, JMCELNComparisonWeights):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
                return
            nn.init.xavier_uniform_(module.weight)
            if isinstance(module, JMCELNMaskBias):
                # A referent covers a small part of the image: start from mostly background.
                nn.init.constant_(module.bias, -2.0)
            elif isinstance(module, JMCELNUpsamplingWeights):
                if not getattr(module.bias, "_is_hf_initialized", False):
                    with torch.no_grad():
                        module.bias.copy_(module.initial_bias())
            elif module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1.0)


class JMCELNModel(JMCELNPreTrainedModel):
    """
    JMCELN: an image and one or many expressions go in, the mask of what each means comes out.

    Args:
        config ([`JMCELNConfig`]): The weights are random; use [`~JMCELNModel.from_pretrained`] for trained ones, or
            [`~JMCELNModel.from_vision_text_pretrained`] to start from pretrained encoders.
    """

    _auto_class = "AutoModel"
    # Otherwise the Trainer takes the loss for a sum, and multiplies it by the steps of gradient accumulation.
    accepts_loss_kwargs = False

    def __init__(self, config: JMCELNConfig):
        super().__init__(config)
        self.backbone = build_vision_encoder(config)
        self.text_model = AutoModel.from_config(config.text_config)
        # DistributedDataParallel refuses parameters that never get a gradient: nobody reads the pooler of BERT and its
        # kin, nor the norm behind Swin's last stage.
        if getattr(self.text_model, "pooler", None) is not None:
            self.text_model.pooler = None
        if hasattr(self.backbone, "swin"):
            self.backbone.swin.layernorm.requires_grad_(False)

        self.pixel_decoder = JMCELNPixelDecoder(config, list(self.backbone.channels))
        self.upsampler = JMCELNConvexUpsampler(config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.hidden_size)
        self.text_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fusion_layers = nn.ModuleList([JMCELNFusionLayer(config) for _ in range(config.num_fusion_layers)])
        self.cascade = JMCELNCascade(config)
        self.presence_head = JMCELNPresenceHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def enable_input_require_grads(self) -> None:
        """As in transformers, and for backbones whose patch embedding returns a tuple too, such as Swin."""

        def require_grad(_module: nn.Module, _inputs: Any, output: Any) -> None:
            (output[0] if isinstance(output, tuple) else output).requires_grad_(True)

        self.disable_input_require_grads()
        for part in (self.text_model, self.backbone):
            try:
                embeddings = part.get_input_embeddings()
            except NotImplementedError:  # some convolutional backbones
                continue
            self._require_grads_hooks.append(embeddings.register_forward_hook(require_grad))

    def disable_input_require_grads(self) -> None:
        for hook in getattr(self, "_require_grads_hooks", []):
            hook.remove()
        self._require_grads_hooks = []

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision_model: str | os.PathLike | PretrainedConfig,
        text_model: str | os.PathLike | PretrainedConfig,
        **config_kwargs: Any,
    ) -> "JMCELNModel":
        """
        Builds a model on two encoders: the rest of it is new and wants training.

        Args:
            vision_model (`str`, `os.PathLike` or `PretrainedConfig`):
                Hub id or folder of a vision model that [`AutoBackbone`] can load, whose weights are copied; or a
                configuration, for random weights. Unless a configuration names its `out_features`, the last four
                stages are taken.
            text_model (`str`, `os.PathLike` or `PretrainedConfig`):
                The same for a text encoder. Of a two-tower model such as CLIP the text tower is taken.
            config_kwargs: Further fields of [`JMCELNConfig`].

        Returns:
            [`JMCELNModel`] in float32, in evaluation mode.

        Raises:
            ValueError: If the vision model gives no pyramid of feature maps, or the text model is no encoder.
        """
        backbone = cls._load_backbone(vision_model)
        text_encoder = cls._load_text_encoder(text_model)
        backbone_config = (
            backbone.encoder.config if isinstance(backbone, JMCELNHiddenStatePyramid) else backbone.config
        )
        if isinstance(backbone, JMCELNHiddenStatePyramid):
            config_kwargs["feature_indices"] = backbone.feature_indices
            config_kwargs["num_categories"] = backbone.num_categories
            # Without those of the categories.
            config_kwargs["feature_channels"] = backbone.encoder_channels
        if "feature_strides" not in config_kwargs:
            config_kwargs["feature_strides"] = cls._measure_strides(backbone)
        config = JMCELNConfig(
            backbone_config=backbone_config.to_dict(), text_config=text_encoder.config.to_dict(), **config_kwargs
        )
        model = cls(config)
        model.backbone.load_state_dict(backbone.state_dict())
        if getattr(text_encoder, "pooler", None) is not None:
            text_encoder.pooler = None
        model.text_model.load_state_dict(text_encoder.state_dict())
        return model.eval()

    @staticmethod
    def _load_backbone(vision_model: str | os.PathLike | PretrainedConfig) -> nn.Module:
        from_config = hasattr(vision_model, "to_dict")
        config = vision_model if from_config else AutoConfig.from_pretrained(vision_model)
        stage_names = getattr(config, "stage_names", None)
        if stage_names is None and type(config) in MODEL_MAPPING:
            if from_config:
                encoder = AutoModel.from_config(config).eval()
            else:
                encoder = AutoModel.from_pretrained(vision_model, dtype=torch.float32).eval()
            indices, channels, _ = find_pyramid(encoder)
            heads_file = None if from_config else Path(vision_model) / CATEGORY_HEADS_FILE
            if heads_file is None or not heads_file.is_file():
                return JMCELNHiddenStatePyramid(encoder, indices, channels)
            weights = load_file(heads_file)
            pyramid = JMCELNHiddenStatePyramid(encoder, indices, channels, len(weights["heads.0.bias"]))
            pyramid.category_heads.load_state_dict(weights)
            return pyramid.eval()
        if stage_names is None:
            raise ValueError(
                f"`{config.model_type}` has no backbone that returns feature maps. Take one that `AutoBackbone` knows"
                " with several strides, for example Swin, SwinV2, ConvNeXt or ResNet."
            )
        out_features = config.out_features
        if not from_config or len(out_features) < 3:
            out_features = [name for name in stage_names if name != "stem"][-4:]
        if from_config:
            config = type(config).from_dict({**config.to_dict(), "out_features": out_features, "out_indices": None})
            return AutoBackbone.from_config(config).eval()
        # `AutoBackbone.from_pretrained` itself takes no folder: it asks the hub whether the name is a repository.
        with torch.device("meta"):
            backbone_class = type(AutoBackbone.from_config(config))
        return backbone_class.from_pretrained(vision_model, out_features=out_features, dtype=torch.float32).eval()

    @staticmethod
    def _load_text_encoder(text_model: str | os.PathLike | PretrainedConfig) -> nn.Module:
        from_config = hasattr(text_model, "to_dict")
        config = text_model if from_config else AutoConfig.from_pretrained(text_model)
        config = getattr(config, "text_config", config)
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                f"`{config.model_type}` is an encoder with a decoder, and the decoder would be left unused. Take a"
                " text encoder, for example BERT, RoBERTa, DistilBERT, MPNet, ModernBERT or the CLIP text model."
            )
        if from_config:
            return AutoModel.from_config(config).eval()
        return AutoModel.from_pretrained(str(text_model), config=config, dtype=torch.float32).eval()

    @staticmethod
    def _measure_strides(backbone: nn.Module) -> list[int]:
        size = 256
        with torch.no_grad():
            feature_maps = backbone(torch.zeros(1, 3, size, size)).feature_maps
        return [size // feature_map.shape[-1] for feature_map in feature_maps]

    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> JMCELNImageFeatures | tuple:
        """
        Encodes images once for any number of expressions: pass the result as `image_features` to the model.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, 3, height, width)`): Any height and width.
            output_attentions (`bool`, *optional*): Whether to return the backbone's attentions.
            output_hidden_states (`bool`, *optional*): Whether to return the backbone's hidden states.
            return_dict (`bool`, *optional*): `False` for a plain tuple.

        Raises:
            ValueError: If the shape is not that of a batch of images, or the backbone's maps are not at the strides
                that the configuration names.
        """
        if pixel_values.ndim != 4 or 0 in pixel_values.shape:
            raise ValueError(
                f"`pixel_values` must be a batch of images of shape (batch, 3, height, width), got"
                f" {tuple(pixel_values.shape)}."
            )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        height, width = pixel_values.shape[-2:]
        strides = self.config.feature_strides
        padding = (0, -width % strides[-1], 0, -height % strides[-1])
        padded = nn.functional.pad(pixel_values.to(self.dtype), padding)

        backbone_kwargs = {}
        if self.config.output_attentions if output_attentions is None else output_attentions:
            backbone_kwargs["output_attentions"] = True
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            backbone_kwargs["output_hidden_states"] = True
        outputs = self.backbone(padded, return_dict=True, **backbone_kwargs)
        feature_maps = outputs.feature_maps
        for feature_map, stride in zip(feature_maps, strides, strict=True):
            expected = (padded.shape[-2] // stride, padded.shape[-1] // stride)
            if feature_map.shape[-2:] != expected:
                raise ValueError(
                    f"The backbone gave a feature map of {tuple(feature_map.shape[-2:])} for an input of"
                    f" {tuple(padded.shape[-2:])}, but `feature_strides={strides}` want {expected}. Set"
                    " `feature_strides` to the strides of the backbone; each must be twice the one before."
                )

        tokens, pixel_features = self.pixel_decoder(list(feature_maps))
        features = JMCELNImageFeatures(
            last_hidden_state=tokens,
            pixel_features=pixel_features,
            upsampling_weights=self.upsampler(padded, pixel_features[0])[..., :height, :width],
            hidden_states=outputs.hidden_states if "output_hidden_states" in backbone_kwargs else None,
            attentions=outputs.attentions if "output_attentions" in backbone_kwargs else None,
        )
        return features if return_dict else features.to_tuple()

    def _encode_text(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From `(n, length)`: words `(n, length, hidden)`, their bias `(n, 1, 1, length)`, sentences `(n, hidden)`."""
        attention_mask = attention_mask.bool()
        # A padded expression gets one visible token, since a softmax over nothing is not a number.
        is_padding = ~attention_mask.any(dim=-1, keepdim=True)
        is_first = torch.arange(attention_mask.shape[-1], device=attention_mask.device) == 0
        attention_mask = attention_mask | (is_padding & is_first)
        words = self.text_model(input_ids=input_ids, attention_mask=attention_mask.long(), return_dict=True)
        words = self.text_norm(self.text_projection(words.last_hidden_state))
        word_weights = attention_mask.unsqueeze(-1).to(words.dtype)
        sentence = (words * word_weights).sum(1) / word_weights.sum(1)
        word_bias = torch.zeros_like(attention_mask, dtype=words.dtype)
        word_bias = word_bias.masked_fill(~attention_mask, torch.finfo(words.dtype).min)
        return words, word_bias[:, None, None], sentence

    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        landmark_masks: torch.Tensor | None = None,
        image_features: JMCELNImageFeatures | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> JMCELNOutput | tuple:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, 3, height, width)`): Any height and width.
            input_ids (`torch.LongTensor` of shape `(batch, length)` or `(batch, expressions, length)`):
                One expression an image, or several.
            attention_mask (`torch.Tensor` of the shape of `input_ids`, *optional*):
                1 at tokens, 0 at padding. An expression without any 1 is padding: it counts for nothing.
            labels (`torch.LongTensor` of shape `(batch[, expressions], height, width)`, *optional*):
                1 at the referent, 0 elsewhere; 255 and -100 are ignored. All background means that the referent is not
                in the image, and is learned as such.
            landmark_masks (`torch.Tensor` of the shape of `labels`, *optional*):
                Beside `labels`: 1 at the other objects that the expression names ("the ring" in "the star left of the
                ring"), 0 elsewhere; 255 where it is not known. Found first, they help to find the referent.
            image_features ([`JMCELNImageFeatures`], *optional*):
                From [`~JMCELNModel.get_image_features`], instead of `pixel_values`.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*):
                Number of expressions over which the loss is averaged, if the call is one part of a larger batch.
            output_attentions (`bool`, *optional*): Whether to return what the context tokens attend to.
            output_hidden_states (`bool`, *optional*): Whether to return the working map after each stage.
            return_dict (`bool`, *optional*): `False` for a plain tuple.

        Returns:
            [`JMCELNOutput`]

        Raises:
            ValueError: If an input is missing or the shapes of the inputs do not fit each other.
            TypeError: If `image_features` are a plain tuple.

        Example:

        ```python
        >>> inputs = processor(images=image, text=["the red cup", "the spoon"], return_tensors="pt")
        >>> outputs = model(**inputs)
        >>> masks = processor.post_process_referring_segmentation(outputs, target_sizes=[image.size[::-1]])
        ```
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if (pixel_values is None) == (image_features is None):
            raise ValueError("Pass either `pixel_values` or `image_features`, exactly one of them.")
        if isinstance(image_features, tuple):
            raise TypeError(
                "`image_features` must be what `get_image_features` returns with `return_dict=True`, got a plain"
                " tuple."
            )
        if input_ids is None:
            raise ValueError("`input_ids` are missing: an image alone refers to nothing, pass an expression.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if input_ids.ndim not in (2, 3) or 0 in input_ids.shape or attention_mask.shape != input_ids.shape:
            raise ValueError(
                "`input_ids` and `attention_mask` must both have the shape (batch, length) or (batch, expressions,"
                f" length), none of them 0, got {tuple(input_ids.shape)} and {tuple(attention_mask.shape)}."
            )
        if image_features is None:
            image_features = self.get_image_features(
                pixel_values, output_attentions=False, output_hidden_states=False, return_dict=True
            )
        tokens, pixel_features = image_features.last_hidden_state, image_features.pixel_features
        if input_ids.shape[0] != tokens.shape[0]:
            raise ValueError(
                f"There are {tokens.shape[0]} images but expressions for {input_ids.shape[0]}. Several expressions of"
                " one image go into a second dimension, (batch, expressions, length)."
            )
        height, width = image_features.upsampling_weights.shape[-2:]
        expected_labels = (*input_ids.shape[:-1], height, width)
        for name, masks in (("labels", labels), ("landmark_masks", landmark_masks)):
            if masks is not None and tuple(masks.shape) != expected_labels:
                raise ValueError(
                    f"`{name}` must have the shape {expected_labels}, one mask an expression at the size of the input,"
                    f" got {tuple(masks.shape)}."
                )

        # batch * expressions is the batch of all that follows
        leading_shape = input_ids.shape[:-1]
        num_expressions = 1 if input_ids.ndim == 2 else input_ids.shape[1]
        words, word_bias, sentence = self._encode_text(
            input_ids.reshape(-1, input_ids.shape[-1]), attention_mask.reshape(-1, input_ids.shape[-1])
        )

        map_height, map_width = pixel_features[-1].shape[1:3]
        positions = self.pixel_decoder.positions(map_height, map_width, tokens)
        pixels = tokens.unsqueeze(1).expand(-1, num_expressions, -1, -1).flatten(0, 1)
        map_sizes = [(map_height, map_width), (map_height // 2, map_width // 2)]
        for layer in self.fusion_layers:
            pixels = layer(pixels, positions, map_sizes, words, word_bias)
        pixels, positions = pixels[:, : map_height * map_width], positions[:, : map_height * map_width]
        hidden_states = (pixels,)

        stages = self.cascade(pixels, positions, words, word_bias, sentence, pixel_features, output_attentions)
        hidden_states += tuple(stage[0] for stage in stages)
        contextual_embeddings = tuple(stage[1] for stage in stages)
        stage_logits = tuple(stage[2][:, 0] for stage in stages)
        landmark_logits = tuple(stage[2][:, 1] for stage in stages)
        alignment_filters = tuple(stage[3] for stage in stages if stage[3] is not None)
        attentions = tuple(stage[4] for stage in stages)

        logits = self.upsampler.upsample(
            stage_logits[-1].unflatten(0, (-1, num_expressions)), image_features.upsampling_weights
        )
        presence_logits = self.presence_head(
            hidden_states[-1], contextual_embeddings[-1], stage_logits[-1], map_height, map_width
        )

        loss = None
        if labels is not None:
            flat_labels = labels.reshape(-1, height, width)
            is_counted = attention_mask.reshape(-1, input_ids.shape[-1]).any(dim=-1)
            strides = self.config.feature_strides
            map_size = (map_height * strides[-2], map_width * strides[-2])
            losses = expression_losses(
                logits.flatten(0, 1), stage_logits, presence_logits, flat_labels, map_size, self.config
            )
            if landmark_masks is not None:
                landmark_losses = landmark_loss(
                    landmark_logits, landmark_masks.reshape(-1, height, width), map_size, self.config
                )
                losses = losses + self.config.landmark_loss_weight * landmark_losses
            num_items = is_counted.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            loss = losses.masked_fill(~is_counted, 0).sum() / num_items

        if isinstance(output_hidden_states, (list, tuple)):
            wanted = {index % len(hidden_states) for index in output_hidden_states}
            hidden_states = tuple(state if index in wanted else None for index, state in enumerate(hidden_states))

        def unflatten(tensors: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
            if input_ids.ndim == 2:
                return tensors
            return tuple(None if tensor is None else tensor.unflatten(0, leading_shape) for tensor in tensors)

        output = JMCELNOutput(
            loss=loss,
            logits=logits.reshape(*leading_shape, height, width),
            presence_logits=presence_logits.reshape(leading_shape),
            stage_logits=unflatten(stage_logits),
            landmark_logits=unflatten(landmark_logits),
            contextual_embeddings=unflatten(contextual_embeddings),
            alignment_filters=unflatten(alignment_filters) or None,
            image_features=image_features,
            hidden_states=unflatten(hidden_states) if output_hidden_states else None,
            attentions=unflatten(attentions) if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()


__all__ = ["JMCELNImageFeatures", "JMCELNModel", "JMCELNOutput", "JMCELNPreTrainedModel"]
