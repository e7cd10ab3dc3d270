# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Learnable contextual embedding (LCE): tokens that store what the current mask shows, and are read by the pixels."""

import torch
from torch import nn

from .attention import JMCELNAttention, JMCELNFeedForward, matched_reading
from .configuration_jmceln import JMCELNConfig


class JMCELNContextWriter(nn.Module):
    """
    Stores: the context tokens attend to the pixels, the words and each other, and take the answer in through a gate.

    Half of the heads see the pixels through the masks of the stage before (their log probabilities are added to the
    scores), the first of them through the referent's and the others through the landmarks', so they gather what the
    current prediction covers; the other half see all, so that a wrong mask does not hide the right object. Without
    `use_contextual_embedding` the same weights read only the words and the tokens.
    """

    def __init__(self, config: JMCELNConfig):
        super().__init__()
        num_masked_heads = config.num_attention_heads // 2
        self.num_landmark_heads = num_masked_heads // 2
        self.num_referent_heads = num_masked_heads - self.num_landmark_heads
        self.num_attention_heads = config.num_attention_heads
        self.context_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pixel_norm = None
        if config.use_contextual_embedding:
            self.pixel_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = JMCELNAttention(config)
        self.gate = nn.Linear(2 * config.hidden_size, config.hidden_size)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = JMCELNFeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        context: torch.Tensor,
        words: torch.Tensor,
        word_bias: torch.Tensor,
        pixels: torch.Tensor,
        positions: torch.Tensor,
        previous_probabilities: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            context (`torch.Tensor` of shape `(batch, num_tokens, hidden)`)
            words (`torch.Tensor` of shape `(batch, length, hidden)`)
            word_bias (`torch.Tensor` of shape `(batch, 1, 1, length)`)
            pixels (`torch.Tensor` of shape `(batch, num_pixels, hidden)`)
            positions (`torch.Tensor` of shape `(1, num_pixels, hidden)`)
            previous_probabilities (`torch.Tensor` of shape `(batch, 2, num_pixels)`, *optional*):
                Referent and landmarks as the stage before sees them, absent at the first stage.

        Returns:
            The new context, of the same shape, and the attention weights over [words, tokens, pixels], without the
            pixels where `use_contextual_embedding` is off, or `None`.
        """
        batch_size, num_tokens, _ = context.shape
        normed = self.context_norm(context)
        sources = [words, normed]
        bias = nn.functional.pad(word_bias, (0, num_tokens))
        if self.pixel_norm is not None:
            # The positions are values too: "left of the ring" takes the place of the ring, not only its looks.
            sources.append(self.pixel_norm(pixels) + positions)
            pixel_bias = bias.new_zeros(batch_size, self.num_attention_heads, 1, pixels.shape[1])
            if previous_probabilities is not None:
                log_probabilities = previous_probabilities.detach().float().clamp(min=1e-3).log().to(bias.dtype)
                num_masked_heads = self.num_referent_heads + self.num_landmark_heads
                pixel_bias[:, : self.num_referent_heads] = log_probabilities[:, :1, None]
                pixel_bias[:, self.num_referent_heads : num_masked_heads] = log_probabilities[:, 1:, None]
            bias = torch.cat([bias.expand(-1, self.num_attention_heads, -1, -1), pixel_bias], dim=-1)
        # (batch, num_tokens, length + num_tokens + num_pixels) scores a head
        sources = torch.cat(sources, dim=1)
        update, weights = self.attention(
            normed, sources, sources, bias.expand(-1, -1, num_tokens, -1), output_attentions
        )
        gate = self.gate(torch.cat([normed, update], dim=-1)).sigmoid()
        context = context + self.dropout(gate * update)
        return context + self.dropout(self.feed_forward(self.feed_forward_norm(context))), weights


class JMCELNComparisonWeights(nn.Linear):
    """Which features are compared. A class of its own, by which the model knows to start without any."""


class JMCELNContextComparison(nn.Module):
    """
    Stores how what the masks before cover looks, as mean features (the prototypes of few-shot segmentation: masked
    average pooling, Zhang et al., SG-One, 2020), and scores pixels by their likeness to it in the features that the
    context chooses: "the same colour as the ring" is a product of what a pixel shows, what the ring shows and what the
    words ask for.

    The features are those of the image alone. Fused pixels have become answers to the words: they no longer show what
    an expression does not name.
    """

    def __init__(self, config: JMCELNConfig):
        super().__init__()
        size = config.mask_feature_size
        self.scaling = size**-0.5
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.projection = nn.Linear(size, size)
        self.weights = JMCELNComparisonWeights(config.hidden_size, 2 * size)

    def forward(self, answers: torch.Tensor, pixel_features: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """
        Args:
            answers (`torch.Tensor` of shape `(batch * expressions, 2, hidden)`):
                The context tokens that stand for the referent and for the landmarks.
            pixel_features (`torch.Tensor` of shape `(batch, height, width, mask_features)`): Of the image alone.
            previous (`torch.Tensor` of shape `(batch * expressions, height, width, 2)`):
                Logits of referent and landmarks as the stage before sees them.

        Returns:
            What is added to the logits of both, `(batch * expressions, 2, height, width)`.
        """
        batch_size = pixel_features.shape[0]
        looks = self.projection(self.norm(pixel_features))
        cover = previous.detach().sigmoid().unflatten(0, (batch_size, -1))
        # One pixel more than there are: a mask that covers nothing has nothing to compare with. Divided half before
        # the sum and half after it, since the sum of a large map's pixels is beyond float16, and a pixel's share of
        # it too small.
        root_of_area = (cover.float().sum((2, 3)) + 1).sqrt().to(cover.dtype)
        cover = cover / root_of_area[:, :, None, None]
        # (batch, expressions, 2 masks, mask_features)
        prototypes = torch.einsum("behwm,bhwc->bemc", cover, looks) / root_of_area.unsqueeze(-1)
        weights = self.weights(answers).unflatten(-1, (2, -1)).unflatten(0, (batch_size, -1))
        kernels = (weights * prototypes.unsqueeze(2)).sum(3)
        return torch.einsum("bhwc,benc->benhw", looks, kernels).flatten(0, 1) * self.scaling


class JMCELNContextReader(nn.Module):
    """
    Uses: the pixels attend to the context tokens and, beside them, to the words, and multiply what they read with what
    they show, as in the fusion layers.
    """

    def __init__(self, config: JMCELNConfig):
        super().__init__()
        self.pixel_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.context_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = JMCELNAttention(config)
        self.pixel_gate = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        pixels: torch.Tensor,
        positions: torch.Tensor,
        context: torch.Tensor,
        words: torch.Tensor,
        word_bias: torch.Tensor,
    ) -> torch.Tensor:
        """Shapes as in [`JMCELNContextWriter`]; returns the pixels, `(batch, num_pixels, hidden)`."""
        sources = torch.cat([words, self.context_norm(context)], dim=1)
        bias = nn.functional.pad(word_bias, (0, context.shape[1]))
        queries = self.pixel_norm(pixels) + positions
        agreement = matched_reading(self.attention, self.pixel_gate, queries, sources, bias)
        return pixels + self.dropout(agreement)
