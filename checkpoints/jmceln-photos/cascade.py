# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The cascade: stages that update the context, use it, predict a mask and align it with the previous one."""

from typing import NamedTuple

import torch
from torch import nn

from .alignment import JMCELNProgressiveAlignment
from .configuration_jmceln import JMCELNConfig
from .contextual_embedding import JMCELNContextComparison, JMCELNContextReader, JMCELNContextWriter
from .fusion import JMCELNImageLayer
from .pixel_decoder import resize_maps


class JMCELNMaskBias(nn.Linear):
    """The bias of the mask logits. It is a separate class so that the model can initialize it with a low value."""


class JMCELNMaskPredictor(nn.Module):
    """
    Adds the fused pixels and their positions to image-only pixel features, and scores the result with kernels: one
    made from the first context token for the referent, one made from the second for the landmarks. With positions in
    the features, a kernel can express "left of here", as with the coordinates in CondInst (Tian et al., 2020).
    """

    def __init__(self, config: JMCELNConfig, is_first: bool):
        super().__init__()
        mask_size = config.mask_feature_size
        self.scaling = mask_size**-0.5
        self.pixel_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pixel_projection = nn.Linear(config.hidden_size, mask_size)
        self.embedding_norm = nn.LayerNorm(mask_size, eps=config.layer_norm_eps)
        self.kernel_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.kernel = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, mask_size),
        )
        self.bias = JMCELNMaskBias(config.hidden_size, 1)
        self.comparison = None
        if config.use_contextual_embedding and not is_first:
            self.comparison = JMCELNContextComparison(config)

    def forward(
        self,
        pixels: torch.Tensor,
        positions: torch.Tensor,
        context: torch.Tensor,
        pixel_features: torch.Tensor,
        height: int,
        width: int,
        previous: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            pixels (`torch.Tensor` of shape `(batch * expressions, height * width, hidden)`): The working map.
            positions (`torch.Tensor` of shape `(1, height * width, hidden)`)
            context (`torch.Tensor` of shape `(batch * expressions, num_tokens, hidden)`)
            pixel_features (`torch.Tensor` of shape `(batch, out_height, out_width, mask_features)`)
            height, width (`int`): Of the working map.
            previous (`torch.Tensor` of shape `(batch * expressions, out_height, out_width, 2)`, *optional*):
                Logits of the referent and of the landmarks from the previous stage.

        Returns:
            Pixel embeddings `(batch * expressions, out_height, out_width, mask_features)` and logits of the referent
            and of the landmarks `(batch * expressions, 2, out_height, out_width)`.
        """
        batch_size, out_height, out_width, _ = pixel_features.shape
        fused = self.pixel_projection(self.pixel_norm(pixels) + positions).unflatten(1, (height, width))
        fused = resize_maps(fused, out_height, out_width).unflatten(0, (batch_size, -1))
        # In place, since the first pass over new memory takes longer than the sum. Autocast may have computed the
        # fused pixels in a narrower type.
        embeddings = fused.to(pixel_features.dtype).add_(pixel_features.unsqueeze(1)).flatten(0, 1)
        # The other tokens have no fixed role.
        answers = self.kernel_norm(context[:, :2])
        logits = torch.einsum("bhwc,bnc->bnhw", self.embedding_norm(embeddings), self.kernel(answers)) * self.scaling
        if self.comparison is not None:
            logits = logits + self.comparison(answers, pixel_features, previous)
        return embeddings, logits + self.bias(answers).unsqueeze(-1)


class JMCELNStageOutput(NamedTuple):
    """
    Output of a stage.

    Args:
        pixels (`torch.Tensor` of shape `(batch * expressions, height * width, hidden)`): The working map.
        context (`torch.Tensor` of shape `(batch * expressions, num_tokens, hidden)`)
        logits (`torch.Tensor` of shape `(batch * expressions, 2, out_height, out_width)`): Referent and landmarks.
        alignment_filter (`torch.Tensor` of shape `(batch * expressions, out_height, out_width)`, *optional*)
        attentions (`torch.Tensor`, *optional*): Attention weights of the [`JMCELNContextWriter`].
    """

    pixels: torch.Tensor
    context: torch.Tensor
    logits: torch.Tensor
    alignment_filter: torch.Tensor | None
    attentions: torch.Tensor | None


class JMCELNStage(JMCELNImageLayer):
    """One stage: updates the context, applies it to the pixels, lets them attend to each other, predicts, aligns."""

    def __init__(self, config: JMCELNConfig, is_first: bool):
        super().__init__(config)
        self.writer = JMCELNContextWriter(config)
        self.reader = JMCELNContextReader(config)
        self.predictor = JMCELNMaskPredictor(config, is_first)
        self.mask_embedding = None if is_first else nn.Linear(2, config.hidden_size, bias=False)
        self.alignment = None if is_first or not config.use_alignment else JMCELNProgressiveAlignment(config)

    def forward(
        self,
        pixels: torch.Tensor,
        positions: torch.Tensor,
        context: torch.Tensor,
        words: torch.Tensor,
        word_bias: torch.Tensor,
        pixel_features: torch.Tensor,
        height: int,
        width: int,
        previous_logits: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> JMCELNStageOutput:
        """
        Args:
            pixels (`torch.Tensor` of shape `(batch * expressions, height * width, hidden)`)
            positions (`torch.Tensor` of shape `(1, height * width, hidden)`)
            context (`torch.Tensor` of shape `(batch * expressions, num_tokens, hidden)`)
            words (`torch.Tensor` of shape `(batch * expressions, length, hidden)`)
            word_bias (`torch.Tensor` of shape `(batch * expressions, 1, 1, length)`)
            pixel_features (`torch.Tensor` of shape `(batch, out_height, out_width, mask_features)`)
            height, width (`int`): Of the working map.
            previous_logits (`torch.Tensor` of shape `(batch * expressions, 2, h, w)`, *optional*):
                Logits of the referent and of the landmarks from the previous stage.
            output_attentions (`bool`)

        Returns:
            [`JMCELNStageOutput`]
        """
        previous, previous_probabilities = None, None
        if previous_logits is not None:
            # (batch * expressions, out_height, out_width, 2)
            previous = resize_maps(previous_logits.permute(0, 2, 3, 1), *pixel_features.shape[1:3])
            previous_probabilities = nn.functional.adaptive_avg_pool2d(previous_logits.sigmoid(), (height, width))
            previous_probabilities = previous_probabilities.flatten(2)
            pixels = pixels + self.mask_embedding(previous_probabilities.transpose(1, 2))

        context, weights = self.writer(
            context, words, word_bias, pixels, positions, previous_probabilities, output_attentions
        )
        pixels = self.reader(pixels, positions, context, words, word_bias)
        pixels = super().forward(pixels, positions, [(height, width)])

        embeddings, logits = self.predictor(pixels, positions, context, pixel_features, height, width, previous)
        alignment_filter = None
        if self.alignment is not None and previous is not None:
            referent, landmarks = logits.unbind(1)
            referent, alignment_filter = self.alignment(embeddings, referent, previous[..., 0])
            logits = torch.stack([referent, landmarks], dim=1)
        return JMCELNStageOutput(pixels, context, logits, alignment_filter, weights)


class JMCELNCascade(nn.Module):
    """All stages, coarse to fine."""

    def __init__(self, config: JMCELNConfig):
        super().__init__()
        self.num_stages = config.num_stages
        self.use_contextual_embedding = config.use_contextual_embedding
        self.context_tokens = nn.Embedding(config.num_context_tokens, config.hidden_size)
        self.sentence_projection = nn.Linear(config.hidden_size, config.hidden_size)
        self.stages = nn.ModuleList([JMCELNStage(config, is_first=index == 0) for index in range(config.num_stages)])

    def forward(
        self,
        pixels: torch.Tensor,
        positions: torch.Tensor,
        words: torch.Tensor,
        word_bias: torch.Tensor,
        sentence: torch.Tensor,
        pixel_features: tuple[torch.Tensor, ...],
        output_attentions: bool = False,
    ) -> list[JMCELNStageOutput]:
        """
        Args:
            pixels (`torch.Tensor` of shape `(batch * expressions, height * width, hidden)`)
            positions (`torch.Tensor` of shape `(1, height * width, hidden)`)
            words (`torch.Tensor` of shape `(batch * expressions, length, hidden)`)
            word_bias (`torch.Tensor` of shape `(batch * expressions, 1, 1, length)`)
            sentence (`torch.Tensor` of shape `(batch * expressions, hidden)`)
            pixel_features (`tuple` of `torch.Tensor`): Fine to coarse, the last one at the size of the working map.
            output_attentions (`bool`)

        Returns:
            One [`JMCELNStageOutput`] per stage.
        """
        height, width = pixel_features[-1].shape[1:3]
        first_context = self.context_tokens.weight + self.sentence_projection(sentence).unsqueeze(1)
        stages: list[JMCELNStageOutput] = []
        context, logits = first_context, None
        for index, stage in enumerate(self.stages):
            level = min(len(pixel_features) - 1, self.num_stages - 1 - index)
            outputs = stage(
                pixels,
                positions,
                context if self.use_contextual_embedding else first_context,
                words,
                word_bias,
                pixel_features[level],
                height,
                width,
                logits,
                output_attentions,
            )
            # Gradient checkpointing returns a plain tuple.
            stages.append(JMCELNStageOutput(*outputs))
            pixels, context, logits = stages[-1].pixels, stages[-1].context, stages[-1].logits
        return stages
