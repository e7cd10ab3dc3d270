"""The meaning of expressions of the synthetic benchmark: a small symbolic language and its resolver.

The resolver defines the semantics. It tests every object and is independent of the code that generates expressions;
tests compare the two. Each condition is true, false or unclear. Close calls, on which people could disagree, are
unclear, and the benchmark contains no expression with an unclear condition.

Meaning (all positions are centroids of whole shapes in units of the image size, y downward):

- A phrase ("small red star") matches the objects with all its attributes. There are three classes of sizes: "small",
  medium and "large".
- *left of*, *right of*, *above*, *below* an anchor: the direction from the anchor to the object is within 45 degrees.
  It is unclear within 7 degrees of a diagonal, or if the distance is below 0.09. The referent is not always the
  leftmost object of its kind, so the anchor is needed.
- *left*, *right*, *top*, *bottom* of the image: within 0.42 of that side; unclear up to 0.5. A corner: within 0.36 of
  both of its sides; unclear up to 0.46. The *middle*: within 0.16 of the center on both axes; unclear up to 0.24.
- *leftmost*, *topmost*, *second from the left*, ... : by rank of the centroid among the objects that match the phrase
  and the other conditions; unclear if neighbors in rank differ by less than 0.05.
- *largest*, *smallest*, *bigger than*, *smaller than*: by full area; unclear if the square roots of the areas differ
  by less than 15 %.
- *nearest to*, *farthest from*: by distance of centroids; unclear if the runner-up is less than 0.06 worse.
- *same color (texture, shape) as*: the same attribute as the anchor, which is excluded.
- A definite phrase inside an expression ("the red star") must match exactly one object. If it matches none, the
  expression has no referent.
- A relation belongs to the noun phrase right before it: in "the circle left of the square above the star", the square
  is above the star.
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
ATTRIBUTES = ("kind", "color", "texture")

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
    """A noun phrase of attributes. `None` means any value: "thing" is a phrase with four times `None`."""

    kind: str | None = None
    color: str | None = None
    texture: str | None = None
    size: str | None = None

    def matches(self, shape: ShapeObject) -> bool:
        """Whether `shape` has every attribute of the phrase."""
        return (
            self.kind in (None, shape.kind)
            and self.color in (None, shape.color)
            and self.texture in (None, shape.texture)
            and self.size in (None, shape.size)
        )

    def named(self) -> int:
        """Number of attributes in the phrase."""
        return sum(value is not None for value in (self.kind, self.color, self.texture, self.size))


@dataclass(frozen=True, slots=True)
class Region:
    """The object is in a part of the image, one of `REGIONS`."""

    name: str


@dataclass(frozen=True, slots=True)
class Relation:
    """The object is in a `direction` from the anchor, one of `DIRECTIONS`."""

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
    """Of the objects that match phrase and conditions, those on ranks `rank` to `rank + count - 1` of `order`.

    `anchor` is set only for "nearest" and "farthest".
    """

    order: str
    rank: int = 1
    count: int = 1
    anchor: Query | None = None


Condition = Region | Relation | SameAs | SizeThan | Except


@dataclass(frozen=True, slots=True)
class Query:
    """A complete expression: a head phrase, conditions that must all hold, and a pick among the matching objects.

    `several` means all matching objects; otherwise, the expression is a definite singular. `also` adds more queries
    ("the red star and the blue ring").
    """

    phrase: Phrase
    conditions: tuple[Condition, ...] = ()
    pick: Pick | None = None
    several: bool = False
    also: tuple[Query, ...] = ()


class UnclearError(Exception):
    """The expression is unclear in the scene: a close call, or a definite phrase that matches several objects."""


def _three_valued(value: float, true_below: float, false_above: float) -> bool:
    """Returns whether a value is below the first bound or above the second. Between them, it is unclear."""
    if value <= true_below:
        return True
    if value >= false_above:
        return False
    raise UnclearError(f"{value:.3f} lies between {true_below} and {false_above}")


def lies_in(shape: ShapeObject, region: str) -> bool:
    """Whether `shape` is in a region of the image. Raises `UnclearError` near its border."""
    if region == "middle":
        return _three_valued(max(abs(shape.x - 0.5), abs(shape.y - 0.5)), MIDDLE_TRUE, MIDDLE_FALSE)
    distances = {"left": shape.x, "right": 1.0 - shape.x, "top": shape.y, "bottom": 1.0 - shape.y}
    *sides, form = region.split()
    bounds = (SIDE_TRUE, SIDE_FALSE) if form == "side" else (CORNER_TRUE, CORNER_FALSE)
    return _three_valued(max(distances[side] for side in sides), *bounds)


def lies_towards(shape: ShapeObject, direction: str, anchor: ShapeObject) -> bool:
    """Whether `shape` is left of, right of, above or below `anchor`. Raises `UnclearError` near the diagonals."""
    if shape is anchor:
        return False
    across, down = shape.x - anchor.x, shape.y - anchor.y
    if math.hypot(across, down) < LEAST_DISTANCE:
        raise UnclearError("the two objects are at the same position")
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
    """Returns the sort key of a pick, and the smallest clear difference between neighbors."""
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
    """Returns the picked ranks. Raises `UnclearError` if the difference between two neighbors is too small."""
    key, margin = _key_of(pick, anchor)
    order = sorted(candidates, key=key)
    first, last = pick.rank - 1, pick.rank + pick.count - 1
    if len(order) < last:
        raise UnclearError(f"rank {last} of {len(order)}")
    for index, (shape, following) in enumerate(pairwise(order)):
        # The order inside the pick does not matter, but the ranks before it and its end must be clear.
        if (index < first or index == last - 1) and key(following) - key(shape) < margin:
            raise UnclearError(f"ranks {index + 1} and {index + 2} are too close to call")
    return order[first:last]


class _NoReferentError(Exception):
    """A definite phrase inside the expression matches no object."""


def _definite(query: Query, scene: Scene) -> ShapeObject:
    found = _resolve(query, scene)
    if not found:
        raise _NoReferentError
    if len(found) > 1:
        raise UnclearError(f"a definite phrase fits {len(found)} objects")
    return found[0]


def _test_of(condition: Condition, scene: Scene) -> Callable[[ShapeObject], bool]:
    """Returns the condition as a test of one object, and resolves its anchor."""
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
    """Whether all tests hold. If one test is clearly false, unclear ones do not matter."""
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
    Returns the landmarks of `query`: the other objects that it names, at every depth ("the ring" in "the star left of
    the ring"), as ascending indices into `scene.objects`. A phrase that matches no object has none.
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
    """Returns the referents of `query` as ascending indices into `scene.objects`, or an empty tuple for none.

    Raises:
        UnclearError: If the query is unclear in the scene, or if a singular query matches several objects.
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
