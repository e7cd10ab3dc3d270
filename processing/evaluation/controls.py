"""Expressions that a model should fail on, scored beside the real ones.

A model that does as well on them does not read: it takes the most salient object, ignores word order, or guesses what
data sets ask for.
"""

import random
from collections.abc import Sequence


CONTROLS = {
    "the object": "every expression replaced by the words 'the object'",
    "shuffled words": "the words of each expression in another order",
    "another image": "each expression replaced by one of the next image's",
}


def control_expressions(
    control: str, expressions: Sequence[str], other_expressions: Sequence[str], seed: str
) -> list[str]:
    """
    Returns what a control puts in the place of an image's expressions.

    Args:
        control (`str`):
            A name in `CONTROLS`.
        expressions (`Sequence[str]`):
            The image's own expressions.
        other_expressions (`Sequence[str]`):
            Those of the image that lends its own.
        seed (`str`):
            Makes the order of shuffled words; should name the image, so that a row's result does not depend on the
            rows before it.

    Returns:
        `list[str]`: one for each of `expressions`. An expression of one word stays what it is when shuffled.
    """
    if control == "the object":
        return ["the object"] * len(expressions)
    if control == "shuffled words":
        return [_shuffle_words(text, f"{seed}/{index}") for index, text in enumerate(expressions)]
    if control == "another image":
        if not other_expressions:
            raise ValueError("The control 'another image' needs an image with expressions to take them from.")
        foreign = [text for text in other_expressions if text not in expressions] or list(other_expressions)
        return [foreign[index % len(foreign)] for index in range(len(expressions))]
    raise ValueError(f"Unknown control {control!r}: choose from {list(CONTROLS)}.")


def _shuffle_words(text: str, seed: str) -> str:
    words = text.split()
    if len(set(words)) < 2:
        return text
    generator = random.Random(seed)
    shuffled = words
    while shuffled == words:
        shuffled = generator.sample(words, len(words))
    return " ".join(shuffled)
