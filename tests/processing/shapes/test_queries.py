"""The written semantics, case by case, on scenes made by hand."""

import pytest

from processing.shapes.queries import (
    Except,
    Phrase,
    Pick,
    Query,
    Region,
    Relation,
    SameAs,
    SizeThan,
    UnclearError,
    landmarks_of,
    resolve,
)
from processing.shapes.scene import Scene, ShapeObject


def shape(kind: str, x: float, y: float, color: str = "red", size: str = "small", scale: float = 0.115) -> ShapeObject:
    return ShapeObject(kind, color, "solid", size, x, y, scale, 0.0, 0.0)


def scene(*objects: ShapeObject) -> Scene:
    return Scene(objects, "plain", 0)


STAR, RING = Phrase(kind="star"), Phrase(kind="ring")
THE_RING = Query(RING)
AROUND = scene(
    shape("ring", 0.5, 0.5),
    shape("star", 0.2, 0.55),
    shape("star", 0.8, 0.45),
    shape("star", 0.55, 0.2),
    shape("star", 0.45, 0.9, "blue"),
)


@pytest.mark.parametrize(("direction", "answer"), [("left", 1), ("right", 2), ("above", 3), ("below", 4)])
def test_directions(direction, answer):
    assert resolve(Query(STAR, (Relation(direction, THE_RING),)), AROUND) == (answer,)


def test_a_direction_is_a_quarter_of_the_compass():
    # The second star is farther left but rather above than left.
    found = scene(shape("ring", 0.5, 0.8), shape("star", 0.3, 0.75), shape("star", 0.25, 0.1))
    assert resolve(Query(STAR, (Relation("left", THE_RING),)), found) == (1,)
    assert resolve(Query(STAR, (Relation("above", THE_RING),)), found) == (2,)


@pytest.mark.parametrize("x", [0.29, 0.30, 0.31])
def test_diagonals_are_unclear(x):
    found = scene(shape("ring", 0.5, 0.5), shape("star", x, 0.3))
    with pytest.raises(UnclearError):
        resolve(Query(STAR, (Relation("left", THE_RING),)), found)


def test_a_definite_phrase_must_fit_one_object():
    two_rings = scene(*AROUND.objects, shape("ring", 0.1, 0.1))
    with pytest.raises(UnclearError, match="fits 2 objects"):
        resolve(Query(STAR, (Relation("left", THE_RING),)), two_rings)
    with pytest.raises(UnclearError, match="fits 4 objects"):
        resolve(Query(STAR), AROUND)
    assert resolve(Query(STAR, several=True), AROUND) == (1, 2, 3, 4)


def test_a_missing_anchor_leaves_no_referent():
    assert resolve(Query(STAR, (Relation("left", Query(Phrase(kind="heart"))),)), AROUND) == ()
    assert resolve(Query(Phrase(kind="star", color="green")), AROUND) == ()


def test_chains_resolve_from_inside():
    found = scene(*AROUND.objects, shape("square", 0.2, 0.85), shape("square", 0.8, 0.8))
    inner = Query(STAR, (Relation("left", THE_RING),))
    assert resolve(Query(Phrase(kind="square"), (Relation("below", inner),)), found) == (5,)


def test_landmarks_are_what_is_named_on_the_way():
    found = scene(*AROUND.objects, shape("square", 0.2, 0.85), shape("square", 0.8, 0.8))
    ring = resolve(THE_RING, found)
    left = Query(STAR, (Relation("left", THE_RING),))
    assert landmarks_of(Query(STAR, several=True), found) == ()
    assert landmarks_of(left, found) == ring
    assert landmarks_of(Query(STAR, pick=Pick("nearest", anchor=THE_RING)), found) == ring
    below = Query(Phrase(kind="square"), (Relation("below", left),))
    assert landmarks_of(below, found) == tuple(sorted({*ring, *resolve(left, found)}))
    assert landmarks_of(Query(STAR, several=True, also=(below,)), found) == landmarks_of(below, found)
    missing = Relation("left", Query(Phrase(kind="heart"), (Relation("above", THE_RING),)))
    assert landmarks_of(Query(STAR, (missing,)), found) == ring
    assert landmarks_of(Query(STAR, (Region("left side"),)), found) == ()


@pytest.mark.parametrize(
    ("pick", "answer"),
    [
        (Pick("leftmost"), (1,)),
        (Pick("rightmost"), (2,)),
        (Pick("topmost"), (3,)),
        (Pick("bottommost"), (4,)),
        (Pick("leftmost", rank=2), (4,)),
        (Pick("leftmost", rank=3), (3,)),
        (Pick("topmost", rank=2), (2,)),
    ],
)
def test_ranks(pick, answer):
    assert resolve(Query(STAR, pick=pick), AROUND) == answer


