import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from processing.data.masks import (
    decode_mask,
    empty_rle,
    encode_mask,
    mask_area,
    normalize_rle,
    polygons_to_rle,
    to_rle,
    union_rles,
)


binary_masks = hypothesis_numpy.arrays(bool, hypothesis_numpy.array_shapes(min_dims=2, max_dims=2, max_side=17))


def runs_of(mask: np.ndarray) -> list[int]:
    """Column-major run lengths from the definition: the first run counts background."""
    runs, current = [0], False
    for pixel in mask.flatten(order="F"):
        if pixel != current:
            runs.append(0)
            current = pixel
        runs[-1] += 1
    return runs


def png_bytes(mask: np.ndarray, foreground: int = 255) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * foreground).save(buffer, format="PNG")
    return buffer.getvalue()


@given(binary_masks)
def test_round_trip(mask):
    rle = encode_mask(mask)
    assert isinstance(rle["counts"], str)
    assert rle["size"] == list(mask.shape)
    assert decode_mask(rle).dtype == bool
    np.testing.assert_array_equal(decode_mask(rle), mask)
    assert mask_area(rle) == mask.sum()


@given(binary_masks)
def test_uncompressed_and_compressed_rle_agree_with_run_lengths_counted_by_hand(mask):
    uncompressed = {"size": list(mask.shape), "counts": runs_of(mask)}
    as_bytes = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert normalize_rle(uncompressed) == normalize_rle(as_bytes) == encode_mask(mask)
    np.testing.assert_array_equal(decode_mask(uncompressed), mask)


@given(st.data())
def test_union_is_logical_or(data):
    shape = data.draw(hypothesis_numpy.array_shapes(min_dims=2, max_dims=2, max_side=9))
    masks = data.draw(st.lists(hypothesis_numpy.arrays(bool, shape), min_size=1, max_size=4))
    united = union_rles([encode_mask(mask) for mask in masks])
    np.testing.assert_array_equal(decode_mask(united), np.logical_or.reduce(masks))


@given(binary_masks)
def test_every_form_gives_the_same_mask(mask):
    height, width = mask.shape
    expected = encode_mask(mask)
    forms = {
        "array": mask,
        "array of 255": mask.astype(np.uint8) * 255,
        "array of floats": mask.astype(np.float32),
        "nested list": mask.astype(int).tolist(),
        "image": Image.fromarray(mask.astype(np.uint8)),
        "image of mode 1": Image.fromarray(mask),
        "image in color": Image.fromarray(np.repeat(mask[..., None].astype(np.uint8) * 9, 3, axis=-1)),
        "PNG": png_bytes(mask),
        "PNG of 1": png_bytes(mask, foreground=1),
        "datasets cell": {"bytes": png_bytes(mask), "path": None},
        "uncompressed RLE": {"size": [height, width], "counts": runs_of(mask)},
        "RLE without size": {"counts": expected["counts"]},
        "list of parts": [encode_mask(mask), encode_mask(mask)],
    }
    assert {name: to_rle(form, height, width) for name, form in forms.items()} == dict.fromkeys(forms, expected)


def test_mask_file(tmp_path):
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3, 2:5] = True
    path = tmp_path / "mask.png"
    path.write_bytes(png_bytes(mask))
    assert to_rle({"bytes": None, "path": str(path)}, 4, 6) == encode_mask(mask)


def test_alpha_is_no_foreground():
    image = Image.new("RGBA", (5, 4), (0, 0, 0, 255))
    image.putpixel((3, 2), (0, 200, 0, 0))
    mask = decode_mask(to_rle(image, 4, 5))
    assert mask.sum() == 1
    assert mask[2, 3]


