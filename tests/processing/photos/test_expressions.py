import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing.photos.expressions import LEVELS, ExpressionWriter, Margins, Scene, SceneObject
from processing.photos.wording import category_names, confusable, pluralize


CATEGORIES = ("dog", "cup", "person", "sheep", "car", "zebra", "kite", "bench")
VOCABULARY = dict.fromkeys(CATEGORIES, "thing")
WIDTH, HEIGHT = 400, 300
ORDINALS = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4}
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
RELATIONS = {
    "left of": lambda item, anchor: item.center_x < anchor.left,
    "right of": lambda item, anchor: item.center_x > anchor.right,
    "above": lambda item, anchor: item.center_y < anchor.top,
    "below": lambda item, anchor: item.center_y > anchor.bottom,
}
RELATIONS |= {f"to the {name}": rule for name, rule in RELATIONS.items() if name.endswith("of")}
RELATIONS |= {"higher than": RELATIONS["above"], "lower than": RELATIONS["below"]}
NEARNESS = ("nearest to", "closest to", "next to", "furthest from", "farthest away from")


def distance(first, second):
    across = max(first.left - second.right, second.left - first.right, 0)
    down = max(first.top - second.bottom, second.top - first.bottom, 0)
    return across * across + down * down


class Reader:
    """Finds what a text means in a scene from the words alone: the definition of the language, without margins."""

    def __init__(self, scene):
        self.objects = scene.objects
        self.nouns = {singular: name for name in CATEGORIES for singular, _ in category_names(name)}
        self.plurals = {plural: name for name in CATEGORIES for _, plural in category_names(name)}
        self.singular = "(?P<x>" + "|".join(self.nouns) + ")"
        self.plural = "(?P<xs>" + "|".join(self.plurals) + ")"

    def of(self, category):
        return [item for item in self.objects if item.category == category]

    def read(self, text):
        """Ids of what is meant; None for a text that is not of the language."""
        text = text.removeprefix("the ")
        if text in ("everyone", "everybody in the picture"):
            return self.ids(self.of("person"))
        one, many = self.singular, self.plural
        for pattern, find in (
            (f"{one}", self.only),
            (f"(left|leftmost) {one}|{one} (on|to) the (far )?left", lambda items: self.sort(items, "center_x")[:1]),
            (
                f"(right|rightmost) {one}|{one} (on|to) the (far )?right",
                lambda items: self.sort(items, "center_x")[-1:],
            ),
            (
                f"(upper|higher|topmost|highest) {one}|{one} (higher up in|nearest to the top of) the picture",
                lambda items: self.sort(items, "center_y")[:1],
            ),
            (
                f"(lower|lowest|bottommost) {one}|{one} (lower down in|nearest to the bottom of) the picture",
                lambda items: self.sort(items, "center_y")[-1:],
            ),
            (f"middle {one}|{one} in the middle", lambda items: self.sort(items, "center_x")[1:2]),
            (
                f"(smaller|smallest|tiniest) {one}|smaller of the two {many}",
                lambda items: self.sort(items, "area")[:1],
            ),
            (
                f"(bigger|larger|biggest|largest) {one}|larger of the two {many}|{one} that takes up the most space",
                lambda items: self.sort(items, "area")[-1:],
            ),
            (f"second (biggest|largest) {one}", lambda items: self.sort(items, "area")[-2:-1]),
            (f"(all the|all|both) {many}|(every|each) {one}( in the picture)?", lambda items: items),
        ):
            match = re.fullmatch(pattern.replace(f"|{one}", "|" + one.replace("<x>", "<x2>")), text)
            if match:
                return self.ids(find(self.of(self.category(match))))
        match = re.fullmatch(f"(?P<nth>\\w+) {one} (counting )?from the (?P<side>left|right)", text)
        if match and match["nth"] in ORDINALS:
            line = self.sort(self.of(self.nouns[match["x"]]), "center_x")
            line = line if match["side"] == "left" else line[::-1]
            return self.ids(line[ORDINALS[match["nth"]] :][:1])
        match = re.fullmatch(f"(all )?(?P<n>two|three|four|five|six) {many}", text)
        if match:
            items = self.of(self.plurals[match["xs"]])
            return self.ids(items) if len(items) == NUMBERS[match["n"]] else ()
        match = re.fullmatch(
            f"(?P<n>two|three) (?P<side>left|right)most {many}|(?P<n2>two|three) "
            f"{many.replace('<xs>', '<xs2>')} furthest to the (?P<side2>left|right)",
            text,
        )
        if match:
            line = self.sort(self.of(self.plurals[match["xs"] or match["xs2"]]), "center_x")
            count = NUMBERS[match["n"] or match["n2"]]
            return self.ids(line[:count] if (match["side"] or match["side2"]) == "left" else line[-count:])
        match = re.fullmatch(f"{one} and the {one.replace('<x>', '<y>')}", text)
        if match:
            both = [self.read(match["x"]), self.read(match["y"])]
            return () if () in both else tuple(sorted(both[0] + both[1]))
        return self.read_relation(text)

    def read_relation(self, text):
        match = re.fullmatch(f"{self.singular} (?P<how>.+?) the (?P<anchor>.+)", text)
        if not match:
            return None
        items, how = self.of(self.nouns[match["x"]]), match["how"]
        # The shortest relation word is not always the whole of it: "to the left of the cup".
        for name in sorted([*RELATIONS, "nearest to", "closest to", "next to", "furthest from", "farthest away from"]):
            rest = text.removeprefix(match["x"] + " ")
            if rest.startswith(f"{name} the "):
                how, anchor_text = name, rest.removeprefix(f"{name} the ")
                break
        else:
            return None
        anchor_ids = self.read(anchor_text)
        if anchor_ids is None:
            return None
        anchors = [item for item in self.objects if item.annotation_id in anchor_ids]
        if not anchors:
            return ()
        (anchor,) = anchors
        if how in RELATIONS:
            return self.ids([item for item in items if RELATIONS[how](item, anchor)])
        line = sorted(items, key=lambda item: distance(item, anchor))
        return self.ids(line[-1:] if "from" in how else line[:1])

    def category(self, match):
        groups = match.groupdict()
        noun = groups.get("x") or groups.get("x2")
        return self.nouns[noun] if noun else self.plurals[groups["xs"]]

    @staticmethod
    def sort(items, attribute):
        return sorted(items, key=lambda item: getattr(item, attribute))

    @staticmethod
    def only(items):
        return items if len(items) == 1 else []

    @staticmethod
    def ids(items):
        return tuple(sorted(item.annotation_id for item in items))