def test_several_ranks_and_their_ends():
    assert resolve(Query(STAR, pick=Pick("topmost", count=2), several=True), AROUND) == (2, 3)
    close = scene(shape("star", 0.1, 0.5), shape("star", 0.5, 0.5), shape("star", 0.52, 0.9))
    assert resolve(Query(STAR, pick=Pick("leftmost")), close) == (0,)
    for pick in (Pick("leftmost", rank=2), Pick("leftmost", count=2), Pick("rightmost")):
        with pytest.raises(UnclearError, match="too close"):
            resolve(Query(STAR, pick=pick, several=True), close)
    with pytest.raises(UnclearError, match="rank 4 of 3"):
        resolve(Query(STAR, pick=Pick("leftmost", rank=4)), close)


def test_distances():
    assert resolve(Query(STAR, pick=Pick("farthest", anchor=Query(Phrase(color="blue")))), AROUND) == (3,)
    found = scene(shape("ring", 0.1, 0.5), shape("star", 0.3, 0.5), shape("star", 0.5, 0.5), shape("star", 0.53, 0.5))
    assert resolve(Query(STAR, pick=Pick("nearest", anchor=THE_RING)), found) == (1,)
    with pytest.raises(UnclearError):
        resolve(Query(STAR, pick=Pick("farthest", anchor=THE_RING)), found)


@pytest.mark.parametrize(
    ("region", "place", "answer"),
    [
        ("left side", (0.3, 0.5), True),
        ("left side", (0.6, 0.5), False),
        ("right side", (0.6, 0.5), True),
        ("top side", (0.5, 0.3), True),
        ("bottom side", (0.5, 0.3), False),
        ("top left corner", (0.2, 0.2), True),
        ("top left corner", (0.2, 0.6), False),
        ("bottom right corner", (0.7, 0.9), True),
        ("middle", (0.45, 0.6), True),
        ("middle", (0.45, 0.8), False),
        ("left side", (0.45, 0.5), None),
        ("top left corner", (0.4, 0.2), None),
        ("top left corner", (0.4, 0.7), False),
        ("middle", (0.7, 0.5), None),
    ],
)
def test_regions(region, place, answer):
    query = Query(STAR, (Region(region),))
    found = scene(shape("star", *place))
    if answer is None:
        with pytest.raises(UnclearError):
            resolve(query, found)
    else:
        assert resolve(query, found) == ((0,) if answer else ())


def test_sizes():
    found = scene(
        shape("star", 0.1, 0.1),
        shape("star", 0.5, 0.5, size="medium", scale=0.158),
        shape("star", 0.8, 0.8, size="large", scale=0.217),
        shape("ring", 0.2, 0.8, size="medium", scale=0.160),
    )
    assert resolve(Query(STAR, pick=Pick("largest")), found) == (2,)
    assert resolve(Query(STAR, pick=Pick("smallest")), found) == (0,)
    with pytest.raises(UnclearError):
        resolve(Query(STAR, (SizeThan(True, THE_RING),)), found)
    without_medium = scene(*(found.objects[index] for index in (0, 2, 3)))
    assert resolve(Query(STAR, (SizeThan(True, THE_RING),)), without_medium) == (1,)
    assert resolve(Query(STAR, (SizeThan(False, THE_RING),)), without_medium) == (0,)


def test_same_attribute_is_never_the_anchor_itself():
    blue = Query(Phrase(kind="star", color="blue"))
    found = scene(*AROUND.objects, shape("heart", 0.1, 0.1, "blue"))
    assert resolve(Query(Phrase(), (SameAs("color", blue),)), found) == (5,)
    assert resolve(Query(Phrase(), (SameAs("kind", blue),), several=True), found) == (1, 2, 3)


def test_exceptions_and_joined_queries():
    blue = Query(Phrase(kind="star", color="blue"))
    assert resolve(Query(STAR, (Except(blue),), several=True), AROUND) == (1, 2, 3)
    assert resolve(Query(RING, also=(blue,)), AROUND) == (0, 4)


def test_a_clear_no_settles_a_conjunction():
    # On the diagonal of the ring, but surely not in the corner.
    found = scene(shape("ring", 0.5, 0.5), shape("star", 0.7, 0.7))
    conditions = (Relation("right", THE_RING), Region("top left corner"))
    assert resolve(Query(STAR, conditions), found) == ()
    with pytest.raises(UnclearError):
        resolve(Query(STAR, conditions[:1]), found)
