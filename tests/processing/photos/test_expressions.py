import itertools
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing.photos.color_names import COLOR_NAMES, ColorShares
from processing.photos.expressions import LEVELS, ExpressionWriter, Margins
from processing.photos.scene import Scene, SceneObject
from processing.photos.wording import CARRIED, SUPPORTS, category_names, confusable, pluralize


CATEGORIES = ("dog", "cup", "person", "sheep", "car", "umbrella", "horse", "bicycle", "zebra", "kite", "bench")
VOCABULARY = dict.fromkeys(CATEGORIES, "thing")
WIDTH, HEIGHT = 400, 300
ORDINALS = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4}
ORDINALS |= {"1st": 0, "2nd": 1, "3rd": 2, "4th": 3, "5th": 4}
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}


def distance(first, second):
    across = max(first.left - second.right, second.left - first.right, 0)
    down = max(first.top - second.bottom, second.top - first.bottom, 0)
    return across * across + down * down


def overlap(first, second):
    return min(first.right, second.right) - max(first.left, second.left)


def nearest(items, anchor, scene):
    return sorted(items, key=lambda item: distance(item, anchor))[:1]


def farthest(items, anchor, scene):
    return sorted(items, key=lambda item: distance(item, anchor))[-1:]


def each(rule):
    return lambda items, anchor, scene: [item for item in items if rule(item, anchor, scene)]


LEFT = each(lambda item, anchor, scene: item.center_x < anchor.left)
RIGHT = each(lambda item, anchor, scene: item.center_x > anchor.right)
RELATIONS = {
    **dict.fromkeys(("left of", "to left of", "on left of"), LEFT),
    **dict.fromkeys(("right of", "to right of", "on right of"), RIGHT),
    **dict.fromkeys(("above", "higher than"), each(lambda item, anchor, scene: item.center_y < anchor.top)),
    **dict.fromkeys(("below", "lower than"), each(lambda item, anchor, scene: item.center_y > anchor.bottom)),
    **dict.fromkeys(("nearest to", "closest to", "next to", "by", "beside", "near"), nearest),
    **dict.fromkeys(("furthest from", "farthest away from"), farthest),
    "on": each(lambda item, anchor, scene: scene.touch(item, anchor) and item.top < anchor.top + 1.5 * HEIGHT),
    "with": each(lambda item, anchor, scene: scene.touch(item, anchor)),
    "under": each(
        lambda item, anchor, scene: (
            anchor.top < item.top and overlap(item, anchor) > 0 and distance(item, anchor) <= 16
        )
    ),
    "in front of": each(lambda item, anchor, scene: item.bottom > anchor.bottom and overlap(item, anchor) > 0),
    "behind": each(lambda item, anchor, scene: item.bottom < anchor.bottom and overlap(item, anchor) > 0),
}
RELATION_WORDS = "|".join(sorted(RELATIONS, key=len, reverse=True))
COLOR_WORDS = "|".join(COLOR_NAMES)


def alternation(pattern, one, many):
    """A pattern in which `X` is the noun, which may be missing, and `XS` its plural, which may not."""
    pattern = pattern.replace(" XS", " @").replace("X ", f"({one} )?").replace(" X", f"( {one})?")
    return pattern.replace("@", many)


