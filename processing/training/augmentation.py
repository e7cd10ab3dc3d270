"""Masking of images and expressions as augmentation for referring image segmentation.

Other augmentations change the meaning of expressions: flips turn "left" into "right", crops remove objects that "the
second from the left" counts, and color changes make "the red one" wrong. MaskRIS (Lee et al. 2024, arXiv:2411.19067)
found that they hurt, and that masking helps. It masks 75 % of the patches of 32 pixels and 15 % of the words, of which
80 % become the mask token, 10 % a random word and 10 % stay. MaskRIS shows each pair twice, unmasked and masked, and
distills from one to the other. Here, an image is masked with a `probability`, so that it appears in both forms over
the epochs without additional cost, and there is no distillation.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class MaskingAugmentation:
    """
    Masks patches of images, and words of expressions.

    Args:
        image_mask_ratio (`float`, *optional*, defaults to 0.0):
            Share of the patches to blank in a masked image. MaskRIS: 0.75.
        image_patch_size (`int`, *optional*, defaults to 32):
            Height and width of a patch in pixels of the processed image.
        text_mask_ratio (`float`, *optional*, defaults to 0.0):
            Probability of masking each token in the expressions of a masked image, as in BERT. MaskRIS: 0.15.
        word_dropout (`float`, *optional*, defaults to 0.0):
            Probability of dropping each word of these expressions. At least one word is kept.
        probability (`float`, *optional*, defaults to 0.5):
            Probability that an image and its expressions are masked.

    Raises:
        ValueError: If a probability or share is outside [0, 1], or if the patch size is below 1.
    """

    image_mask_ratio: float = 0.0
    image_patch_size: int = 32
    text_mask_ratio: float = 0.0
    word_dropout: float = 0.0
    probability: float = 0.5

    def __post_init__(self) -> None:
        for name in ("image_mask_ratio", "text_mask_ratio", "word_dropout", "probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}.")
        if self.image_patch_size < 1:
            raise ValueError(f"`image_patch_size` must be at least 1, got {self.image_patch_size}.")

    @property
    def is_active(self) -> bool:
        """Whether these settings mask anything."""
        return self.probability > 0 and max(self.image_mask_ratio, self.text_mask_ratio, self.word_dropout) > 0

    def drop_words(self, expression: str, generator: np.random.Generator) -> str:
        """Drops random words of an expression, but keeps at least one."""
        words = expression.split()
        if self.word_dropout == 0 or len(words) < 2:
            return expression
        kept = generator.random(len(words)) >= self.word_dropout
        if not kept.any():
            kept[generator.integers(len(words))] = True
        return " ".join(word for word, keep in zip(words, kept, strict=True) if keep)

    def mask_image(self, pixel_values: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """
        Blanks random patches.

        Args:
            pixel_values (`torch.Tensor` of shape `(channels, height, width)`):
                A normalized image, in which 0 is the mean color. Patches at the right and bottom edge can be smaller.

        Returns:
            `torch.Tensor` of the same shape. The argument is not changed.
        """
        if self.image_mask_ratio == 0:
            return pixel_values
        height, width = pixel_values.shape[-2:]
        rows, columns = -(-height // self.image_patch_size), -(-width // self.image_patch_size)
        num_patches = rows * columns
        masked = np.zeros(num_patches, dtype=bool)
        masked[generator.permutation(num_patches)[: round(self.image_mask_ratio * num_patches)]] = True
        pixels = torch.from_numpy(masked.reshape(rows, columns))
        pixels = pixels.repeat_interleave(self.image_patch_size, 0).repeat_interleave(self.image_patch_size, 1)
        return pixel_values.masked_fill(pixels[:height, :width], 0.0)

    def mask_tokens(self, input_ids: torch.Tensor, tokenizer: Any, generator: np.random.Generator) -> torch.Tensor:
        """
        Masks random tokens: 80 % become the mask token, 10 % a random token, 10 % stay. Special tokens are never
        masked.

        Args:
            input_ids (`torch.Tensor` of shape `(..., length)`):
                Tokens.
            tokenizer (`PreTrainedTokenizerBase`):
                The tokenizer, which has a mask token or, instead, an unknown token.

        Returns:
            `torch.Tensor` of the same shape. The argument is not changed.

        Raises:
            ValueError: If the tokenizer has neither a mask token nor an unknown token.
        """
        if self.text_mask_ratio == 0:
            return input_ids
        mask_token_id = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.unk_token_id
        if mask_token_id is None:
            raise ValueError(
                "The tokenizer has neither a mask token nor an unknown token to mask words with. Add one"
                " (`tokenizer.add_special_tokens({'mask_token': '[MASK]'})`) or set `text_mask_ratio` to 0."
            )
        special = torch.tensor(sorted(tokenizer.all_special_ids))
        ordinary = np.setdiff1d(np.arange(len(tokenizer)), special.numpy())
        # Random numbers are drawn only for the words, so that the padding to the longest expression does not matter.
        is_word = ~torch.isin(input_ids, special)
        words = input_ids[is_word]
        chosen = torch.from_numpy(generator.random(len(words)) < self.text_mask_ratio)
        fate = torch.from_numpy(generator.random(len(words)))
        random_ids = torch.from_numpy(generator.choice(ordinary, size=len(words))).to(input_ids.dtype)
        masked = torch.where(chosen & (fate < 0.8), torch.full_like(words, mask_token_id), words)
        result = input_ids.clone()
        result[is_word] = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), random_ids, masked)
        return result
