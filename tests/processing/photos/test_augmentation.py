import random

import numpy as np
import pytest
from PIL import Image

from processing.photos.annotated_photo import AnnotatedPhoto, PhotoObject
from processing.photos.augmentation import augment_photo, fit_size, resize_photo


RED, BLUE = (220, 20, 20), (20, 20, 220)


@pytest.fixture
def photo():
    """A red object left and a blue one right, on gray."""
    pixels = np.full((200, 300, 3), 128, dtype=np.uint8)
    masks = np.zeros((2, 200, 300), dtype=bool)
    masks[0, 60:140, 20:110] = masks[1, 40:180, 180:290] = True
    for mask, color in zip(masks, (RED, BLUE), strict=True):
        pixels[mask] = color
    return AnnotatedPhoto(Image.fromarray(pixels), tuple(PhotoObject(i, mask) for i, mask in enumerate(masks)))


def test_masks_follow_the_pixels(photo):
    for seed in range(60):
        version = augment_photo(photo, random.Random(seed), longest_side=160)
        assert max(version.pixels.size) <= 160
        pixels = np.asarray(version.pixels).astype(int)
        for item in version.objects:
            assert item.mask.shape == pixels.shape[:2]
            assert item.mask.any()
            if version.has_true_colors:
                channel = (0, 2)[item.category_id]
                is_colored = pixels[..., channel] - pixels[..., 2 - channel] > 40
                assert (is_colored != item.mask).mean() < 0.03


def test_versions_differ_and_depend_on_the_generator_alone(photo):
    def bytes_of(seed):
        return augment_photo(photo, random.Random(seed)).pixels.tobytes()

    assert bytes_of(1) == bytes_of(1)
    assert len({bytes_of(seed) for seed in range(10)}) == 10


def test_left_is_left_after_mirroring(photo):
    """The reason why expressions are written afterward: in mirrored versions the red object is the right one."""
    red_is_left = set()
    for seed in range(40):
        version = augment_photo(photo, random.Random(seed))
        centers = {item.category_id: np.nonzero(item.mask)[1].mean() for item in version.objects}
        if len(centers) == 2:
            red_is_left.add(centers[0] < centers[1])
    assert red_is_left == {True, False}


def test_a_cut_object_knows_how_much_is_left(photo):
    shares = {0: [], 1: []}
    for seed in range(200):
        for item in augment_photo(photo, random.Random(seed)).objects:
            shares[item.category_id].append(item.visible_share)
    for found in shares.values():
        assert max(found) == 1
        assert 0 < min(found) < 0.5


def test_some_versions_change_the_hue_and_say_so(photo):
    versions = [augment_photo(photo, random.Random(seed)) for seed in range(200)]
    share = np.mean([not version.has_true_colors for version in versions])
    assert 0.05 < share < 0.3


def test_sizes(photo):
    assert fit_size((640, 480), 400) == (400, 300)
    assert fit_size((480, 640), 400) == (300, 400)
    assert fit_size((300, 200), 400) == (300, 200)
    assert fit_size((640, 480), None) == (640, 480)
    small = resize_photo(photo, (30, 20))
    assert small.pixels.size == (30, 20)
    assert [item.mask.shape for item in small.objects] == [(20, 30)] * 2
    assert small.objects[0].mask.sum() == pytest.approx(photo.objects[0].mask.sum() / 100, rel=0.15)
    assert resize_photo(photo, photo.pixels.size) is photo