polygon_coordinates = st.lists(st.integers(0, 40).map(lambda value: value / 2), min_size=6, max_size=14).map(
    lambda values: values[: len(values) // 2 * 2]
)


@given(st.lists(polygon_coordinates, min_size=1, max_size=4))
def test_polygons_are_the_union_of_what_pycocotools_draws(polygons):
    height, width = 19, 21
    drawn = coco_mask.decode(coco_mask.frPyObjects(polygons, height, width))
    expected = drawn.any(axis=-1)
    points = [list(zip(polygon[::2], polygon[1::2], strict=True)) for polygon in polygons]
    np.testing.assert_array_equal(decode_mask(polygons_to_rle(polygons, height, width)), expected)
    np.testing.assert_array_equal(decode_mask(polygons_to_rle(points, height, width)), expected)
    np.testing.assert_array_equal(decode_mask(to_rle(polygons, height, width)), expected)
    arrays = [np.asarray(polygon) for polygon in polygons]
    np.testing.assert_array_equal(decode_mask(to_rle(arrays, height, width)), expected)


@settings(max_examples=30)
@given(
    st.integers(2, 15),
    st.integers(2, 15),
    st.integers(3, 14),
    st.integers(3, 14),
)
def test_a_flat_polygon_is_one_part_and_covers_the_rectangle_it_draws(left, top, box_width, box_height):
    right, bottom = left + box_width, top + box_height
    flat = [left, top, right, top, right, bottom, left, bottom]
    mask = decode_mask(polygons_to_rle(flat, 32, 32))
    expected = np.zeros((32, 32), dtype=bool)
    expected[top:bottom, left:right] = True
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(decode_mask(to_rle(np.float32(flat), 32, 32)), expected)


def test_summing_parts_loses_their_overlap_and_uniting_them_does_not():
    first, second = [0, 0, 20, 0, 20, 20, 0, 20], [10, 10, 30, 10, 30, 30, 10, 30]
    summed = coco_mask.decode(coco_mask.frPyObjects([first, second], 32, 32)).sum(axis=-1)
    as_peers_read_it = summed == 1
    united = decode_mask(polygons_to_rle([first, second], 32, 32))
    assert united.sum() == 20 * 20 + 20 * 20 - 10 * 10
    assert as_peers_read_it.sum() == united.sum() - 10 * 10
    assert united[15, 15]
    assert not as_peers_read_it[15, 15]


def test_polygon_agrees_with_another_rasterizer_up_to_its_boundary():
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radius = np.where(np.arange(24) % 2, 60, 95)
    points = np.stack([120 + radius * np.cos(angles), 100 + radius * np.sin(angles)], axis=1)
    image = Image.new("L", (240, 200))
    ImageDraw.Draw(image).polygon([tuple(point) for point in points], fill=1)
    reference = np.asarray(image) > 0
    mask = decode_mask(polygons_to_rle(points.ravel().tolist(), 200, 240))
    assert (mask & reference).sum() / (mask | reference).sum() > 0.96


def test_empty_rle_is_no_target():
    rle = empty_rle(7, 9)
    assert mask_area(rle) == 0
    assert decode_mask(rle).shape == (7, 9)
    assert rle == encode_mask(np.zeros((7, 9)))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"size": [4, 5], "counts": [3, 4]}, "add up to 7 pixels"),
        ({"size": [4, 5], "counts": [30, -10]}, "negative run"),
        ({"size": [5, 4], "counts": [20]}, r"size \(height, width\) = \(5, 4\) for an image of size \(4, 5\)"),
        ({"size": [4, 5], "counts": "01:0"}, "add up to"),
        ({"size": [4, 5], "counts": "d"}, "middle of a run"),
        ({"size": [4, 5], "counts": "~"}, "cannot contain"),
        ({"counts": None, "size": [4, 5]}, "needs `size`"),
        ({"size": [4, 5], "counts": [0.5, 19.5]}, "integers"),
        ({"size": [4, 5], "counts": [[20]]}, "integers"),
        ({"size": [4, 5], "counts": [2**70]}, "integers"),
        ({"size": [4, 5], "counts": 20}, "integers"),
        ({"size": "45", "counts": [20]}, "integers"),
        ({"size": [10**5, 10**5], "counts": [10**10]}, "more than the limit"),
        ({"width": 4}, "needs `counts`, `bytes` or `path`"),
        ([[1, 2, 3, 4]], "at least three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three points"),
        ([[1, 2, 3, float("nan"), 5, 6]], "not finite"),
        ([[1, 2, 3, 1e9, 5, 6]], "far outside its image"),
        (b"not an image", "image of a mask cannot be read"),
        (png_bytes(np.ones((4, 5), dtype=bool))[:-30], "image of a mask cannot be read"),
        (np.zeros((5, 4), dtype=bool), r"\(5, 4\) for an image of size \(4, 5\)"),
        (np.eye(5, 8, dtype=int).tolist(), r"\(5, 8\) for an image of size \(4, 5\)"),
        (Image.new("L", (4, 5)), r"\(5, 4\) for an image of size \(4, 5\)"),
        ([], "empty list"),
        (None, "mask is missing"),
    ],
)
def test_a_bad_mask_is_refused_with_its_reason(mask, message):
    with pytest.raises(ValueError, match=message):
        to_rle(mask, 4, 5)