class Reader:
    """Finds what a text means in a scene from the words alone: the definition of the language, without margins."""

    def __init__(self, scene):
        self.scene = scene
        self.objects = scene.objects
        self.nouns = {singular: name for name in CATEGORIES for singular, _ in category_names(name)}
        self.nouns["someone"] = "person"
        self.plurals = {plural: name for name in CATEGORIES for _, plural in category_names(name)}
        self.one = "(?:" + "|".join([*self.nouns, "one"]) + ")"
        self.many = "(?:" + "|".join(self.plurals) + ")"

    def of(self, category):
        return [item for item in self.objects if item.category == category]

    def category(self, text):
        """Category of the noun of a text, or the one that fills the picture where there is none."""
        for nouns in (self.plurals, self.nouns):
            for noun in sorted(nouns, key=len, reverse=True):
                if re.search(rf"\b{noun}\b", text):
                    return nouns[noun]
        return max(self.objects, key=lambda item: item.area).category if self.objects else None

    def read(self, text):
        """Ids of what is meant; None for a text that is not of the language."""
        text = re.sub(r"\b(the|a|an) ", "", text)
        found = self.find(text)
        return None if found is None else tuple(sorted(item.annotation_id for item in found))

    def find(self, text):
        if text in ("everyone", "everybody"):
            return self.of("person")
        if text in self.nouns:
            items = self.of(self.nouns[text])
            if len(items) > 1 and text in self.plurals:
                return None  # one or all?
            return items if len(items) == 1 else []
        if text in self.plurals:
            return self.of(self.plurals[text])
        for find in (self.find_by_order, self.find_by_color, self.find_several, self.find_by_relation):
            found = find(text)
            if found is not None:
                return found
        return None

    def find_by_order(self, text):
        items = self.of(self.category(text))

        def order(key, start, stop=None):
            return sorted(items, key=key)[start:stop]

        for pattern, find in (
            (
                "(left|leftmost|left most|left side|far left) X|X ((on |to )?(far )?left|furthest left)",
                lambda: order(lambda item: item.center_x, 0, 1),
            ),
            (
                "(right|rightmost|right most|right side|far right) X|X ((on |to )?(far )?right|furthest right)",
                lambda: order(lambda item: item.center_x, -1),
            ),
            ("(upper|higher|topmost|highest|top) X|X (on|at) top", lambda: order(lambda item: item.center_y, 0, 1)),
            (
                "(lower|lowest|bottommost|bottom) X|X (on|at) bottom",
                lambda: order(lambda item: item.center_y, -1),
            ),
            ("(middle|center) X|X in (middle|center)", lambda: order(lambda item: item.center_x, 1, 2)),
            (
                "(front|closest|nearest) X|X (in front|in foreground|closest to us|closest to camera)",
                lambda: order(lambda item: item.bottom, -1),
            ),
            (
                "(back|farthest) X|X (in back|furthest away|in background)",
                lambda: order(lambda item: item.bottom, 0, 1),
            ),
            (
                "(smaller|smallest|tiniest|small|little) X|smaller of two XS",
                lambda: order(lambda item: item.area, 0, 1),
            ),
            ("(bigger|larger|biggest|largest|big) X|larger of two XS", lambda: order(lambda item: item.area, -1)),
            ("second (biggest|largest) X", lambda: order(lambda item: item.area, -2, -1)),
        ):
            if re.fullmatch(alternation(pattern, self.one, self.many), text):
                return find()
        corner = alternation("(in )?(?P<y>top|upper|bottom|lower) (?P<x>left|right)", "", "")
        match = re.fullmatch(f"({self.one} )?{corner}( {self.one})?", text)
        if match:
            x, y = (1 if match["x"] == "left" else -1), (1 if match["y"] in ("top", "upper") else -1)
            return order(lambda item: x * item.center_x / WIDTH + y * item.center_y / HEIGHT, 0, 1)
        nth, side = f"(?P<nth>{'|'.join(ORDINALS)})", "(counting )?from (?P<side>left|right)"
        match = re.fullmatch(alternation(f"{nth} X {side}", self.one, self.many), text) or re.fullmatch(
            alternation(f"X {nth} {side}", self.one, self.many), text
        )
        if match:
            line = order(lambda item: item.center_x, 0)
            return (line if match["side"] == "left" else line[::-1])[ORDINALS[match["nth"]] :][:1]
        return None

    def find_by_color(self, text):
        match = re.fullmatch(f"(?P<color>{COLOR_WORDS}) (?P<noun>{self.one})", text)
        if match:
            found = self.of_color(self.of(self.category(match["noun"])), match["color"])
            return found if len(found) <= 1 else None
        match = re.fullmatch(f"(all )?(?P<color>{COLOR_WORDS}) (?P<noun>{self.many})", text)
        if match:
            return self.of_color(self.of(self.category(match["noun"])), match["color"])
        match = re.fullmatch(
            f"(?:(?:person|someone) (?:in|with|wearing|dressed in) )?(?P<color>{COLOR_WORDS})(?P<top> top)?", text
        )
        if match and (match["top"] or " " in text):
            found = self.of_color(self.of("person"), match["color"])
            return found if len(found) <= 1 else None
        return None

    def of_color(self, items, color):
        place = COLOR_NAMES.index(color)
        measured = [(item, item.clothing if item.category == "person" else item.colors) for item in items]
        return [item for item, shares in measured if shares is not None and shares.sure[place] >= 0.5]

    def find_several(self, text):
        if re.fullmatch(f"(all|both) {self.many}|(every|each) {self.one}", text):
            return self.of(self.category(text))
        match = re.fullmatch(f"(all )?(?P<n>{'|'.join(NUMBERS)}) {self.many}", text)
        if match:
            items = self.of(self.category(text))
            return items if len(items) == NUMBERS[match["n"]] else []
        match = re.fullmatch(
            f"(?P<n>two|three) ((left|right)(most)? {self.many}|{self.many} (furthest to|on) (left|right))", text
        )
        if match:
            line = sorted(self.of(self.category(text)), key=lambda item: item.center_x)
            count = NUMBERS[match["n"]]
            return line[:count] if "left" in text else line[-count:]
        match = re.fullmatch(f"(?P<first>{self.one}) and (?P<second>{self.one})", text)
        if match:
            both = [self.find(match["first"]), self.find(match["second"])]
            return [] if [] in both else both[0] + both[1]
        return None

    def find_by_relation(self, text):
        match = re.fullmatch(f"(?P<x>{self.one}) between (?P<y>{self.one}) and (?P<z>{self.one})", text)
        if match:
            anchors = [*self.find(match["y"]), *self.find(match["z"])]
            if len(anchors) < 2:
                return []
            left, right = sorted(anchors, key=lambda item: item.center_x)
            items = self.of(self.category(match["x"]))
            return [item for item in items if left.right < item.center_x < right.left]
        match = re.fullmatch(f"(?P<x>{self.one}) (?P<how>{RELATION_WORDS}) (?P<anchor>.+)", text)
        if not match:
            return None
        items, how = self.of(self.category(match["x"])), match["how"]
        if how == "with":  # a thing, not the only one
            anchors = self.of(self.category(match["anchor"]))
            return [item for item in items if any(self.scene.touch(item, anchor) for anchor in anchors)]
        anchors = self.find(match["anchor"])
        if not anchors:
            return anchors
        (anchor,) = anchors
        return RELATIONS[how](items, anchor, self.scene)


