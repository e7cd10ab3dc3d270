import numpy as np
import pytest

from processing.photos.color_names import COLOR_NAMES, ColorShares, color_indices, is_dim, measure_colors


def measure(*colors, in_dim_light=False):
    pixels = np.array([colors], dtype=np.uint8)
    return measure_colors(color_indices(pixels)[0], in_dim_light)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((200, 20, 30), "red"),
        ((240, 130, 20), "orange"),
        ((250, 220, 40), "yellow"),
        ((40, 130, 50), "green"),
        ((30, 60, 180), "blue"),
        ((120, 30, 150), "purple"),
        ((250, 130, 190), "pink"),
        ((110, 65, 30), "brown"),
        ((12, 12, 14), "black"),
        ((245, 245, 242), "white"),
        ((120, 120, 122), "gray"),
    ],
)
def test_plain_colors_have_their_names_and_no_other(rgb, name):
    shares = measure(rgb)
    assert set(shares.clear_colors()) == ({name, "dark"} if name == "black" else {name})
    assert not shares.clearly_lacks(name)
    assert shares.shows(name)


@pytest.mark.parametrize(
    ("rgb", "never"),
    [
        ((20, 45, 25), ("black", "green")),  # dark green
        ((200, 150, 120), ("pink", "orange", "red", "brown", "white")),  # skin
        ((90, 75, 60), ("gray", "brown", "black", "dark")),  # between all of these
        ((0, 140, 140), ("blue", "green")),  # teal
    ],
)
def test_what_people_call_differently_has_no_clear_name(rgb, never):
    assert not set(measure(rgb).clear_colors()) & set(never)


def test_a_color_of_half_the_pixels_is_neither_clear_nor_lacking():
    shares = measure((200, 20, 30), (30, 60, 180))
    assert shares.clear_colors() == []
    assert not shares.clearly_lacks("red")
    assert not shares.clearly_lacks("blue")
    assert shares.clearly_lacks("green")


def test_the_wide_region_holds_the_narrow_one():
    every = np.arange(2**15)
    for index in every[::7]:
        shares = measure_colors(np.array([index]))
        assert all(possible >= sure for sure, possible in zip(shares.sure, shares.possible, strict=True))


def test_nothing_is_black_in_dim_light():
    dim = np.full((10, 10, 3), 30, dtype=np.uint8)
    assert is_dim(color_indices(dim))
    dim[:7] = 150
    assert not is_dim(color_indices(dim))
    assert measure((12, 12, 14), in_dim_light=True).clear_colors() == []
    assert measure((200, 20, 30), in_dim_light=True).clear_colors() == ["red"]


def test_shares_are_by_name():
    shares = ColorShares(tuple(0.0 for _ in COLOR_NAMES), tuple(1.0 for _ in COLOR_NAMES))
    assert shares.clear_colors() == []
    assert not any(shares.clearly_lacks(name) for name in COLOR_NAMES)
