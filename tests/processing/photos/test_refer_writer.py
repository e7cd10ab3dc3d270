import json

import numpy as np
import pytest
from PIL import Image

from processing.data.masks import decode_mask, encode_mask, mask_area, to_rle
from processing.data.referring_datasets import load_referring_dataset
from processing.data.run import main
from processing.photos import refer_writer
from processing.photos.color_names import color_indices, measure_colors
from processing.photos.expressions import LEVELS
from processing.photos.refer_writer import (
    REFERENCES_FILE,
    CocoPhotos,
    find_problems,
    split_of_image,
    write_coco_refer_folder,
)
from processing.training.training_data import load_rows
from tests.processing.faults import assert_is_killed, kill_this_process


NAMES = {1: "dog", 2: "cup", 3: "person", 4: "zebra"}


@pytest.fixture
def photos(tmp_path):
    """Six photos with colored rectangles as objects, three of them with a crowd."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    images, annotations = [], []
    for identifier in range(1, 7):
        pixels = np.full((120, 160, 3), 120, dtype=np.uint8)
        name = f"{identifier:012d}.jpg"
        images.append({"id": identifier, "file_name": name, "height": 120, "width": 160})
        boxes = [(10, 20, 30, 30, 1), (60, 20, 40, 40, 1), (115, 70, 30, 40, 2)]
        for left, top, width, height, category in boxes:
            left, top = left + int(generator.integers(0, 6)), top + int(generator.integers(0, 6))
            pixels[top : top + height, left : left + width] = generator.integers(0, 255, 3)
            right, bottom = left + width, top + height
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": identifier,
                    "category_id": category,
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
        if identifier % 2:
            mask = np.zeros((120, 160), dtype=bool)
            mask[80:110, 10:60:2] = True
            runs = np.diff([0, *(np.flatnonzero(np.diff(mask.flatten(order="F").astype(int))) + 1), mask.size])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": identifier,
                    "category_id": 3,
                    "segmentation": {"size": [120, 160], "counts": runs.tolist()},
                    "bbox": [10, 80, 50, 30],
                    "area": 1,
                    "iscrowd": 1,
                }
            )
        Image.fromarray(pixels).save(folder / name)
    categories = [{"id": identifier, "name": name, "supercategory": "x"} for identifier, name in NAMES.items()]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(instances), "utf-8")
    return tmp_path


def write(photos, output="refer", **options):
    source = CocoPhotos(photos / "instances.json", photos / "photos")
    return write_coco_refer_folder(source, photos / output, **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_written_is_what_is_loaded(photos, streaming):
    counts = write(photos)
    rows = list(
        load_referring_dataset(photos / "refer", "train", streaming=streaming, on_bad_row="raise", check_images=True)
    )
    references = json.loads((photos / "refer" / REFERENCES_FILE).read_text())
    assert counts["images"] == len(rows) == 6
    assert counts["references"] == len(references) == sum(len(row["ref_ids"]) for row in rows)
    assert counts["sentences"] == sum(len(row["expressions"]) for row in rows)
    assert {level for row in rows for level in row["levels"]} <= set(LEVELS)
    annotations = {item["id"]: item for item in json.loads((photos / "instances.json").read_text())["annotations"]}
    meaning = {
        (str(reference["image_id"]), sentence["sent"]): (
            reference["ann_id"],
            sentence["level"],
            sentence["landmark_ids"],
        )
        for reference in references
        for sentence in reference["sentences"]
    }
    for row in rows:
        assert len(row["levels"]) == len(row["expressions"])
        columns = (row["expressions"], row["mask_index"], row["levels"], row["landmarks"])
        for text, index, level, landmarks in zip(*columns, strict=True):
            ids, written_level, landmark_ids = meaning[row["image_id"], text]
            expected, expected_landmarks = np.zeros((2, 120, 160), dtype=bool)
            for identifiers, mask in ((ids, expected), (landmark_ids, expected_landmarks)):
                for identifier in identifiers:
                    if identifier != -1:
                        mask |= decode_mask(to_rle(annotations[identifier]["segmentation"], 120, 160))
            np.testing.assert_array_equal(decode_mask(row["masks"][index]), expected)
            np.testing.assert_array_equal(decode_mask(landmarks), expected_landmarks)
            assert level == written_level
            assert level not in ("relation", "chain") or expected_landmarks.any()
            assert (level == "absent") == (not expected.any())


def test_crowds_are_targets_of_all(photos):
    write(photos)
    references = json.loads((photos / "refer" / REFERENCES_FILE).read_text())
    crowds = {
        item["id"] for item in json.loads((photos / "instances.json").read_text())["annotations"] if item["iscrowd"]
    }
    with_crowd = [reference for reference in references if crowds & set(reference["ann_id"])]
    assert {reference["image_id"] for reference in with_crowd} == {1, 3, 5}
    assert {sentence["level"] for reference in with_crowd for sentence in reference["sentences"]} == {"count"}


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_same_arguments_same_bytes(photos):
    for name in ("first", "second"):
        write(photos, name, seed=5, pasted_images=3, images="copy", validation_share=0.3)
    assert files_of(photos / "first") == files_of(photos / "second")
    write(photos, "third", seed=6, pasted_images=3, images="copy", validation_share=0.3)
    assert files_of(photos / "first") != files_of(photos / "third")


def test_excluded_images_are_neither_described_nor_cut_from(photos):
    counts = write(photos, exclude_image_ids=["2", 4], pasted_images=5)
    written = json.loads((photos / "refer" / "instances.json").read_text())
    assert counts["images"] == len(written["images"])
    originals = {image["id"] for image in written["images"] if "source_image_ids" not in image}
    assert originals == {1, 3, 5, 6}
    sources = {source for image in written["images"] for source in image.get("source_image_ids", ())}
    assert sources
    assert sources <= originals
    assert not (photos / "refer" / "images" / f"{2:012d}.jpg").exists()


def test_pasted_images_are_annotated_to_the_pixel(photos):
    write(photos, pasted_images=8, seed=1)
    written = json.loads((photos / "refer" / "instances.json").read_text())
    by_image = {}
    for annotation in written["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    assert len({annotation["id"] for annotation in written["annotations"]}) == len(written["annotations"])
    pasted = [image for image in written["images"] if "source_image_ids" in image]
    assert len(pasted) == 8
    for image in pasted:
        pixels = np.asarray(Image.open(photos / "refer" / "images" / image["file_name"])).astype(int)
        original = np.asarray(Image.open(photos / "photos" / f"{image['source_image_ids'][0]:012d}.jpg"))
        assert pixels.shape == original.shape == (120, 160, 3)
        masks = [decode_mask(annotation["segmentation"]) for annotation in by_image[image["id"]]]
        assert (np.sum(masks, axis=0) <= 1).all()  # what is covered is cut away
        for annotation, mask in zip(by_image[image["id"]], masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert annotation["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["area"] == mask.sum()
            if not annotation["iscrowd"] and mask.sum() > 200:
                # All objects here are of one color, so a mask that fits holds little else.
                assert np.median(np.abs(pixels[mask] - np.median(pixels[mask], axis=0))) < 12
    rows = load_referring_dataset(photos / "refer", "train", on_bad_row="raise", check_images=True)
    assert {str(image["id"]) for image in pasted} <= set(rows["image_id"])


def test_splits_never_share_objects(photos):
    seed = next(seed for seed in range(50) if {split_of_image(i, 0.4, seed) for i in (1, 2, 3)} == {"train", "val"})
    write(photos, validation_share=0.4, seed=seed, pasted_images=6)
    written = json.loads((photos / "refer" / "instances.json").read_text())
    split_of = {
        reference["image_id"]: reference["split"]
        for reference in json.loads((photos / "refer" / REFERENCES_FILE).read_text())
    }
    for image in written["images"]:
        for source in image.get("source_image_ids", ()):
            assert split_of[source] == split_of[image["id"]]
    both = [set(load_referring_dataset(photos / "refer", split)["image_id"]) for split in ("train", "val")]
    assert not both[0] & both[1]


def test_versions_take_the_place_of_training_photos(photos):
    source = CocoPhotos(photos / "instances.json", photos / "photos", versions=3)
    for name in ("first", "second"):
        counts = write_coco_refer_folder(
            source, photos / name, validation_image_ids=["2"], longest_side=100, pasted_images=4
        )
    assert files_of(photos / "first") == files_of(photos / "second")
    written = json.loads((photos / "first" / "instances.json").read_text())
    versions = [image for image in written["images"] if image["file_name"].startswith("version_")]
    assert len(versions) == 3 * 5
    assert [image["id"] for image in written["images"] if "source_image_ids" not in image] == [2]
    assert not any(2 in image.get("source_image_ids", ()) for image in written["images"])
    for image in written["images"][:1] + versions:
        path = photos / "first" / "images" / image["file_name"]
        if image in versions:
            assert max(image["width"], image["height"]) <= 100
            assert Image.open(path).size == (image["width"], image["height"])
    whole = [image for image in versions if (image["width"], image["height"]) == (100, 75)]
    assert len(whole) >= 5  # the first of each photo is the photo itself
    assert counts["images"] <= 1 + 15 + 4
    rows = load_referring_dataset(photos / "first", "val", on_bad_row="raise", check_images=True)
    assert list(rows["image_id"]) == ["2"]
    rows = load_referring_dataset(photos / "first", "train", on_bad_row="raise", check_images=True)
    assert len(rows) == counts["images"] - 1


def test_of_photos_with_persons_only_nothing_else_is_written(photos, tmp_path):
    pixels = np.full((120, 160, 3), 150, dtype=np.uint8)
    pixels[20:110, 50:90] = (210, 20, 20)
    (tmp_path / "people").mkdir()
    Image.fromarray(pixels).save(tmp_path / "people" / "000000000050.jpg", quality=95)
    instances = json.loads((photos / "instances.json").read_text())
    table = {
        "images": [{"id": 50, "file_name": "000000000050.jpg", "height": 120, "width": 160}],
        "annotations": [
            {
                "id": 1000,
                "image_id": 50,
                "category_id": 3,
                "segmentation": [[50, 20, 90, 20, 90, 110, 50, 110]],
                "bbox": [50, 20, 40, 90],
                "area": 3600,
                "iscrowd": 0,
            }
        ],
        "categories": instances["categories"],
    }
    (tmp_path / "people.json").write_text(json.dumps(table))
    people = CocoPhotos(tmp_path / "people.json", tmp_path / "people", versions=2, persons_only=True)
    main(
        [
            *("photos", str(photos / "instances.json"), str(photos / "photos"), str(photos / "refer"), "--paste", "6"),
            *("--persons-only", str(people.instances_file), str(people.image_folder), "--persons-only-versions", "2"),
        ]
    )
    written = json.loads((photos / "refer" / "instances.json").read_text())
    sources = {image["id"]: image.get("source_image_ids", [image["id"]]) for image in written["images"]}
    references = json.loads((photos / "refer" / REFERENCES_FILE).read_text())
    of_people = [reference for reference in references if sources[reference["image_id"]] == [50]]
    assert len({reference["image_id"] for reference in of_people}) == 2
    assert {sentence["level"] for reference in of_people for sentence in reference["sentences"]} <= {
        "category",
        "color",
    }
    assert all(reference["category_id"] == [3] for reference in of_people)
    clash = {**table, "images": [{**table["images"][0], "id": 1}]}
    (tmp_path / "people.json").write_text(json.dumps(clash))
    with pytest.raises(ValueError, match="share ids"):
        write_coco_refer_folder([CocoPhotos(photos / "instances.json", photos / "photos"), people], photos / "clash")
    (tmp_path / "people.json").write_text(json.dumps({**table, "categories": table["categories"][:2]}))
    with pytest.raises(ValueError, match="have different categories"):
        write_coco_refer_folder([CocoPhotos(photos / "instances.json", photos / "photos"), people], photos / "clash")


def test_colors_are_those_of_the_photo(photos):
    """The objects are rectangles of one color, so whatever color is named must be the color of that rectangle."""
    write(photos, levels=["color"], max_per_level=20)
    written = json.loads((photos / "refer" / "instances.json").read_text())
    annotations = {item["id"]: item for item in written["annotations"]}
    references = json.loads((photos / "refer" / REFERENCES_FILE).read_text())
    assert references
    for reference in references:
        pixels = np.asarray(Image.open(photos / "photos" / reference["file_name"]))
        (identifier,) = reference["ann_id"]
        mask = decode_mask(to_rle(annotations[identifier]["segmentation"], 120, 160))
        clear = measure_colors(color_indices(pixels)[mask]).clear_colors()
        for sentence in reference["sentences"]:
            assert any(color in sentence["tokens"] for color in clear)


@pytest.mark.parametrize(
    ("function", "call"), [("coco_annotations", 1), ("coco_annotations", 2), ("replace_text", 1), ("replace_text", 2)]
)
def test_what_a_kill_left_is_not_read_and_the_next_run_completes_it(photos, monkeypatch, function, call):
    """Killed after the first and the second pasted image, and before each of the two tables is written."""
    options = {"pasted_images": 3, "images": "copy", "validation_share": 0.3}
    write(photos, "whole", **options)
    original, calls = getattr(refer_writer, function), []

    def killed(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            kill_this_process()
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(refer_writer, function, killed)
        assert_is_killed(lambda: write(photos, "killed", **options))
    assert (photos / "killed" / "images").is_dir()
    with pytest.raises(ValueError, match=r"killed|are not those of a known referring dataset"):
        load_referring_dataset(photos / "killed", "train")
    write(photos, "killed", **options)
    assert files_of(photos / "killed") == files_of(photos / "whole")


def test_share_of_validation_images():
    splits = [split_of_image(identifier, 0.2, seed=0) for identifier in range(5000)]
    assert abs(splits.count("val") / 5000 - 0.2) < 0.02
    assert {split_of_image(identifier, 0.0, seed=0) for identifier in range(100)} == {"train"}


def test_bad_annotations_are_named():
    image = {"id": 9, "height": 20, "width": 30}
    good = {"id": 1, "category_id": 1, "segmentation": [[2, 2, 9, 2, 9, 9]], "bbox": [2, 2, 7, 7]}
    bad = [
        {**good, "id": 2, "segmentation": []},
        {**good, "id": 3, "category_id": 77},
        {**good, "id": 4, "segmentation": [[40, 40, 50, 40, 50, 50]]},
        {key: value for key, value in {**good, "id": 5}.items() if key != "bbox"},
    ]
    problems = find_problems(image, [good, *bad], NAMES)
    assert [problem.split(":")[0] for problem in problems] == [f"annotation {number}" for number in (2, 3, 4, 5)]
    assert "mask is empty" in problems[2]


@pytest.mark.parametrize("how", ["link", "copy"])
def test_photos_in_the_folder_that_is_written_stay(photos, how):
    (photos / "refer").mkdir()
    (photos / "photos").rename(photos / "refer" / "images")
    before = files_of(photos / "refer" / "images")
    source = CocoPhotos(photos / "instances.json", photos / "refer" / "images")
    write_coco_refer_folder(source, photos / "refer", images=how, pasted_images=2)
    after = files_of(photos / "refer" / "images")
    assert {name: after[name] for name in before} == before
    assert not any(path.is_symlink() for path in (photos / "refer" / "images").iterdir())


@pytest.mark.parametrize("absolute", [False, True])
def test_photos_named_by_a_path_elsewhere_are_refused(photos, absolute):
    instances = json.loads((photos / "instances.json").read_text())
    photo = photos / "photos" / instances["images"][0]["file_name"]
    instances["images"][0]["file_name"] = str(photo) if absolute else f"../photos/{photo.name}"
    (photos / "instances.json").write_text(json.dumps(instances), "utf-8")
    with pytest.raises(ValueError, match="leads out of its folder"):
        write(photos)
    assert photo.is_file()
    assert not photo.is_symlink()


def test_photos_of_which_not_all_is_known_are_left_out(photos):
    """With one dog that cannot be read, "the dog" would be another one, and a cup could be called absent."""
    instances = json.loads((photos / "instances.json").read_text())
    instances["annotations"][0]["segmentation"] = []
    del next(item for item in instances["annotations"] if item["image_id"] == 2)["bbox"]
    (photos / "instances.json").write_text(json.dumps(instances), "utf-8")
    counts = write(photos, pasted_images=4)
    assert counts["skipped_images"] == 2
    written = json.loads((photos / "refer" / "instances.json").read_text())
    assert {image["id"] for image in written["images"]} == {3, 4, 5, 6, 7, 8, 9, 10}
    assert not {1, 2} & {source for image in written["images"] for source in image.get("source_image_ids", ())}


def test_pasted_images_are_never_taken_for_photos(photos, tmp_path):
    write(photos, pasted_images=4)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for number in range(7, 11):
        (elsewhere / f"{number:012d}.jpg").touch()
    rows = load_referring_dataset(photos / "refer", "train", on_bad_row="raise")
    assert {str(number) for number in range(1, 11)} == set(rows["image_id"])
    with pytest.raises(ValueError, match="no row is left"):
        load_referring_dataset(photos / "refer", "train", image_folder=elsewhere)
    # Training hands every dataset one folder of photos; this one has its own.
    assert len(load_rows({"name": str(photos / "refer"), "split": "train"}, image_folder=elsewhere)) == 10


def test_excluded_photos_are_left_out_of_pasted_images_too(photos):
    write(photos, pasted_images=6)
    written = json.loads((photos / "refer" / "instances.json").read_text())
    sources = {str(image["id"]): image.get("source_image_ids", [image["id"]]) for image in written["images"]}
    assert any(1 in own and identifier != "1" for identifier, own in sources.items())
    # The number of a pasted image may be that of another photo, which is none of its business.
    rows = load_referring_dataset(photos / "refer", "train", exclude_image_ids=["1", "7"])
    assert set(rows["image_id"]) == {identifier for identifier, own in sources.items() if 1 not in own}


def test_refusals(photos):
    for options, message in (
        ({"images": "move"}, "`images` must be"),
        ({"validation_share": 1.5}, "validation_share"),
        ({"exclude_image_ids": range(1, 7)}, "no image of"),
        ({"levels": ["texture"]}, "unknown levels"),
    ):
        with pytest.raises(ValueError, match=message):
            write(photos, **options)
    write(photos)
    with pytest.raises(ValueError, match="already contains references"):
        write(photos)


def test_script(photos, capsys):
    held_out = photos / "refcoco"
    held_out.mkdir()
    references = [{"ref_id": 0, "ann_id": 1, "image_id": 3, "split": "testA", "sentences": []}]
    (held_out / "refs(unc).json").write_text(json.dumps(references), "utf-8")
    (held_out / "instances.json").write_text("{}", "utf-8")
    (photos / "ids.txt").write_text("5\n", "utf-8")
    main(
        [
            "photos",
            *map(str, (photos / "instances.json", photos / "photos", photos / "refer")),
            *("--hold-out", str(held_out), "--exclude-image-ids", str(photos / "ids.txt"), "--paste", "2"),
        ]
    )
    assert "2 images held out" in capsys.readouterr().out
    rows = load_referring_dataset(photos / "refer", "train", on_bad_row="raise")
    assert {"1", "2", "4", "6"} < set(rows["image_id"])
    assert not {"3", "5"} & set(rows["image_id"])


def test_real_photos(coco_mini, tmp_path):
    source = CocoPhotos(coco_mini / "instances.json", coco_mini / "images")
    counts = write_coco_refer_folder(source, tmp_path / "refer")
    assert counts["skipped_images"] == 0
    assert all(counts[f"level {level}"] > 20 for level in LEVELS)
    rows = load_referring_dataset(tmp_path / "refer", "train", on_bad_row="raise", check_images=True)
    assert len(rows) == counts["images"] >= 48
    instances = json.loads((coco_mini / "instances.json").read_text())
    crowds = {
        item["image_id"]: encode_mask(decode_mask(item["segmentation"]))
        for item in instances["annotations"]
        if item["iscrowd"] and item["category_id"] == 1
    }
    write_coco_refer_folder(source, tmp_path / "all", max_per_level=1000, levels=["count"])
    rows = load_referring_dataset(tmp_path / "all", "train", on_bad_row="raise")
    written = {row["image_id"]: row for row in rows.remove_columns("image")}
    covered = 0
    for image_id, crowd in crowds.items():
        row = written[str(image_id)]
        masks = [decode_mask(row["masks"][index]) for index in row["mask_index"]]
        covered += any((mask & decode_mask(crowd)).sum() == mask_area(crowd) for mask in masks)
    assert covered == len(crowds) == 3