def shares_of(*colors, unclear=()):
    return ColorShares(
        tuple(float(name in colors) for name in COLOR_NAMES),
        tuple(1.0 if name in colors else 0.5 if name in unclear else 0.0 for name in COLOR_NAMES),
    )


SHARES = (None, shares_of("red"), shares_of("blue"), shares_of("black", "dark"), shares_of(unclear=COLOR_NAMES))


@st.composite
def scenes(draw):
    objects = []
    for number in range(draw(st.integers(0, 9))):
        width, height = draw(st.integers(12, 150)), draw(st.integers(12, 120))
        left, top = draw(st.integers(0, WIDTH - width)), draw(st.integers(0, HEIGHT - height))
        objects.append(
            SceneObject(
                annotation_id=100 + number,
                category=draw(st.sampled_from(("dog", "dog", "sheep", "car", *CATEGORIES[:8], "person"))),
                left=left,
                top=top,
                right=left + width,
                bottom=top + height,
                area=width * height * draw(st.sampled_from((0.3, 0.5, 1.0))),
                is_crowd=draw(st.integers(0, 9)) == 0,
                is_cut=draw(st.integers(0, 9)) == 0,
                colors=(colors := draw(st.sampled_from(SHARES))),
                clothing=colors,
            )
        )
    touching = [
        frozenset((first.annotation_id, second.annotation_id))
        for first, second in itertools.combinations(objects, 2)
        if {first.category, second.category} & (CARRIED | set(SUPPORTS))
        and first.category != second.category
        and distance(first, second) == 0
        and draw(st.booleans())
    ]
    return Scene(draw(st.integers(1, 10**6)), WIDTH, HEIGHT, tuple(objects), frozenset(touching))


@settings(max_examples=300, deadline=None)
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


