"""A tokenizer of whole words for small closed vocabularies, such as that of the synthetic benchmark.

It needs no download and no training: every listed word is one token, everything else is `[UNK]`. It is a plain
`PreTrainedTokenizerFast`, so it saves, loads through `AutoTokenizer` and travels with a processor like any other.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _splitter() -> tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer]:
    normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()])
    return normalizer, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])


def build_word_tokenizer(texts: Iterable[str], max_length: int = 32) -> PreTrainedTokenizerFast:
    """Builds a tokenizer that knows every word of `texts`.

    Text is lower-cased, stripped of accents and split at white space and punctuation, then framed as
    `[CLS] words [SEP]`. The vocabulary is sorted, so the same words give the same ids in any order.

    Args:
        texts: words or whole expressions.
        max_length: most tokens of an input, the two framing tokens included; `model_max_length` of the tokenizer.

    Returns:
        A tokenizer with `[PAD]` at id 0.

    Raises:
        TypeError: if `texts` is a single string.
        ValueError: if there is no word, or if `max_length` leaves no room for one.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be an iterable of words or expressions, got a single string; put it in a list")
    if max_length < 3:
        raise ValueError(f"max_length must be at least 3 ([CLS], a word, [SEP]), got {max_length}")
    normalizer, splitter = _splitter()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    words.difference_update(SPECIAL_TOKENS)
    if not words:
        raise ValueError("texts hold no word, so there is no vocabulary to build")
    vocabulary = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *sorted(words)))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
