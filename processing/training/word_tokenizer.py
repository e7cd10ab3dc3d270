"""A tokenizer of whole words for small closed vocabularies, such as that of the synthetic benchmark.

It needs no download and no training: every word in the vocabulary is one token, everything else is `[UNK]`. It is a
BERT tokenizer without continuations ("##s") in its vocabulary, so that WordPiece matches only whole words. Its class
has the same name in every version of transformers, so that `AutoTokenizer` of one version loads what another version
saved. The saved class name of a plain `PreTrainedTokenizerFast` changed in transformers 5.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertTokenizerFast, PreTrainedTokenizerFast


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def build_word_tokenizer(texts: Iterable[str], max_length: int = 64) -> PreTrainedTokenizerFast:
    """Builds a tokenizer that knows every word of `texts`.

    Text is lower-cased, stripped of accents and split at white space and punctuation. Inputs have the form
    `[CLS] words [SEP]`. The vocabulary is sorted, so that the ids do not depend on the order of `texts`.

    Args:
        texts: Words or whole expressions.
        max_length: Maximum number of tokens, including `[CLS]` and `[SEP]`: the `model_max_length` of the tokenizer.

    Returns:
        A tokenizer with `[PAD]` at id 0 that returns `input_ids` and `attention_mask`.

    Raises:
        TypeError: If `texts` is a single string.
        ValueError: If there is no word, or if `max_length` is too small for one.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be an iterable of words or expressions, got a single string; put it in a list")
    if max_length < 3:
        raise ValueError(f"max_length must be at least 3 ([CLS], a word, [SEP]), got {max_length}")
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    if not words:
        raise ValueError("texts contain no word, so the vocabulary would be empty")
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = "\n".join((*SPECIAL_TOKENS, *sorted(words)))
        Path(folder, "vocab.txt").write_text(vocabulary + "\n", encoding="utf-8")
        tokenizer = BertTokenizerFast.from_pretrained(
            folder, do_lower_case=True, model_max_length=max_length, model_input_names=["input_ids", "attention_mask"]
        )
    tokenizer.init_kwargs.pop("name_or_path", None)
    tokenizer.name_or_path = ""
    return tokenizer
