import numpy as np
import pytest

from processing.shapes.rendering import render_scene, signed_distance
from processing.shapes.scene import COLORS, KINDS, REACH, SIZES, Scene, ShapeObject, sample_scene


def scenes(count: int) -> list[Scene]:
    return [sample_scene(np.random.default_rng([7, index])) for index in range(count)]


def shape(kind: str = "square", **changes: object) -> ShapeObject:
    values = {
        "kind": kind,
        "color": "red",
        "texture": "solid",
        "size": "large",
        "x": 0.5,
        "y": 0.5,
        "scale": 0.25,
        "angle": 0.0,
        "pattern_angle": 0.0,
    }
    return ShapeObject(**(values | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_have_area_one_around_their_centroid(kind):
    axis = np.linspace(-1.0, 1.0, 801)
    u, v = np.meshgrid(axis, axis)
    inside = signed_distance(kind, u, v) < 0.0
    cell = (axis[1] - axis[0]) ** 2
    assert inside.sum() * cell == pytest.approx(1.0, abs=0.01)
    assert abs((u * inside).sum() * cell) < 1e-3
    assert abs((v * inside).sum() * cell) < 1e-3
    assert np.hypot(u, v)[inside].max() == pytest.approx(REACH[kind], abs=0.005)


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="hexagon"):
        signed_distance("hexagon", np.zeros(1), np.zeros(1))


def test_a_square_owns_exactly_the_pixels_whose_centers_it_covers():
    # From 24 to 40 pixels on both axes: pixel centers 24.5 to 39.5.
    _, owners = render_scene(Scene((shape(),), "plain", 3), 64)
    expected = np.full((64, 64), -1)
    expected[24:40, 24:40] = 0
    np.testing.assert_array_equal(owners, expected)


def test_the_later_object_hides_the_earlier_one():
    back, front = shape(x=0.45), shape("circle", x=0.55, color="blue")
    _, alone = render_scene(Scene((back,), "plain", 3), 128)
    _, circle = render_scene(Scene((front,), "plain", 3), 128)
    _, both = render_scene(Scene((back, front), "plain", 3), 128)
    np.testing.assert_array_equal(both == 1, circle == 0)
    np.testing.assert_array_equal(both == 0, (alone == 0) & ~(circle == 0))


@pytest.mark.parametrize("background", ["plain", "gradient", "noise"])
@pytest.mark.parametrize("color", COLORS)
def test_solid_objects_show_their_color_where_their_mask_says(background, color):
    image, owners = render_scene(Scene((shape("circle", color=color),), background, 5), 128)
    middle = image[60:68, 60:68].reshape(-1, 3).mean(0)
    assert np.abs(middle - COLORS[color]).max() < 25
    assert image.dtype == np.uint8
    assert image.shape == (128, 128, 3)
    assert (owners[60:68, 60:68] == 0).all()


@pytest.mark.parametrize("texture", ["striped", "dotted"])
def test_textures_hold_two_colors(texture):
    image, owners = render_scene(Scene((shape(texture=texture),), "plain", 5), 128)
    # The stripes and dots of a red object are of a lighter red, which has more green.
    green = image[..., 1][owners == 0]
    assert 0.15 < (green > 80).mean() < 0.75


def test_sampled_scenes_keep_their_promises():
    for scene in scenes(60):
        assert 8 <= len(scene.objects) <= 12
        _, owners = render_scene(scene, 128)
        for index, item in enumerate(scene.objects):
            area = (item.scale * 128) ** 2
            visible = np.count_nonzero(owners == index) / area
            assert 0.55 < visible < 1.12, (item, visible)
            assert abs(item.scale / SIZES[item.size] - 1.0) <= 0.03 + 1e-9
            assert REACH[item.kind] * item.scale <= min(item.x, item.y, 1 - item.x, 1 - item.y)


def test_masks_agree_between_image_sizes():
    for scene in scenes(5):
        _, small = render_scene(scene, 64)
        _, large = render_scene(scene, 192)
        # Pixel centers of the small image are the centers of 3 x 3 blocks of the large one.
        np.testing.assert_array_equal(small, large[1::3, 1::3])


def test_overlaps_do_occur():
    hidden = 0
    for scene in scenes(60):
        _, owners = render_scene(scene, 128)
        areas = [np.count_nonzero(owners == index) for index in range(len(scene.objects))]
        hidden += any(area < 0.9 * (item.scale * 128) ** 2 for area, item in zip(areas, scene.objects, strict=True))
    assert hidden > 20


@pytest.mark.parametrize("bounds", [(3, 8), (9, 8), (8, 13)])
def test_impossible_numbers_of_objects(bounds):
    with pytest.raises(ValueError, match=f"{bounds[0]} and {bounds[1]}"):
        sample_scene(np.random.default_rng(0), *bounds)


def test_image_too_small():
    with pytest.raises(ValueError, match="at least 32 pixels, got 31"):
        render_scene(scenes(1)[0], 31)