@st.composite
def scenes(draw):
    objects = []
    for number in range(draw(st.integers(0, 9))):
        width, height = draw(st.integers(12, 150)), draw(st.integers(12, 120))
        left, top = draw(st.integers(0, WIDTH - width)), draw(st.integers(0, HEIGHT - height))
        objects.append(
            SceneObject(
                annotation_id=100 + number,
                category=draw(st.sampled_from(CATEGORIES[:5])),
                left=left,
                top=top,
                right=left + width,
                bottom=top + height,
                area=width * height * draw(st.sampled_from((0.3, 0.5, 1.0))),
                is_crowd=draw(st.integers(0, 9)) == 0,
            )
        )
    return Scene(draw(st.integers(1, 10**6)), WIDTH, HEIGHT, tuple(objects))


@settings(max_examples=300)
@given(scenes(), st.integers(0, 3))
def test_every_expression_means_what_it_says(scene, seed):
    expressions = ExpressionWriter(VOCABULARY, seed=seed, max_per_level=6).write(scene)
    reader = Reader(scene)
    assert len({expression.text for expression in expressions}) == len(expressions)
    for expression in expressions:
        assert expression.level in LEVELS
        meaning = reader.read(expression.text)
        assert meaning is not None, f"not understood: {expression.text}"
        if expression.level == "absent":
            assert expression.annotation_ids == ()
            assert meaning == (), expression.text
        else:
            assert meaning == expression.annotation_ids, expression.text
            single = expression.level != "count"
            assert (len(meaning) == 1) if single else meaning
            crowds = {item.annotation_id for item in scene.objects if item.is_crowd}
            assert not single or not crowds & set(meaning)


