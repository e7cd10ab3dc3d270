# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Matches the categories of the encoder's detector between the expression and the image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .configuration_jmceln import JMCELNConfig


# The names of the categories are encoded inside these expressions, since the encoding of a word depends on its
# context.
NAME_TEMPLATES = ("the {}", "{}", "the {} on the left", "the second {} from the right", "{} next to the {}")


class JMCELNCategoryReader(nn.Module):
    """
    Finds the categories of a detector in the words of an expression. A word stands for the category whose name is
    nearest in the space of the text encoder, so that "sofa" matches "couch" even before training. The words are
    weighted once for the referent and once for the landmarks.
    """

    def __init__(self, config: JMCELNConfig):
        super().__init__()
        size = config.text_config.hidden_size
        self.center = nn.Parameter(torch.zeros(size))
        self.names = nn.Linear(size, config.num_categories, bias=False)
        self.roles = nn.Linear(size, 2)
        self.sharpness = nn.Parameter(torch.tensor(10.0))

    def forward(self, words: torch.Tensor, is_visible: torch.Tensor) -> torch.Tensor:
        """
        Args:
            words (`torch.Tensor` of shape `(batch, length, text_hidden)`): Output of the text encoder.
            is_visible (`torch.BoolTensor` of shape `(batch, length)`): True at words, False at padding.

        Returns:
            `torch.Tensor` of shape `(batch, 2, num_categories)`: Probabilities of the categories, for the referent and
            for the landmarks.
        """
        directions = nn.functional.normalize(words - self.center, dim=-1)
        likeness = self.names(directions)
        categories = (self.sharpness * likeness).softmax(dim=-1)
        # A word that is similar to no name, such as "left", gets a low weight.
        weights = self.sharpness * likeness.amax(dim=-1, keepdim=True) + self.roles(directions)
        weights = weights.masked_fill(~is_visible.unsqueeze(-1), torch.finfo(weights.dtype).min).softmax(dim=1)
        return torch.einsum("blr,blc->brc", weights, categories)

    @torch.no_grad()
    def learn_names(self, names: Sequence[str], text_model: nn.Module, tokenizer: Any) -> None:
        """
        Initializes the weights of the categories with the encoded names.

        Args:
            names (`Sequence[str]`): Names of the categories.
            text_model (`nn.Module`): The text encoder, in evaluation mode.
            tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the text encoder.
        """
        embeddings = []
        for name in names:
            tokens_of_name = set(tokenizer(name, add_special_tokens=False)["input_ids"])
            words = []
            for template in NAME_TEMPLATES:
                inputs = tokenizer(template.replace("{}", name), return_tensors="pt")
                encoded = text_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
                is_name = torch.tensor([token in tokens_of_name for token in inputs["input_ids"][0].tolist()])
                words.append(encoded.last_hidden_state[0, is_name].mean(0))
            embeddings.append(torch.stack(words).mean(0))
        embeddings = torch.stack(embeddings)
        self.center.copy_(embeddings.mean(0))
        self.names.weight.copy_(nn.functional.normalize(embeddings - self.center, dim=-1))


class JMCELNCategoryMatcher(nn.Module):
    """Adds to each pixel how much it looks like the categories that the expression names."""

    def __init__(self, config: JMCELNConfig):
        super().__init__()
        self.reader = JMCELNCategoryReader(config)
        self.projection = nn.Linear(2, config.hidden_size)

    def forward(self, categories: torch.Tensor, evidence: torch.Tensor) -> torch.Tensor:
        """
        Args:
            categories (`torch.Tensor` of shape `(batch * expressions, 2 * num_categories)`):
                From [`JMCELNCategoryReader`].
            evidence (`torch.Tensor` of shape `(batch, num_pixels, num_categories)`): From [`category_evidence`].

        Returns:
            `torch.Tensor` of shape `(batch * expressions, num_pixels, hidden)`, to be added to the pixels.
        """
        categories = categories.unflatten(1, (2, -1)).unflatten(0, (evidence.shape[0], -1))
        matches = torch.einsum("berc,bpc->bepr", categories, evidence)
        return self.projection(matches).flatten(0, 1)


def category_evidence(coarse_maps: Sequence[torch.Tensor], num_categories: int) -> torch.Tensor:
    """
    Collects the category channels of the two coarsest maps, for each pixel of both. The finer map also gets the
    upsampled values of the coarser one.

    Args:
        coarse_maps (`Sequence[torch.Tensor]` of shape `(batch, channels, height, width)`): Fine to coarse.
        num_categories (`int`): Number of category channels, which are the last ones of each map.

    Returns:
        `torch.Tensor` of shape `(batch, num_pixels, num_categories)`.
    """
    fine, coarse = (feature_map[:, -num_categories:] for feature_map in coarse_maps)
    fine = fine + nn.functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([fine.flatten(2), coarse.flatten(2)], dim=2).transpose(1, 2)
