import numpy as np
from PIL import Image

from processing.data.masks import encode_mask
from processing.photos.pair_sheet import choose_pairs, draw_pair_sheet


def rows_of(count):
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:30, 10:40] = True
    row = {
        "image": Image.new("RGB", (60, 40), "gray"),
        "expressions": ["left dog", "dog"],
        "masks": [encode_mask(mask)],
        "mask_index": [0, 0],
        "levels": ["position", "category"],
    }
    return [row] * count


def test_pairs_are_random_and_of_different_images():
    rows = [*rows_of(20), {"expressions": []}]
    pairs = choose_pairs(rows, 15, seed=3)
    assert pairs == choose_pairs(rows, 15, seed=3)
    assert pairs != choose_pairs(rows, 15, seed=4)
    assert len({row for row, _ in pairs}) == 15
    assert len(choose_pairs(rows, 100)) == 20


def test_the_outline_of_the_mask_is_drawn_and_its_inside_left_as_it_is():
    rows = rows_of(5)
    sheet = np.asarray(draw_pair_sheet(rows, choose_pairs(rows, 5), columns=2)).astype(int)
    outline = (sheet == (255, 0, 255)).all(axis=-1)
    assert outline.sum() > 5 * 300
    tile = sheet[10:260, 10:390]
    assert (tile[120, 150] == 128).all()
