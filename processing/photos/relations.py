"""Spatial relations between objects: which ones clearly hold, and which ones clearly do not."""

from collections.abc import Callable
from dataclasses import dataclass

from .scene import Scene, SceneObject
from .wording import CARRIED, ENTERED, GROUNDED, SUPPORTS


@dataclass(frozen=True)
class SideRelation:
    """
    A side of an anchor: its words, and tests whether an object is clearly there or clearly not, with a slack.

    An object that reaches far beyond the anchor on that side is not clearly elsewhere, wherever its center is.
    """

    words: tuple[str, ...]
    holds: Callable[[SceneObject, SceneObject, float], bool]
    fails: Callable[[SceneObject, SceneObject, float], bool]


SIDE_RELATIONS = (
    SideRelation(
        ("left of", "to the left of", "on the left of"),
        lambda item, anchor, slack: item.center_x <= anchor.left - slack and item.right <= anchor.center_x,
        lambda item, anchor, slack: item.center_x >= anchor.left + slack and item.left >= anchor.left - 2 * slack,
    ),
    SideRelation(
        ("right of", "to the right of", "on the right of"),
        lambda item, anchor, slack: item.center_x >= anchor.right + slack and item.left >= anchor.center_x,
        lambda item, anchor, slack: item.center_x <= anchor.right - slack and item.right <= anchor.right + 2 * slack,
    ),
    SideRelation(
        ("above", "higher than"),
        lambda item, anchor, slack: item.center_y <= anchor.top - slack and item.bottom <= anchor.center_y,
        lambda item, anchor, slack: item.center_y >= anchor.top + slack and item.top >= anchor.top - 2 * slack,
    ),
    SideRelation(
        ("below", "lower than"),
        lambda item, anchor, slack: item.center_y >= anchor.bottom + slack and item.top >= anchor.center_y,
        lambda item, anchor, slack: (
            item.center_y <= anchor.bottom - slack and item.bottom <= anchor.bottom + 2 * slack
        ),
    ),
)
OPPOSITE_SIDES = (SIDE_RELATIONS[1], SIDE_RELATIONS[0], SIDE_RELATIONS[3], SIDE_RELATIONS[2])


def gap(first: SceneObject, second: SceneObject) -> float:
    """Returns the distance between two boxes, 0 if they touch."""
    across = max(first.left - second.right, second.left - first.right, 0)
    down = max(first.top - second.bottom, second.top - first.bottom, 0)
    return (across**2 + down**2) ** 0.5


def _overlap_across(first: SceneObject, second: SceneObject) -> float:
    """Returns the horizontal overlap of two boxes, as a share of the width of the narrower one."""
    shared = min(first.right, second.right) - max(first.left, second.left)
    return max(shared, 0) / max(min(first.right - first.left, second.right - second.left), 1)


def can_be_on(item: SceneObject, anchor: SceneObject) -> bool:
    """Whether objects of the first category can be on objects of the second."""
    return item.category in SUPPORTS.get(anchor.category, ())


def is_on(scene: Scene, item: SceneObject, anchor: SceneObject) -> bool:
    """Whether one object is clearly on another: they touch, and it ends within the other and reaches above it."""
    height = anchor.bottom - anchor.top
    inside = anchor.left <= item.center_x <= anchor.right
    if anchor.category == "dining table":
        reaches_up = item.center_y < anchor.bottom - 0.2 * height
    else:
        reaches_up = item.center_y < anchor.top + 0.5 * height
    ends_on_it = anchor.top + 0.1 * height < item.bottom < anchor.bottom + 0.1 * height
    return can_be_on(item, anchor) and scene.touch(item, anchor) and inside and reaches_up and ends_on_it


def is_off(scene: Scene, item: SceneObject, anchor: SceneObject) -> bool:
    """Whether one object is clearly not on another."""
    return not scene.touch(item, anchor) and gap(item, anchor) > 0.02 * scene.width


def can_carry(item: SceneObject, anchor: SceneObject) -> bool:
    """Whether the first is a person and the second something that people carry or wear."""
    return item.category == "person" and anchor.category in CARRIED


def is_under(item: SceneObject, anchor: SceneObject) -> bool:
    """Whether a person is clearly under an umbrella."""
    return (
        anchor.category == "umbrella"
        and item.category == "person"
        and anchor.left <= item.center_x <= anchor.right
        and anchor.center_y < item.top + 0.25 * (item.bottom - item.top)
        and anchor.top < item.top - 0.05 * (item.bottom - item.top)
        and gap(item, anchor) == 0
    )


def depth_order(scene: Scene, item: SceneObject, anchor: SceneObject) -> int:
    """
    Returns 1 if an object is clearly in front of another, -1 if it is clearly behind it, and 0 if neither is clear.

    Both must stand on the ground and overlap horizontally; the one with the lower bottom edge is nearer. For an object
    that can be on or in the other one, such as a rider, neither is clear.
    """
    if scene.has_pasted or item.category not in GROUNDED or anchor.category not in GROUNDED:
        return 0
    if can_be_on(item, anchor) or can_be_on(anchor, item) or item.is_cut or anchor.is_cut:
        return 0
    if "person" in (item.category, anchor.category) and ENTERED & {item.category, anchor.category}:
        return 0
    if _overlap_across(item, anchor) < 0.35 or gap(item, anchor) > 0:
        return 0
    difference = (item.bottom - anchor.bottom) / scene.height
    if abs(difference) < 0.08:
        return 0
    return 1 if difference > 0 else -1


def is_beside_in_depth(scene: Scene, item: SceneObject, anchor: SceneObject) -> bool:
    """Whether an object is clearly neither in front of nor behind another, because it is entirely beside it."""
    return max(item.left, anchor.left) - min(item.right, anchor.right) > 0.02 * scene.width


def is_between(item: SceneObject, left: SceneObject, right: SceneObject, slack: float) -> bool:
    """Whether an object is clearly between two others, with one on its left and one on its right, at their height."""
    top, bottom = max(left.top, right.top), min(left.bottom, right.bottom)
    return (
        left.right <= item.center_x - slack
        and item.center_x + slack <= right.left
        and left.center_x + slack < item.left
        and item.right < right.center_x - slack
        and top <= item.center_y <= bottom
    )


def is_outside(item: SceneObject, left: SceneObject, right: SceneObject) -> bool:
    """Whether an object is clearly not between two others."""
    return item.center_x <= left.center_x or item.center_x >= right.center_x