@pytest.mark.parametrize("counts", ["0`0", "", "0@0", "é"])
def test_the_area_of_damaged_run_lengths_is_refused(counts):
    with pytest.raises(ValueError, match="RLE"):
        mask_area({"size": [3, 5], "counts": counts})


@given(binary_masks, st.data())
def test_run_lengths_with_one_character_changed_are_refused_or_still_fill_the_mask(mask, data):
    rle = encode_mask(mask)
    place = data.draw(st.integers(0, len(rle["counts"]) - 1))
    character = data.draw(st.characters(min_codepoint=32, max_codepoint=126))
    counts = rle["counts"][:place] + character + rle["counts"][place + 1 :]
    try:
        decoded = decode_mask({**rle, "counts": counts})
    except ValueError:
        return
    assert decoded.shape == mask.shape
    assert mask_area({**rle, "counts": counts}) == decoded.sum()


def test_any_number_but_zero_is_foreground_in_rows_of_pixels():
    rows = [[0, 2, 0, 128, 0, 7]] * 6
    assert to_rle(rows, 6, 6) == encode_mask(np.asarray(rows) != 0)


def test_other_refusals():
    with pytest.raises(TypeError, match="str"):
        to_rle("mask.png", 4, 5)
    with pytest.raises(ValueError, match="shape"):
        encode_mask(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="`rles` is empty"):
        union_rles([])
    with pytest.raises(ValueError, match="different sizes"):
        union_rles([empty_rle(2, 3), empty_rle(3, 2)])


def test_a_damaged_header_of_a_mask_file_is_named():
    # Found by fuzzing: the reader of this format raises a ValueError of its own.
    with pytest.raises(ValueError, match="the image of a mask cannot be read"):
        to_rle({"bytes": b"P6\n? 9\n255\n", "path": None}, 4, 6)


def test_what_can_be_a_polygon_or_the_pixels_of_a_tiny_image_is_refused():
    # Found by fuzzing: the outline of the whole image was read as eight pixels, three of them black.
    with pytest.raises(ValueError, match="can be polygons or the pixels"):
        to_rle([[0.0, 0.0, 8.0, 0.0, 8.0, 1.0, 0.0, 1.0]], 1, 8)
    assert mask_area(to_rle([[0, 0, 8, 0, 8, 1, 0, 1]], 1, 8)) == 4


@pytest.mark.parametrize("runs", [[0, 0, 24], [5, 0, 3, 16], [0, 4, 20, 0], [24, 0]])
def test_empty_runs_are_merged_with_their_neighbors(runs):
    rle = normalize_rle({"size": [4, 6], "counts": runs})
    assert rle == encode_mask(decode_mask(rle))
    compressed = coco_mask.frPyObjects({"size": [4, 6], "counts": runs}, 4, 6)
    assert normalize_rle(compressed) == rle
