"""Generates the expressions of the synthetic benchmark for a scene.

The writer works on tables of bit sets (one bit per object) with every combination of phrase, relation and anchor, so
that it can choose among all expressions that a scene supports. The meaning of expressions is defined in
`processing.shapes.queries`, and tests compare the tables with its resolver.

Three rules ensure that a level cannot be solved without its words:

- The head phrase matches at least three objects besides the anchors, in every level except `appearance` (whose noun
  matches three), `multiple` and `no_target`.
- In `relation`, the target is the candidate nearest to its anchor, or the outermost in its direction, about as often
  as by chance. In the chains, this happens somewhat more often, if a scene has no other chain.
- In a chain, ignoring the last hop and guessing finds the target at most every other time, and skipping a hop does not
  lead to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from itertools import islice
from operator import add

import numpy as np

from .queries import (
    ATTRIBUTES,
    CONE_FALSE,
    CONE_TRUE,
    CORNER_FALSE,
    CORNER_TRUE,
    DIRECTIONS,
    DISTANCE_MARGIN,
    LEAST_DISTANCE,
    MIDDLE_FALSE,
    MIDDLE_TRUE,
    RANK_MARGIN,
    REGIONS,
    SIDE_FALSE,
    SIDE_TRUE,
    SIZE_RATIO,
    Except,
    Phrase,
    Pick,
    Query,
    Region,
    Relation,
    SameAs,
    SizeThan,
)
from .scene import COLORS, KINDS, TEXTURES, Scene
from .wording import word_query


LEVELS = ("appearance", "position", "relation", "chain2", "chain3", "comparison", "multiple", "no_target")

_POPCOUNT = np.array([bin(value).count("1") for value in range(1 << 12)], dtype=np.int16)
_LOWEST_BIT = np.array([(value & -value).bit_length() - 1 for value in range(1 << 12)], dtype=np.int16)
_HOPS = (*DIRECTIONS, "nearest", "farthest")
# Shares of the four directions together, of the nearest and of the farthest.
_HOP_SHARES = np.array([0.76, 0.17, 0.07])
_FEWEST_CANDIDATES = 3
# Weight of a phrase as a head, by its number of attributes. Long heads are rare in natural language.
_HEAD_WEIGHT = (0.5, 1.0, 1.0, 0.4)
_LINKS_KEPT = 48
_GROWN_KEPT = 16
_LONG_CHAIN_BOOST = 6.0
# How often a target may be the nearest to its anchor, or the outermost in its direction: as by chance among 3 or 4.
_SHORTCUT_SHARE = 0.3
_MOST_FOR_A_DROPPED_HOP = 0.5
# Share of plural expressions among those without a target.
_PLURAL_SHARE = 0.15
_KEY = ("kind", "color", "texture", "size")


@dataclass(frozen=True, slots=True)
class Expression:
    """One expression of a scene.

    Attributes:
        text: the wording, lower case.
        level: one of `LEVELS`.
        query: its meaning.
        targets: ascending indices of the objects it refers to; empty if there is no referent.
    """

    text: str
    level: str
    query: Query
    targets: tuple[int, ...]


def _bits(flags: np.ndarray) -> np.ndarray:
    """Packs the last axis of booleans, one bit per object."""
    return flags @ (1 << np.arange(flags.shape[-1]))


@cache
def _members(bits: int) -> tuple[int, ...]:
    """Returns the objects of a bit set in ascending order."""
    return tuple(index for index in range(bits.bit_length()) if bits >> index & 1)


class SceneTables:
    """Tables of all combinations of the phrases, relations, regions and anchors of a scene."""

    def __init__(self, scene: Scene):
        objects = scene.objects
        count = len(objects)
        self.scene = scene
        self._steps: dict[tuple[int, int], list[int]] = {}
        self.everything = (1 << count) - 1
        self.x = np.array([shape.x for shape in objects])
        self.y = np.array([shape.y for shape in objects])
        self.scale = np.array([shape.scale for shape in objects])

        found: dict[tuple[str | None, ...], int] = {(None, None, None, None): self.everything}
        for index, shape in enumerate(objects):
            options = [(None, shape.kind), (None, shape.color), (None, shape.texture)]
            options.append((None,) if shape.size == "medium" else (None, shape.size))
            kinds, colors, textures, sizes = options
            bit = 1 << index
            for size in sizes:
                for texture in textures:
                    for color in colors:
                        for kind in kinds:
                            key = (kind, color, texture, size)
                            found[key] = found.get(key, 0) | bit
        found[None, None, None, None] = self.everything
        self.by_key = found
        self.describing: list[list[Phrase]] = [[] for _ in objects]
        heads: list[Phrase] = []
        head_bits: list[int] = []
        for key, bits in found.items():
            named = 4 - key.count(None)
            if bits & (bits - 1):
                if named <= 3:
                    heads.append(Phrase(*key))
                    head_bits.append(bits)
            elif named <= 3 and self._is_minimal(key):
                self.describing[bits.bit_length() - 1].append(Phrase(*key))
        self.heads = heads
        self.head_bits = np.array(head_bits)
        self.head_count = _POPCOUNT[self.head_bits]
        self.head_weight = np.array([_HEAD_WEIGHT[head.named()] * (1.0 if head.kind else 0.5) for head in heads])
        self.can_anchor = np.array([bool(phrases) for phrases in self.describing])
        # Number of candidates besides the anchor, (heads, objects).
        self.holds = (self.head_bits[:, None] >> np.arange(count)) & 1
        self.candidates = self.head_count[:, None] - self.holds
        self._add_relations()

    def _is_minimal(self, key: tuple[str | None, ...]) -> bool:
        """Whether the phrase matches more objects without any one of its attributes."""
        for place, value in enumerate(key):
            if value is not None:
                shorter = self.by_key[(*key[:place], None, *key[place + 1 :])]
                if not shorter & (shorter - 1):
                    return False
        return True

    def _add_relations(self) -> None:
        across = self.x[None, :] - self.x[:, None]
        down = self.y[None, :] - self.y[:, None]
        distance = np.hypot(across, down)
        np.fill_diagonal(distance, np.inf)
        ahead = np.stack([-across, across, -down, down])
        aside = np.abs(np.stack([down, down, across, across]))
        apart = distance >= LEAST_DISTANCE
        true = (ahead > 0) & (aside <= CONE_TRUE * ahead) & apart
        unclear = ((ahead > 0) & (aside < CONE_FALSE * ahead) & ~true) | ~apart
        heads = self.head_bits[:, None]
        towards, perhaps = _bits(true)[:, None, :], _bits(unclear)[:, None, :]
        self.towards = _bits(true)
        self.towards_unclear = _bits(unclear)

        # The nearest and the farthest candidate for each anchor, (heads, objects).
        inside = self.holds[:, None, :].astype(bool)
        near_key = np.where(inside, distance[None], np.inf)
        far_key = np.where(inside & np.isfinite(distance)[None], -distance[None], np.inf)
        ranked, clear = zip(*(self._first_and_clear(key, DISTANCE_MARGIN) for key in (near_key, far_key)), strict=True)
        self.nearest = ranked[0]

        # sets[hop, head, anchor]: the objects that match the head phrase and the relation.
        self.sets = np.concatenate([heads & towards, 1 << np.stack(ranked)])
        sure = np.concatenate([(heads & perhaps) == 0, np.stack(clear)])
        self.settled = sure & (_POPCOUNT[self.sets] == 1)
        self.answer = _LOWEST_BIT[self.sets]
        order = np.stack([self.x, -self.x, self.y, -self.y])
        self.outermost = np.where(self.holds[None].astype(bool), order[:, None, :], np.inf).argmin(-1)

    @staticmethod
    def _first_and_clear(key: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the index of the smallest key on the last axis, and whether the runner-up is `margin` larger."""
        two = np.partition(key, 1, axis=-1)[..., :2]
        with np.errstate(invalid="ignore"):
            return key.argmin(-1), np.isfinite(two[..., 1]) & (two[..., 1] - two[..., 0] >= margin)

    def steps(self, hop: int, head: int) -> list[int]:
        """Returns, for each anchor, the bit set of objects that match the head phrase and the relation."""
        key = (hop, head)
        if key not in self._steps:
            self._steps[key] = self.sets[hop, head].tolist()
        return self._steps[key]

    @cached_property
    def regions(self) -> tuple[np.ndarray, np.ndarray]:
        """Bit sets of the objects that are clearly, or unclearly, inside each of `REGIONS`."""
        edge = {"left": self.x, "right": 1.0 - self.x, "top": self.y, "bottom": 1.0 - self.y}
        true, unclear = [], []
        for region in REGIONS:
            *sides, form = region.split()
            if region == "middle":
                value, bounds = np.maximum(abs(self.x - 0.5), abs(self.y - 0.5)), (MIDDLE_TRUE, MIDDLE_FALSE)
            else:
                bounds = (SIDE_TRUE, SIDE_FALSE) if form == "side" else (CORNER_TRUE, CORNER_FALSE)
                value = np.max([edge[side] for side in sides], axis=0)
            true.append(value <= bounds[0])
            unclear.append((value > bounds[0]) & (value < bounds[1]))
        return _bits(np.stack(true)), _bits(np.stack(unclear))

    @cached_property
    def alike(self) -> np.ndarray:
        """`alike[attribute, anchor]`: bit set of the other objects with the same attribute as the anchor."""
        rows = []
        for attribute in ATTRIBUTES:
            values = np.array([getattr(shape, attribute) for shape in self.scene.objects])
            same = values[:, None] == values[None, :]
            np.fill_diagonal(same, False)
            rows.append(_bits(same))
        return np.stack(rows)

    @cached_property
    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """`[bigger, anchor]`: bit sets of the objects that are clearly smaller (0) or bigger (1), and close calls."""
        ratio = self.scale[None, :] / self.scale[:, None]
        true = np.stack([ratio <= 1.0 / SIZE_RATIO, ratio >= SIZE_RATIO])
        unclear = (ratio > 1.0 / SIZE_RATIO) & (ratio < SIZE_RATIO)
        np.fill_diagonal(unclear, False)
        return _bits(true), _bits(np.stack([unclear, unclear]))

    @cached_property
    def names(self) -> np.ndarray:
        """`names[attribute, head]`: whether the head phrase has an attribute of `ATTRIBUTES`."""
        return np.array([[getattr(head, name) is not None for head in self.heads] for name in ATTRIBUTES])


