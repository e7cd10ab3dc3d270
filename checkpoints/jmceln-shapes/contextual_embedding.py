# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Learnable contextual embedding (LCE): tokens that store what the current mask covers. The pixels attend to them."""

import torch
from torch import nn

from .attention import JMCELNAttention, JMCELNFeedForward, matched_reading
from .configuration_jmceln import JMCELNConfig


class JMCELNContextWriter(nn.Module):
    """
    Updates the context: the context tokens attend to the pixels, the words and each other, and add the result through
    a gate.

    Half of the heads attend to the pixels through the masks of the previous stage, whose log probabilities are added
    to the attention scores: the first of these heads use the mask of the referent, the others that of the landmarks.
    They collect what the current prediction covers. The other half attend to all pixels, so that a wrong mask does not
    hide the right object. Without `use_contextual_embedding`, the same weights attend only to the words and tokens.
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
                Masks of the referent and of the landmarks from the previous stage; `None` at the first stage.

        Returns:
            The new context, of the same shape, and, with `output_attentions`, the attention weights over [words,
            tokens, pixels], or over [words, tokens] without `use_contextual_embedding`.
        """
        batch_size, num_tokens, _ = context.shape
        normed = self.context_norm(context)
        sources = [words, normed]
        bias = nn.functional.pad(word_bias, (0, num_tokens))
        if self.pixel_norm is not None:
            # The values include the positions: "left of the ring" needs the position of the ring, not only its looks.
            sources.append(self.pixel_norm(pixels) + positions)
            pixel_bias = bias.new_zeros(batch_size, self.num_attention_heads, 1, pixels.shape[1])
            if previous_probabilities is not None:
                log_probabilities = previous_probabilities.detach().float().clamp(min=1e-3).log().to(bias.dtype)
                num_masked_heads = self.num_referent_heads + self.num_landmark_heads
                pixel_bias[:, : self.num_referent_heads] = log_probabilities[:, :1, None]
                pixel_bias[:, self.num_referent_heads : num_masked_heads] = log_probabilities[:, 1:, None]
            bias = torch.cat([bias.expand(-1, self.num_attention_heads, -1, -1), pixel_bias], dim=-1)
        # The attention scores have the shape (batch, heads, num_tokens, length + num_tokens + num_pixels).
        sources = torch.cat(sources, dim=1)
        update, weights = self.attention(
            normed, sources, sources, bias.expand(-1, -1, num_tokens, -1), output_attentions
        )
        gate = self.gate(torch.cat([normed, update], dim=-1)).sigmoid()
        context = context + self.dropout(gate * update)
        return context + self.dropout(self.feed_forward(self.feed_forward_norm(context))), weights


class JMCELNComparisonWeights(nn.Linear):
    """Weights of the features to compare. It is a separate class so that the model can initialize it with zeros."""


class JMCELNContextComparison(nn.Module):
    """
    Compares each pixel with what the masks of the previous stage cover. The mean features of a mask are its prototype
    (masked average pooling as in few-shot segmentation: Zhang et al., SG-One, 2020). The context chooses the features
    in which pixels are compared with the prototypes: "the same color as the ring" is a product of the features of the
    pixel, the features of the ring and a weight that depends on the words.

    The features come from the image alone, since fused pixels lose what the expression does not name.
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
                The context tokens of the referent and of the landmarks.
            pixel_features (`torch.Tensor` of shape `(batch, height, width, mask_features)`): Of the image alone.
            previous (`torch.Tensor` of shape `(batch * expressions, height, width, 2)`):
                Logits of the referent and of the landmarks from the previous stage.

        Returns:
            Logits to add to those of the referent and of the landmarks, `(batch * expressions, 2, height, width)`.
        """
        batch_size = pixel_features.shape[0]
        looks = self.projection(self.norm(pixel_features))
        cover = previous.detach().sigmoid().unflatten(0, (batch_size, -1))
        # The added pixel makes the prototype of an empty mask zero. One root of the area is divided out before the
        # sum and one after it: in float16, the sum over a large map would overflow, and a single pixel's share of the
        # area would underflow.
        root_of_area = (cover.float().sum((2, 3)) + 1).sqrt().to(cover.dtype)
        cover = cover / root_of_area[:, :, None, None]
        # (batch, expressions, 2 masks, mask_features)
        prototypes = torch.einsum("behwm,bhwc->bemc", cover, looks) / root_of_area.unsqueeze(-1)
        weights = self.weights(answers).unflatten(-1, (2, -1)).unflatten(0, (batch_size, -1))
        kernels = (weights * prototypes.unsqueeze(2)).sum(3)
        return torch.einsum("bhwc,benc->benhw", looks, kernels).flatten(0, 1) * self.scaling


class JMCELNContextReader(nn.Module):
    """
    Uses the context: the pixels attend to the context tokens and to the words. What a pixel reads is multiplied by a
    gate computed from the pixel itself, as in the fusion layers.
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
