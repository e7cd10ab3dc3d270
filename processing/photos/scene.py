"""The description of a photo from which expressions are generated: objects with boxes, areas and colors."""

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
        is_crowd (`bool`): Whether the annotation stands for several objects.
        is_cut (`bool`): Whether so little of it is left in the image that expressions should not refer to it.
        colors (`ColorShares`, *optional*): Colors of its pixels, if known.
        clothing (`ColorShares`, *optional*): Colors of the clothing of a person above the waist, if known.
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
        touching (`frozenset[frozenset[int]]`): Pairs of annotations whose masks touch, for objects in contact.
        has_pasted (`bool`): Whether objects were pasted in, so that contact and depth are not meaningful.
        persons_only (`bool`): Whether only persons are annotated, so that other objects are not known.
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
        """Whether an object reaches the edge of the image, which may cut it."""
        slack = 0.01 * min(self.width, self.height)
        return (
            min(item.left, item.top) <= slack or item.right >= self.width - slack or item.bottom >= self.height - slack
        )
