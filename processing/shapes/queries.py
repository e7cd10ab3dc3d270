"""What an expression of the synthetic benchmark means: a small symbolic language, and the resolver that decides it.

The resolver is the written semantics. It looks at every object by brute force and knows nothing of the generator
that made the expression; tests hold the one against the other. Each condition has three values, true, false and
unclear: close calls, where two careful readers could differ, are unclear, and no expression of the benchmark contains
one.

Meaning (all positions are centroids of whole shapes in units of the image side, y downwards):

- A phrase ("small red star") holds for the objects that have all its attributes. Sizes are classes; "small" and
  "large" are the outer two of three.
- *left of*, *right of*, *above*, *below* an anchor: the direction from the anchor to the object falls in that quarter
  of the compass (45 degrees to each side). Within 7 degrees of a diagonal, or nearer than 0.09, it is unclear. So the
  answer need not be the leftmost of its kind, and the anchor has to be found.
- *left*, *right*, *top*, *bottom* of the picture: beyond the 0.42 line; unclear up to 0.5. A corner: within 0.36 of
  both of its sides; unclear up to 0.46. The *middle*: within 0.16 of the centre on both axes; unclear up to 0.24.
- *leftmost*, *topmost*, *second from the left*, ... : ranked by centroid among the objects that pass the phrase and
  the other conditions; neighbours in rank differ by 0.05 or it is unclear.
- *largest*, *smallest*, *bigger than*, *smaller than*: by full area; unclear unless the square roots of the areas
  differ by 15 %.
- *nearest to*, *farthest from*: by distance of centroids; unclear unless the runner-up is 0.06 worse.
- *same colour (texture, shape) as*: equal attribute, never the anchor itself.
- A definite phrase inside ("the red star") must name exactly one object. If there is none, the whole has no referent.
- A relation belongs to the noun phrase right before it: in "the circle left of the square above the star" it is the
  square that is above the star.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from .scene import Scene, ShapeObject


DIRECTIONS = ("left", "right", "above", "below")
REGIONS = (
    "left side",
    "right side",
    "top side",
    "bottom side",
    "top left corner",
    "top right corner",
    "bottom left corner",
    "bottom right corner",
    "middle",
)
ORDERS = ("leftmost", "rightmost", "topmost", "bottommost", "largest", "smallest", "nearest", "farthest")
ATTRIBUTES = ("kind", "colour", "texture")

CONE_TRUE = math.tan(math.radians(38.0))
CONE_FALSE = math.tan(math.radians(52.0))
LEAST_DISTANCE = 0.09
SIDE_TRUE, SIDE_FALSE = 0.42, 0.50
CORNER_TRUE, CORNER_FALSE = 0.36, 0.46
MIDDLE_TRUE, MIDDLE_FALSE = 0.16, 0.24
RANK_MARGIN = 0.05
SIZE_RATIO = 1.15
DISTANCE_MARGIN = 0.06


@dataclass(frozen=True, slots=True)
class Phrase:
    """A noun phrase of attributes only; `None` leaves an attribute open ("thing" is a phrase with all four open)."""

    kind: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: str | None = None

    def matches(self, shape: ShapeObject) -> bool:
        """Whether `shape` has every attribute that the phrase names."""
        return (
            self.kind in (None, shape.kind)
            and self.colour in (None, shape.colour)
            and self.texture in (None, shape.texture)
            and self.size in (None, shape.size)
        )

    def named(self) -> int:
        """How many attributes the phrase names."""
        return sum(value is not None for value in (self.kind, self.colour, self.texture, self.size))


@dataclass(frozen=True, slots=True)
class Region:
    """The object lies in a part of the picture, one of `REGIONS`."""

    name: str


@dataclass(frozen=True, slots=True)
class Relation:
    """The object lies `direction` of the anchor, one of `DIRECTIONS`."""

    direction: str
    anchor: Query


@dataclass(frozen=True, slots=True)
class SameAs:
    """The object shares `attribute`, one of `ATTRIBUTES`, with the anchor and is not the anchor."""

    attribute: str
    anchor: Query


@dataclass(frozen=True, slots=True)
class SizeThan:
    """The object is bigger (or smaller) than the anchor."""

    bigger: bool
    anchor: Query


@dataclass(frozen=True, slots=True)
class Except:
    """The object is not the anchor."""

    anchor: Query


@dataclass(frozen=True, slots=True)
class Pick:
    """Of the objects left by phrase and conditions, those on ranks `rank` to `rank + count - 1` of `order`.

    `anchor` is set for "nearest" and "farthest" only.
    """

    order: str
    rank: int = 1
    count: int = 1
    anchor: Query | None = None


Condition = Region | Relation | SameAs | SizeThan | Except


@dataclass(frozen=True, slots=True)
class Query:
    """A whole expression: a head phrase, conditions that all must hold, then a pick among what is left.

    `several` says that the wording asks for all that fit; otherwise it is a definite singular. `also` joins further
    queries ("the red star and the blue ring").
    """

    phrase: Phrase
    conditions: tuple[Condition, ...] = ()
    pick: Pick | None = None
    several: bool = False
    also: tuple[Query, ...] = ()


class UnclearError(Exception):
    """The scene does not settle the expression: a close call, or a definite phrase that fits more than one object."""


def _three_valued(value: float, true_below: float, false_above: float) -> bool:
    """True up to one bound, false from the other, and unclear between them."""
    if value <= true_below:
        return True
    if value >= false_above:
        return False
    raise UnclearError(f"{value:.3f} lies between {true_below} and {false_above}")


def lies_in(shape: ShapeObject, region: str) -> bool:
    """Whether `shape` lies in a region of the picture. Raises `UnclearError` near its border."""
    if region == "middle":
        return _three_valued(max(abs(shape.x - 0.5), abs(shape.y - 0.5)), MIDDLE_TRUE, MIDDLE_FALSE)
    distances = {"left": shape.x, "right": 1.0 - shape.x, "top": shape.y, "bottom": 1.0 - shape.y}
    *sides, form = region.split()
    bounds = (SIDE_TRUE, SIDE_FALSE) if form == "side" else (CORNER_TRUE, CORNER_FALSE)
    return _three_valued(max(distances[side] for side in sides), *bounds)


def lies_towards(shape: ShapeObject, direction: str, anchor: ShapeObject) -> bool:
    """Whether `shape` lies left, right, above or below of `anchor`. Raises `UnclearError` near the diagonals."""
    if shape is anchor:
        return False
    across, down = shape.x - anchor.x, shape.y - anchor.y
    if math.hypot(across, down) < LEAST_DISTANCE:
        raise UnclearError("the two are in the same place")
    ahead, aside = {
        "left": (-across, down),
        "right": (across, down),
        "above": (-down, across),
        "below": (down, across),
    }[direction]
    if ahead <= 0.0:
        return False
    return _three_valued(abs(aside) / ahead, CONE_TRUE, CONE_FALSE)


def is_bigger(shape: ShapeObject, other: ShapeObject) -> bool:
    """Whether `shape` is bigger than `other`. Raises `UnclearError` for about equal sizes."""
    if shape is other:
        return False
    return _three_valued(other.scale / shape.scale, 1.0 / SIZE_RATIO, SIZE_RATIO)


def _distance(shape: ShapeObject, anchor: ShapeObject) -> float:
    return math.hypot(shape.x - anchor.x, shape.y - anchor.y)


def _key_of(pick: Pick, anchor: ShapeObject | None) -> tuple[Callable[[ShapeObject], float], float]:
    """What a pick sorts by, least first, and the margin between clear neighbours."""
    if anchor is not None:
        sign = {"nearest": 1.0, "farthest": -1.0}[pick.order]
        return lambda shape: sign * _distance(shape, anchor), DISTANCE_MARGIN
    return {
        "leftmost": (lambda shape: shape.x, RANK_MARGIN),
        "rightmost": (lambda shape: -shape.x, RANK_MARGIN),
        "topmost": (lambda shape: shape.y, RANK_MARGIN),
        "bottommost": (lambda shape: -shape.y, RANK_MARGIN),
        "largest": (lambda shape: -math.log(shape.scale), math.log(SIZE_RATIO)),
        "smallest": (lambda shape: math.log(shape.scale), math.log(SIZE_RATIO)),
    }[pick.order]


def _ranked(candidates: list[ShapeObject], pick: Pick, anchor: ShapeObject | None) -> list[ShapeObject]:
    """The picked ranks. `UnclearError` if two neighbours that a reader has to tell apart are too close."""
    key, margin = _key_of(pick, anchor)
    order = sorted(candidates, key=key)
    first, last = pick.rank - 1, pick.rank + pick.count - 1
    if len(order) < last:
        raise UnclearError(f"rank {last} of {len(order)}")
    for index, (shape, following) in enumerate(pairwise(order)):
        # Inside the pick the order does not matter; before it every rank is counted, and its end must be clear.
        if (index < first or index == last - 1) and key(following) - key(shape) < margin:
            raise UnclearError(f"ranks {index + 1} and {index + 2} are too close to call")
    return order[first:last]


class _NoReferentError(Exception):
    """A definite phrase inside the expression names nothing."""


def _definite(query: Query, scene: Scene) -> ShapeObject:
    found = _resolve(query, scene)
    if not found:
        raise _NoReferentError
    if len(found) > 1:
        raise UnclearError(f"a definite phrase fits {len(found)} objects")
    return found[0]


def _test_of(condition: Condition, scene: Scene) -> Callable[[ShapeObject], bool]:
    """The condition as a test of one object, with its anchor found."""
    if isinstance(condition, Region):
        return lambda shape: lies_in(shape, condition.name)
    anchor = _definite(condition.anchor, scene)
    if isinstance(condition, Relation):
        return lambda shape: lies_towards(shape, condition.direction, anchor)
    if isinstance(condition, SameAs):
        wanted = getattr(anchor, condition.attribute)
        return lambda shape: shape is not anchor and getattr(shape, condition.attribute) == wanted
    if isinstance(condition, SizeThan):
        return lambda shape: is_bigger(shape, anchor) if condition.bigger else is_bigger(anchor, shape)
    return lambda shape: shape is not anchor


def _passes(shape: ShapeObject, tests: list[Callable[[ShapeObject], bool]]) -> bool:
    """Whether all tests hold. One clear "no" settles it, even beside an unclear test."""
    unclear: list[UnclearError] = []
    for test in tests:
        try:
            if not test(shape):
                return False
        except UnclearError as error:  # noqa: PERF203
            unclear.append(error)
    if unclear:
        raise unclear[0]
    return True


def _resolve(query: Query, scene: Scene) -> list[ShapeObject]:
    tests = [_test_of(condition, scene) for condition in query.conditions]
    anchor = _definite(query.pick.anchor, scene) if query.pick and query.pick.anchor else None
    found = [shape for shape in scene.objects if query.phrase.matches(shape) and _passes(shape, tests)]
    if query.pick is None:
        return found
    candidates = [shape for shape in found if shape is not anchor]
    return _ranked(candidates, query.pick, anchor) if candidates else []


def landmarks_of(query: Query, scene: Scene) -> tuple[int, ...]:
    """
    The objects that `query` names to say where its referent is ("the ring" in "the star left of the ring"), at every
    depth, as ascending indices into `scene.objects`. A phrase that names nothing has none.
    """
    found: set[int] = set()
    for part in (query, *query.also):
        anchors = [condition.anchor for condition in part.conditions if not isinstance(condition, Region)]
        if part.pick is not None and part.pick.anchor is not None:
            anchors.append(part.pick.anchor)
        for anchor in anchors:
            found.update(landmarks_of(anchor, scene))
            with suppress(_NoReferentError):
                named = _definite(anchor, scene)
                found.update(index for index, shape in enumerate(scene.objects) if shape is named)
    return tuple(sorted(found))


def resolve(query: Query, scene: Scene) -> tuple[int, ...]:
    """The objects that `query` asks for, as ascending indices into `scene.objects`; empty if there is none.

    Raises:
        UnclearError: if the scene does not settle it, or if a singular query fits more than one object.
    """
    found: set[int] = set()
    for part in (query, *query.also):
        try:
            objects = _resolve(part, scene)
        except _NoReferentError:
            objects = []
        if len(objects) > 1 and not part.several:
            raise UnclearError(f"a singular expression fits {len(objects)} objects")
        found.update(index for index, shape in enumerate(scene.objects) if any(shape is other for other in objects))
    return tuple(sorted(found))
