"""Write graded referring expressions from the instance annotations of a photo, without a human or a model.

What an expression means is computed from boxes and areas, and an expression is written only where its meaning is
unique by a margin: the leftmost dog has to be so clearly, a "second largest" has to differ from the first and the
third. Seven levels, from one noun to what the picture does not show:

| level | example | what decides |
| --- | --- | --- |
| `category` | the dog | the only instance of its category |
| `position` | the second dog from the left, the upper cup | order of the centres along one axis |
| `size` | the bigger dog, the smallest cup | order of the visible areas |
| `relation` | the cup left of the laptop, the chair nearest to the bed | place relative to the only one of its kind |
| `chain` | the cup nearest to the leftmost bottle | the same, the other being itself told apart by position or size |
| `count` | all the people, the two dogs on the left, the dog and the cat | several targets, crowds included |
| `absent` | the zebra, the third dog (of two), the cup right of the laptop (there is none) | no target |

Annotations are what annotators drew: an object that they overlooked can make a "the only one" wrong, which is why
objects are not called absent when something present could pass for them.
"""

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from .wording import NUMBER_WORDS, ORDINAL_WORDS, category_names, confusable


LEVELS = ("category", "position", "size", "relation", "chain", "count", "absent")


@dataclass(frozen=True)
class SceneObject:
    """An annotated object: its box in pixels, its visible area, and whether it is a crowd of several."""

    annotation_id: int
    category: str
    left: float
    top: float
    right: float
    bottom: float
    area: float
    is_crowd: bool = False

    @property
    def center_x(self) -> float:
        return (self.left + self.right) / 2

    @property
    def center_y(self) -> float:
        return (self.top + self.bottom) / 2


@dataclass(frozen=True)
class Scene:
    """A photo with all its annotated objects, in pixels."""

    image_id: int
    width: int
    height: int
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class GradedExpression:
    """
    An expression, its level, the annotations that it means together (none for an absent referent), and those of its
    landmarks, the objects that it names beside them.
    """

    text: str
    level: str
    annotation_ids: tuple[int, ...]
    landmark_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Margins:
    """
    How clear a difference has to be, as shares of the image.

    Args:
        order (`float`): Between neighbouring centres, of the width or the height.
        nearness (`float`): Between the distances to an anchor, of the diagonal.
        area_ratio (`float`): Between neighbouring areas.
        smallest_target (`float`): Area of the smallest object worth an expression of its own.
    """

    order: float = 0.05
    nearness: float = 0.12
    area_ratio: float = 1.6
    smallest_target: float = 0.004


@dataclass(frozen=True)
class _Candidate:
    """Alternatives of wording for one meaning; `{x}` and `{xs}` stand for the noun, `{y}` for an anchor."""

    level: str
    targets: tuple[SceneObject, ...]
    templates: tuple[str, ...]
    category: str
    anchor: str | None = None
    anchor_phrase: str | None = None
    landmarks: tuple[SceneObject, ...] = ()


@dataclass
class _Axis:
    """One direction in which objects are put in order, with its words."""

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
            first_of_two=("the left {x}", "the {x} on the left", "the {x} to the left", "the leftmost {x}"),
            last_of_two=("the right {x}", "the {x} on the right", "the {x} to the right", "the rightmost {x}"),
            first_of_many=("the leftmost {x}", "the {x} on the far left", "the first {x} from the left"),
            last_of_many=("the rightmost {x}", "the {x} on the far right", "the first {x} from the right"),
            from_start=("the {nth} {x} from the left", "the {nth} {x} counting from the left"),
            from_end=("the {nth} {x} from the right", "the {nth} {x} counting from the right"),
            middle=("the middle {x}", "the {x} in the middle"),
            group_at_start=("the {n} leftmost {xs}", "the {n} {xs} furthest to the left"),
            group_at_end=("the {n} rightmost {xs}", "the {n} {xs} furthest to the right"),
        ),
        _Axis(
            center=lambda item: item.center_y,
            start=lambda item: item.top,
            end=lambda item: item.bottom,
            extent=scene.height,
            first_of_two=("the upper {x}", "the higher {x}", "the {x} higher up in the picture"),
            last_of_two=("the lower {x}", "the {x} lower down in the picture"),
            first_of_many=("the topmost {x}", "the highest {x}", "the {x} nearest to the top of the picture"),
            last_of_many=("the lowest {x}", "the bottommost {x}", "the {x} nearest to the bottom of the picture"),
        ),
    ]


