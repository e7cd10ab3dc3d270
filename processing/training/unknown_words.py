"""Words of a dataset that a tokenizer does not know. A model treats all of them as the same word."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


_NAMED_WORDS = 20


@dataclass(frozen=True)
class UnknownWords:
    """
    The unknown words in a set of expressions.

    Args:
        num_words (`int`): Number of words in all expressions, including repetitions.
        counts (`Counter`): How often each unknown word occurs.
    """

    num_words: int
    counts: Counter[str]

    @property
    def share(self) -> float:
        """Share of unknown words, from 0 to 1."""
        return self.counts.total() / max(1, self.num_words)

    def __str__(self) -> str:
        text = f"the tokenizer does not know {self.counts.total()} of {self.num_words} words ({self.share:.1%})"
        named = ", ".join(word for word, _ in self.counts.most_common(_NAMED_WORDS))
        return f"{text}: {named}{', ...' if len(self.counts) > _NAMED_WORDS else ''}" if named else text


def find_unknown_words(tokenizer: Any, expressions: Iterable[str]) -> UnknownWords:
    """Counts the words that become the unknown token. If the tokenizer has no such token, there are none."""
    words = Counter(word for expression in expressions for word in expression.split())
    unknown: Counter[str] = Counter()
    if tokenizer.unk_token_id is not None:
        for word, count in words.items():
            if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False)["input_ids"]:
                unknown[word] = count
    return UnknownWords(words.total(), unknown)