@settings(max_examples=100, deadline=None)
@given(scenes(), st.integers(0, 3))
def test_landmarks_are_the_objects_that_are_named_beside_the_referent(scene, seed):
    objects = {item.annotation_id: item for item in scene.objects}
    for expression in ExpressionWriter(VOCABULARY, seed=seed, max_per_level=6).write(scene):
        assert not set(expression.landmark_ids) & set(expression.annotation_ids)
        if expression.level in ("relation", "chain"):
            assert len(expression.landmark_ids) == 2 if " between " in expression.text else expression.landmark_ids
        elif expression.level != "absent":
            assert not expression.landmark_ids
        # What stands behind the relation, "the left car" of "the dog nearest to the left car", is the landmark.
        text = re.sub(r"\b(the|a|an) ", "", expression.text)
        for identifier in expression.landmark_ids:
            nouns = {noun for names in category_names(objects[identifier].category) for noun in names}
            anchor = re.search(rf"\b(?:{RELATION_WORDS}|between) (.+)", text)[1]
            assert any(noun in anchor for noun in nouns), expression.text
            if expression.level == "chain":
                assert Reader(scene).read(anchor) == (identifier,), expression.text


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_meaning_survives_a_small_shift_of_every_box(scene):
    """A margin is there so that what an expression means does not hang on a pixel."""
    expressions = ExpressionWriter(VOCABULARY).write(scene)
    moved = tuple(
        replace(
            item,
            left=item.left + shift,
            top=item.top - shift,
            right=item.right + shift,
            bottom=item.bottom - shift,
        )
        for item, shift in zip(scene.objects, (2, -2, 1, -1, 2, -1, 1, -2, 2), strict=False)
    )
    reader = Reader(replace(scene, objects=moved))
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
    """What is written in many tries, without articles."""
    found = {}
    for seed in range(60):
        for expression in ExpressionWriter(VOCABULARY, seed=seed, max_per_level=50, **options).write(scene):
            text = re.sub(r"\b(the|a|an) ", "", expression.text)
            found.setdefault(expression.level, {})[text] = expression.annotation_ids
    return found


def test_each_level_is_written_from_a_scene_that_has_it():
    found = texts_by_level(KITCHEN)
    assert set(found) == set(LEVELS) - {"chain", "color"}
    assert found["category"] == {"dog": (3,)}
    assert found["position"]["second cup from left"] == (1,)
    assert found["position"]["middle cup"] == (1,)
    assert found["position"]["rightmost cup"] == (2,)
    assert found["size"]["biggest cup"] == (2,)
    assert found["size"]["second largest cup"] == (1,)
    assert found["relation"]["cup furthest from dog"] == (0,)
    assert found["count"]["all cups"] == (0, 1, 2)
    assert found["count"]["three cups"] == (0, 1, 2)
    assert found["count"]["two leftmost cups"] == (0, 1)
    assert found["absent"]["fourth cup from left"] == ()
    assert found["absent"]["zebra"] == ()


def test_a_crowd_is_part_of_all_and_of_nothing_else():
    found = texts_by_level(KITCHEN)
    people = {(level, text): ids for level, texts in found.items() for text, ids in texts.items() if ids and 4 in ids}
    assert {level for level, _ in people} == {"count"}
    assert set(people.values()) == {(4, 5)}
    assert "everyone" in {text for _, text in people}
    everything = {text for texts in found.values() for text in texts}
    assert not any(re.search(r"\b(two|both) people|person from|left person", text) for text in everything)


def test_a_chain_names_its_anchor_by_place_or_size():
    scene = scene_of(
        ("car", 10, 20, 60, False),
        ("car", 300, 20, 90, False),
        ("dog", 20, 200, 50, False),
        ("dog", 330, 200, 50, False),
    )
    chains = texts_by_level(scene)["chain"]
    assert chains["dog nearest to left car"] == (2,)
    assert chains["dog closest to bigger car"] == (3,)
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
        ({"levels": ("colors",)}, "unknown levels"),
        ({"max_per_level": 0}, "max_per_level"),
        ({"max_per_image": 0}, "max_per_image"),
        ({"absent_share": 1.0}, "absent_share"),
    ):
        with pytest.raises(ValueError, match=message):
            ExpressionWriter(VOCABULARY, **options)


def person(identifier, left, *, top=40, bottom=240, width=60, **options):
    area = width * (bottom - top)
    return SceneObject(identifier, "person", left, top, left + width, bottom, area, **options)


def box(identifier, category, left, top, right, bottom, **options):
    return SceneObject(identifier, category, left, top, right, bottom, (right - left) * (bottom - top), **options)


