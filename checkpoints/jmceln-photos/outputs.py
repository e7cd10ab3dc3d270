# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the model returns: of images, of expressions, of both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers.utils import ModelOutput


@dataclass
class JMCELNImageFeatures(ModelOutput):
    """
    All that the model knows of an image before any word is read: compute it once, use it for many expressions.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, num_pixels, hidden)`):
            Tokens of the working map (the second coarsest), then of the coarsest. With `num_categories` in the
            configuration so many channels follow, with what each pixel shows of each category.
        pooler_output (`torch.FloatTensor`, *optional*):
            Always `None`; transformers expects the field of every `get_image_features`.
        pixel_features (`tuple` of `torch.FloatTensor` of shape `(batch, height, width, mask_features)`):
            Pixel embeddings, fine to coarse, the last at the working map.
        upsampling_weights (`torch.FloatTensor` of shape `(batch, 9, height, width)`):
            At the size of the input: how each pixel mixes the 3 x 3 coarse logits around it.
        pixel_mask (`torch.BoolTensor` of shape `(batch, height, width)`, *optional*):
            True at the images, False at what pads them to the size of the batch. `None` if nothing pads them.
        hidden_states (`tuple` of `torch.FloatTensor`, *optional*): The backbone's, if asked for.
        attentions (`tuple` of `torch.FloatTensor`, *optional*): The backbone's, if asked for.
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
    All that the model knows of expressions before it sees an image: encode a phrase once, use it for many images.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch[, expressions], length, hidden)`): Words.
        pooler_output (`torch.FloatTensor` of shape `(batch[, expressions], hidden)`):
            Means of the words. With `num_categories` in the configuration twice as many channels follow: the shares of
            each category in the referent and in the landmarks.
        attention_mask (`torch.Tensor` of shape `(batch[, expressions], length)`): 1 at words, 0 at padding.
        hidden_states (`tuple` of `torch.FloatTensor`, *optional*): The text encoder's, if asked for.
        attentions (`tuple` of `torch.FloatTensor`, *optional*): The text encoder's, if asked for.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    attention_mask: torch.Tensor | None = None
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


class JMCELNAnswers(NamedTuple):
    """
    What the part after the encoders finds: tensors of shape `(batch * expressions, ...)` and tuples of them, one a
    stage, with the meanings of [`JMCELNOutput`].
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
        """`change` applied to every tensor."""
        return JMCELNAnswers(
            *(tuple(change(each) for each in value) if isinstance(value, tuple) else change(value) for value in self)
        )

    @staticmethod
    def concatenate(parts: Sequence["JMCELNAnswers"], dim: int) -> "JMCELNAnswers":
        """Images (`dim=0`) or expressions (`dim=1`) of several answers, one after the other."""
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
