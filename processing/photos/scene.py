"""What the writer of expressions knows of a photo: its objects as boxes, areas and shares of colors."""

from dataclasses import dataclass

from .color_names import ColorShares


@dataclass(frozen=True)
class SceneObject:
    """
    An annotated object.

    Args:
        annotation_id (`int`): Id of its annotation.
        category (`str`): Name of its category.
        left, top, right, bottom (`float`): Its box in pixels.
        area (`float`): Its visible area in pixels.
        is_crowd (`bool`): Whether it stands for several.
        is_cut (`bool`): Whether so little of it is left in the picture that it is there but nothing to refer to.
        colors (`ColorShares`, *optional*): Colors of its pixels, where known.
        clothing (`ColorShares`, *optional*): Colors of what a person wears above the waist, where known.
    """

    annotation_id: int
    category: str
    left: float
    top: float
    right: float
    bottom: float
    area: float
    is_crowd: bool = False
    is_cut: bool = False
    colors: ColorShares | None = None
    clothing: ColorShares | None = None

    @property
    def center_x(self) -> float:
        return (self.left + self.right) / 2

    @property
    def center_y(self) -> float:
        return (self.top + self.bottom) / 2

    @property
    def box_area(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)


@dataclass(frozen=True)
class Scene:
    """
    A photo with all its annotated objects, in pixels.

    Args:
        image_id (`int`): Id of the photo.
        width, height (`int`): Its size.
        objects (`tuple[SceneObject, ...]`): All annotated objects.
        touching (`frozenset[frozenset[int]]`): Pairs of annotations whose masks touch, as far as contact can matter.
        has_pasted (`bool`): Whether objects were pasted in, so that contact and depth mean nothing.
        persons_only (`bool`): Whether only persons are annotated, so that nothing is known of all else.
    """

    image_id: int
    width: int
    height: int
    objects: tuple[SceneObject, ...]
    touching: frozenset[frozenset[int]] = frozenset()
    has_pasted: bool = False
    persons_only: bool = False

    def touch(self, first: SceneObject, second: SceneObject) -> bool:
        """Whether the masks of two objects touch."""
        return frozenset((first.annotation_id, second.annotation_id)) in self.touching

    def is_at_edge(self, item: SceneObject) -> bool:
        """Whether an object reaches the edge of the picture, which may then cut it."""
        slack = 0.01 * min(self.width, self.height)
        return (
            min(item.left, item.top) <= slack or item.right >= self.width - slack or item.bottom >= self.height - slack
        )
