"""Readers of the synthetic benchmark that ignore words, and what they score: the floor under every level.

Every reader answers with the true masks of the objects it chooses, so its score tells what its missing words are
worth and nothing else. Scores are expected values over a reader's random choices, not samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .dataset import shapes_sample
from .expressions import LEVELS, Expression
from .queries import Phrase, Query, Relation, UnclearError, lies_towards, resolve
from .rendering import render_scene
from .scene import Scene


# A reader gives each set of objects that it may answer with a probability.
Answers = list[tuple[float, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class LabelledScene:
    """A row before it becomes a row: scene, expressions, and the exact visible mask of every object.

    Attributes:
        scene: objects and background.
        expressions: texts with their meaning and targets.
        image: `(image_size, image_size, 3)` uint8.
        masks: `(objects, image_size, image_size)` booleans, no two of which overlap.
    """

    scene: Scene
    expressions: list[Expression]
    image: np.ndarray
    masks: np.ndarray

    def target_mask(self, expression: Expression) -> np.ndarray:
        """The union of an expression's targets, `(image_size, image_size)` booleans."""
        return np.logical_or.reduce(self.masks[list(expression.targets)], axis=0)


def labelled_scene(
    split: str,
    index: int,
    seed: int = 0,
    image_size: int = 128,
    levels: Sequence[str] = LEVELS,
    expressions_per_image: int = 8,
) -> LabelledScene:
    """What `processing.shapes.dataset.shapes_row` draws, with all that a row leaves out. Same arguments, same data."""
    scene, expressions = shapes_sample(split, index, seed, levels, expressions_per_image)
    image, owners = render_scene(scene, image_size)
    return LabelledScene(scene, expressions, image, owners == np.arange(len(scene.objects))[:, None, None])


def head_matches(query: Query, scene: Scene) -> tuple[int, ...]:
    """The objects that fit the head noun phrase alone: "red star" in "the second red star from the left"."""
    return _matches(query.phrase, scene)


def noun_matches(query: Query, scene: Scene) -> tuple[int, ...]:
    """The objects that fit the bare head noun, "star"; every object for "thing", "object" and "shape"."""
    return _matches(Phrase(kind=query.phrase.kind), scene)


def _matches(phrase: Phrase, scene: Scene) -> tuple[int, ...]:
    return tuple(index for index, shape in enumerate(scene.objects) if phrase.matches(shape))


def anchor_of(query: Query) -> Query | None:
    """The anchor of the first relation of a query, `None` if it has none."""
    for condition in query.conditions:
        if isinstance(condition, Relation):
            return condition.anchor
    return query.pick.anchor if query.pick is not None else None


def _gap(scene: Scene, first: int, second: int) -> float:
    one, other = scene.objects[first], scene.objects[second]
    return math.hypot(one.x - other.x, one.y - other.y)


def _related_to(query: Query, scene: Scene, anchor: int) -> tuple[int, ...]:
    """The head matches that stand in the query's relation to a given object; close calls do not count."""
    others = [index for index in head_matches(query, scene) if index != anchor]
    if query.pick is not None:
        choose = min if query.pick.order == "nearest" else max
        return (choose(others, key=lambda index: _gap(scene, index, anchor)),) if others else ()
    direction = next(condition.direction for condition in query.conditions if isinstance(condition, Relation))
    found = []
    for index in others:
        try:
            if lies_towards(scene.objects[index], direction, scene.objects[anchor]):
                found.append(index)
        except UnclearError:  # noqa: PERF203
            continue
    return tuple(found)


def _blind_to_the_end(query: Query, scene: Scene) -> dict[int, float]:
    """Where a reader ends who stops reading before the last relation and chooses blindly from there."""
    anchor = anchor_of(query)
    if anchor is None or anchor_of(anchor) is None:
        matches = head_matches(query, scene)
        return dict.fromkeys(matches, 1.0 / max(len(matches), 1))
    chances: dict[int, float] = {}
    for start, chance in _blind_to_the_end(anchor, scene).items():
        found = _related_to(query, scene, start)
        for index in found:
            chances[index] = chances.get(index, 0.0) + chance / len(found)
    # Starts that lead nowhere are tried again.
    total = sum(chances.values())
    return {index: chance / total for index, chance in chances.items()}