@dataclass(frozen=True, slots=True)
class _Chain:
    """Hops from the head inward, each (relation, head phrase) as table indices, and the anchor of the last hop.

    `end` is the referent of the head, and `mentioned` the bit set of all objects in the chain, including both ends.
    """

    hops: tuple[tuple[int, int], ...]
    anchor: int
    end: int
    mentioned: int


@dataclass(frozen=True, slots=True)
class _Steps:
    """Relations that could extend some chains, one per entry.

    Attributes:
        hop: index into `_HOPS`.
        head: index into the head phrases.
        which: index of the chain.
        target: the referent of the extended chain.
        near: whether it is the match nearest to the end of the chain or to its anchor.
        inner_hop: first relation of the chain.
        spare: number of objects that match the head phrase and are not mentioned in the chain.
    """

    hop: np.ndarray
    head: np.ndarray
    which: np.ndarray
    target: np.ndarray
    near: np.ndarray
    inner_hop: np.ndarray
    spare: np.ndarray


# The meaning of an expression, and the bit set of its targets.
_Found = tuple[Query, int]


class ExpressionWriter:
    """Generates expressions for one scene.

    Args:
        scene: The scene.
        rng: The only source of randomness.
    """

    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene = scene
        self.rng = rng
        self.tables = SceneTables(scene)
        # Each level has several forms with their shares. If the scene does not support a form, another one is used.
        self._forms: dict[str, tuple[tuple[float, Callable[[], _Found | None]], ...]] = {
            "appearance": ((1.0, self._appearance),),
            "position": ((0.6, self._ranked_by_place), (0.4, self._in_region)),
            "relation": ((1.0, self._relation),),
            "chain2": ((1.0, lambda: self._chain(2)),),
            "chain3": ((1.0, lambda: self._chain(3)),),
            "comparison": ((0.35, self._size_extreme), (0.5, self._same_as), (0.15, self._size_than)),
            "multiple": (
                (0.22, self._all_that_look),
                (0.20, lambda: self._in_region(several=True)),
                (0.22, lambda: self._related(least=2)),
                (0.12, lambda: self._same_as(least=2)),
                (0.08, lambda: self._size_than(least=2)),
                (0.06, self._outermost_few),
                (0.06, self._all_but_one),
                (0.04, self._one_and_another),
            ),
            "no_target": (
                (0.45, self._missing_look),
                (0.15, lambda: self._related(least=0)),
                (0.10, lambda: self._in_region(none=True)),
                (0.10, lambda: self._same_as(least=0)),
                (0.08, self._missing_anchor),
                (0.07, self._dead_end),
                (0.05, lambda: self._size_than(least=0)),
            ),
        }

    def write(self, level: str) -> Expression | None:
        """Generates an expression of `level`, or returns `None` if it finds none that the scene supports.

        Raises:
            ValueError: If the level is unknown.
        """
        if level not in self._forms:
            raise ValueError(f"unknown level {level!r}; choose among {', '.join(LEVELS)}")
        shares, forms = zip(*self._forms[level], strict=True)
        for turn in self._in_random_order(np.array(shares)):
            found = forms[turn]()
            if found is not None:
                query, targets = found
                return Expression(word_query(query, self.rng), level, query, _members(targets))
        return None

    # Sampling

    def _in_random_order(self, weight: np.ndarray) -> np.ndarray:
        """Returns the indices with a positive weight in a weighted random order."""
        with np.errstate(divide="ignore"):
            key = self.rng.standard_exponential(len(weight)) / weight
        return np.argsort(key)[: np.count_nonzero(weight)]

    def _draw(self, weight: np.ndarray) -> tuple[int, ...] | None:
        """Samples an index into `weight`, of any dimension, in proportion to it, or `None` if all weights are zero."""
        total = np.cumsum(weight)
        if not len(total) or total[-1] <= 0.0:
            return None
        place = np.searchsorted(total, self.rng.random() * total[-1], side="right")
        return tuple(int(index) for index in np.unravel_index(place, weight.shape))

    def _describe(self, index: int, without: str | None = None) -> Query | None:
        """Samples a phrase that matches only this object, without a given attribute. Short phrases are more likely."""
        phrases = [
            phrase for phrase in self.tables.describing[index] if without is None or getattr(phrase, without) is None
        ]
        if not phrases:
            return None
        return Query(phrases[int(self.rng.random() ** 1.5 * len(phrases))])

    # One target by its attributes or its position

    def _appearance(self) -> _Found | None:
        options = [
            (phrase, index)
            for index, phrases in enumerate(self.tables.describing)
            for phrase in phrases
            if phrase.named() > 1
            and self.tables.by_key[phrase.kind, None, None, None].bit_count() >= _FEWEST_CANDIDATES
        ]
        drawn = self._draw(np.array([1.0 if phrase.kind else 0.35 for phrase, _ in options]))
        if drawn is None:
            return None
        phrase, index = options[drawn[0]]
        return Query(phrase), 1 << index

    def _in_region(self, several: bool = False, none: bool = False) -> _Found | None:
        tables = self.tables
        true, unclear = tables.regions
        inside = tables.head_bits[:, None] & true
        count = _POPCOUNT[inside]
        good = (tables.head_bits[:, None] & unclear) == 0
        if none:
            good &= count == 0
        elif several:
            good &= (count >= 2) & (count < tables.head_count[:, None])
        else:
            good &= (count == 1) & (tables.head_count >= _FEWEST_CANDIDATES)[:, None]
        drawn = self._draw(good * tables.head_weight[:, None])
        if drawn is None:
            return None
        head, region = drawn
        return Query(tables.heads[head], (Region(REGIONS[region]),), several=several), int(inside[drawn])

    def _ranked_by_place(self) -> _Found | None:
        tables = self.tables
        weight = tables.head_weight * (tables.head_count >= _FEWEST_CANDIDATES)
        for head in self._in_random_order(weight):
            members, order, gaps, name = self._sorted_by_place(int(head))
            rank = 1 if self.rng.random() < 0.55 else int(self.rng.integers(2, min(len(members), 4) + 1))
            if rank < len(members) and np.all(gaps[:rank] >= RANK_MARGIN):
                return Query(tables.heads[head], pick=Pick(name, rank)), 1 << int(members[order[rank - 1]])
        return None

    def _sorted_by_place(self, head: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
        """Returns the objects of a head phrase, their order from a random side of the image, the gaps and its name."""
        members = np.flatnonzero(self.tables.holds[head])
        side = int(self.rng.integers(4))
        place = (self.tables.x if side < 2 else self.tables.y)[members]
        key = place if side % 2 == 0 else -place
        order = np.argsort(key)
        return members, order, np.diff(key[order]), ("leftmost", "rightmost", "topmost", "bottommost")[side]

    # Relations and chains of relations

    def _relation(self) -> _Found | None:
        tables = self.tables
        good = tables.settled & tables.can_anchor & (tables.candidates >= _FEWEST_CANDIDATES)
        hop, head, anchor = np.nonzero(good)
        target = tables.answer[hop, head, anchor]
        near = target == tables.nearest[head, anchor]
        weight = self._weight_against_shortcuts(hop, head, target, near)
        drawn = self._draw(self._even_out(weight, hop))
        if drawn is None:
            return None
        (place,) = drawn
        query = self._chain_query(((int(hop[place]), int(head[place])),), int(anchor[place]))
        return None if query is None else (query, 1 << int(target[place]))

    def _weight_against_shortcuts(
        self, hop: np.ndarray, head: np.ndarray, target: np.ndarray, near: np.ndarray
    ) -> np.ndarray:
        """Returns weights for sampling relations, each given by its hop, head phrase and target.

        For most directions, the target is the nearest or the outermost candidate. With these weights, these two
        shortcuts work no more often than by chance.
        """
        tables = self.tables
        towards = hop < len(DIRECTIONS)
        outer = target == tables.outermost[np.minimum(hop, len(DIRECTIONS) - 1), head]
        want_near, want_outer = self.rng.random(2) < _SHORTCUT_SHARE
        weight = tables.head_weight[head]
        weight = weight * np.where(towards & (near != want_near), 0.02, 1.0)
        return weight * np.where(towards & (outer != want_outer), 0.0004, 1.0)

    @staticmethod
    def _even_out(weight: np.ndarray, *hops: np.ndarray) -> np.ndarray:
        """Scales weights so that directions, "nearest" and "farthest" have their shares, jointly over `hops`."""
        group, shares = np.zeros(len(weight), dtype=int), np.ones(1)
        for hop in hops:
            group = len(_HOP_SHARES) * group + np.maximum(hop - len(DIRECTIONS) + 1, 0)
            shares = np.outer(shares, _HOP_SHARES).ravel()
        total = np.bincount(group, weight, minlength=len(shares))
        return weight * (shares / np.maximum(total, 1e-12))[group]

    def _related(self, least: int) -> _Found | None:
        """All objects in a direction from an anchor: two or more, or none (`least=0`)."""
        tables = self.tables
        sets = tables.sets[:4]
        good = ((tables.head_bits[:, None] & tables.towards_unclear[:, None, :]) == 0) & tables.can_anchor
        good &= self._fits(_POPCOUNT[sets], least)
        drawn = self._draw(good * tables.head_weight[:, None])
        if drawn is None:
            return None
        hop, head, anchor = drawn
        several = least > 1 or self.rng.random() < _PLURAL_SHARE
        query = self._chain_query(((hop, head),), anchor, several)
        return None if query is None else (query, int(sets[drawn]))

    def _chain_query(self, hops: tuple[tuple[int, int], ...], anchor: int, several: bool = False) -> Query | None:
        query = self._describe(anchor)
        if query is None:
            return None
        for depth, (hop, head) in reversed(list(enumerate(hops))):
            phrase = self.tables.heads[head]
            plural = several and depth == 0
            if hop < len(DIRECTIONS):
                query = Query(phrase, (Relation(DIRECTIONS[hop], query),), several=plural)
            else:
                query = Query(phrase, pick=Pick(_HOPS[hop], anchor=query), several=plural)
        return query

    @cached_property
    def _links(self) -> list[_Chain]:
        """Single relations that select one of at least two objects."""
        tables = self.tables
        good = tables.settled & tables.can_anchor & (tables.candidates >= 2)
        hop, head, anchor = np.nonzero(good)
        end = tables.answer[hop, head, anchor]
        # A scene has hundreds of links; a few of each kind are enough.
        keep = self._in_random_order(self._even_out(tables.head_weight[head], hop))[:_LINKS_KEPT]
        return [
            _Chain(((h, p),), a, e, 1 << a | 1 << e)
            for h, p, a, e in zip(*(column[keep].tolist() for column in (hop, head, anchor, end)), strict=True)
        ]

    @cached_property
    def _steps_to_links(self) -> _Steps:
        return self._steps_to(self._links)

    @cached_property
    def _longer_links(self) -> list[_Chain]:
        """Chains of two relations that select one of at least two objects."""
        return list(islice(self._grow(self._links, self._steps_to_links, least=2), _GROWN_KEPT))

    def _chain(self, length: int) -> _Found | None:
        if length == 2:
            grown = self._grow(self._links, self._steps_to_links, _FEWEST_CANDIDATES)
        else:
            grown = self._grow(self._longer_links, self._steps_to(self._longer_links), _FEWEST_CANDIDATES)
        for chain in grown:
            query = self._chain_query(chain.hops, chain.anchor)
            if query is not None:
                return query, 1 << chain.end
        return None

    def _steps_to(self, inner: list[_Chain]) -> _Steps:
        """Returns all relations that could extend the given chains, after the checks that can be vectorized."""
        tables = self.tables
        facts = np.array([(*link.hops[0], link.end, link.anchor, link.mentioned) for link in inner], dtype=int)
        facts = facts.reshape(-1, 5)
        hop, head, which = np.nonzero(tables.settled[:, :, facts[:, 2]])
        inner_hop, inner_head, end, anchor, mentioned = facts[which].T
        target = tables.answer[hop, head, end]
        spare = _POPCOUNT[tables.head_bits[head] & ~mentioned]
        # Neither of the two relations may lead from the innermost anchor directly to the target.
        good = ((mentioned >> target) & 1 == 0) & (spare >= 2)
        good &= (tables.sets[hop, head, anchor] != 1 << target) & (tables.sets[inner_hop, head, anchor] != 1 << target)
        keep = np.flatnonzero(good)
        fellows = tables.holds[inner_head[keep]]
        keep = keep[self._share_from(fellows, hop[keep], head[keep], target[keep]) <= _MOST_FOR_A_DROPPED_HOP]
        hop, head, which, target, end, anchor = (column[keep] for column in (hop, head, which, target, end, anchor))
        near = (target == tables.nearest[head, end]) | (target == tables.nearest[head, anchor])
        return _Steps(hop, head, which, target, near, inner_hop[keep], spare[keep])

    def _grow(self, inner: list[_Chain], steps: _Steps, least: int) -> Iterator[_Chain]:
        """Yields chains with one relation more than `inner` in random order. Every hop must be necessary."""
        weight = self._weight_against_shortcuts(steps.hop, steps.head, steps.target, steps.near)
        weight = self._even_out(weight * (steps.spare >= least), steps.hop, steps.inner_hop)
        if inner and len(inner[0].hops) > 1:
            # Long chains that start with a direction fail the test below much more often.
            weight = np.where(steps.hop < len(DIRECTIONS), _LONG_CHAIN_BOOST * weight, weight)
        for place in self._in_random_order(weight):
            link, found = inner[steps.which[place]], int(steps.target[place])
            hops = ((int(steps.hop[place]), int(steps.head[place])), *link.hops)
            if len(hops) == 2 or self._every_hop_counts(hops, link.anchor, found):
                yield _Chain(hops, link.anchor, found, link.mentioned | 1 << found)

    def _share_from(self, starts: np.ndarray, hop: np.ndarray, head: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Probability that a step from a random one of `starts`, `(steps, objects)`, leads to the target."""
        sets = self.tables.sets[hop, head]
        count = _POPCOUNT[sets]
        leads = starts * ((sets >> target[:, None]) & 1) / np.maximum(count, 1)
        return leads.sum(1) / np.maximum((starts * (count > 0)).sum(1), 1)

    def _reach(self, hops: Iterable[tuple[int, int]], chances: dict[int, float]) -> dict[int, float]:
        """Returns the probability of each object after following `hops` inside out, with random choices."""
        for hop, head in hops:
            steps = self.tables.steps(hop, head)
            following: dict[int, float] = {}
            for start, chance in chances.items():
                members = _members(steps[start])
                for member in members:
                    following[member] = following.get(member, 0.0) + chance / len(members)
            chances = following
        return chances

    def _every_hop_counts(self, hops: tuple[tuple[int, int], ...], anchor: int, target: int) -> bool:
        """Whether ignoring the end of a long chain mostly fails, and skipping any part of it leads elsewhere."""
        for cut in range(2, len(hops)):
            starts = _members(int(self.tables.head_bits[hops[cut][1]]))
            chances = self._reach(reversed(hops[:cut]), dict.fromkeys(starts, 1.0 / len(starts)))
            # Not `sum`, which since Python 3.12 rounds otherwise: each Python has to write the same expressions.
            total = reduce(add, chances.values(), 0.0)
            if chances.get(target, 0.0) > _MOST_FOR_A_DROPPED_HOP * total:
                return False
        skipped = [hops[:cut] + hops[cut + 1 :] for cut in range(1, len(hops))]
        skipped += [((hop, hops[0][1]),) for hop, _ in hops]
        return all(self._reach(reversed(shorter), {anchor: 1.0}).keys() != {target} for shorter in skipped)

    def _dead_end(self) -> _Found | None:
        """Two relations, of which the outer one matches no object although its anchor exists."""
        tables, inner = self.tables, self._links
        if not inner:
            return None
        link = inner[int(self.rng.integers(len(inner)))]
        perhaps = (tables.towards | tables.towards_unclear)[:, link.end]
        good = ((tables.head_bits & perhaps[:, None]) == 0) & (tables.candidates[:, link.end] >= 2)
        drawn = self._draw(good * tables.head_weight)
        if drawn is None:
            return None
        query = self._chain_query((drawn, *link.hops), link.anchor)
        return None if query is None else (query, 0)

    # Comparisons

    def _size_extreme(self) -> _Found | None:
        tables = self.tables
        weight = tables.head_weight * (tables.head_count >= _FEWEST_CANDIDATES)
        weight = weight * np.array([head.size is None for head in tables.heads])
        for head in self._in_random_order(weight):
            members = np.flatnonzero(tables.holds[head])
            largest = self.rng.random() < 0.5
            key = np.log(tables.scale[members]) * (-1.0 if largest else 1.0)
            order = np.argsort(key)
            if key[order[1]] - key[order[0]] >= np.log(SIZE_RATIO):
                pick = Pick("largest" if largest else "smallest")
                return Query(tables.heads[head], pick=pick), 1 << int(members[order[0]])
        return None

    def _same_as(self, least: int = 1) -> _Found | None:
        """The objects that share an attribute with an anchor: one, two or more (`least=2`), or none (`least=0`)."""
        tables = self.tables
        sets = tables.head_bits[None, :, None] & tables.alike[:, None, :]
        count = _POPCOUNT[sets]
        good = ~tables.names[:, :, None] & self._fits(count, least)
        for attribute, head, anchor in self._some(good * tables.head_weight[:, None]):
            name = ATTRIBUTES[attribute]
            query = self._describe(anchor, without=name)
            if least == 1 and (query is None or self.rng.random() < 0.25):
                apart_from = int(tables.head_bits[head]), int(sets[attribute, head, anchor])
                query = self._describe_by_relation(anchor, name, *apart_from) or query
            if query is not None:
                several = least > 1 or (least == 0 and self.rng.random() < _PLURAL_SHARE)
                condition = SameAs(name, query)
                return Query(tables.heads[head], (condition,), several=several), int(sets[attribute, head, anchor])
        return None

    def _size_than(self, least: int = 1) -> _Found | None:
        """The objects bigger or smaller than an anchor: one, two or more (`least=2`), or none (`least=0`)."""
        tables = self.tables
        true, unclear = tables.sizes
        sets = tables.head_bits[None, :, None] & true[:, None, :]
        good = self._fits(_POPCOUNT[sets], least) & ((tables.head_bits[None, :, None] & unclear[:, None, :]) == 0)
        good &= np.array([head.size is None for head in tables.heads])[:, None]
        for bigger, head, anchor in self._some(good * tables.head_weight[:, None]):
            query = self._describe(anchor, without="size")
            if query is not None:
                condition = SizeThan(bool(bigger), query)
                return Query(tables.heads[head], (condition,), several=least > 1), int(sets[bigger, head, anchor])
        return None

    def _fits(self, count: np.ndarray, least: int) -> np.ndarray:
        """Returns which numbers of targets, (..., heads, anchors), suit a query for one, for several, or for none."""
        candidates = self.tables.candidates
        if least == 0:
            return (count == 0) & (candidates >= 2)
        if least == 1:
            return (count == 1) & (candidates >= _FEWEST_CANDIDATES)
        return (count >= least) & (count < candidates)

    def _some(self, weight: np.ndarray, tries: int = 8) -> Iterator[tuple[int, ...]]:
        for _ in range(tries):
            drawn = self._draw(weight)
            if drawn is None:
                return
            yield drawn

    def _describe_by_relation(self, index: int, without: str, head_bits: int, target: int) -> Query | None:
        """Returns a phrase that matches several objects with a relation that selects this one, if there is any."""
        for link in self._links:
            phrase = self.tables.heads[link.hops[0][1]]
            spared = (head_bits & ~link.mentioned).bit_count()
            if link.end != index or getattr(phrase, without) is not None or link.mentioned & target:
                continue
            if spared >= _FEWEST_CANDIDATES:
                return self._chain_query(link.hops, link.anchor)
        return None

    # Several targets

    def _all_that_look(self) -> _Found | None:
        tables = self.tables
        of_that_noun = np.array([tables.by_key[head.kind, None, None, None].bit_count() for head in tables.heads])
        good = (of_that_noun > tables.head_count) & (tables.head_count <= 6)
        drawn = self._draw(good * tables.head_weight)
        if drawn is None:
            return None
        return Query(tables.heads[drawn[0]], several=True), int(tables.head_bits[drawn])

    def _outermost_few(self) -> _Found | None:
        tables = self.tables
        for head in self._in_random_order(tables.head_weight * (tables.head_count > _FEWEST_CANDIDATES)):
            members, order, gaps, name = self._sorted_by_place(int(head))
            few = int(self.rng.integers(2, min(len(members), 4)))
            if gaps[few - 1] >= RANK_MARGIN:
                targets = sum(1 << int(member) for member in members[order[:few]])
                return Query(tables.heads[head], pick=Pick(name, count=few), several=True), targets
        return None

    def _all_but_one(self) -> _Found | None:
        tables = self.tables
        weight = tables.head_weight * (tables.head_count >= _FEWEST_CANDIDATES) * (tables.head_count <= 6)
        for head in self._in_random_order(weight):
            bits = int(tables.head_bits[head])
            out = int(self.rng.choice(np.flatnonzero(tables.holds[head])))
            query = self._describe(out)
            # The exception needs more than the common noun.
            if query is not None and query.phrase.kind == tables.heads[head].kind:
                return Query(tables.heads[head], (Except(query),), several=True), bits & ~(1 << out)
        return None

    def _one_and_another(self) -> _Found | None:
        first, second = (self._appearance() for _ in range(2))
        if first is None or second is None or first[1] == second[1]:
            return None
        return Query(first[0].phrase, also=(second[0],)), first[1] | second[1]

    # No target

    def _missing_phrase(self) -> Phrase | None:
        """Returns the attributes of an object with one of them changed, so that no object matches."""
        objects = self.scene.objects
        everywhere = (KINDS, tuple(COLORS), TEXTURES, ("small", "large"))
        for _ in range(24):
            shape = objects[int(self.rng.integers(len(objects)))]
            key: list[str | None] = [shape.kind, shape.color, shape.texture, shape.size]
            changed, dropped, also_dropped, of = self.rng.integers(4), *self.rng.integers(4, size=2), self.rng.random()
            seen = sorted({getattr(other, _KEY[changed]) for other in objects} & set(everywhere[changed]))
            values = everywhere[changed] if of < 0.2 or not seen else seen
            key[changed] = values[int(self.rng.integers(len(values)))]
            for place in (dropped, also_dropped):
                if place != changed:
                    key[place] = None
            if key[3] == "medium":
                key[3] = None
            if 2 <= 4 - key.count(None) <= 3 and tuple(key) not in self.tables.by_key:
                return Phrase(*key)
        return None

    def _missing_look(self) -> _Found | None:
        phrase = self._missing_phrase()
        if phrase is None:
            return None
        return Query(phrase, several=self.rng.random() < _PLURAL_SHARE), 0

    def _missing_anchor(self) -> _Found | None:
        phrase = self._missing_phrase()
        drawn = self._draw(self.tables.head_weight)
        if phrase is None or drawn is None:
            return None
        direction = DIRECTIONS[int(self.rng.integers(4))]
        return Query(self.tables.heads[drawn[0]], (Relation(direction, Query(phrase)),)), 0