def test_a_color_tells_objects_apart_only_where_the_others_clearly_lack_it():
    red, blue, unclear = SHARES[1], SHARES[2], SHARES[4]

    def texts(*colors):
        cars = [box(i, "car", 10 + 130 * i, 100, 110 + 130 * i, 160, colors=own) for i, own in enumerate(colors)]
        return texts_by_level(Scene(7, WIDTH, HEIGHT, tuple(cars)))

    found = texts(red, blue, blue)
    assert found["color"] == {"red car": (0,)}
    assert found["count"]["blue cars"] == (1, 2)
    assert found["absent"]["green car"] == ()
    assert "color" not in texts(red, unclear, blue) or "red car" not in texts(red, unclear, blue)["color"]
    assert "color" not in texts(red, red)
    assert texts(red)["color"] == {"red car": (0,)}
    assert texts(red)["absent"]["blue car"] == ()
    assert not any("red" in text for text in texts(red)["absent"])
    assert not any("car" in text and "blue" in text for text in texts(unclear).get("absent", {}))
    assert "color" not in texts(None)


def test_a_truck_that_is_blue_could_pass_for_the_blue_car():
    vocabulary = {**VOCABULARY, "truck": "thing"}
    scene = Scene(
        7,
        WIDTH,
        HEIGHT,
        (box(0, "car", 10, 100, 110, 160, colors=SHARES[1]), box(1, "truck", 200, 90, 320, 200, colors=SHARES[2])),
    )
    for seed in range(40):
        for expression in ExpressionWriter(vocabulary, seed=seed).write(scene):
            assert expression.level != "absent" or "blue" not in expression.text


def test_people_are_told_apart_by_what_they_wear_and_carry():
    people = (
        person(0, 20, colors=SHARES[1], clothing=SHARES[1]),
        person(1, 170, colors=SHARES[2], clothing=SHARES[2]),
        person(2, 320, colors=SHARES[2], clothing=SHARES[2]),
        box(3, "umbrella", 160, 10, 240, 60),
    )
    scene = Scene(7, WIDTH, HEIGHT, people, touching=frozenset({frozenset((1, 3))}))
    found = texts_by_level(scene)
    assert found["color"]["person in red"] == (0,)
    assert found["color"]["red top"] == (0,)
    assert found["relation"]["person with umbrella"] == (1,)
    assert "person in green" in found["absent"]
    assert not any(re.search(r"in (red|blue)", text) for text in found["absent"])
    both = replace(scene, touching=frozenset({frozenset((1, 3)), frozenset((2, 3))}))
    assert "person with umbrella" not in texts_by_level(both).get("relation", {})
    assert "person with umbrella" not in texts_by_level(replace(scene, has_pasted=True)).get("relation", {})


def test_a_rider_is_on_the_horse():
    rider, horse, walker = person(0, 120, top=20, bottom=160), box(1, "horse", 60, 100, 260, 260), person(2, 330)
    scene = Scene(7, WIDTH, HEIGHT, (rider, horse, walker), touching=frozenset({frozenset((0, 1))}))
    relations = texts_by_level(scene)["relation"]
    assert relations["person on horse"] == (0,)
    assert not any(re.search("in front of|behind", text) and ids == (0,) for text, ids in relations.items())


def test_depth_is_told_by_the_lower_edge():
    dogs = (box(0, "dog", 20, 150, 180, 290), box(1, "dog", 200, 120, 260, 180), box(2, "car", 190, 60, 330, 150))
    found = texts_by_level(Scene(7, WIDTH, HEIGHT, dogs))
    assert found["position"]["dog in front"] == (0,)
    assert found["position"]["closest dog"] == (0,)
    assert found["position"]["dog in back"] == (1,)
    assert found["relation"]["dog in front of car"] == (1,)
    pasted = texts_by_level(Scene(7, WIDTH, HEIGHT, dogs, has_pasted=True))
    assert "dog in front" not in pasted["position"]
    flying = tuple(replace(item, category="kite") for item in dogs[:2])
    assert "kite in front" not in texts_by_level(Scene(7, WIDTH, HEIGHT, flying))["position"]


def test_the_noun_is_left_out_only_where_its_category_fills_the_picture():
    zebras = (
        box(0, "zebra", 10, 100, 110, 200),
        box(1, "zebra", 150, 100, 250, 200),
        box(2, "zebra", 290, 90, 390, 220),
    )
    alone = texts_by_level(Scene(7, WIDTH, HEIGHT, zebras))["position"]
    assert alone["far left"] == alone["leftmost one"] == alone["leftmost zebra"] == (0,)
    assert alone["second from left"] == (1,)
    crowded = texts_by_level(Scene(7, WIDTH, HEIGHT, (*zebras, box(3, "car", 20, 10, 120, 90))))["position"]
    assert all("zebra" in text for text in crowded)


