"""Generates referring expressions at several levels from the instance annotations of a photo.

The meaning of an expression is computed from boxes, areas, contacts and colors. An expression is used only if its
meaning is unique by a margin: the leftmost dog must be clearly leftmost, and the second largest must clearly differ
from the first and the third. There are eight levels, from a single noun to objects that are not in the image:

| level | example | what identifies the referent |
| --- | --- | --- |
| `category` | the dog, sofa | the only instance of its category |
| `position` | second dog from left, the upper cup, zebra in front | order along one axis, a corner, depth |
| `color` | red bus, person in white | the only one of its category that clearly has the color, or the only one |
| `size` | the bigger dog, smallest cup | order of the visible areas |
| `relation` | the cup left of the laptop, person with umbrella | relation to the only one of its kind, or contact |
| `chain` | the cup nearest to the leftmost bottle | the same, with a landmark that needs its own description |
| `count` | all the people, two dogs on the left, the dog and the cat | several targets, including crowds |
| `absent` | the zebra, the third dog (of two), blue bus (it is red) | no target |

The wording follows what people type: with and without articles, with everyday names, and without the noun if one
category dominates the image ("far left one", "biggest"). No expression mentions gender or identity.

Annotators may overlook objects, which can make an expression ambiguous. Objects are therefore not called absent if a
present object could be mistaken for them.
"""

import itertools
import math
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .relations import (
    OPPOSITE_SIDES,
    SIDE_RELATIONS,
    can_carry,
    depth_order,
    gap,
    is_beside_in_depth,
    is_between,
    is_off,
    is_on,
    is_outside,
    is_under,
)
from .scene import Scene, SceneObject
from .wording import (
    ANIMALS,
    CARRIED,
    COLORED,
    GROUNDED,
    NUMBER_WORDS,
    ORDINAL_NUMERALS,
    ORDINAL_WORDS,
    SUPPORTS,
    category_names,
    confusable,
    with_article,
)


# Weights of the levels for sampling if the number of expressions per photo is limited. Levels that few photos support
# have larger weights, which were tuned so that all levels get their intended shares.
LEVEL_WEIGHTS: Mapping[str, float] = {
    "category": 0.30,
    "position": 0.18,
    "color": 0.16,
    "size": 0.07,
    "relation": 0.16,
    "chain": 0.07,
    "count": 0.05,
    "absent": 0.16,
}
LEVELS = tuple(LEVEL_WEIGHTS)


@dataclass(frozen=True)
class GradedExpression:
    """
    An expression, its level, the annotations of its referents (none if it is absent), and those of its landmarks, the
    other objects that it names.
    """

    text: str
    level: str
    annotation_ids: tuple[int, ...]
    landmark_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Margins:
    """
    Minimum differences for an expression to be clear, as shares of the image.

    Args:
        order (`float`): Difference of neighboring centers, as a share of the width or the height.
        nearness (`float`): Difference of the distances to an anchor, as a share of the diagonal.
        area_ratio (`float`): Ratio of neighboring areas.
        smallest_target (`float`): Area of the smallest object that expressions refer to.
        filling (`float`): Largest area of any object of another category, as a share of that of the referent, for
            which the noun can be omitted.
    """

    order: float = 0.05
    nearness: float = 0.12
    area_ratio: float = 1.6
    smallest_target: float = 0.004
    filling: float = 0.3


@dataclass(frozen=True)
class _Anchor:
    """The anchor of a relation: its category and its name, by default "the" and its noun."""

    category: str
    phrase: str = "the {x}"


@dataclass(frozen=True)
class _Candidate:
    """
    Alternative wordings of one meaning.

    In the templates, `{x}` and `{xs}` are the noun, `{y}` and `{z}` the anchors.
    """

    level: str
    targets: tuple[SceneObject, ...]
    templates: tuple[str, ...]
    category: str
    anchors: tuple[_Anchor, ...] = ()
    landmarks: tuple[SceneObject, ...] = ()
    can_leave_noun_out: bool = False


@dataclass
class _Axis:
    """A direction in which objects are ordered, with its words."""

    center: Callable[[SceneObject], float]
    start: Callable[[SceneObject], float]
    end: Callable[[SceneObject], float]
    extent: float
    first_of_two: tuple[str, ...]
    last_of_two: tuple[str, ...]
    first_of_many: tuple[str, ...]
    last_of_many: tuple[str, ...]
    from_start: tuple[str, ...] = ()
    from_end: tuple[str, ...] = ()
    middle: tuple[str, ...] = ()
    group_at_start: tuple[str, ...] = ()
    group_at_end: tuple[str, ...] = ()