@settings(max_examples=100)
@given(scenes(), st.integers(0, 3))
def test_landmarks_are_the_objects_that_are_named_beside_the_referent(scene, seed):
    objects = {item.annotation_id: item for item in scene.objects}
    for expression in ExpressionWriter(VOCABULARY, seed=seed, max_per_level=6).write(scene):
        assert not set(expression.landmark_ids) & set(expression.annotation_ids)
        if expression.level in ("relation", "chain"):
            assert len(expression.landmark_ids) == 1
        elif expression.level != "absent":
            assert not expression.landmark_ids
        for identifier in expression.landmark_ids:
            nouns = {noun for names in category_names(objects[identifier].category) for noun in names}
            # What stands behind the relation, "the left car" of "the dog nearest to the left car", is the landmark.
            anchor = re.search(f"(?:{'|'.join([*RELATIONS, *NEARNESS])}) (the .+)", expression.text)[1]
            assert any(noun in anchor for noun in nouns), expression.text
            if expression.level == "chain":
                assert Reader(scene).read(anchor) == (identifier,), expression.text


@settings(max_examples=60)
@given(scenes())
def test_meaning_survives_a_small_shift_of_every_box(scene):
    """A margin is there so that what an expression means does not hang on a pixel."""
    expressions = ExpressionWriter(VOCABULARY).write(scene)
    moved = tuple(
        SceneObject(
            item.annotation_id,
            item.category,
            item.left + shift,
            item.top - shift,
            item.right + shift,
            item.bottom - shift,
            item.area,
            item.is_crowd,
        )
        for item, shift in zip(scene.objects, (2, -2, 1, -1, 2, -1, 1, -2, 2), strict=False)
    )
    reader = Reader(Scene(scene.image_id, WIDTH, HEIGHT, moved))
    for expression in expressions:
        assert reader.read(expression.text) == expression.annotation_ids, expression.text


def scene_of(*objects, image_id=7):
    return Scene(
        image_id,
        WIDTH,
        HEIGHT,
        tuple(
            SceneObject(index, category, left, top, left + size, top + size, size * size, is_crowd)
            for index, (category, left, top, size, is_crowd) in enumerate(objects)
        ),
    )


KITCHEN = scene_of(
    ("cup", 10, 100, 40, False),
    ("cup", 120, 100, 60, False),
    ("cup", 250, 100, 90, False),
    ("dog", 180, 20, 50, False),
    ("person", 330, 150, 60, True),
    ("person", 300, 30, 40, False),
)


def texts_by_level(scene, **options):
    found = {}
    for seed in range(30):
        for expression in ExpressionWriter(VOCABULARY, seed=seed, max_per_level=50, **options).write(scene):
            found.setdefault(expression.level, {})[expression.text.removeprefix("the ")] = expression.annotation_ids
    return found


def test_each_level_is_written_from_a_scene_that_has_it():
    found = texts_by_level(KITCHEN)
    assert set(found) == set(LEVELS) - {"chain"}
    assert found["category"] == {"dog": (3,)}
    assert found["position"]["second cup from the left"] == (1,)
    assert found["position"]["middle cup"] == (1,)
    assert found["position"]["rightmost cup"] == (2,)
    assert found["size"]["biggest cup"] == (2,)
    assert found["size"]["second largest cup"] == (1,)
    assert found["relation"]["cup furthest from the dog"] == (0,)
    assert found["count"]["all the cups"] == (0, 1, 2)
    assert found["count"]["three cups"] == (0, 1, 2)
    assert found["count"]["two leftmost cups"] == (0, 1)
    assert found["absent"]["fourth cup from the left"] == ()
    assert found["absent"]["zebra"] == ()


