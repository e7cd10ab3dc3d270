# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Outputs of the model: features of images, features of expressions, and the result for both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers.utils import ModelOutput


@dataclass
class JMCELNImageFeatures(ModelOutput):
    """
    Features of images that do not depend on the expressions: compute them once and use them for many expressions.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, num_pixels, hidden)`):
            Tokens of the working map (the second coarsest), then of the coarsest map. If the configuration has
            `num_categories`, one more channel per category follows: how much the pixel looks like that category.
        pooler_output (`torch.FloatTensor`, *optional*):
            Always `None`; transformers expects this field of every `get_image_features`.
        pixel_features (`tuple` of `torch.FloatTensor` of shape `(batch, height, width, mask_features)`):
            Pixel embeddings, fine to coarse, the last one at the size of the working map.
        upsampling_weights (`torch.FloatTensor` of shape `(batch, 9, height, width)`):
            At the size of the input: the weights of the 3 x 3 coarse logits around each pixel.
        pixel_mask (`torch.BoolTensor` of shape `(batch, height, width)`, *optional*):
            True in the image, False in its padding. `None` if no image is padded.
        hidden_states (`tuple` of `torch.FloatTensor`, *optional*): Of the backbone, with `output_hidden_states`.
        attentions (`tuple` of `torch.FloatTensor`, *optional*): Of the backbone, with `output_attentions`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    pixel_features: tuple[torch.FloatTensor, ...] = field(default=None)
    upsampling_weights: torch.FloatTensor = field(default=None)
    pixel_mask: torch.BoolTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class JMCELNTextFeatures(ModelOutput):
    """
    Features of expressions that do not depend on an image: encode a phrase once and use it for many images.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch[, expressions], length, hidden)`): One token per word.
        pooler_output (`torch.FloatTensor` of shape `(batch[, expressions], hidden)`):
            Mean of the word tokens. If the configuration has `num_categories`, two more channels per category follow:
            the probability of each category for the referent, then for the landmarks.
        attention_mask (`torch.Tensor` of shape `(batch[, expressions], length)`): 1 at words, 0 at padding.
        hidden_states (`tuple` of `torch.FloatTensor`, *optional*): Of the text encoder, with `output_hidden_states`.
        attentions (`tuple` of `torch.FloatTensor`, *optional*): Of the text encoder, with `output_attentions`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    attention_mask: torch.Tensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class JMCELNOutput(ModelOutput):
    """
    Output of [`JMCELNModel`]. The tensors have the dimension `expressions` if `input_ids` has it.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned with `labels`):
            Mean loss over the expressions that are not padding.
        logits (`torch.FloatTensor` of shape `(batch[, expressions], height, width)`):
            Mask logits at the size of the input.
        presence_logits (`torch.FloatTensor` of shape `(batch[, expressions])`):
            Logit of the probability that the referent is in the image.
        stage_logits (`tuple` of `torch.FloatTensor` of shape `(batch[, expressions], h, w)`):
            Mask logits of each stage, coarse to fine, before the learned upsampling. They cover the input padded to a
            multiple of the coarsest stride.
        landmark_logits (`tuple` of `torch.FloatTensor` of shape `(batch[, expressions], h, w)`):
            Mask logits of the landmarks (the other objects that the expression names), one tensor per stage, as
            `stage_logits`. They are meaningful only if the model was trained with `landmark_masks`.
        contextual_embeddings (`tuple` of `torch.FloatTensor` of shape `(batch[, expressions], tokens, hidden)`):
            The context tokens after each stage.
        alignment_filters (`tuple` of `torch.FloatTensor` of shape `(batch[, expressions], h, w)`, *optional*):
            One per stage after the first: 1 where the stage keeps its own prediction, 0 where it takes over the
            previous one. `None` without alignment or with a single stage.
        image_features ([`JMCELNImageFeatures`]): Pass them on for more expressions about the same images.
        hidden_states (`tuple` of `torch.FloatTensor` of shape `(batch[, expressions], pixels, hidden)`, *optional*):
            The working map after the neck and after each stage, with `output_hidden_states`.
        attentions (`tuple` of `torch.FloatTensor` of shape `(batch[, expressions], heads, tokens, keys)`, *optional*):
            The attention weights of the context tokens, one tensor per stage, with `output_attentions`. The keys are
            the words, the context tokens and, with `use_contextual_embedding`, the pixels of the working map.
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


class JMCELNAnswers(NamedTuple):
    """
    Results of the neck and the cascade: tensors of shape `(batch * expressions, ...)`, and tuples with one such tensor
    per stage. The fields mean the same as in [`JMCELNOutput`].
    """

    logits: torch.Tensor
    presence_logits: torch.Tensor
    stage_logits: tuple[torch.Tensor, ...]
    landmark_logits: tuple[torch.Tensor, ...]
    contextual_embeddings: tuple[torch.Tensor, ...]
    alignment_filters: tuple[torch.Tensor, ...]
    hidden_states: tuple[torch.Tensor, ...]
    attentions: tuple[torch.Tensor, ...]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "JMCELNAnswers":
        """Applies `change` to every tensor."""
        return JMCELNAnswers(
            *(tuple(change(each) for each in value) if isinstance(value, tuple) else change(value) for value in self)
        )

    @staticmethod
    def concatenate(parts: Sequence["JMCELNAnswers"], dim: int) -> "JMCELNAnswers":
        """Concatenates the images (`dim=0`) or the expressions (`dim=1`) of several answers."""
        if len(parts) == 1:
            return parts[0]
        return JMCELNAnswers(
            *(
                tuple(torch.cat(each, dim) for each in zip(*values, strict=True))
                if isinstance(values[0], tuple)
                else torch.cat(values, dim)
                for values in zip(*parts, strict=True)
            )
        )
