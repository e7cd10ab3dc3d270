"""Masking of images and of expressions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from processing.training.augmentation import MaskingAugmentation
from tests.tiny import tiny_tokenizer


@given(height=st.integers(8, 70), width=st.integers(8, 70), patch=st.integers(4, 40), ratio=st.floats(0.01, 1.0))
@settings(max_examples=50)
def test_masks_whole_patches_of_the_asked_share(height, width, patch, ratio):
    image = torch.ones(3, height, width)
    masked = MaskingAugmentation(image_mask_ratio=ratio, image_patch_size=patch).mask_image(
        image, np.random.default_rng(0)
    )
    assert masked.shape == image.shape
    assert (image == 1).all()
    patches = [
        masked[:, top : top + patch, left : left + patch]
        for top in range(0, height, patch)
        for left in range(0, width, patch)
    ]
    assert all(tuple(part.unique().tolist()) in ((0.0,), (1.0,)) for part in patches)
    assert sum(not part.any() for part in patches) == round(ratio * len(patches))


def test_masks_tokens_as_in_bert_and_spares_special_ones():
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([[tokenizer.cls_token_id, *[7] * 400, tokenizer.sep_token_id, tokenizer.pad_token_id]] * 10)
    augmentation = MaskingAugmentation(text_mask_ratio=0.15)
    masked = augmentation.mask_tokens(ids, tokenizer, np.random.default_rng(0))
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    assert torch.equal(masked[special], ids[special])
    words = masked[~special]
    assert (words == tokenizer.mask_token_id).float().mean().item() == pytest.approx(0.15 * 0.8, abs=0.02)
    replaced = (words != 7) & (words != tokenizer.mask_token_id)
    assert replaced.float().mean().item() == pytest.approx(0.15 * 0.1, abs=0.008)
    assert not torch.isin(words[replaced], torch.tensor(tokenizer.all_special_ids)).any()


def test_what_is_masked_does_not_depend_on_the_padding():
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([[tokenizer.cls_token_id, *range(7, 17), tokenizer.sep_token_id]] * 2)
    padded = torch.full((4, 20), tokenizer.pad_token_id)
    padded[:2, :12] = ids
    augmentation = MaskingAugmentation(text_mask_ratio=0.5)
    masked, of_padded = (augmentation.mask_tokens(each, tokenizer, np.random.default_rng(0)) for each in (ids, padded))
    assert not torch.equal(masked, ids)
    assert torch.equal(of_padded[:2, :12], masked)
    assert (of_padded[2:] == tokenizer.pad_token_id).all()


def test_masking_needs_a_token_to_mask_with():
    tokenizer = tiny_tokenizer()
    tokenizer.mask_token = None
    ids = torch.full((1, 200), 7)
    augmentation = MaskingAugmentation(text_mask_ratio=1.0)
    assert (augmentation.mask_tokens(ids, tokenizer, np.random.default_rng(0)) == tokenizer.unk_token_id).any()
    tokenizer.unk_token = None
    with pytest.raises(ValueError, match="neither a mask token nor"):
        augmentation.mask_tokens(ids, tokenizer, np.random.default_rng(0))


@given(count=st.integers(1, 12), share=st.floats(0.0, 1.0), seed=st.integers(0, 1000))
@settings(max_examples=60)
def test_dropping_words_keeps_their_order_and_one_at_least(count, share, seed):
    words = [f"w{number}" for number in range(count)]
    kept = MaskingAugmentation(word_dropout=share).drop_words(" ".join(words), np.random.default_rng(seed)).split()
    assert kept
    assert kept == [word for word in words if word in kept]
    if share == 0:
        assert kept == words


def test_the_share_of_dropped_words():
    generator = np.random.default_rng(0)
    augmentation = MaskingAugmentation(word_dropout=0.3)
    kept = sum(len(augmentation.drop_words("a b c d e f g h", generator).split()) for _ in range(500))
    assert kept / 4000 == pytest.approx(0.7, abs=0.03)


def test_off_is_off():
    assert not MaskingAugmentation().is_active
    assert not MaskingAugmentation(image_mask_ratio=0.5, probability=0).is_active
    assert MaskingAugmentation(word_dropout=0.1).is_active


@pytest.mark.parametrize(
    "arguments", [{"image_mask_ratio": 1.5}, {"text_mask_ratio": -0.1}, {"probability": 2.0}, {"image_patch_size": 0}]
)
def test_refuses_shares_that_are_none(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        MaskingAugmentation(**arguments)
