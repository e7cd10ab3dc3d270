# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""PyTorch JMCELN: joint mask contextual embedding learning network for referring image segmentation."""

import difflib
import inspect
import os
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

# This file imports every file of the package: transformers 4.57 copies only files that the entry file imports.
from .alignment import JMCELNAlignmentFilter
from .attention import JMCELNAttention  # noqa: F401
from .cascade import JMCELNCascade, JMCELNMaskBias
from .category_matching import JMCELNCategoryMatcher, JMCELNCategoryReader, category_evidence
from .configuration_jmceln import JMCELNConfig
from .contextual_embedding import JMCELNComparisonWeights, JMCELNContextWriter  # noqa: F401
from .fusion import JMCELNFusionLayer
from .losses import check_mask_values, expression_losses, landmark_loss
from .outputs import JMCELNAnswers, JMCELNImageFeatures, JMCELNOutput, JMCELNTextFeatures
from .padding import crop_features, group_by_size, original_order, pad_answers, pad_features
from .pixel_decoder import JMCELNPixelDecoder, coarse_map_sizes
from .presence import JMCELNPresenceHead
from .renamed_weights import check_encoder_names, tower_key_mapping
from .text_encoder import build_text_encoder, load_text_encoder
from .upsampling import JMCELNConvexUpsampler, JMCELNUpsamplingWeights
from .vision_encoder import build_vision_encoder, load_vision_encoder


logger = logging.get_logger(__name__)
# The number of expressions per image that go through the model at a time when gradients are off. With more of them,
# the activations would no longer fit into the CPU's caches, which is slower.
EXPRESSIONS_AT_A_TIME = 8


class JMCELNPreTrainedModel(PreTrainedModel):
    config_class = JMCELNConfig
    base_model_prefix = "jmceln"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["JMCELNImageLayer", "JMCELNFusionLayer", "JMCELNStage"]
    _supports_sdpa = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """
        As in transformers, and also loads encoders whose weights were renamed in another release of transformers.

        Raises:
            ValueError: If weights of an encoder would stay random, since they have yet other names in the file.
        """
        load: Callable[..., Any] = super().from_pretrained
        model, info = load(*args, output_loading_info=True, **kwargs)
        mapping = tower_key_mapping(info["missing_keys"], info["unexpected_keys"])
        if mapping:
            logger.warning_once("An encoder's weights have the names of another transformers: they are loaded again.")
            mapping |= kwargs.pop("key_mapping", None) or {}
            model, info = load(*args, output_loading_info=True, key_mapping=mapping, **kwargs)
            # Otherwise some releases would rename the weights again to save them.
            model.__dict__.pop("_weight_conversions", None)
        # Buffers such as the positions in a window of Swin are no weights: they are computed.
        weights = {name for name, _ in model.named_parameters()}
        missing = weights.intersection(info["missing_keys"])
        check_encoder_names(missing, info["unexpected_keys"], model.config.transformers_version)
        return (model, info) if output_loading_info else model

    def _init_weights(self, module: nn.Module) -> None:
        # This initializes only modules with their own parameters: transformers counts all others in custom code as
        # loaded.
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            if isinstance(module, JMCELNAlignmentFilter):
                # Start with a filter of 0.88 everywhere. At 0.5, the untrained mask of the previous stage would halve
                # the gradient of every stage.
                nn.init.zeros_(module.weight)
                nn.init.constant_(module.bias, 2.0)
                return
            if isinstance(module, JMCELNComparisonWeights):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
                return
            nn.init.xavier_uniform_(module.weight)
            if isinstance(module, JMCELNMaskBias):
                # A referent covers a small part of the image, so start with mostly background.
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
        elif isinstance(module, JMCELNCategoryReader):
            nn.init.zeros_(module.center)
            nn.init.constant_(module.sharpness, 10.0)