@dataclass(frozen=True)
class _Relation:
    """A place relative to an anchor: which objects clearly have it, and which clearly do not."""

    words: tuple[str, ...]
    holds: Callable[[SceneObject, SceneObject, float], bool]
    fails: Callable[[SceneObject, SceneObject, float], bool]


_RELATIONS = (
    _Relation(
        ("left of", "to the left of"),
        lambda item, anchor, slack: item.center_x <= anchor.left - slack and item.right <= anchor.center_x,
        lambda item, anchor, slack: item.center_x >= anchor.left + slack,
    ),
    _Relation(
        ("right of", "to the right of"),
        lambda item, anchor, slack: item.center_x >= anchor.right + slack and item.left >= anchor.center_x,
        lambda item, anchor, slack: item.center_x <= anchor.right - slack,
    ),
    _Relation(
        ("above", "higher than"),
        lambda item, anchor, slack: item.center_y <= anchor.top - slack and item.bottom <= anchor.center_y,
        lambda item, anchor, slack: item.center_y >= anchor.top + slack,
    ),
    _Relation(
        ("below", "lower than"),
        lambda item, anchor, slack: item.center_y >= anchor.bottom + slack and item.top >= anchor.center_y,
        lambda item, anchor, slack: item.center_y <= anchor.bottom - slack,
    ),
)
_OPPOSITES = (_RELATIONS[1], _RELATIONS[0], _RELATIONS[3], _RELATIONS[2])


