"""Writes the graded expressions of the synthetic benchmark for a scene.

The writer works on tables of bit sets (one bit an object) that hold every phrase against every relation and anchor,
so that it can choose among all expressions a scene supports instead of guessing and checking. What an expression
means is said once, in `shapes_queries`; the tables follow it and tests hold them against its resolver.

Two cares keep a level from being solved without its words:

- The head phrase fits at least three objects that are not named as anchors, on every level but `appearance` (whose
  noun fits three), `multiple` and `no_target`.
- A relation's target is the nearest candidate to its anchor, or the outermost candidate in its direction, no more
  often than chance would have it; in a chain, dropping any hop leaves more than one answer, and skipping a hop does
  not lead to the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .shapes_queries import (
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
    Phrase,
    Pick,
    Query,
    Region,
    Relation,
)
from .shapes_scene import Scene
from .shapes_wording import word_query


LEVELS = ("appearance", "position", "relation")

_POPCOUNT = np.array([bin(value).count("1") for value in range(1 << 12)], dtype=np.int16)
_LOWEST_BIT = np.array([(value & -value).bit_length() - 1 for value in range(1 << 12)], dtype=np.int16)
_HOPS = (*DIRECTIONS, "nearest", "farthest")
_HOP_WEIGHTS = np.array([1.0, 1.0, 1.0, 1.0, 0.8, 0.3])
_FEWEST_CANDIDATES = 3
# Number of attributes named -> how readily the phrase is used as a head. Long heads are rare in speech.
_HEAD_WEIGHT = (0.5, 1.0, 1.0, 0.4)
_CHAIN_DRAWS = 384


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
    """Packs the last axis of booleans, one bit an object."""
    return flags @ (1 << np.arange(flags.shape[-1]))


def _members(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


class SceneTables:
    """All phrases of a scene against all relations, regions and anchors."""

    def __init__(self, scene: Scene):
        objects = scene.objects
        count = len(objects)
        self.scene = scene
        self.everything = (1 << count) - 1
        self.x = np.array([shape.x for shape in objects])
        self.y = np.array([shape.y for shape in objects])
        self.scale = np.array([shape.scale for shape in objects])

        found: dict[tuple[str | None, ...], int] = {(None, None, None, None): self.everything}
        for index, shape in enumerate(objects):
            options = [(None, shape.kind), (None, shape.colour), (None, shape.texture)]
            options.append((None,) if shape.size == "medium" else (None, shape.size))
            kinds, colours, textures, sizes = options
            bit = 1 << index
            for size in sizes:
                for texture in textures:
                    for colour in colours:
                        for kind in kinds:
                            key = (kind, colour, texture, size)
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
        self.head_weight = np.array([_HEAD_WEIGHT[phrase.named()] for phrase in heads])
        self.can_anchor = np.array([bool(phrases) for phrases in self.describing])
        # Candidates other than the anchor itself, (heads, objects).
        self.holds = (self.head_bits[:, None] >> np.arange(count)) & 1
        self.candidates = self.head_count[:, None] - self.holds
        self._add_relations()

    def _is_minimal(self, key: tuple[str | None, ...]) -> bool:
        """Whether dropping any one attribute lets another object in."""
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

        # Ranks by distance: the nearest and the farthest candidate to each anchor, (heads, objects).
        inside = self.holds[:, None, :].astype(bool)
        near_key = np.where(inside, distance[None], np.inf)
        far_key = np.where(inside & np.isfinite(distance)[None], -distance[None], np.inf)
        ranked, clear = zip(*(self._first_and_clear(key, DISTANCE_MARGIN) for key in (near_key, far_key)), strict=True)
        self.nearest = ranked[0]

        # sets[hop, head, anchor]: the objects of the head phrase for which the relation holds.
        self.sets = np.concatenate([heads & towards, 1 << np.stack(ranked)])
        sure = np.concatenate([(heads & perhaps) == 0, np.stack(clear)])
        self.settled = sure & (_POPCOUNT[self.sets] == 1)
        self.answer = _LOWEST_BIT[self.sets]
        order = np.stack([self.x, -self.x, self.y, -self.y])
        self.outermost = np.where(self.holds[None].astype(bool), order[:, None, :], np.inf).argmin(-1)

    @staticmethod
    def _first_and_clear(key: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
        """Index of the least key on the last axis, and whether the runner-up is `margin` worse."""
        two = np.partition(key, 1, axis=-1)[..., :2]
        with np.errstate(invalid="ignore"):
            return key.argmin(-1), np.isfinite(two[..., 1]) & (two[..., 1] - two[..., 0] >= margin)

    def regions(self) -> tuple[np.ndarray, np.ndarray]:
        """Bit sets of the objects surely and perhaps inside each of `REGIONS`."""
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


@dataclass(frozen=True, slots=True)
class _Chain:
    """Hops from the head inwards, each (relation, head phrase) as table indices, and the last anchor."""

    hops: tuple[tuple[int, int], ...]
    anchor: int


class ExpressionWriter:
    """Writes expressions of one scene, one level at a time.

    Args:
        scene: the scene to describe.
        rng: the only source of chance.
    """

    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene = scene
        self.rng = rng
        self.tables = SceneTables(scene)
        self._pairs: list[tuple[_Chain, int]] | None = None
        self._forms: dict[str, Callable[[], tuple[Query, int] | None]] = {
            "appearance": self._appearance,
            "position": self._position,
            "relation": self._relation,
        }

    def write(self, level: str) -> Expression | None:
        """An expression of `level`, or `None` if chance found none that this scene supports.

        Raises:
            ValueError: for an unknown level.
        """
        if level not in self._forms:
            raise ValueError(f"unknown level {level!r}; choose among {', '.join(LEVELS)}")
        found = self._forms[level]()
        if found is None:
            return None
        query, targets = found
        return Expression(word_query(query, self.rng), level, query, tuple(_members(targets)))

    def _order_by_weight(self, weight: np.ndarray) -> np.ndarray:
        """All indices with a positive weight, in random order, heavy ones early."""
        with np.errstate(divide="ignore"):
            key = self.rng.standard_exponential(len(weight)) / weight
        order = np.argsort(key)
        return order[: np.count_nonzero(weight)]

    def _pick_weighted(self, weight: np.ndarray) -> int | None:
        """An index drawn in proportion to `weight`, `None` if all are zero."""
        total = np.cumsum(weight)
        if not len(total) or total[-1] <= 0.0:
            return None
        return int(np.searchsorted(total, self.rng.random() * total[-1], side="right"))

    def _describe(self, index: int, without: str | None = None) -> Query | None:
        """A definite phrase for an object, short ones more often; `without` bars an attribute."""
        phrases = [
            phrase for phrase in self.tables.describing[index] if without is None or getattr(phrase, without) is None
        ]
        if not phrases:
            return None
        return Query(phrases[int(self.rng.random() ** 1.5 * len(phrases))])

    def _appearance(self) -> tuple[Query, int] | None:
        options = [
            (phrase, index)
            for index, phrases in enumerate(self.tables.describing)
            for phrase in phrases
            if phrase.named() > 1
            and self.tables.by_key[phrase.kind, None, None, None].bit_count() >= _FEWEST_CANDIDATES
        ]
        chosen = self._pick_weighted(np.array([1.0 if phrase.kind else 0.35 for phrase, _ in options]))
        if chosen is None:
            return None
        phrase, index = options[chosen]
        return Query(phrase), 1 << index

    def _position(self) -> tuple[Query, int] | None:
        if self.rng.random() < 0.4:
            found = self._in_region()
            if found is not None:
                return found
        return self._ranked_by_place()

    def _in_region(self) -> tuple[Query, int] | None:
        tables = self.tables
        true, unclear = tables.regions()
        inside = tables.head_bits[:, None] & true
        good = (_POPCOUNT[inside] == 1) & ((tables.head_bits[:, None] & unclear) == 0)
        good &= (tables.head_count >= _FEWEST_CANDIDATES)[:, None]
        chosen = self._pick_weighted((good * tables.head_weight[:, None]).ravel())
        if chosen is None:
            return None
        head, region = divmod(chosen, len(REGIONS))
        return Query(tables.heads[head], (Region(REGIONS[region]),)), int(inside[head, region])

    def _ranked_by_place(self, tries: int = 24) -> tuple[Query, int] | None:
        tables = self.tables
        weight = tables.head_weight * (tables.head_count >= _FEWEST_CANDIDATES)
        if not weight.any():
            return None
        for head in self._order_by_weight(weight)[:tries]:
            members = np.array(list(_members(int(tables.head_bits[head]))))
            order = int(self.rng.integers(4))
            rank = 1 if self.rng.random() < 0.55 else int(self.rng.integers(2, min(len(members), 4) + 1))
            if rank == len(members):
                continue
            key = (tables.x if order < 2 else tables.y)[members] * (1.0 if order % 2 == 0 else -1.0)
            ranked = np.argsort(key)
            if np.all(np.diff(key[ranked])[:rank] >= RANK_MARGIN):
                name = ("leftmost", "rightmost", "topmost", "bottommost")[order]
                return Query(tables.heads[head], pick=Pick(name, rank)), 1 << int(members[ranked[rank - 1]])
        return None

    def _relation(self) -> tuple[Query, int] | None:
        tables = self.tables
        good = tables.settled & tables.can_anchor & (tables.candidates >= _FEWEST_CANDIDATES)
        weight = good * tables.head_weight[:, None]
        weight[:4] *= self._against_shortcuts(tables.answer[:4])
        # Distances settle more often than directions: even out the hops before choosing among them.
        total = weight.sum(axis=(1, 2), keepdims=True)
        weight *= _HOP_WEIGHTS[:, None, None] / np.maximum(total, 1e-9)
        chosen = self._pick_weighted(weight.ravel())
        if chosen is None:
            return None
        hop, head, anchor = np.unravel_index(chosen, weight.shape)
        query = self._word_chain(_Chain(((int(hop), int(head)),), int(anchor)))
        return query, 1 << int(tables.answer[hop, head, anchor])

    def _against_shortcuts(self, answer: np.ndarray) -> np.ndarray:
        """Weights that keep "the nearest to the anchor" and "the outermost that way" at about chance."""
        near = answer == self.tables.nearest
        outer = answer == self.tables.outermost[:, :, None]
        weight = np.where(near == (self.rng.random() < 0.3), 1.0, 0.01)
        return weight * np.where(outer == (self.rng.random() < 0.3), 1.0, 0.01)

    def _word_chain(self, chain: _Chain) -> Query:
        query = self._describe(chain.anchor)
        assert query is not None
        for hop, head in reversed(chain.hops):
            phrase = self.tables.heads[head]
            if hop < len(DIRECTIONS):
                query = Query(phrase, (Relation(DIRECTIONS[hop], query),))
            else:
                query = Query(phrase, pick=Pick(_HOPS[hop], anchor=query))
        return query