def test_what_the_edge_cuts_is_not_the_smaller_one():
    big, cut = box(0, "dog", 40, 60, 240, 260), box(1, "dog", 340, 100, 400, 200)
    assert "size" not in texts_by_level(Scene(7, WIDTH, HEIGHT, (big, cut)))
    whole = replace(cut, left=330, right=390)
    assert texts_by_level(Scene(7, WIDTH, HEIGHT, (big, whole)))["size"]["bigger dog"] == (0,)


def test_a_big_object_that_reaches_above_could_be_the_one_above():
    fork, far, near = box(0, "cup", 180, 150, 210, 180), person(1, 300, top=60, bottom=120), person(2, 60, top=20)
    relations = texts_by_level(Scene(7, WIDTH, HEIGHT, (fork, far, near))).get("relation", {})
    assert "person above cup" not in relations
    low = replace(near, top=150)
    assert texts_by_level(Scene(7, WIDTH, HEIGHT, (fork, far, low)))["relation"]["person above cup"] == (1,)


def test_nothing_is_on_the_left_that_lies_on_the_right():
    cups = (box(0, "cup", 220, 100, 280, 160), box(1, "cup", 320, 100, 390, 160))
    found = texts_by_level(Scene(7, WIDTH, HEIGHT, cups))["position"]
    assert found["left cup"] == (0,)
    assert "cup on left" not in found
    assert found["cup on right"] == (1,)


def test_what_a_crop_left_of_an_object_counts_but_is_no_target():
    """Two dogs, of one of which a paw is to be seen: none is the only dog, and neither is absent."""
    dogs = (box(0, "dog", 20, 100, 180, 220), box(1, "dog", 380, 150, 400, 250, is_cut=True))
    found = texts_by_level(Scene(7, WIDTH, HEIGHT, dogs))
    assert "category" not in found
    assert found["position"]["left dog"] == (0,)
    assert all(ids != (1,) for texts in found.values() for ids in texts.values())
    assert found["count"]["all dogs"] == (0, 1)
    assert not any(text.startswith("dog") and ids == () for text, ids in found["absent"].items() if " " not in text)


def test_of_photos_with_persons_only_nothing_else_is_said():
    scene = Scene(7, WIDTH, HEIGHT, (person(0, 20, colors=SHARES[1], clothing=SHARES[1]),), persons_only=True)
    found = texts_by_level(scene)
    assert set(found) == {"category", "color"}
    assert set(found["category"]) == {"person"}
    assert "person in red" in found["color"]


def test_most_per_image_keeps_the_levels_in_proportion():
    limited = ExpressionWriter(VOCABULARY, max_per_level=50, max_per_image=14)
    for image_id in range(20):
        expressions = limited.write(replace(KITCHEN, image_id=image_id))
        assert len(expressions) == 14
        counts = {level: sum(expression.level == level for expression in expressions) for level in LEVELS}
        assert counts["count"] <= 2
        assert counts["absent"] <= 3
        assert counts["position"] >= 1


def test_no_expression_tells_gender_or_identity():
    names = {noun for names in map(category_names, ("person", *CATEGORIES)) for pair in names for noun in pair}
    assert not names & {"man", "woman", "guy", "girl", "boy", "lady", "men", "women", "he", "she"}


def test_names_that_fit_two_things_are_said_of_neither_where_both_are():
    assert "bike" in {name for name, _ in category_names("bicycle")}
    assert "bike" not in {name for name, _ in category_names("bicycle", {"motorcycle", "bicycle"})}
    assert {name for name, _ in category_names("tv")} >= {"television", "screen", "monitor"}
    assert not {"screen", "monitor"} & {name for name, _ in category_names("tv", {"tv", "laptop"})}


@pytest.mark.parametrize(
    ("singular", "plural"),
    [("bus", "buses"), ("bench", "benches"), ("toothbrush", "toothbrushes"), ("baby", "babies"), ("toy", "toys")],
)
def test_plurals(singular, plural):
    assert pluralize(singular) == plural