def _axes(scene: Scene) -> list[_Axis]:
    return [
        _Axis(
            center=lambda item: item.center_x,
            start=lambda item: item.left,
            end=lambda item: item.right,
            extent=scene.width,
            first_of_two=(
                *("the left {x}", "the {x} on the left", "the {x} to the left", "the leftmost {x}", "the {x} left"),
                *("the left {x}", "the left side {x}"),
            ),
            last_of_two=(
                *("the right {x}", "the {x} on the right", "the {x} to the right", "the rightmost {x}"),
                *("the {x} right", "the right {x}", "the right side {x}"),
            ),
            first_of_many=(
                *("the leftmost {x}", "the {x} on the far left", "the far left {x}", "the {x} far left"),
                *("the first {x} from the left", "the {x} furthest left", "the left most {x}"),
            ),
            last_of_many=(
                *("the rightmost {x}", "the {x} on the far right", "the far right {x}", "the {x} far right"),
                *("the first {x} from the right", "the {x} furthest right", "the right most {x}"),
            ),
            from_start=(
                *("the {nth} {x} from the left", "the {x} {nth} from the left"),
                "the {nth} {x} counting from the left",
            ),
            from_end=(
                *("the {nth} {x} from the right", "the {x} {nth} from the right"),
                "the {nth} {x} counting from the right",
            ),
            middle=("the middle {x}", "the {x} in the middle", "the center {x}", "the {x} in the center"),
            group_at_start=(
                *("the {n} leftmost {xs}", "the {n} {xs} furthest to the left", "the {n} {xs} on the left"),
                "the {n} left {xs}",
            ),
            group_at_end=(
                *("the {n} rightmost {xs}", "the {n} {xs} furthest to the right", "the {n} {xs} on the right"),
                "the {n} right {xs}",
            ),
        ),
        _Axis(
            center=lambda item: item.center_y,
            start=lambda item: item.top,
            end=lambda item: item.bottom,
            extent=scene.height,
            first_of_two=("the upper {x}", "the higher {x}", "the top {x}", "the {x} on top", "the {x} at the top"),
            last_of_two=("the lower {x}", "the bottom {x}", "the {x} at the bottom", "the {x} on the bottom"),
            first_of_many=("the topmost {x}", "the highest {x}", "the top {x}", "the {x} at the top"),
            last_of_many=("the lowest {x}", "the bottommost {x}", "the bottom {x}", "the {x} at the bottom"),
        ),
    ]


_IN_FRONT = (
    *("the {x} in front", "the front {x}", "the closest {x}", "the {x} closest to us", "the nearest {x}"),
    *("the {x} in the foreground", "the {x} closest to the camera", "the {x} in the front"),
)
_IN_BACK = (
    *("the {x} in back", "the back {x}", "the {x} in the back", "the {x} furthest away", "the farthest {x}"),
    "the {x} in the background",
)
_CORNERS = tuple(
    (
        side_x,
        side_y,
        tuple(
            template.replace("{corner}", f"{word} {side}")
            for word in words
            for template in ("the {corner} {x}", "the {x} in the {corner}", "the {x} {corner}", "the {corner} {x}")
        ),
    )
    for side_x, side in ((1, "left"), (-1, "right"))
    for side_y, words in ((1, ("top", "upper")), (-1, ("bottom", "lower")))
)
_OF_COLOR = ("the {color} {x}",)
_IN_COLOR = (
    *("the {x} in {color}", "the {x} wearing {color}", "the {x} dressed in {color}", "the {x} in {color}"),
    *("the {x} in the {color} top", "the {x} with the {color} top", "the {color} top"),
)
# Skin and hair can have the other colors as well.
_CLOTHING_COLORS = frozenset(("red", "yellow", "green", "blue", "purple", "pink", "black", "white", "dark"))
# Templates for absent referents.
_FAMILIAR_COLORS = ("red", "blue", "green", "yellow", "white", "black", "orange", "pink")