class JMCELNModel(JMCELNPreTrainedModel):
    """
    JMCELN for referring image segmentation: takes images and one or more expressions per image, and returns one mask
    per expression.

    Args:
        config ([`JMCELNConfig`]): Builds a model with random weights. Use [`~JMCELNModel.from_pretrained`] for trained
            weights, or [`~JMCELNModel.from_vision_text_pretrained`] for pretrained encoders.
    """

    _auto_class = "AutoModel"
    # Otherwise the Trainer would treat the loss as a sum, and multiply it by the gradient accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: JMCELNConfig):
        super().__init__(config)
        # Without a request, transformers takes "sdpa" for encoders that have it and "eager" for all others, such as
        # convolutional ones. A request for "sdpa" means the same; passed on, it would be an error in the others.
        for encoder_config in (config.backbone_config, config.text_config):
            if encoder_config._attn_implementation == "sdpa":
                encoder_config._attn_implementation = None
        self.backbone = build_vision_encoder(config)
        self.text_model = build_text_encoder(config.text_config)
        self.pixel_decoder = JMCELNPixelDecoder(config, list(self.backbone.channels))
        self.upsampler = JMCELNConvexUpsampler(config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.hidden_size)
        self.text_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fusion_layers = nn.ModuleList([JMCELNFusionLayer(config) for _ in range(config.num_fusion_layers)])
        self.cascade = JMCELNCascade(config)
        self.presence_head = JMCELNPresenceHead(config)
        self.category_matcher = JMCELNCategoryMatcher(config) if config.num_categories > 0 else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def enable_input_require_grads(self) -> None:
        """As in transformers, but also for backbones whose patch embedding returns a tuple, such as Swin."""

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
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool | None = None,
        **config_kwargs: Any,
    ) -> "JMCELNModel":
        """
        Builds a model from two pretrained encoders. All other weights are random and must be trained.

        Args:
            vision_model (`str`, `os.PathLike` or `PretrainedConfig`):
                Hub id or folder of a vision model, whose weights are copied; or a configuration, for random weights.
                It can be a backbone (the last four stages are used, unless its configuration names at least three
                `out_features`), a model whose hidden states get coarser with depth, or a plain vision transformer. Of
                a two-tower model such as CLIP, the vision tower is used. Normalize images with the mean and the
                standard deviation that the vision model was trained with.
            text_model (`str`, `os.PathLike` or `PretrainedConfig`):
                The same for a text encoder. Of a two-tower model, the text tower is used.
            revision, token, cache_dir, local_files_only (*optional*):
                As in `from_pretrained`, for both encoders.
            config_kwargs: Further fields of [`JMCELNConfig`].

        Returns:
            [`JMCELNModel`] in float32, in evaluation mode. Parameters that the model never uses are frozen (see
            [`~JMCELNModel.freeze_unused_parameters`]).

        Raises:
            ValueError: If the vision model returns no pyramid of feature maps, or the text model is not an encoder.
        """
        options = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        hub_kwargs = {name: value for name, value in options.items() if value is not None}
        vision = load_vision_encoder(vision_model, hub_kwargs)
        text_encoder = load_text_encoder(text_model, hub_kwargs)
        fields = {"text_config": text_encoder.config.to_dict(), **vision.config_fields, **config_kwargs}
        model = cls(JMCELNConfig(**fields))
        # The layers that turn the map of a plain transformer into a pyramid are not pretrained and stay random.
        model.backbone.load_state_dict({**model.backbone.state_dict(), **vision.state_dict})
        model.text_model.load_state_dict(text_encoder.state_dict())
        if vision.category_names is not None and not isinstance(text_model, PretrainedConfig):
            tokenizer = AutoTokenizer.from_pretrained(text_model, **hub_kwargs)
            model.category_matcher.reader.learn_names(vision.category_names, model.text_model.eval(), tokenizer)
        model.freeze_unused_parameters()
        return model.eval()

    def freeze_unused_parameters(self) -> list[str]:
        """
        Freezes the parameters of the pretrained encoders that the loss does not depend on, such as the pooling head of
        SigLIP. `DistributedDataParallel` expects a gradient for each parameter that is not frozen: call this method
        before you wrap a loaded model, or set `find_unused_parameters=True`.

        One forward and one backward pass on a small image find these parameters.

        Returns:
            `list[str]`: Names of the frozen parameters.
        """
        modes = {module: module.training for module in self.modules()}
        size = 2 * self.config.feature_strides[-1]
        inputs = {
            "pixel_values": torch.zeros(1, 3, size, size, device=self.device),
            # Two words: an encoder may have parameters that matter only between different words.
            "input_ids": torch.ones(1, 2, dtype=torch.long, device=self.device),
            "labels": torch.ones(1, size, size, dtype=torch.long, device=self.device),
        }
        trained = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        with torch.enable_grad():
            loss = self.eval()(**inputs, landmark_masks=inputs["labels"], return_dict=True).loss
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for module, mode in modes.items():
            module.training = mode
        unused = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
        for name in unused:
            trained[name].requires_grad_(False)
        return unused

    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        pixel_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> JMCELNImageFeatures | tuple:
        """
        Encodes images once for any number of expressions: pass the result to the model as `image_features`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, 3, height, width)`): Any height and width.
            pixel_mask (`torch.Tensor` of shape `(batch, height, width)`, *optional*):
                1 in the image, 0 in the padding right of it and below it. Images of the same size are encoded
                together, without their padding.
            output_attentions (`bool`, *optional*):
                Whether to return the attentions of the backbone. Ignored with `pixel_mask`.
            output_hidden_states (`bool`, *optional*):
                Whether to return the hidden states of the backbone. Ignored with `pixel_mask`.
            return_dict (`bool`, *optional*): `False` returns a plain tuple.

        Raises:
            ValueError: If `pixel_values` is not a batch of images, if an image is not a rectangle in the upper left
                corner, or if the feature maps do not have the strides of the configuration.
        """
        _check_tensors(pixel_values=pixel_values, pixel_mask=pixel_mask)
        if pixel_values.ndim != 4 or 0 in pixel_values.shape:
            raise ValueError(
                f"`pixel_values` must be a batch of images of shape (batch, 3, height, width), got"
                f" {tuple(pixel_values.shape)}."
            )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        pixel_values = pixel_values.to(self.dtype)
        if pixel_mask is None:
            backbone_kwargs = {}
            if self.config.output_attentions if output_attentions is None else output_attentions:
                backbone_kwargs["output_attentions"] = True
            if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
                backbone_kwargs["output_hidden_states"] = True
            features = self._encode_images(pixel_values, backbone_kwargs)
        else:
            features = self._encode_padded_images(pixel_values, pixel_mask.bool())
        return features if return_dict else features.to_tuple()

    def _encode_images(self, pixel_values: torch.Tensor, backbone_kwargs: dict[str, bool]) -> JMCELNImageFeatures:
        height, width = pixel_values.shape[-2:]
        strides = self.config.feature_strides
        padded = nn.functional.pad(pixel_values, (0, -width % strides[-1], 0, -height % strides[-1]))
        outputs = self.backbone(padded, return_dict=True, **backbone_kwargs)
        for feature_map, stride in zip(outputs.feature_maps, strides, strict=True):
            expected = (padded.shape[-2] // stride, padded.shape[-1] // stride)
            if feature_map.shape[-2:] != expected:
                raise ValueError(
                    f"The backbone returned a feature map of size {tuple(feature_map.shape[-2:])} for an input of size"
                    f" {tuple(padded.shape[-2:])}, but with `feature_strides={strides}` it should be {expected}. Set"
                    " `feature_strides` to the strides of the backbone; each must be twice the one before it."
                )
        tokens, pixel_features = self.pixel_decoder(list(outputs.feature_maps))
        if self.category_matcher is not None:
            evidence = category_evidence(outputs.feature_maps[-2:], self.config.num_categories)
            tokens = torch.cat([tokens, evidence], dim=-1)
        return JMCELNImageFeatures(
            last_hidden_state=tokens,
            pixel_features=pixel_features,
            upsampling_weights=self.upsampler(padded, pixel_features[0])[..., :height, :width],
            hidden_states=outputs.hidden_states if "output_hidden_states" in backbone_kwargs else None,
            attentions=outputs.attentions if "output_attentions" in backbone_kwargs else None,
        )

    def _encode_padded_images(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> JMCELNImageFeatures:
        size = tuple(pixel_values.shape[-2:])
        if tuple(pixel_mask.shape) != (len(pixel_values), *size):
            raise ValueError(
                f"`pixel_mask` must have the shape (batch, height, width) of `pixel_values`,"
                f" {(len(pixel_values), *size)}, got {tuple(pixel_mask.shape)}."
            )
        strides = self.config.feature_strides
        # As in `_encode_images`, an image is filled up to whole cells with zeros.
        pixel_values = pixel_values * pixel_mask.unsqueeze(1)
        groups = group_by_size(pixel_mask, strides[-1])
        parts = [
            pad_features(
                self._encode_images(pixel_values[group.indices, :, : group.height, : group.width], {}),
                group,
                size,
                strides,
            )
            for group in groups
        ]
        order = original_order(groups)
        return JMCELNImageFeatures(
            last_hidden_state=torch.cat([part.last_hidden_state for part in parts])[order],
            pixel_features=tuple(
                torch.cat(levels)[order] for levels in zip(*(part.pixel_features for part in parts), strict=True)
            ),
            upsampling_weights=torch.cat([part.upsampling_weights for part in parts])[order],
            pixel_mask=pixel_mask,
        )

    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> JMCELNTextFeatures | tuple:
        """
        Encodes expressions once for any number of images: pass the result to the model as `text_features`. A batch of
        size 1 is used for every image.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)` or `(batch, expressions, length)`):
                Tokens of the expressions.
            attention_mask (`torch.Tensor` of the shape of `input_ids`, *optional*):
                1 at tokens, 0 at padding. An expression without any 1 is padding.
            output_attentions (`bool`, *optional*): Whether to return the text encoder's attentions.
            output_hidden_states (`bool`, *optional*): Whether to return the text encoder's hidden states.
            return_dict (`bool`, *optional*): `False` returns a plain tuple.

        Raises:
            ValueError: If `input_ids` is not a batch of expressions, or `attention_mask` has another shape.
        """
        _check_tensors(input_ids=input_ids, attention_mask=attention_mask)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if input_ids.ndim not in (2, 3) or 0 in input_ids.shape or attention_mask.shape != input_ids.shape:
            raise ValueError(
                "`input_ids` and `attention_mask` must both have the same shape, (batch, length) or (batch,"
                f" expressions, length), without a dimension of size 0; got {tuple(input_ids.shape)} and"
                f" {tuple(attention_mask.shape)}."
            )
        longest = getattr(self.config.text_config, "max_position_embeddings", None)
        # In a traced graph the length may be unknown.
        if longest is not None and not torch.compiler.is_compiling() and input_ids.shape[-1] > longest:
            raise ValueError(
                f"`input_ids` has expressions of {input_ids.shape[-1]} tokens, but the text encoder reads at most"
                f" {longest}: pass `truncation=True, max_length={longest}` to the processor."
            )
        text_kwargs = {}
        if self.config.output_attentions if output_attentions is None else output_attentions:
            text_kwargs["output_attentions"] = True
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            text_kwargs["output_hidden_states"] = True
        is_visible = visible_tokens(attention_mask)
        outputs = self.text_model(
            input_ids=input_ids.flatten(0, -2),
            attention_mask=is_visible.flatten(0, -2).long(),
            return_dict=True,
            **text_kwargs,
        )
        words = self.text_norm(self.text_projection(outputs.last_hidden_state)).unflatten(0, input_ids.shape[:-1])
        word_weights = is_visible.unsqueeze(-1).to(words.dtype)
        sentences = (words * word_weights).sum(-2) / word_weights.sum(-2)
        if self.category_matcher is not None:
            categories = self.category_matcher.reader(outputs.last_hidden_state, is_visible.flatten(0, -2))
            sentences = torch.cat([sentences, categories.flatten(1).unflatten(0, input_ids.shape[:-1])], dim=-1)
        features = JMCELNTextFeatures(
            last_hidden_state=words,
            pooler_output=sentences,
            attention_mask=attention_mask,
            hidden_states=outputs.hidden_states if "output_hidden_states" in text_kwargs else None,
            attentions=outputs.attentions if "output_attentions" in text_kwargs else None,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return features if return_dict else features.to_tuple()

    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        landmark_masks: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        image_features: JMCELNImageFeatures | None = None,
        text_features: JMCELNTextFeatures | None = None,
        original_sizes: Any = None,  # noqa: ARG002
        num_items_in_batch: int | torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> JMCELNOutput | tuple:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, 3, height, width)`): Any height and width.
            input_ids (`torch.LongTensor` of shape `(batch, length)` or `(batch, expressions, length)`):
                One expression per image, or several.
            attention_mask (`torch.Tensor` of the shape of `input_ids`, *optional*):
                1 at tokens, 0 at padding. An expression without any 1 is padding and does not count in the loss.
            labels (`torch.LongTensor` of shape `(batch[, expressions], height, width)`, *optional*):
                1 at the referent, 0 elsewhere; 255 and -100 are ignored. A mask of zeros means that the referent is
                not in the image.
            landmark_masks (`torch.Tensor` of the shape of `labels`, *optional*):
                Used together with `labels`: 1 at the landmarks, that is, the other objects that the expression names
                ("the ring" in "the star left of the ring"), 0 elsewhere, 255 where it is not known.
            pixel_mask (`torch.Tensor` of shape `(batch, height, width)`, *optional*):
                1 in the image, 0 in the padding right of it and below it. The result for an image does not depend on
                its padding.
            image_features ([`JMCELNImageFeatures`], *optional*):
                From [`~JMCELNModel.get_image_features`], instead of `pixel_values` and `pixel_mask`.
            text_features ([`JMCELNTextFeatures`], *optional*):
                From [`~JMCELNModel.get_text_features`], instead of `input_ids` and `attention_mask`. A batch of size 1
                is used for every image.
            original_sizes (*optional*):
                Not used. It is accepted because the processor returns it for its post-processing.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*):
                Number of expressions to average the loss over, if this call handles one part of a larger batch.
            output_attentions (`bool`, *optional*): Whether to return the attention weights of the context tokens.
            output_hidden_states (`bool`, *optional*): Whether to return the working map after the neck and each stage.
            return_dict (`bool`, *optional*): `False` returns a plain tuple.

        Returns:
            [`JMCELNOutput`]

        Raises:
            ValueError: If an input is missing, or if the shapes of the inputs do not match.
            TypeError: If an argument is unknown, or if features are a plain tuple.

        Example:

        ```python
        >>> inputs = processor(images=image, text=["the red cup", "the spoon"], return_tensors="pt")
        >>> outputs = model(**inputs)
        >>> masks = processor.post_process_referring_segmentation(outputs, target_sizes=[image.size[::-1]])
        ```
        """
        self._refuse_unknown(kwargs)
        _check_tensors(labels=labels, landmark_masks=landmark_masks)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        self._check_features(pixel_values, image_features, input_ids, text_features)
        # `output_attentions` and `output_hidden_states` are about the cascade here, not about the encoders.
        encoder_kwargs = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
        is_shared = text_features is not None and text_features.last_hidden_state.shape[0] == 1
        if text_features is None:
            text_features = self.get_text_features(input_ids, attention_mask, **encoder_kwargs)
        if image_features is None:
            image_features = self.get_image_features(pixel_values, pixel_mask, **encoder_kwargs)

        words = text_features.last_hidden_state
        sentences, attention_mask = text_features.pooler_output, text_features.attention_mask
        has_expressions = words.ndim == 4
        if not has_expressions:
            words, sentences, attention_mask = (each.unsqueeze(1) for each in (words, sentences, attention_mask))
        # Not `len`: torch.export would turn it into a constant.
        num_images = image_features.last_hidden_state.shape[0]
        if is_shared:
            words, sentences, attention_mask = (
                each.expand(num_images, *each.shape[1:]) for each in (words, sentences, attention_mask)
            )
        if words.shape[0] != num_images:
            raise ValueError(
                f"There are {num_images} images, but expressions for {words.shape[0]} images. To pass several"
                " expressions per image, give `input_ids` the shape (batch, expressions, length)."
            )
        leading_shape = words.shape[:2] if has_expressions else words.shape[:1]
        self._check_masks(labels, landmark_masks, (*leading_shape, *image_features.upsampling_weights.shape[-2:]))

        answers = self._answer_padded(image_features, words, attention_mask, sentences, bool(output_attentions))
        loss = None
        if labels is not None:
            loss = self._loss(answers, image_features, attention_mask, labels, landmark_masks, num_items_in_batch)
        if has_expressions:
            answers = answers.map(lambda tensor: tensor.unflatten(0, leading_shape))
        hidden_states = answers.hidden_states
        if isinstance(output_hidden_states, (list, tuple)):
            wanted = {index % len(hidden_states) for index in output_hidden_states}
            hidden_states = tuple(state if index in wanted else None for index, state in enumerate(hidden_states))
        output = JMCELNOutput(
            loss=loss,
            logits=answers.logits,
            presence_logits=answers.presence_logits,
            stage_logits=answers.stage_logits,
            landmark_logits=answers.landmark_logits,
            contextual_embeddings=answers.contextual_embeddings,
            alignment_filters=answers.alignment_filters or None,
            image_features=image_features,
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=answers.attentions if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()

    def _refuse_unknown(self, kwargs: dict[str, Any]) -> None:
        if not kwargs:
            return
        known = [name for name in inspect.signature(JMCELNModel.forward).parameters if name not in ("self", "kwargs")]
        name = next(iter(kwargs))
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean `{nearest[0]}`?" if nearest else f"it takes {', '.join(known)}."
        raise TypeError(f"{type(self).__name__} has no argument `{name}`: {hint}")

    @staticmethod
    def _check_features(pixel_values: Any, image_features: Any, input_ids: Any, text_features: Any) -> None:
        if (pixel_values is None) == (image_features is None):
            raise ValueError("Pass either `pixel_values` or `image_features`, exactly one of them.")
        if input_ids is None and text_features is None:
            raise ValueError("No expression was given: pass `input_ids` or `text_features`.")
        if input_ids is not None and text_features is not None:
            raise ValueError("Pass either `input_ids` or `text_features`, not both.")
        for name, features in (("image_features", image_features), ("text_features", text_features)):
            if features is not None and not hasattr(features, "last_hidden_state"):
                raise TypeError(
                    f"`{name}` is a {type(features).__name__}: pass the output of `get_{name}` with"
                    " `return_dict=True`."
                )

    @staticmethod
    def _check_masks(
        labels: torch.Tensor | None, landmark_masks: torch.Tensor | None, expected: tuple[int, ...]
    ) -> None:
        for name, masks in (("labels", labels), ("landmark_masks", landmark_masks)):
            if masks is None:
                continue
            if tuple(masks.shape) != expected:
                raise ValueError(
                    f"`{name}` must have the shape {expected}, one mask per expression at the size of the input, got"
                    f" {tuple(masks.shape)}."
                )
            check_mask_values(name, masks)

    def _answer_padded(
        self,
        image_features: JMCELNImageFeatures,
        words: torch.Tensor,
        attention_mask: torch.Tensor,
        sentences: torch.Tensor,
        output_attentions: bool,
    ) -> JMCELNAnswers:
        """Runs `_answer` for each size of the images in a padded batch, and pads the results."""
        if image_features.pixel_mask is None:
            return self._answer_in_parts(image_features, words, attention_mask, sentences, output_attentions)
        strides = self.config.feature_strides
        num_expressions = words.shape[1]
        groups = group_by_size(image_features.pixel_mask, strides[-1])
        parts = []
        for group in groups:
            text = (each[group.indices] for each in (words, attention_mask, sentences))
            answers = self._answer_in_parts(
                crop_features(image_features, group, strides), *text, output_attentions=output_attentions
            ).map(lambda tensor: tensor.unflatten(0, (-1, num_expressions)))
            parts.append(
                pad_answers(
                    answers,
                    group,
                    image_features,
                    image_features.pixel_mask,
                    strides[-2],
                    attends_to_pixels=self.config.use_contextual_embedding,
                )
            )
        order = original_order(groups)
        return JMCELNAnswers.concatenate(parts, dim=0).map(lambda tensor: tensor[order].flatten(0, 1))

    def _answer_in_parts(
        self,
        image_features: JMCELNImageFeatures,
        words: torch.Tensor,
        attention_mask: torch.Tensor,
        sentences: torch.Tensor,
        output_attentions: bool,
    ) -> JMCELNAnswers:
        """Runs `_answer`, without gradients for `EXPRESSIONS_AT_A_TIME` expressions per image at a time."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._answer(image_features, words, attention_mask, sentences, output_attentions)
        num_images = words.shape[0]
        parts = [
            self._answer(image_features, *text, output_attentions=output_attentions).map(
                lambda tensor: tensor.unflatten(0, (num_images, -1))
            )
            for text in zip(
                *(each.split(EXPRESSIONS_AT_A_TIME, dim=1) for each in (words, attention_mask, sentences)), strict=True
            )
        ]
        return JMCELNAnswers.concatenate(parts, dim=1).map(lambda tensor: tensor.flatten(0, 1))

    def _answer(
        self,
        image_features: JMCELNImageFeatures,
        words: torch.Tensor,
        attention_mask: torch.Tensor,
        sentences: torch.Tensor,
        output_attentions: bool,
    ) -> JMCELNAnswers:
        """
        Runs the fusion neck, the cascade, the upsampling of the last mask and the presence head.

        Args:
            image_features ([`JMCELNImageFeatures`])
            words (`torch.Tensor` of shape `(batch, expressions, length, hidden)`)
            attention_mask (`torch.Tensor` of shape `(batch, expressions, length)`)
            sentences (`torch.Tensor` of shape `(batch, expressions, hidden)`)
            output_attentions (`bool`)
        """
        leading_shape = words.shape[:2]
        is_visible = visible_tokens(attention_mask)
        word_bias = torch.zeros_like(is_visible, dtype=words.dtype)
        word_bias = word_bias.masked_fill(~is_visible, torch.finfo(words.dtype).min)
        # From here on, the batch dimension is batch * expressions.
        words, word_bias, sentences = (
            words.flatten(0, 1),
            word_bias.flatten(0, 1)[:, None, None],
            sentences.flatten(0, 1),
        )

        # The channels after the first `hidden_size` hold the categories of a detector; there may be none.
        hidden_size = self.config.hidden_size
        sentences, categories = sentences[..., :hidden_size], sentences[..., hidden_size:]
        tokens, evidence = image_features.last_hidden_state.tensor_split([hidden_size], dim=-1)
        pixel_features = image_features.pixel_features
        height, width = pixel_features[-1].shape[1:3]
        positions = self.pixel_decoder.positions(height, width, tokens)
        pixels = tokens.unsqueeze(1).expand(-1, leading_shape[1], -1, -1).flatten(0, 1)
        if self.category_matcher is not None:
            pixels = pixels + self.category_matcher(categories, evidence)
        working_size = height * width
        for layer in self.fusion_layers:
            # Nothing reads the coarsest map after the last layer.
            num_updated = working_size if layer is self.fusion_layers[-1] else None
            pixels = layer(pixels, positions, coarse_map_sizes(height, width), words, word_bias, num_updated)
        pixels, positions = pixels[:, :working_size], positions[:, :working_size]

        stages = self.cascade(pixels, positions, words, word_bias, sentences, pixel_features, output_attentions)
        last = stages[-1]
        logits = self.upsampler.upsample(last.logits[:, 0], image_features.upsampling_weights)
        presence_logits = self.presence_head(last.pixels, last.context, last.logits[:, 0], height, width)

        return JMCELNAnswers(
            logits=logits,
            presence_logits=presence_logits,
            stage_logits=tuple(stage.logits[:, 0] for stage in stages),
            landmark_logits=tuple(stage.logits[:, 1] for stage in stages),
            contextual_embeddings=tuple(stage.context for stage in stages),
            alignment_filters=tuple(stage.alignment_filter for stage in stages if stage.alignment_filter is not None),
            hidden_states=(pixels, *(stage.pixels for stage in stages)),
            attentions=tuple(stage.attentions for stage in stages if stage.attentions is not None),
        )

    def _loss(
        self,
        answers: JMCELNAnswers,
        image_features: JMCELNImageFeatures,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        landmark_masks: torch.Tensor | None,
        num_items_in_batch: int | torch.Tensor | None,
    ) -> torch.Tensor:
        """The loss, averaged over the expressions that are not padding."""

        def flatten(masks: torch.Tensor) -> torch.Tensor:
            if image_features.pixel_mask is not None:
                is_image = image_features.pixel_mask.view(-1, *[1] * (masks.ndim - 3), *masks.shape[-2:])
                masks = masks.masked_fill(~is_image, 255)
            return masks.reshape(answers.logits.shape)

        height, width = image_features.pixel_features[-1].shape[1:3]
        stride = self.config.feature_strides[-2]
        padded_size = (height * stride, width * stride)
        losses = expression_losses(
            answers.logits, answers.stage_logits, answers.presence_logits, flatten(labels), padded_size, self.config
        )
        if landmark_masks is not None:
            losses = losses + self.config.landmark_loss_weight * landmark_loss(
                answers.landmark_logits, flatten(landmark_masks), padded_size, self.config
            )
        is_counted = attention_mask.bool().any(dim=-1).flatten()
        num_items = is_counted.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return losses.masked_fill(~is_counted, 0).sum() / num_items


def _check_tensors(**inputs: Any) -> None:
    for name, value in inputs.items():
        if value is not None and not isinstance(value, torch.Tensor):
            raise TypeError(f"`{name}` must be a tensor, got a {type(value).__name__}: use `return_tensors='pt'`.")


def visible_tokens(attention_mask: torch.Tensor) -> torch.Tensor:
    """
    Returns `attention_mask` of shape `(..., length)` as booleans. A padded expression gets one visible token, since a
    softmax over no tokens would be NaN.
    """
    attention_mask = attention_mask.bool()
    is_padding = ~attention_mask.any(dim=-1, keepdim=True)
    is_first = torch.arange(attention_mask.shape[-1], device=attention_mask.device) == 0
    return attention_mask | (is_padding & is_first)


# An alias in the naming scheme of transformers: the model has only one head.
JMCELNForReferringSegmentation = JMCELNModel


__all__ = [
    "JMCELNForReferringSegmentation",
    "JMCELNImageFeatures",
    "JMCELNModel",
    "JMCELNOutput",
    "JMCELNPreTrainedModel",
    "JMCELNTextFeatures",
]
