"""Masking of images and expressions, the augmentation that helps in referring image segmentation.

Flips turn "left" into "right", crops cut off what "the second from the left" is counted from, and colour changes make
"the red one" wrong; MaskRIS (Lee et al. 2024, arXiv:2411.19067) found all of these to hurt and masking to help. Its
published run masks 75 % of the patches of 32 pixels and 15 % of the words, of which 80 % become the mask token, 10 %
a random word and 10 % stay. It shows each pair twice, whole and masked, and distils from the one to the other. Here an
image is masked with a `probability`, so that the whole and the masked view alternate over the visits of an image at no
further cost; the distillation is left out.
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
            Share of the patches of a masked image that are blanked. MaskRIS: 0.75.
        image_patch_size (`int`, *optional*, defaults to 32):
            Side of a patch in pixels of the processed image.
        text_mask_ratio (`float`, *optional*, defaults to 0.0):
            Chance of each token of a masked image's expressions to be masked as in BERT. MaskRIS: 0.15.
        word_dropout (`float`, *optional*, defaults to 0.0):
            Chance of each word to be left out of an expression altogether; at least one word stays.
        probability (`float`, *optional*, defaults to 0.5):
            Chance that a drawn image and its expressions are masked at all.

    Raises:
        ValueError: for a share outside [0, 1] or a patch without size.
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
        """Whether anything is ever masked."""
        return self.probability > 0 and max(self.image_mask_ratio, self.text_mask_ratio, self.word_dropout) > 0

    def drop_words(self, expression: str, generator: np.random.Generator) -> str:
        """The expression without the words that were drawn for leaving out; one word stays at least."""
        words = expression.split()
        if self.word_dropout == 0 or len(words) < 2:
            return expression
        kept = generator.random(len(words)) >= self.word_dropout
        if not kept.any():
            kept[generator.integers(len(words))] = True
        return " ".join(word for word, keep in zip(words, kept, strict=True) if keep)

    def mask_image(self, pixel_values: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """
        Blank the drawn patches.

        Args:
            pixel_values (`torch.Tensor` of shape `(channels, height, width)`):
                A normalised image; 0 is the mean colour. Patches at the right and bottom edge may be cut off.

        Returns:
            `torch.Tensor` of the same shape; the argument is left as it is.
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
        Mask the drawn tokens: 80 % become the mask token, 10 % a random token, 10 % stay. Special tokens are spared.

        Args:
            input_ids (`torch.Tensor` of shape `(..., length)`):
                Tokens.
            tokenizer (`PreTrainedTokenizerBase`):
                Names the mask token (or, where there is none, the unknown token) and the special tokens.

        Returns:
            `torch.Tensor` of the same shape; the argument is left as it is.

        Raises:
            ValueError: if the tokenizer has neither a mask token nor an unknown token.
        """
        if self.text_mask_ratio == 0:
            return input_ids
        mask_token_id = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.unk_token_id
        if mask_token_id is None:
            raise ValueError(
                "The tokenizer has neither a mask token nor an unknown token to mask words with. Give it one"
                " (`tokenizer.add_special_tokens({'mask_token': '[MASK]'})`) or set `text_mask_ratio` to 0."
            )
        special = torch.tensor(sorted(tokenizer.all_special_ids))
        ordinary = np.setdiff1d(np.arange(len(tokenizer)), special.numpy())
        # Drawn for the words alone: how far the other images of the batch pad an expression must not matter.
        is_word = ~torch.isin(input_ids, special)
        words = input_ids[is_word]
        chosen = torch.from_numpy(generator.random(len(words)) < self.text_mask_ratio)
        fate = torch.from_numpy(generator.random(len(words)))
        random_ids = torch.from_numpy(generator.choice(ordinary, size=len(words))).to(input_ids.dtype)
        masked = torch.where(chosen & (fate < 0.8), torch.full_like(words, mask_token_id), words)
        result = input_ids.clone()
        result[is_word] = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), random_ids, masked)
        return result