def test_a_crowd_is_part_of_all_and_of_nothing_else():
    found = texts_by_level(KITCHEN)
    people = {(level, text): ids for level, texts in found.items() for text, ids in texts.items() if ids and 4 in ids}
    assert {level for level, _ in people} == {"count"}
    assert set(people.values()) == {(4, 5)}
    assert "everyone" in {text for _, text in people}
    everything = {text for texts in found.values() for text in texts}
    assert not any(re.search(r"\b(two|both) people|person from the|left person", text) for text in everything)


def test_a_chain_names_its_anchor_by_place_or_size():
    scene = scene_of(
        ("car", 10, 20, 60, False),
        ("car", 300, 20, 90, False),
        ("dog", 20, 200, 50, False),
        ("dog", 330, 200, 50, False),
    )
    chains = texts_by_level(scene)["chain"]
    assert chains["dog nearest to the left car"] == (2,)
    assert chains["dog closest to the bigger car"] == (3,)
    assert "relation" not in texts_by_level(scene)


def test_objects_too_close_to_call_get_no_order():
    scene = scene_of(("cup", 100, 100, 60, False), ("cup", 110, 104, 62, False))
    assert set(texts_by_level(scene)) == {"count", "absent"}
    loose = texts_by_level(scene, margins=Margins(order=0.01, area_ratio=1.01))
    assert {"position", "size"} <= set(loose)


def test_small_objects_are_counted_but_not_referred_to():
    scene = scene_of(("cup", 10, 10, 8, False), ("cup", 200, 10, 90, False))
    found = texts_by_level(scene)
    assert all(ids == (1,) for texts in (found["position"], found["size"]) for ids in texts.values())
    assert "category" not in found


def test_nothing_that_could_pass_for_another_is_called_absent():
    vocabulary = dict.fromkeys(("cup", "bottle", "zebra", "bus"), "thing")
    scene = scene_of(("cup", 10, 10, 80, False))
    for seed in range(40):
        for expression in ExpressionWriter(vocabulary, seed=seed).write(scene):
            assert "bottle" not in expression.text
    assert confusable("cup", "bottle")
    assert not confusable("cup", "zebra")


def test_same_seed_same_words_whatever_came_before():
    writer = ExpressionWriter(VOCABULARY, seed=3)
    first = writer.write(KITCHEN)
    writer.write(scene_of(("dog", 10, 10, 80, False), image_id=8))
    assert writer.write(KITCHEN) == first
    assert ExpressionWriter(VOCABULARY, seed=4).write(KITCHEN) != first


def test_limits():
    writer = ExpressionWriter(VOCABULARY, max_per_level=2, absent_share=0.25)
    expressions = writer.write(KITCHEN)
    counts = {level: sum(expression.level == level for expression in expressions) for level in LEVELS}
    assert max(counts.values()) <= 2
    none = ExpressionWriter(VOCABULARY, absent_share=0.0).write(KITCHEN)
    assert all(expression.level != "absent" for expression in none)
    only = ExpressionWriter(VOCABULARY, levels=("absent",)).write(KITCHEN)
    assert {expression.level for expression in only} == {"absent"}
    for options, message in (
        ({"levels": ("colour",)}, "unknown levels"),
        ({"max_per_level": 0}, "max_per_level"),
        ({"absent_share": 1.0}, "absent_share"),
    ):
        with pytest.raises(ValueError, match=message):
            ExpressionWriter(VOCABULARY, **options)


@pytest.mark.parametrize(
    ("singular", "plural"),
    [("bus", "buses"), ("bench", "benches"), ("toothbrush", "toothbrushes"), ("baby", "babies"), ("toy", "toys")],
)
def test_plurals(singular, plural):
    assert pluralize(singular) == plural
