import numpy as np
import pytest
from PIL import Image

from processing.data.masks import decode_mask
from processing.photos.annotated_photo import (
    AnnotatedPhoto,
    PhotoObject,
    box_of,
    coco_annotations,
    read_annotated_photo,
    scene_of_photo,
)


NAMES = {1: "person", 2: "umbrella", 3: "car"}


def photo_of(*boxes, **options):
    """A photo with rectangles, each as (category, left, top, right, bottom, color)."""
    pixels = np.full((200, 300, 3), 150, dtype=np.uint8)
    objects = []
    for category, left, top, right, bottom, color in boxes:
        mask = np.zeros((200, 300), dtype=bool)
        mask[top:bottom, left:right] = True
        pixels[mask] = color
        objects.append(PhotoObject(category, mask))
    return AnnotatedPhoto(Image.fromarray(pixels), tuple(objects), **options)


def scene_of(photo, **options):
    return scene_of_photo(photo, 5, range(10, 10 + len(photo.objects)), NAMES, **options)


def test_a_scene_has_boxes_areas_and_colors():
    scene = scene_of(photo_of((3, 20, 30, 80, 60, (210, 20, 20)), (3, 150, 30, 210, 60, (20, 40, 200))))
    assert (scene.width, scene.height) == (300, 200)
    first, second = scene.objects
    assert (first.annotation_id, first.category) == (10, "car")
    assert (first.left, first.top, first.right, first.bottom, first.area) == (20, 30, 80, 60, 1800)
    assert first.colors.clear_colors() == ["red"]
    assert second.colors.clear_colors() == ["blue"]
    assert first.clothing is None


def test_clothing_is_the_upper_part_of_an_upright_person():
    photo = photo_of(
        (1, 20, 20, 60, 50, (230, 190, 160)),
        (1, 20, 50, 60, 110, (210, 20, 20)),
        (1, 20, 110, 60, 190, (20, 40, 200)),
    )
    whole = np.any([item.mask for item in photo.objects], axis=0)
    person = scene_of(AnnotatedPhoto(photo.pixels, (PhotoObject(1, whole),))).objects[0]
    assert person.clothing.clear_colors() == ["red"]
    assert person.colors.clear_colors() == []
    lying = scene_of(photo_of((1, 20, 20, 200, 60, (210, 20, 20)))).objects[0]
    assert lying.clothing is None


def test_no_colors_where_hue_was_changed_or_pixels_are_few():
    box = (3, 20, 30, 80, 60, (210, 20, 20))
    assert scene_of(photo_of(box, has_true_colors=False)).objects[0].colors is None
    assert scene_of(photo_of((3, 20, 30, 28, 38, (210, 20, 20)))).objects[0].colors is None


def test_contact_of_a_person_and_what_is_carried():
    person, held = (1, 20, 50, 60, 190, (9, 9, 9)), (2, 10, 20, 90, 52, (200, 9, 9))
    scene = scene_of(photo_of(person, held, (1, 200, 50, 240, 190, (9, 9, 9))))
    assert scene.touch(scene.objects[0], scene.objects[1])
    assert not scene.touch(scene.objects[2], scene.objects[1])
    pasted = scene_of(photo_of(person, held, has_pasted=True))
    assert pasted.has_pasted
    assert not pasted.touching


def test_little_of_an_object_is_no_target():
    photo = photo_of((3, 20, 30, 80, 60, (210, 20, 20)))
    for share, is_cut in ((0.2, True), (0.9, False)):
        cut = AnnotatedPhoto(photo.pixels, (PhotoObject(3, photo.objects[0].mask, visible_share=share),))
        assert scene_of(cut).objects[0].is_cut == is_cut


def test_annotations_of_a_photo_are_its_masks():
    photo = photo_of((3, 20, 30, 80, 60, (210, 20, 20)), (1, 100, 20, 140, 120, (9, 9, 9)))
    entries = coco_annotations(photo, 5, 70)
    assert [entry["id"] for entry in entries] == [70, 71]
    for entry, item in zip(entries, photo.objects, strict=True):
        np.testing.assert_array_equal(decode_mask(entry["segmentation"]), item.mask)
        assert entry["area"] == item.mask.sum()
        left, top, right, bottom = box_of(item.mask)
        assert entry["bbox"] == [left, top, right - left, bottom - top]


def test_a_photo_of_another_size_than_its_entry_is_refused(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.jpg")
    with pytest.raises(ValueError, match="has the size"):
        read_annotated_photo(tmp_path / "photo.jpg", {"width": 20, "height": 30}, [])