def _one_of(objects: Sequence[int]) -> Answers:
    """One object, chosen blindly; nothing where there is none."""
    return [(1.0 / len(objects), (index,)) for index in objects] or [(1.0, ())]


def _read_nearest(item: LabelledScene, query: Query) -> Answers:
    anchor = anchor_of(query)
    found = resolve(anchor, item.scene) if anchor is not None else ()
    others = [index for index in head_matches(query, item.scene) if index not in found]
    if not found or not others:
        return _one_of(head_matches(query, item.scene))
    return [(1.0, (min(others, key=lambda index: _gap(item.scene, index, found[0])),))]


def _read_outermost(item: LabelledScene, query: Query) -> Answers:
    keys: dict[str, Callable[[int], float]] = {
        "left": lambda index: item.scene.objects[index].x,
        "right": lambda index: -item.scene.objects[index].x,
        "above": lambda index: item.scene.objects[index].y,
        "below": lambda index: -item.scene.objects[index].y,
    }
    matches = head_matches(query, item.scene)
    for condition in query.conditions:
        if isinstance(condition, Relation) and matches:
            return [(1.0, (min(matches, key=keys[condition.direction]),))]
    return _one_of(matches)


def _read_all_but_the_end(item: LabelledScene, query: Query) -> Answers:
    chances = _blind_to_the_end(query, item.scene)
    return [(chance, (index,)) for index, chance in chances.items()] or [(1.0, ())]


READERS: dict[str, tuple[str, Callable[[LabelledScene, Query], Answers]]] = {
    "head phrase": (
        "reads only the head noun phrase and takes any object that fits",
        lambda item, query: _one_of(head_matches(query, item.scene)),
    ),
    "head noun": (
        "reads only the head noun and takes any object that fits",
        lambda item, query: _one_of(noun_matches(query, item.scene)),
    ),
    "all of the head noun": (
        "reads only the head noun and takes all objects that fit",
        lambda item, query: [(1.0, noun_matches(query, item.scene))],
    ),
    "random object": ("reads nothing", lambda item, _: _one_of(range(len(item.scene.objects)))),
    "largest object": (
        "reads nothing and takes the object with the most visible pixels",
        lambda item, _: [(1.0, (int(item.masks.sum((1, 2)).argmax()),))],
    ),
    "no object": ("says that the thing is not there", lambda *_: [(1.0, ())]),
    "nearest to the anchor": (
        "knows the anchor but not the relation: takes the head's nearest (any head where there is no anchor)",
        _read_nearest,
    ),
    "outermost that way": (
        "knows the direction but not the anchor: takes the head farthest that way (any head without a direction)",
        _read_outermost,
    ),
    "last relation unread": (
        "stops before the last relation and takes any object that fits so far",
        _read_all_but_the_end,
    ),
}


def _iou(answer: Iterable[int], targets: Iterable[int], areas: np.ndarray) -> float:
    """IoU of two unions of disjoint masks; 1 if both are empty."""
    union = list(set(answer) | set(targets))
    if not union:
        return 1.0
    return float(areas[list(set(answer) & set(targets))].sum() / max(areas[union].sum(), 1))


def oracle_scores(items: Iterable[LabelledScene]) -> dict[str, dict[str, dict[str, float]]]:
    """Expected scores of all `READERS`.

    Args:
        items: scenes with expressions, for example from `labelled_scene`.

    Returns:
        level -> reader -> `{"mIoU", "P@0.5", "expressions"}`. IoU is 1 where answer and target are both empty.

    Raises:
        ValueError: if `items` hold no expression.
    """
    rows: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for item in items:
        areas = item.masks.sum((1, 2))
        for expression in item.expressions:
            of_level = rows.setdefault(expression.level, {name: [] for name in READERS})
            for name, (_, read) in READERS.items():
                ious = [
                    (chance, _iou(answer, expression.targets, areas))
                    for chance, answer in read(item, expression.query)
                ]
                mean = sum(chance * iou for chance, iou in ious)
                hits = sum(chance for chance, iou in ious if iou >= 0.5)
                of_level[name].append((mean, hits))
    if not rows:
        raise ValueError("there is no expression to score")
    return {
        level: {
            name: {
                "mIoU": float(np.mean([mean for mean, _ in scores])),
                "P@0.5": float(np.mean([hit for _, hit in scores])),
                "expressions": len(scores),
            }
            for name, scores in rows[level].items()
        }
        for level in LEVELS
        if level in rows
    }
