"""A tokenizer of whole words for small closed vocabularies, such as that of the synthetic benchmark.

It needs no download and no training: every listed word is one token, everything else is `[UNK]`. It is a BERT
tokenizer whose vocabulary holds whole words and no continuations ("##s"), so WordPiece finds a word whole or not at
all. Unlike a bare `PreTrainedTokenizerFast`, whose saved class name transformers 5 changed, that class has one name
in every version: what one version saves, `AutoTokenizer` of the other loads.
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

    Text is lower-cased, stripped of accents and split at white space and punctuation, then framed as
    `[CLS] words [SEP]`. The vocabulary is sorted, so the same words give the same ids in any order.

    Args:
        texts: words or whole expressions.
        max_length: most tokens of an input, the two framing tokens included; `model_max_length` of the tokenizer.

    Returns:
        A tokenizer with `[PAD]` at id 0 that returns `input_ids` and `attention_mask`.

    Raises:
        TypeError: if `texts` is a single string.
        ValueError: if there is no word, or if `max_length` leaves no room for one.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be an iterable of words or expressions, got a single string; put it in a list")
    if max_length < 3:
        raise ValueError(f"max_length must be at least 3 ([CLS], a word, [SEP]), got {max_length}")
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    if not words:
        raise ValueError("texts hold no word, so there is no vocabulary to build")
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = "\n".join((*SPECIAL_TOKENS, *sorted(words)))
        Path(folder, "vocab.txt").write_text(vocabulary + "\n", encoding="utf-8")
        tokenizer = BertTokenizerFast.from_pretrained(
            folder, do_lower_case=True, model_max_length=max_length, model_input_names=["input_ids", "attention_mask"]
        )
    tokenizer.init_kwargs.pop("name_or_path", None)
    tokenizer.name_or_path = ""
    return tokenizer