@dataclass
class ExpressionWriter:
    """
    Writes the expressions of photos.

    Args:
        vocabulary (`dict[str, str]`):
            All categories of the dataset, each with its supercategory: those that a photo lacks can be named as
            absent.
        seed (`int`, *optional*, defaults to 0):
            The expressions of a photo depend on it and on the photo's id alone, not on the order of photos.
        max_per_level (`int`, *optional*, defaults to 4):
            Most expressions of one level for one photo.
        absent_share (`float`, *optional*, defaults to 0.2):
            Largest share of the expressions of a photo that are `absent`: what is not there never runs out.
        levels (`Sequence[str]`, *optional*):
            Levels to write; all if left out.
        margins (`Margins`, *optional*):
            How clear a difference has to be.
    """

    vocabulary: dict[str, str]
    seed: int = 0
    max_per_level: int = 4
    absent_share: float = 0.2
    levels: Sequence[str] = LEVELS
    margins: Margins = field(default_factory=Margins)

    def __post_init__(self):
        unknown = set(self.levels) - set(LEVELS)
        if unknown:
            raise ValueError(f"unknown levels {sorted(unknown)}: choose among {LEVELS}")
        if self.max_per_level < 1:
            raise ValueError(f"`max_per_level` must be at least 1, got {self.max_per_level}")
        if not 0 <= self.absent_share < 1:
            raise ValueError(f"`absent_share` must be at least 0 and below 1, got {self.absent_share}")

    def write(self, scene: Scene) -> list[GradedExpression]:
        """
        Expressions of a photo; no text occurs twice, and each has one meaning.

        Returns:
            `list[GradedExpression]`: by level, in the order of [`LEVELS`].
        """
        # A string seeds `random` alike in every process, which a tuple would not.
        generator = random.Random(f"{self.seed}:{scene.image_id}")
        by_level: dict[str, list[_Candidate]] = defaultdict(list)
        for candidate in self._candidates(scene, generator):
            by_level[candidate.level].append(candidate)
        expressions: dict[str, GradedExpression] = {}
        ambiguous: set[str] = set()
        for level in LEVELS:
            candidates = by_level[level]
            generator.shuffle(candidates)
            most, written = self.max_per_level, 0
            if level == "absent" and len(self.levels) > 1:
                others = len(expressions)
                most = min(most, math.ceil(others * self.absent_share / (1 - self.absent_share)))
            for candidate in candidates:
                if written == most or level not in self.levels:
                    break
                text = _word(candidate, generator)
                meaning = tuple(sorted(item.annotation_id for item in candidate.targets))
                if text in expressions:
                    if expressions[text].annotation_ids != meaning:
                        ambiguous.add(text)
                    continue
                landmarks = tuple(item.annotation_id for item in candidate.landmarks)
                expressions[text] = GradedExpression(text, level, meaning, landmarks)
                written += 1
        return [expression for text, expression in expressions.items() if text not in ambiguous]

    def _candidates(self, scene: Scene, generator: random.Random) -> Iterator[_Candidate]:
        groups: dict[str, list[SceneObject]] = defaultdict(list)
        for item in scene.objects:
            groups[item.category].append(item)
        countable = {category: items for category, items in groups.items() if not any(item.is_crowd for item in items)}
        single = {category: items[0] for category, items in countable.items() if len(items) == 1}
        ordered = [
            candidate
            for category, items in countable.items()
            if len(items) > 1
            for candidate in (*self._positions(scene, category, items), *self._sizes(category, items))
        ]
        ordered = [candidate for candidate in ordered if self._is_target(scene, candidate.targets[0])]
        for category, item in single.items():
            if self._is_target(scene, item):
                yield _Candidate("category", (item,), ("the {x}",), category)
        yield from ordered
        anchors = [(item, category, None) for category, item in single.items() if self._is_target(scene, item)]
        chained = [(candidate.targets[0], candidate.category, candidate.templates[0]) for candidate in ordered]
        for level, choices in (("relation", anchors), ("chain", chained)):
            for category, items in countable.items():
                if len(items) > 1:
                    for anchor, anchor_category, phrase in choices:
                        if anchor_category != category:
                            yield from self._relations(scene, level, category, items, anchor, phrase)
        yield from self._counts(scene, groups, countable, single, generator)
        yield from self._absences(scene, groups, countable, single, generator)

    def _is_target(self, scene: Scene, item: SceneObject) -> bool:
        return item.area >= self.margins.smallest_target * scene.width * scene.height

    def _positions(self, scene: Scene, category: str, items: list[SceneObject]) -> Iterator[_Candidate]:
        for axis in _axes(scene):
            margin = self.margins.order * axis.extent
            line = sorted(items, key=axis.center)
            clear = [axis.center(after) - axis.center(before) >= margin for before, after in itertools.pairwise(line)]
            count = len(line)
            # The edge decides as well as the centre: a wide object can begin further left than one whose centre is.
            first = clear[0] and axis.start(line[0]) <= min(axis.start(item) for item in line[1:]) + margin / 2
            last = clear[-1] and axis.end(line[-1]) >= max(axis.end(item) for item in line[:-1]) - margin / 2
            first_words, last_words = (
                (axis.first_of_two, axis.last_of_two) if count == 2 else (axis.first_of_many, axis.last_of_many)
            )
            if first:
                yield _Candidate("position", (line[0],), first_words, category)
            if last:
                yield _Candidate("position", (line[-1],), last_words, category)
            for place in range(1, min(count - 1, 4)):
                if axis.from_start and all(clear[: place + 1]):
                    words = tuple(template.replace("{nth}", ORDINAL_WORDS[place + 1]) for template in axis.from_start)
                    yield _Candidate("position", (line[place],), words, category)
                if axis.from_end and all(clear[count - 2 - place :]):
                    words = tuple(template.replace("{nth}", ORDINAL_WORDS[place + 1]) for template in axis.from_end)
                    yield _Candidate("position", (line[-1 - place],), words, category)
            if axis.middle and count == 3 and all(clear):
                yield _Candidate("position", (line[1],), axis.middle, category)

    def _sizes(self, category: str, items: list[SceneObject]) -> Iterator[_Candidate]:
        line = sorted(items, key=lambda item: item.area)
        clear = [after.area >= self.margins.area_ratio * before.area for before, after in itertools.pairwise(line)]
        if len(line) == 2:
            if clear[0]:
                smaller = ("the smaller {x}", "the smaller of the two {xs}")
                bigger = ("the bigger {x}", "the larger {x}", "the larger of the two {xs}")
                yield _Candidate("size", (line[0],), smaller, category)
                yield _Candidate("size", (line[1],), bigger, category)
            return
        if clear[0]:
            yield _Candidate("size", (line[0],), ("the smallest {x}", "the tiniest {x}"), category)
        if clear[-1]:
            words = ("the biggest {x}", "the largest {x}", "the {x} that takes up the most space")
            yield _Candidate("size", (line[-1],), words, category)
        if clear[-1] and clear[-2]:
            words = ("the second biggest {x}", "the second largest {x}")
            yield _Candidate("size", (line[-2],), words, category)

    def _relations(
        self,
        scene: Scene,
        level: str,
        category: str,
        items: list[SceneObject],
        anchor: SceneObject,
        phrase: str | None,
    ) -> Iterator[_Candidate]:
        slack = self.margins.order / 2 * min(scene.width, scene.height)
        for relation in _RELATIONS:
            holding = [item for item in items if relation.holds(item, anchor, slack)]
            failing = [item for item in items if relation.fails(item, anchor, slack)]
            if len(holding) == 1 and len(failing) == len(items) - 1 and self._is_target(scene, holding[0]):
                templates = tuple(f"the {{x}} {words} {{y}}" for words in relation.words)
                yield _Candidate(level, (holding[0],), templates, category, anchor.category, phrase, (anchor,))
        diagonal = (scene.width**2 + scene.height**2) ** 0.5
        line = sorted(items, key=lambda item: _gap(item, anchor))
        distances = [_gap(item, anchor) / diagonal for item in line]
        if distances[1] - distances[0] >= self.margins.nearness and self._is_target(scene, line[0]):
            words = ("the {x} nearest to {y}", "the {x} closest to {y}")
            if distances[0] < 0.02:
                words += ("the {x} next to {y}",)
            yield _Candidate(level, (line[0],), words, category, anchor.category, phrase, (anchor,))
        if distances[-1] - distances[-2] >= self.margins.nearness and self._is_target(scene, line[-1]):
            words = ("the {x} furthest from {y}", "the {x} farthest away from {y}")
            yield _Candidate(level, (line[-1],), words, category, anchor.category, phrase, (anchor,))

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
            templates: tuple[str, ...] = ("all the {xs}", "every {x}", "all {xs}", "each {x} in the picture")
            if category in countable and len(items) == 2:
                templates = ("both {xs}", "the two {xs}", "all the {xs}")
            elif category in countable and len(items) < len(NUMBER_WORDS):
                templates += (f"the {NUMBER_WORDS[len(items)]} {{xs}}", f"all {NUMBER_WORDS[len(items)]} {{xs}}")
            if category == "person":
                templates += ("everyone", "everybody in the picture")
            yield _Candidate("count", tuple(items), templates, category)
        for category, items in countable.items():
            yield from self._groups_at_one_side(scene, category, items)
        alone = [item for item in single.values() if self._is_target(scene, item)]
        # Few of the many pairs, or they would crowd out all other expressions with several targets.
        for _ in range(min(2, len(alone) // 2)):
            first, second = generator.sample(alone, 2)
            yield _Candidate("count", (first, second), ("the {x} and {y}",), first.category, second.category)

    def _groups_at_one_side(self, scene: Scene, category: str, items: list[SceneObject]) -> Iterator[_Candidate]:
        axis = _axes(scene)[0]
        line = sorted(items, key=axis.center)
        margin = self.margins.order * axis.extent
        for size in range(2, min(len(line), 4)):
            for members, others, templates in (
                (line[:size], line[size:], axis.group_at_start),
                (line[-size:], line[:-size], axis.group_at_end),
            ):
                gap = min(abs(axis.center(one) - axis.center(other)) for one in members for other in others)
                if gap >= 1.5 * margin and all(self._is_target(scene, item) for item in members):
                    words = tuple(template.replace("{n}", NUMBER_WORDS[size]) for template in templates)
                    yield _Candidate("count", tuple(members), words, category)

    def _absences(
        self,
        scene: Scene,
        groups: dict[str, list[SceneObject]],
        countable: dict[str, list[SceneObject]],
        single: dict[str, SceneObject],
        generator: random.Random,
    ) -> Iterator[_Candidate]:
        absent = [name for name in self.vocabulary if not any(confusable(name, present) for present in groups)]
        if groups and absent:
            # Half of them akin to what is there: a bus is a harder "no" beside a bicycle than beside a banana.
            present_kinds = {self.vocabulary.get(name, "") for name in groups}
            akin = [name for name in absent if self.vocabulary[name] in present_kinds]
            chosen = [
                generator.choice(akin if akin and turn % 2 else absent) for turn in range(2 * self.max_per_level)
            ]
            for category in dict.fromkeys(chosen):
                yield _Candidate("absent", (), ("the {x}", "all the {xs}", "the {x} on the left"), category)
            visible = [category for category, items in countable.items() if self._is_target(scene, items[0])]
            for category in visible[: self.max_per_level]:
                templates = ("the {x} next to {y}", "the {x} left of {y}", "the {x} right of {y}")
                yield _Candidate("absent", (), templates, category, generator.choice(absent))
        for category, items in countable.items():
            if len(items) < 4:
                nth = ORDINAL_WORDS[len(items) + 1]
                templates = (f"the {nth} {{x}} from the left", f"the {nth} {{x}} from the right")
                yield _Candidate("absent", (), templates, category)
        slack = self.margins.order / 2 * min(scene.width, scene.height)
        for category, items in countable.items():
            for anchor_category, anchor in single.items():
                if anchor_category == category or not self._is_target(scene, anchor):
                    continue
                for relation, opposite in zip(_RELATIONS, _OPPOSITES, strict=True):
                    if all(opposite.holds(item, anchor, slack) for item in items):
                        templates = tuple(f"the {{x}} {words} {{y}}" for words in relation.words)
                        yield _Candidate("absent", (), templates, category, anchor_category, landmarks=(anchor,))


def _gap(first: SceneObject, second: SceneObject) -> float:
    """Distance between two boxes, 0 where they touch."""
    across = max(first.left - second.right, second.left - first.right, 0)
    down = max(first.top - second.bottom, second.top - first.bottom, 0)
    return (across**2 + down**2) ** 0.5


def _word(candidate: _Candidate, generator: random.Random) -> str:
    singular, plural = generator.choice(category_names(candidate.category))
    text = generator.choice(_unambiguous(candidate.templates, singular, plural))
    text = text.replace("{xs}", plural).replace("{x}", singular)
    if candidate.anchor is not None:
        anchor, anchors = generator.choice(category_names(candidate.anchor))
        phrase = candidate.anchor_phrase or "the {x}"
        text = text.replace("{y}", phrase.replace("{xs}", anchors).replace("{x}", anchor))
    # People leave the first article out as often as not.
    return text[4:] if text.startswith("the ") and generator.random() < 0.3 else text


def _unambiguous(templates: Iterable[str], singular: str, plural: str) -> list[str]:
    """Templates that still tell one from several where the two are the same word, as with sheep."""
    templates = list(templates)
    if singular != plural:
        return templates
    return [template for template in templates if template != "the {xs}"] or templates
