"""Control expressions, on which a model should score lower than on the real ones.

A model that scores as high on a control does not use the expression: it picks the most salient object, ignores the
order of the words, or guesses which objects a dataset refers to.
"""

import random
from collections.abc import Sequence


CONTROLS = {
    "the object": "every expression replaced by the words 'the object'",
    "shuffled words": "the words of each expression in random order",
    "another image": "each expression replaced by one of the next image",
}


def control_expressions(
    control: str, expressions: Sequence[str], other_expressions: Sequence[str], seed: str
) -> list[str]:
    """
    Returns the control expressions that replace the expressions of an image.

    Args:
        control (`str`):
            A name in `CONTROLS`.
        expressions (`Sequence[str]`):
            The expressions of the image.
        other_expressions (`Sequence[str]`):
            The expressions of another image, for the control "another image".
        seed (`str`):
            Seed for the order of shuffled words. It should contain the image id, so that the result for an image does
            not depend on the images before it.

    Returns:
        `list[str]`: one control expression per expression. Shuffling does not change an expression of one word.

    Raises:
        ValueError: If the control is unknown, or if "another image" has no expressions to choose from.
    """
    if control == "the object":
        return ["the object"] * len(expressions)
    if control == "shuffled words":
        return [_shuffle_words(text, f"{seed}/{index}") for index, text in enumerate(expressions)]
    if control == "another image":
        if not other_expressions:
            raise ValueError(
                "The control 'another image' needs a second image with expressions: evaluate at least two images."
            )
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
