"""Baselines for the synthetic benchmark that ignore some words. A model that uses all words must score higher.

Every baseline returns the true masks of the objects it chooses, so its score depends only on the words it ignores.
Scores are expected values over its random choices, not samples.
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


# Sets of objects that a baseline may return, each with its probability.
Answers = list[tuple[float, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class LabeledScene:
    """The data behind a row: scene, expressions, and the exact visible mask of every object.

    Attributes:
        scene: objects and background.
        expressions: texts with their meanings and targets.
        image: `(image_size, image_size, 3)` uint8.
        masks: `(objects, image_size, image_size)` booleans, no two of which overlap.
    """

    scene: Scene
    expressions: list[Expression]
    image: np.ndarray
    masks: np.ndarray

    def target_mask(self, expression: Expression) -> np.ndarray:
        """Returns the union of the targets of an expression, `(image_size, image_size)` booleans."""
        return np.logical_or.reduce(self.masks[list(expression.targets)], axis=0)


def labeled_scene(
    split: str,
    index: int,
    seed: int = 0,
    image_size: int = 128,
    levels: Sequence[str] = LEVELS,
    expressions_per_image: int = 8,
) -> LabeledScene:
    """Generates the same scene as `processing.shapes.dataset.shapes_row` with the same arguments."""
    scene, expressions = shapes_sample(split, index, seed, levels, expressions_per_image)
    image, owners = render_scene(scene, image_size)
    return LabeledScene(scene, expressions, image, owners == np.arange(len(scene.objects))[:, None, None])


def head_matches(query: Query, scene: Scene) -> tuple[int, ...]:
    """Returns the objects that match the head noun phrase: "red star" in "the second red star from the left"."""
    return _matches(query.phrase, scene)


def noun_matches(query: Query, scene: Scene) -> tuple[int, ...]:
    """Returns the objects that match the head noun, "star"; all objects for "thing", "object" and "shape"."""
    return _matches(Phrase(kind=query.phrase.kind), scene)


def _matches(phrase: Phrase, scene: Scene) -> tuple[int, ...]:
    return tuple(index for index, shape in enumerate(scene.objects) if phrase.matches(shape))


def anchor_of(query: Query) -> Query | None:
    """Returns the anchor of the first relation of a query, or `None` if it has none."""
    for condition in query.conditions:
        if isinstance(condition, Relation):
            return condition.anchor
    return query.pick.anchor if query.pick is not None else None


def _gap(scene: Scene, first: int, second: int) -> float:
    one, other = scene.objects[first], scene.objects[second]
    return math.hypot(one.x - other.x, one.y - other.y)


def _related_to(query: Query, scene: Scene, anchor: int) -> tuple[int, ...]:
    """Returns the head matches with the relation of the query to a given object, without close calls."""
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
    """Returns the probability of each object for a baseline that ignores the last relation and guesses there."""
    anchor = anchor_of(query)
    if anchor is None or anchor_of(anchor) is None:
        matches = head_matches(query, scene)
        return dict.fromkeys(matches, 1.0 / max(len(matches), 1))
    chances: dict[int, float] = {}
    for start, chance in _blind_to_the_end(anchor, scene).items():
        found = _related_to(query, scene, start)
        for index in found:
            chances[index] = chances.get(index, 0.0) + chance / len(found)
    # Starting objects without any match are excluded.
    total = sum(chances.values())
    return {index: chance / total for index, chance in chances.items()}


def _one_of(objects: Sequence[int]) -> Answers:
    """Returns one of the objects at random, or nothing if there are none."""
    return [(1.0 / len(objects), (index,)) for index in objects] or [(1.0, ())]


def _answer_nearest(item: LabeledScene, query: Query) -> Answers:
    anchor = anchor_of(query)
    found = resolve(anchor, item.scene) if anchor is not None else ()
    others = [index for index in head_matches(query, item.scene) if index not in found]
    if not found or not others:
        return _one_of(head_matches(query, item.scene))
    return [(1.0, (min(others, key=lambda index: _gap(item.scene, index, found[0])),))]


def _answer_outermost(item: LabeledScene, query: Query) -> Answers:
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


def _answer_without_the_end(item: LabeledScene, query: Query) -> Answers:
    chances = _blind_to_the_end(query, item.scene)
    return [(chance, (index,)) for index, chance in chances.items()] or [(1.0, ())]


BASELINES: dict[str, tuple[str, Callable[[LabeledScene, Query], Answers]]] = {
    "head phrase": (
        "uses only the head noun phrase and chooses any matching object",
        lambda item, query: _one_of(head_matches(query, item.scene)),
    ),
    "head noun": (
        "uses only the head noun and chooses any matching object",
        lambda item, query: _one_of(noun_matches(query, item.scene)),
    ),
    "all of the head noun": (
        "uses only the head noun and chooses all matching objects",
        lambda item, query: [(1.0, noun_matches(query, item.scene))],
    ),
    "random object": ("uses no words", lambda item, _: _one_of(range(len(item.scene.objects)))),
    "largest object": (
        "uses no words and chooses the object with the most visible pixels",
        lambda item, _: [(1.0, (int(item.masks.sum((1, 2)).argmax()),))],
    ),
    "no object": ("always returns an empty mask", lambda *_: [(1.0, ())]),
    "nearest to the anchor": (
        "uses the anchor but not the relation: chooses the nearest match of the head (any match without an anchor)",
        _answer_nearest,
    ),
    "outermost that way": (
        "uses the direction but not the anchor: chooses the outermost match (any match without a direction)",
        _answer_outermost,
    ),
    "last relation unread": (
        "ignores the last relation and chooses any object that matches the rest",
        _answer_without_the_end,
    ),
}


def _iou(answer: Iterable[int], targets: Iterable[int], areas: np.ndarray) -> float:
    """IoU of two unions of disjoint masks; 1 if both are empty."""
    union = list(set(answer) | set(targets))
    if not union:
        return 1.0
    return float(areas[list(set(answer) & set(targets))].sum() / max(areas[union].sum(), 1))


def oracle_scores(items: Iterable[LabeledScene]) -> dict[str, dict[str, dict[str, float]]]:
    """Computes the expected scores of all `BASELINES`.

    Args:
        items: Scenes with expressions, for example from `labeled_scene`.

    Returns:
        level -> baseline -> `{"mIoU", "P@0.5", "expressions"}`. The IoU is 1 if answer and target are both empty.

    Raises:
        ValueError: If `items` contain no expression.
    """
    rows: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for item in items:
        areas = item.masks.sum((1, 2))
        for expression in item.expressions:
            of_level = rows.setdefault(expression.level, {name: [] for name in BASELINES})
            for name, (_, answer_of) in BASELINES.items():
                ious = [
                    (chance, _iou(answer, expression.targets, areas))
                    for chance, answer in answer_of(item, expression.query)
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
