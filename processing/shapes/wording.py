"""Words the symbolic queries of the synthetic benchmark in English, with many words and templates per meaning.

Every word that can come out stands in the tables of this file, and `shapes_vocabulary` collects them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .queries import Condition, Except, Phrase, Pick, Query, Region, Relation, SameAs
from .scene import COLORS


_NOUNS = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "cross", "plus"),
    "heart": ("heart",),
    "ring": ("ring", "ring", "hoop"),
    "diamond": ("diamond", "diamond", "rhombus"),
    None: ("thing", "object", "shape"),
}
_PLURALS = {"box": "boxes", "cross": "crosses", "plus": "pluses", "rhombus": "rhombuses"}
_SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big", "huge")}
_TEXTURE_WORDS = {
    "solid": ("plain", "solid"),
    "striped": ("striped", "striped", "stripy"),
    "dotted": ("dotted", "spotted"),
}
_TEXTURE_TAILS = {"striped": ("with stripes",), "dotted": ("with dots", "with spots")}

_DIRECTION_WORDS = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "above", "over", "higher up than"),
    "below": ("below", "below", "under", "beneath", "lower down than"),
}
_LINKS = ("", "", "", "that is", "which is", "lying", "placed")
_PLURAL_LINKS = ("", "", "", "that are", "which are", "lying", "placed")

_REGION_WORDS = {
    "left side": ("on the left", "on the left side", "in the left half", "at left"),
    "right side": ("on the right", "on the right side", "in the right half", "at right"),
    "top side": ("at the top", "in the upper half", "in the top half"),
    "bottom side": ("at the bottom", "in the lower half", "in the bottom half"),
    "top left corner": ("in the top left corner", "in the upper left corner", "at the top left", "top left"),
    "top right corner": ("in the top right corner", "in the upper right corner", "at the top right", "top right"),
    "bottom left corner": (
        "in the bottom left corner",
        "in the lower left corner",
        "at the bottom left",
        "bottom left",
    ),
    "bottom right corner": (
        "in the bottom right corner",
        "in the lower right corner",
        "at the bottom right",
        "bottom right",
    ),
    "middle": ("in the middle", "in the center", "in the middle of the picture", "near the center"),
}

_ORDER_BEFORE = {
    "leftmost": ("leftmost", "left most"),
    "rightmost": ("rightmost", "right most"),
    "topmost": ("topmost", "top most", "highest", "uppermost"),
    "bottommost": ("bottommost", "bottom most", "lowest"),
    "largest": ("largest", "biggest"),
    "smallest": ("smallest", "tiniest"),
}
_ORDER_AFTER = {
    "leftmost": ("farthest to the left", "furthest left", "on the far left"),
    "rightmost": ("farthest to the right", "furthest right", "on the far right"),
    "topmost": ("nearest the top", "closest to the top edge", "at the very top"),
    "bottommost": ("nearest the bottom", "closest to the bottom edge", "at the very bottom"),
    "largest": ("of the greatest size", "that is bigger than the others"),
    "smallest": ("of the least size", "that is smaller than the others"),
}
_RANKS = {2: ("second",), 3: ("third",), 4: ("fourth",)}
_FROM = {
    "leftmost": ("from the left", "counting from the left"),
    "rightmost": ("from the right", "counting from the right"),
    "topmost": ("from the top", "counting from the top"),
    "bottommost": ("from the bottom", "counting from the bottom"),
}
_DISTANCE_WORDS = {
    "nearest": ("nearest to", "closest to", "nearest"),
    "farthest": ("farthest from", "furthest away from", "most distant from"),
}
_SAME_WORDS = {
    "color": ("of the same color as", "with the same color as", "that shares its color with"),
    "texture": ("with the same pattern as", "with the same texture as", "patterned like"),
    "kind": ("of the same shape as", "shaped like", "with the same shape as"),
}
_PLURAL_SAME_WORDS = {**_SAME_WORDS, "color": (*_SAME_WORDS["color"][:2], "that share their color with")}
_SIZE_THAN = {
    True: ("bigger than", "larger than", "that is bigger than", "that is larger than"),
    False: ("smaller than", "that is smaller than", "tinier than"),
}
_PLURAL_SIZE_THAN = {
    True: ("bigger than", "larger than", "that are bigger than", "that are larger than"),
    False: ("smaller than", "that are smaller than", "tinier than"),
}
_QUANTIFIERS = ("all the", "all", "every", "each", "the")
_SINGULAR_QUANTIFIERS = ("every", "each")
_EXCEPT = ("except", "but not", "other than", "apart from")
_COUNTS = {2: ("two",), 3: ("three",)}
_ARTICLES = ("the", "the", "the", "the", "")
_FIXED_WORDS = ("the", "one", "and", "that is", "that are")


class _Voice:
    """Samples the words of one expression."""

    def __init__(self, rng: np.random.Generator):
        # One call for all random numbers of an expression: single calls would be slower than all other code here.
        self._uniform = iter(rng.random(96).tolist())

    def chance(self, probability: float) -> bool:
        return next(self._uniform) < probability

    def choose(self, options: tuple[str, ...]) -> str:
        return options[int(next(self._uniform) * len(options))]

    def noun(self, kind: str | None, plural: bool) -> str:
        word = self.choose(_NOUNS[kind])
        return _PLURALS.get(word, word + "s") if plural else word

    def phrase(self, phrase: Phrase, plural: bool, tails: bool, noun: str | None = None) -> str:
        """A noun phrase without article; `tails` allows attributes behind the noun, `noun` replaces the noun."""
        before: list[str] = []
        after = ""
        texture = ""
        if phrase.size is not None:
            before.append(self.choose(_SIZE_WORDS[phrase.size]))
        if phrase.texture is not None:
            if tails and phrase.texture in _TEXTURE_TAILS and self.chance(0.25):
                after = self.choose(_TEXTURE_TAILS[phrase.texture])
            else:
                texture = self.choose(_TEXTURE_WORDS[phrase.texture])
        if phrase.color is None:
            before.append(texture)
        elif tails and not after and phrase.kind is not None and self.chance(0.1):
            before.append(texture)
            after = f"{'that are' if plural else 'that is'} {phrase.color}"
        else:
            before += [phrase.color, texture] if self.chance(0.3) else [texture, phrase.color]
        return " ".join([*before, noun or self.noun(phrase.kind, plural), after])

    def query(self, query: Query, article: str | None = None, tails: bool = True) -> str:
        pick = query.pick
        plural = query.several
        if article is None:
            article = self.choose(_ARTICLES)
        if query.several and pick is None:
            article = self.choose(_QUANTIFIERS)
            plural = article not in _SINGULAR_QUANTIFIERS
        front, back = "", ""
        if pick is not None and pick.anchor is None:
            front, back = self._order(pick)
        words = [
            article,
            front,
            self.phrase(query.phrase, plural, tails and not query.conditions and pick is None),
            back,
        ]
        words += [self._condition(condition, query.phrase, plural) for condition in query.conditions]
        if pick is not None and pick.anchor is not None:
            link = self.choose(_PLURAL_LINKS if plural else _LINKS)
            words += [link, self.choose(_DISTANCE_WORDS[pick.order]), self.definite(pick.anchor)]
        for other in query.also:
            words += ["and", self.query(other, article="the" if article else "", tails=False)]
        return " ".join(word for word in " ".join(words).split())

    def definite(self, query: Query) -> str:
        """An anchor: always with its article, and nothing behind the noun that could attach elsewhere."""
        return self.query(query, article="the", tails=False)

    def _order(self, pick: Pick) -> tuple[str, str]:
        """Returns the words of a rank before and after the noun."""
        if pick.rank > 1:
            rank = self.choose(_RANKS[pick.rank])
            if pick.order in _FROM:
                return rank, self.choose(_FROM[pick.order])
            return f"{rank} {self.choose(_ORDER_BEFORE[pick.order])}", ""
        if pick.count > 1:
            return f"{self.choose(_COUNTS[pick.count])} {self.choose(_ORDER_BEFORE[pick.order])}", ""
        if self.chance(0.35):
            return "", self.choose(_ORDER_AFTER[pick.order])
        return self.choose(_ORDER_BEFORE[pick.order]), ""

    def _condition(self, condition: Condition, head: Phrase, plural: bool) -> str:
        if isinstance(condition, Region):
            link = ("that are" if plural else "that is") if self.chance(0.3) else ""
            return f"{link} {self.choose(_REGION_WORDS[condition.name])}"
        if isinstance(condition, Except):
            other = condition.anchor.phrase
            if other.kind == head.kind and other.named() > 1 and self.chance(0.5):
                return f"{self.choose(_EXCEPT)} the {self.phrase(other, False, False, noun='one')}"
            return f"{self.choose(_EXCEPT)} {self.definite(condition.anchor)}"
        if isinstance(condition, Relation):
            link = self.choose(_PLURAL_LINKS if plural else _LINKS)
            words = f"{link} {self.choose(_DIRECTION_WORDS[condition.direction])}"
        elif isinstance(condition, SameAs):
            words = self.choose((_PLURAL_SAME_WORDS if plural else _SAME_WORDS)[condition.attribute])
        else:
            words = self.choose((_PLURAL_SIZE_THAN if plural else _SIZE_THAN)[condition.bigger])
        return f"{words} {self.definite(condition.anchor)}"


def word_query(query: Query, rng: np.random.Generator) -> str:
    """Returns a random English wording of `query`, in lower case and without punctuation."""
    return _Voice(rng).query(query)


def _words_in(table: object) -> Iterator[str]:
    if isinstance(table, str):
        yield from table.split()
    elif isinstance(table, dict):
        for value in table.values():
            yield from _words_in(value)
    elif isinstance(table, tuple):
        for value in table:
            yield from _words_in(value)
    else:
        raise TypeError(f"a table of words must contain strings, tuples and dicts, not {type(table).__name__}")


def shapes_vocabulary() -> list[str]:
    """Returns all words that can occur in an expression of the benchmark, sorted."""
    singular = tuple(word for nouns in _NOUNS.values() for word in nouns)
    plural = tuple(_PLURALS.get(word, word + "s") for word in singular)
    tables = (
        singular,
        plural,
        tuple(COLORS),
        _SIZE_WORDS,
        _TEXTURE_WORDS,
        _TEXTURE_TAILS,
        _DIRECTION_WORDS,
        _LINKS,
        _PLURAL_LINKS,
        _REGION_WORDS,
        _ORDER_BEFORE,
        _ORDER_AFTER,
        _RANKS,
        _FROM,
        _DISTANCE_WORDS,
        _SAME_WORDS,
        _PLURAL_SAME_WORDS,
        _SIZE_THAN,
        _PLURAL_SIZE_THAN,
        _QUANTIFIERS,
        _EXCEPT,
        _COUNTS,
        _FIXED_WORDS,
    )
    return sorted(set(_words_in(tables)))