@dataclass
class ExpressionWriter:
    """
    Generates the expressions for photos.

    Args:
        vocabulary (`dict[str, str]`):
            All categories of the dataset with their supercategories. Expressions can name those that are absent.
        seed (`int`, *optional*, defaults to 0):
            Random seed. The expressions for a photo depend only on the seed and on the id of the photo.
        max_per_level (`int`, *optional*, defaults to 4):
            Maximum number of expressions per photo and level.
        max_per_image (`int`, *optional*):
            Maximum number of expressions per photo, sampled with the weights of their levels ([`LEVEL_WEIGHTS`]).
        absent_share (`float`, *optional*, defaults to 0.2):
            Maximum share of `absent` expressions per photo, since there are always enough of them.
        levels (`Sequence[str]`, *optional*):
            Levels to generate. Defaults to all.
        margins (`Margins`, *optional*):
            Minimum differences for an expression to be clear.
    """

    vocabulary: dict[str, str]
    seed: int = 0
    max_per_level: int = 4
    max_per_image: int | None = None
    absent_share: float = 0.2
    levels: Sequence[str] = LEVELS
    margins: Margins = field(default_factory=Margins)

    def __post_init__(self):
        unknown = set(self.levels) - set(LEVELS)
        if unknown:
            raise ValueError(f"unknown levels {sorted(unknown)}: choose among {LEVELS}")
        for name, value in (("max_per_level", self.max_per_level), ("max_per_image", self.max_per_image)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        if not 0 <= self.absent_share < 1:
            raise ValueError(f"`absent_share` must be at least 0 and below 1, got {self.absent_share}")

    def write(self, scene: Scene) -> list[GradedExpression]:
        """
        Generates the expressions for a photo. No text occurs twice, and each has one meaning.

        Returns:
            `list[GradedExpression]`: sorted by level, in the order of [`LEVELS`].
        """
        # A string gives the same seed in every process, unlike a tuple.
        generator = random.Random(f"{self.seed}:{scene.image_id}")
        by_level: dict[str, list[_Candidate]] = defaultdict(list)
        for candidate in self._candidates(scene, generator):
            by_level[candidate.level].append(candidate)
        present = {item.category for item in scene.objects}
        expressions: dict[str, GradedExpression] = {}
        ambiguous: set[str] = set()
        for level in LEVELS:
            if level not in self.levels:
                continue
            candidates = by_level[level]
            generator.shuffle(candidates)
            most, written = self.max_per_level, 0
            # Every meaning gets one wording before any gets a second or third one.
            for candidate in (*candidates, *candidates, *candidates):
                if written == most:
                    break
                text = _word(candidate, present, generator)
                meaning = tuple(sorted(item.annotation_id for item in candidate.targets))
                if text in expressions:
                    if expressions[text].annotation_ids != meaning:
                        ambiguous.add(text)
                    continue
                landmarks = tuple(item.annotation_id for item in candidate.landmarks)
                expressions[text] = GradedExpression(text, level, meaning, landmarks)
                written += 1
        return self._draw([item for text, item in expressions.items() if text not in ambiguous], generator)

    def _draw(self, expressions: list[GradedExpression], generator: random.Random) -> list[GradedExpression]:
        """
        Samples the allowed number of expressions, with the weights of their levels.

        No level has more than twice its own share, and absent expressions have at most `absent_share`.
        """
        left: dict[str, list[GradedExpression]] = {level: [] for level in LEVELS}
        for expression in expressions:
            left[expression.level].append(expression)
        most = len(expressions) if self.max_per_image is None else min(self.max_per_image, len(expressions))
        if self.max_per_image is not None:
            total = sum(LEVEL_WEIGHTS[level] for level in self.levels)
            for level in self.levels:
                left[level] = left[level][: math.ceil(2 * LEVEL_WEIGHTS[level] / total * most)]
        if len(self.levels) > 1:
            with_target = sum(len(found) for level, found in left.items() if level != "absent")
            most_absent = self.absent_share * min(with_target / (1 - self.absent_share), most)
            # Random rounding, so that the share is right on average even for small numbers.
            left["absent"] = left["absent"][: math.floor(most_absent + generator.random())]
        drawn: set[str] = set()
        while len(drawn) < most and any(left.values()):
            levels = [level for level in LEVELS if left[level]]
            level = generator.choices(levels, [LEVEL_WEIGHTS[level] for level in levels])[0]
            drawn.add(left[level].pop(0).text)
        return [expression for expression in expressions if expression.text in drawn]

    def _candidates(self, scene: Scene, generator: random.Random) -> Iterator[_Candidate]:
        groups: dict[str, list[SceneObject]] = defaultdict(list)
        for item in scene.objects:
            groups[item.category].append(item)
        countable = {category: items for category, items in groups.items() if not any(item.is_crowd for item in items)}
        single = {category: items[0] for category, items in countable.items() if len(items) == 1}
        for category, item in single.items():
            if self._is_target(scene, item):
                yield _Candidate("category", (item,), ("the {x}",), category)
        colors = [candidate for category, items in countable.items() for candidate in self._colors(category, items)]
        colors = [candidate for candidate in colors if self._is_target(scene, candidate.targets[0])]
        yield from colors
        if scene.persons_only:
            return
        several = {category: items for category, items in countable.items() if len(items) > 1}
        ordered = [
            candidate
            for category, items in several.items()
            for candidate in (*self._positions(scene, category, items), *self._sizes(scene, category, items))
            if self._is_target(scene, candidate.targets[0])
        ]
        yield from ordered
        for category, items in several.items():
            for candidate in (*self._corners(scene, category, items), *self._depths(scene, category, items)):
                if self._is_target(scene, candidate.targets[0]):
                    yield candidate
        anchors = [(item, _Anchor(category)) for category, item in single.items() if self._is_target(scene, item)]
        by_color = [candidate for candidate in colors if candidate.category not in single]
        chained = [
            (candidate.targets[0], _Anchor(candidate.category, candidate.templates[0]))
            for candidate in (*ordered, *by_color)
            if candidate.category != "person" or candidate.level != "color"
        ]
        for level, choices in (("relation", anchors), ("chain", chained)):
            for (category, items), (item, anchor) in itertools.product(countable.items(), choices):
                if anchor.category != category:
                    if len(items) > 1:
                        yield from self._sides(scene, level, category, items, item, anchor)
                        yield from self._distances(scene, level, category, items, item, anchor)
                    yield from self._contacts(scene, level, category, items, item, anchor)
                    yield from self._depth_relations(scene, level, category, items, item, anchor)
        yield from self._betweens(scene, countable, anchors)
        yield from self._carriers(scene, groups, countable)
        yield from self._counts(scene, groups, countable, single, generator)
        yield from self._absences(scene, groups, countable, single, generator)

    def _is_target(self, scene: Scene, item: SceneObject) -> bool:
        return not item.is_cut and item.area >= self.margins.smallest_target * scene.width * scene.height

    def _fills_picture(self, scene: Scene, item: SceneObject) -> bool:
        """Whether this category dominates the image so clearly that the noun can be omitted."""
        others = [other.area for other in scene.objects if other.category != item.category]
        return self._is_target(scene, item) and max(others, default=0) <= self.margins.filling * item.area

    def _positions(self, scene: Scene, category: str, items: list[SceneObject]) -> Iterator[_Candidate]:
        def position(item: SceneObject, templates: tuple[str, ...]) -> _Candidate:
            return _Candidate(
                "position", (item,), templates, category, can_leave_noun_out=self._fills_picture(scene, item)
            )

        for axis in _axes(scene):
            margin = self.margins.order * axis.extent
            line = sorted(items, key=axis.center)
            clear = [axis.center(after) - axis.center(before) >= margin for before, after in itertools.pairwise(line)]
            count = len(line)
            # Both the edge and the center must be ordered: a wide object can start further left than its center shows.
            first = clear[0] and axis.start(line[0]) <= min(axis.start(item) for item in line[1:]) + margin / 2
            last = clear[-1] and axis.end(line[-1]) >= max(axis.end(item) for item in line[:-1]) - margin / 2
            first_words, last_words = (
                (axis.first_of_two, axis.last_of_two) if count == 2 else (axis.first_of_many, axis.last_of_many)
            )
            if first:
                yield position(line[0], _on_its_side(first_words, axis.center(line[0]) / axis.extent))
            if last:
                yield position(line[-1], _on_its_side(last_words, 1 - axis.center(line[-1]) / axis.extent))
            for place in range(1, min(count - 1, 4)):
                if axis.from_start and all(clear[: place + 1]):
                    yield position(line[place], _with_ordinals(axis.from_start, place + 1))
                if axis.from_end and all(clear[count - 2 - place :]):
                    yield position(line[-1 - place], _with_ordinals(axis.from_end, place + 1))
            if axis.middle and count == 3 and all(clear):
                yield position(line[1], axis.middle)

    def _corners(self, scene: Scene, category: str, items: list[SceneObject]) -> Iterator[_Candidate]:
        for side_x, side_y, templates in _CORNERS:

            def place_x(item: SceneObject, side: int = side_x) -> float:
                return side * item.center_x / scene.width

            def place_y(item: SceneObject, side: int = side_y) -> float:
                return side * item.center_y / scene.height

            line = sorted(items, key=lambda item: place_x(item) + place_y(item))
            first, others = line[0], line[1:]
            clear = 3 * self.margins.order
            # All others are clearly further from the corner, and none is nearer to either of its sides.
            if (
                len(items) > 2
                and place_x(first) + place_y(first) + clear <= min(place_x(item) + place_y(item) for item in others)
                and place_x(first) <= min(place_x(item) for item in others) + self.margins.order
                and place_y(first) <= min(place_y(item) for item in others) + self.margins.order
                and any(place_x(item) >= place_x(first) + clear for item in others)
                and any(place_y(item) >= place_y(first) + clear for item in others)
            ):
                can_leave_noun_out = self._fills_picture(scene, first)
                yield _Candidate("position", (first,), templates, category, can_leave_noun_out=can_leave_noun_out)

    def _depths(self, scene: Scene, category: str, items: list[SceneObject]) -> Iterator[_Candidate]:
        if scene.has_pasted or category not in GROUNDED:
            return
        line = sorted(items, key=lambda item: item.bottom)
        margin, ratio = 1.5 * self.margins.order * scene.height, self.margins.area_ratio
        front, back = line[-1], line[0]
        if front.bottom - line[-2].bottom >= margin and front.area >= ratio * max(item.area for item in line[:-1]):
            can_leave_noun_out = self._fills_picture(scene, front)
            yield _Candidate("position", (front,), _IN_FRONT, category, can_leave_noun_out=can_leave_noun_out)
        if line[1].bottom - back.bottom >= margin and ratio * back.area <= min(item.area for item in line[1:]):
            yield _Candidate("position", (back,), _IN_BACK, category)

    def _sizes(self, scene: Scene, category: str, items: list[SceneObject]) -> Iterator[_Candidate]:
        def size(item: SceneObject, *templates: str) -> _Candidate:
            return _Candidate(
                "size", (item,), templates, category, can_leave_noun_out=self._fills_picture(scene, item)
            )

        # An occlusion makes the visible area smaller, but not the object, so the box must agree. The size of an object
        # that the edge of the image cuts is not known.
        line = sorted(items, key=lambda item: item.area)
        clear = [
            after.area >= self.margins.area_ratio * before.area
            and after.box_area >= before.box_area
            and not scene.is_at_edge(before)
            for before, after in itertools.pairwise(line)
        ]
        if len(line) == 2:
            if clear[0]:
                yield size(
                    line[0], "the smaller {x}", "the smaller of the two {xs}", "the small {x}", "the little {x}"
                )
                yield size(line[1], "the bigger {x}", "the larger {x}", "the larger of the two {xs}", "the big {x}")
            return
        if clear[0]:
            yield size(line[0], "the smallest {x}", "the tiniest {x}")
        if clear[-1]:
            yield size(line[-1], "the biggest {x}", "the largest {x}")
        if clear[-1] and clear[-2]:
            yield size(line[-2], "the second biggest {x}", "the second largest {x}")

    def _colors(self, category: str, items: list[SceneObject]) -> Iterator[_Candidate]:
        is_person = category == "person"
        if not is_person and category not in COLORED:
            return
        for item in items:
            measured = item.clothing if is_person else item.colors
            if measured is None:
                continue
            others = [other for other in items if other is not item]
            for color in measured.clear_colors():
                if color not in _CLOTHING_COLORS if is_person else color == "dark" and category not in ANIMALS:
                    continue
                if all(_clearly_lacks(other, color) for other in others):
                    yield _Candidate("color", (item,), _in_color(is_person, color), category)

    def _sides(
        self,
        scene: Scene,
        level: str,
        category: str,
        items: list[SceneObject],
        landmark: SceneObject,
        anchor: _Anchor,
    ) -> Iterator[_Candidate]:
        slack = self.margins.order / 2 * min(scene.width, scene.height)
        for relation in SIDE_RELATIONS:
            holding = [item for item in items if relation.holds(item, landmark, slack)]
            failing = [item for item in items if relation.fails(item, landmark, slack)]
            if len(holding) == 1 and len(failing) == len(items) - 1 and self._is_target(scene, holding[0]):
                templates = tuple(f"the {{x}} {words} {{y}}" for words in relation.words)
                yield _Candidate(level, (holding[0],), templates, category, (anchor,), (landmark,))

    def _distances(
        self,
        scene: Scene,
        level: str,
        category: str,
        items: list[SceneObject],
        landmark: SceneObject,
        anchor: _Anchor,
    ) -> Iterator[_Candidate]:
        diagonal = (scene.width**2 + scene.height**2) ** 0.5
        line = sorted(items, key=lambda item: gap(item, landmark))
        distances = [gap(item, landmark) / diagonal for item in line]
        if distances[1] - distances[0] >= self.margins.nearness and self._is_target(scene, line[0]):
            words: tuple[str, ...] = ("the {x} nearest to {y}", "the {x} closest to {y}")
            if distances[0] < 0.02:
                words = (*words, "the {x} next to {y}", "the {x} by {y}", "the {x} beside {y}", "the {x} near {y}")
            yield _Candidate(level, (line[0],), words, category, (anchor,), (landmark,))
        if distances[-1] - distances[-2] >= self.margins.nearness and self._is_target(scene, line[-1]):
            words = ("the {x} furthest from {y}", "the {x} farthest away from {y}")
            yield _Candidate(level, (line[-1],), words, category, (anchor,), (landmark,))

    def _contacts(
        self,
        scene: Scene,
        level: str,
        category: str,
        items: list[SceneObject],
        landmark: SceneObject,
        anchor: _Anchor,
    ) -> Iterator[_Candidate]:
        if scene.has_pasted or landmark.is_cut:
            return
        holding = [item for item in items if is_on(scene, item, landmark)]
        if self._is_only(scene, holding, items, landmark):
            yield _Candidate(level, (holding[0],), ("the {x} on {y}",), category, (anchor,), (landmark,))
        under = [item for item in items if is_under(item, landmark)]
        if self._is_only(scene, under, items, landmark):
            yield _Candidate(level, (under[0],), ("the {x} under {y}",), category, (anchor,), (landmark,))

    def _is_only(
        self, scene: Scene, holding: list[SceneObject], items: list[SceneObject], landmark: SceneObject
    ) -> bool:
        """Whether one object of sufficient size is in contact with a landmark, and no other of its category is."""
        others = [item for item in items if item not in holding]
        are_clear = all(is_off(scene, item, landmark) for item in others)
        return len(holding) == 1 and are_clear and self._is_target(scene, holding[0])

    def _depth_relations(
        self,
        scene: Scene,
        level: str,
        category: str,
        items: list[SceneObject],
        landmark: SceneObject,
        anchor: _Anchor,
    ) -> Iterator[_Candidate]:
        for sign, words in ((1, "in front of"), (-1, "behind")):
            holding = [item for item in items if depth_order(scene, item, landmark) == sign]
            others = [item for item in items if item not in holding]
            is_clear = all(
                is_beside_in_depth(scene, item, landmark) or depth_order(scene, item, landmark) == -sign
                for item in others
            )
            if len(holding) == 1 and is_clear and self._is_target(scene, holding[0]):
                yield _Candidate(level, (holding[0],), (f"the {{x}} {words} {{y}}",), category, (anchor,), (landmark,))

    def _betweens(
        self,
        scene: Scene,
        countable: dict[str, list[SceneObject]],
        anchors: list[tuple[SceneObject, _Anchor]],
    ) -> Iterator[_Candidate]:
        slack = self.margins.order / 2 * min(scene.width, scene.height)
        by_place = sorted(anchors, key=lambda choice: choice[0].center_x)
        for (left, left_anchor), (right, right_anchor) in itertools.combinations(by_place, 2):
            for category, items in countable.items():
                if category in (left.category, right.category):
                    continue
                inside = [item for item in items if is_between(item, left, right, slack)]
                outside = [item for item in items if is_outside(item, left, right)]
                if len(inside) == 1 and len(outside) == len(items) - 1 and self._is_target(scene, inside[0]):
                    for pair in ((left_anchor, right_anchor), (right_anchor, left_anchor)):
                        templates = ("the {x} between {y} and {z}",)
                        yield _Candidate("relation", (inside[0],), templates, category, pair, (left, right))

    def _carriers(
        self, scene: Scene, groups: dict[str, list[SceneObject]], countable: dict[str, list[SceneObject]]
    ) -> Iterator[_Candidate]:
        """Returns the only person who has such an object, if nobody else is near one."""
        people = countable.get("person", [])
        if scene.has_pasted or not people:
            return
        for category, things in groups.items():
            if not can_carry(people[0], things[0]) or any(item.is_crowd for item in things):
                continue
            owners = [item for item in people if any(scene.touch(item, thing) for thing in things)]
            others = [item for item in people if item not in owners]
            if len(owners) != 1 or not self._is_target(scene, owners[0]):
                continue
            if all(is_off(scene, item, thing) for item in others for thing in things):
                held = tuple(thing for thing in things if scene.touch(owners[0], thing))
                phrases = ("the {x}", "{ax}") if len(things) == 1 else ("{ax}",) if len(held) == 1 else ("{xs}",)
                for phrase in phrases:
                    yield _Candidate(
                        "relation", (owners[0],), ("the {x} with {y}",), "person", (_Anchor(category, phrase),), held
                    )

    def _counts(
        self,
        scene: Scene,
        groups: dict[str, list[SceneObject]],
        countable: dict[str, list[SceneObject]],
        single: dict[str, SceneObject],
        generator: random.Random,
    ) -> Iterator[_Candidate]:
        for category, items in groups.items():
            if len(items) == 1 and not items[0].is_crowd:
                continue
            if sum(item.area for item in items) < self.margins.smallest_target * scene.width * scene.height:
                continue
            templates: tuple[str, ...] = ("all the {xs}", "every {x}", "all {xs}", "each {x}", "the {xs}")
            are_visible = all(self._is_target(scene, item) for item in items)
            if category in countable and are_visible and len(items) == 2:
                templates = ("both {xs}", "the two {xs}", "all the {xs}", "the {xs}")
            elif category in countable and are_visible and len(items) < len(NUMBER_WORDS):
                templates += (f"the {NUMBER_WORDS[len(items)]} {{xs}}", f"all {NUMBER_WORDS[len(items)]} {{xs}}")
            if category == "person":
                templates += ("everyone", "everybody")
            yield _Candidate("count", tuple(items), templates, category)
        for category, items in countable.items():
            yield from self._groups_at_one_side(scene, category, items)
            yield from self._groups_of_color(scene, category, items)
        alone = [item for item in single.values() if self._is_target(scene, item)]
        # Only a few of the many pairs, so that they do not displace other expressions with several targets.
        for _ in range(min(2, len(alone) // 2)):
            first, second = generator.sample(alone, 2)
            anchors = (_Anchor(second.category),)
            yield _Candidate("count", (first, second), ("the {x} and {y}",), first.category, anchors)

    def _groups_at_one_side(self, scene: Scene, category: str, items: list[SceneObject]) -> Iterator[_Candidate]:
        axis = _axes(scene)[0]
        line = sorted(items, key=axis.center)
        margin = self.margins.order * axis.extent
        for size in range(2, min(len(line), 4)):
            for members, others, templates, edge in (
                (line[:size], line[size:], axis.group_at_start, 0),
                (line[-size:], line[:-size], axis.group_at_end, axis.extent),
            ):
                nearest = min(abs(axis.center(one) - axis.center(other)) for one in members for other in others)
                if nearest >= 1.5 * margin and all(self._is_target(scene, item) for item in members):
                    depth = max(abs(axis.center(item) - edge) for item in members) / axis.extent
                    words = tuple(
                        template.replace("{n}", NUMBER_WORDS[size]) for template in _on_its_side(templates, depth)
                    )
                    yield _Candidate("count", tuple(members), words, category)

    def _groups_of_color(self, scene: Scene, category: str, items: list[SceneObject]) -> Iterator[_Candidate]:
        if category not in COLORED:
            return
        colors = {item.annotation_id: item.colors.clear_colors() if item.colors else [] for item in items}
        for color in sorted({color for found in colors.values() for color in found} - {"dark"}):
            members = [item for item in items if color in colors[item.annotation_id]]
            others = [item for item in items if item not in members]
            are_clear = all(item.colors is not None and item.colors.clearly_lacks(color) for item in others)
            if len(members) > 1 and are_clear and all(self._is_target(scene, item) for item in members):
                yield _Candidate("count", tuple(members), (f"the {color} {{xs}}", f"all {color} {{xs}}"), category)

    def _absences(
        self,
        scene: Scene,
        groups: dict[str, list[SceneObject]],
        countable: dict[str, list[SceneObject]],
        single: dict[str, SceneObject],
        generator: random.Random,
    ) -> Iterator[_Candidate]:
        absent = [name for name in self.vocabulary if not any(confusable(name, present) for present in groups)]
        visible = [category for category, items in countable.items() if self._is_target(scene, items[0])]
        if groups and absent:
            # Two thirds are similar to present objects: absence of a bus is harder to see beside a bicycle than a
            # banana.
            present_kinds = {self.vocabulary.get(name, "") for name in groups}
            akin = [name for name in absent if self.vocabulary[name] in present_kinds]
            chosen = [generator.choice(akin if akin and turn % 3 else absent) for turn in range(self.max_per_level)]
            for category in dict.fromkeys(chosen):
                templates = ("the {x}", "the {x}", "all the {xs}", "the {x} on the left", "the right {x}")
                yield _Candidate("absent", (), templates, category)
            generator.shuffle(visible)
            for category in visible[: self.max_per_level]:
                yield self._absent_relation(category, generator.choice(absent))
            if "person" in visible:
                things = [name for name in absent if name in CARRIED]
                if things:
                    yield self._absent_relation("person", generator.choice(things))
        for category, items in countable.items():
            if 1 < len(items) < 4 and self._is_target(scene, items[0]):
                templates = ("the {nth} {x} from the left", "the {nth} {x} from the right")
                yield _Candidate("absent", (), _with_ordinals(templates, len(items) + 1), category)
            if all(self._is_target(scene, item) for item in items):
                yield from self._absent_colors(groups, category, items, generator)
        slack = self.margins.order / 2 * min(scene.width, scene.height)
        for category, items in countable.items():
            for anchor_category, anchor in single.items():
                if anchor_category == category or not self._is_target(scene, anchor):
                    continue
                for relation, opposite in zip(SIDE_RELATIONS, OPPOSITE_SIDES, strict=True):
                    if all(opposite.holds(item, anchor, slack) for item in items):
                        templates = tuple(f"the {{x}} {words} {{y}}" for words in relation.words)
                        yield _Candidate(
                            "absent", (), templates, category, (_Anchor(anchor_category),), landmarks=(anchor,)
                        )

    def _absent_relation(self, category: str, absent: str) -> _Candidate:
        """An object that is present, with a relation to one that is absent."""
        templates: tuple[str, ...] = ("the {x} next to {y}", "the {x} left of {y}", "the {x} right of {y}")
        anchor = _Anchor(absent)
        if category in SUPPORTS.get(absent, ()):
            templates = ("the {x} on {y}",)
        elif category == "person" and absent in CARRIED:
            templates, anchor = ("the {x} with {y}",), _Anchor(absent, "{ax}")
        return _Candidate("absent", (), templates, category, (anchor,))

    def _absent_colors(
        self,
        groups: Iterable[str],
        category: str,
        items: list[SceneObject],
        generator: random.Random,
    ) -> Iterator[_Candidate]:
        """Colors that all objects of a category clearly lack, if each has another one and nothing is confusable."""
        is_person = category == "person"
        if not is_person and category not in COLORED:
            return
        if any(other != category and confusable(other, category) for other in groups):
            return
        measured = [item.clothing if is_person else item.colors for item in items]
        if not all(shares is not None and shares.clear_colors() for shares in measured):
            return
        lacking = [
            color
            for color in _FAMILIAR_COLORS
            if all(item.colors is not None and item.colors.clearly_lacks(color) for item in items)
        ]
        for color in generator.sample(lacking, min(2, len(lacking))):
            yield _Candidate("absent", (), _in_color(is_person, color), category)


def _on_its_side(templates: tuple[str, ...], depth: float) -> tuple[str, ...]:
    """
    Returns the templates that apply at this position, as a share of the image: an object beyond the middle is not "on
    the left", even if it is the leftmost.
    """
    if depth <= 0.5:
        return templates
    return tuple(template for template in templates if not re.search(r" (on|at|to) the |far |side", template))


def _with_ordinals(templates: Iterable[str], place: int) -> tuple[str, ...]:
    """Returns the templates with a rank in words and, half as often, in digits."""
    words, digits = ORDINAL_WORDS[place], ORDINAL_NUMERALS[place]
    return tuple(template.replace("{nth}", nth) for template in templates for nth in (words, words, digits))


def _clearly_lacks(item: SceneObject, color: str) -> bool:
    """Whether an object, or the clothing of a person, clearly lacks a color."""
    if item.clothing is not None and item.colors is not None:
        # Hair and trousers have colors as well.
        return item.clothing.clearly_lacks(color) and not item.colors.shows(color)
    return item.colors is not None and item.colors.clearly_lacks(color)


def _in_color(is_person: bool, color: str) -> tuple[str, ...]:
    return tuple(template.replace("{color}", color) for template in (_IN_COLOR if is_person else _OF_COLOR))


def _word(candidate: _Candidate, present: Iterable[str], generator: random.Random) -> str:
    singular, plural = generator.choice(category_names(candidate.category, present))
    templates = _unambiguous(candidate.templates, singular, plural)
    text = generator.choice(templates)
    if candidate.category == "person" and text.startswith("the {x} ") and generator.random() < 0.08:
        text = text.replace("the {x}", "someone", 1)
    if candidate.can_leave_noun_out and "{x}" in text:
        turn = generator.random()
        if turn < 0.15:
            text = text.replace("{x}", "one")
        elif turn < 0.25 and (bare := re.sub(r"(the )?\{x\} | \{x\}", "", text)) not in _NEVER_BARE:
            text = bare
    text = text.replace("{xs}", plural).replace("{x}", singular)
    for place, anchor in zip(("{y}", "{z}"), candidate.anchors, strict=False):
        anchor_singular, anchor_plural = generator.choice(category_names(anchor.category, present))
        phrase = anchor.phrase.replace("{ax}", with_article(anchor_singular))
        text = text.replace(place, phrase.replace("{xs}", anchor_plural).replace("{x}", anchor_singular))
    # People often omit articles: the first one, or all.
    turn = generator.random()
    if turn < 0.3:
        return text.removeprefix("the ")
    return re.sub(r"\b(the|a|an) ", "", text) if turn < 0.65 else text


# Phrases that are not clear without their noun.
_NEVER_BARE = frozenset(
    (
        "the small",
        "the little",
        "the big",
        "the left side",
        "the right side",
        "the top",
        "the bottom",
        "the front",
        "the back",
    )
)


def _unambiguous(templates: Iterable[str], singular: str, plural: str) -> list[str]:
    """Returns the templates that distinguish singular from plural even if both are the same word, as with sheep."""
    templates = list(templates)
    if singular != plural:
        return templates
    counted = re.compile(r"(all|both|every|each|two|three|four|five|six)\b")
    return [template for template in templates if "{xs}" not in template or counted.search(template)] or templates
