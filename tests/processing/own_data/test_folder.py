"""Tables and COCO files of one's own data become canonical rows, and what is wrong is named with its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from processing.data.canonical_rows import BadRowError, check_canonical_row
from processing.data.masks import decode_mask, encode_mask
from processing.data.referring_datasets import load_referring_dataset
from processing.own_data.folder import OwnFolder, is_own_folder
from tests.processing.own_data.own_folders import (
    HEIGHT,
    WIDTH,
    coco_annotation,
    square,
    write_coco,
    write_good_folder,
    write_mask,
    write_photo,
    write_table,
)


def masks_by_text(row: dict) -> dict[str, np.ndarray]:
    return {
        text: decode_mask(row["masks"][index])
        for text, index in zip(row["expressions"], row["mask_index"], strict=True)
    }


def test_a_table_becomes_canonical_rows_split_by_image(tmp_path: Path) -> None:
    folder = write_good_folder(tmp_path / "data")
    train = load_referring_dataset(folder, "train")
    val = load_referring_dataset(str(folder), "val")
    assert (len(train), len(val)) == (8, 2)
    assert not set(train["image_id"]) & set(val["image_id"])
    for row in [*train, *val]:
        check_canonical_row(row)
        assert row["image"].size == (WIDTH, HEIGHT)
        masks = masks_by_text(row)
        assert np.array_equal(masks["the left square"], square(2))
        assert np.array_equal(masks["the right square"], square(40))
        assert not masks["the star"].any()
    assert load_referring_dataset(folder, "val")["image_id"] == val["image_id"]
    others = {tuple(load_referring_dataset(folder, "val", split_seed=seed)["image_id"]) for seed in range(5)}
    assert len(others) > 1
    assert len(load_referring_dataset(folder, "val", validation_share=0.5)) == 5


def test_copies_of_a_photo_are_in_one_split(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write_photo(tmp_path / f"{name}.png", number=0 if name in "ab" else ord(name))
    write_mask(tmp_path / "m.png", square(3))
    write_table(tmp_path, [[f"{name}.png", "m.png", "it"] for name in "abcd"])
    splits_of_a = set()
    for seed in range(8):
        of_split = {
            split: load_referring_dataset(tmp_path, split, split_seed=seed)["image_id"] for split in ("train", "val")
        }
        assert sum("a.png" in of_split[split] and "b.png" in of_split[split] for split in of_split) == 1
        splits_of_a |= {split for split in of_split if "a.png" in of_split[split]}
    assert splits_of_a == {"train", "val"}


def test_a_table_may_name_its_splits_and_call_its_columns_otherwise(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png", 1)
    write_photo(tmp_path / "b.png", 2)
    write_mask(tmp_path / "masks" / "m.png", square(3))
    rows = "File_Name;mask;Caption;split\na.png;m.png;it;train\nb.png;m.png;it;validation\n"
    (tmp_path / "pairs.csv").write_text("\ufeff" + rows, encoding="utf-8")
    assert load_referring_dataset(tmp_path, "train")["image_id"] == ["a.png"]
    assert load_referring_dataset(tmp_path / "pairs.csv", "val")["image_id"] == ["b.png"]
    with pytest.raises(ValueError, match=r"'test'; 2 images can be used, in the splits \['train', 'validation'\]"):
        load_referring_dataset(tmp_path, "test")


def test_json_lines_may_have_several_texts_for_a_mask(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png")
    write_mask(tmp_path / "m.png", square(3))
    line = {"image": "a.png", "mask": "m.png", "expressions": ["the square", "the left one"]}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(line) + "\n[1]\n\n{", encoding="utf-8")
    folder = OwnFolder(tmp_path)
    (row,) = folder.rows
    assert row["expressions"] == ["the square", "the left one"]
    assert row["mask_index"] == [0, 0]
    assert folder.problems == [
        ("pairs.jsonl, line 2", "no JSON object: [1]"),
        ("pairs.jsonl, line 4", "no JSON object: {"),
    ]


WRONG = {
    "photos/nowhere.png": ("masks/good.png", "it", "there is no file 'photos/nowhere.png'"),
    "photos/1.png": ("masks/nowhere.png", "it", "there is no file 'masks/nowhere.png'"),
    "photos/2.png": (
        "masks/small.png",
        "it",
        "'masks/small.png': mask of size (height, width) = (20, 30) for an image",
    ),
    "photos/3.png": ("masks/empty.png", "it", "'masks/empty.png': the mask is empty"),
    "photos/4.png": ("masks/full.png", "it", "'masks/full.png': the mask covers the whole image"),
    "photos/5.png": ("masks/good.png", " ", "the expression is empty"),
    "photos/6.png": ("masks/lossy.jpg", "it", "'masks/lossy.jpg' is a JPEG"),
    "photos/broken.png": ("masks/good.png", "it", "photos/broken.png: image cannot be opened"),
    "photos/cut.png": ("masks/good.png", "it", "photos/cut.png: image cannot be"),
    "photos/7.png": ("masks/broken.png", "it", "the mask 'masks/broken.png' cannot be opened"),
    "photos/8.png": ("", "it", 'no mask; write "none" if the image does not show'),
    "../secret.png": ("masks/good.png", "it", "there is no file '../secret.png'"),
    "/etc/hostname": ("masks/good.png", "it", "there is no file '/etc/hostname'"),
}


@pytest.fixture
def wrong_folder(tmp_path: Path) -> Path:
    folder = write_good_folder(tmp_path / "data", count=9)
    masks = {"good": square(3), "empty": np.zeros((HEIGHT, WIDTH)), "full": np.ones((HEIGHT, WIDTH))}
    for name, mask in {**masks, "small": square(3)[:20, :30]}.items():
        write_mask(folder / "masks" / f"{name}.png", mask)
    Image.fromarray(square(3)).convert("L").save(folder / "masks" / "lossy.jpg")
    write_photo(tmp_path / "secret.png")
    for path in (folder / "photos" / "broken.png", folder / "masks" / "broken.png"):
        path.write_bytes(b"no picture")
    write_photo(folder / "photos" / "cut.png")
    whole = (folder / "photos" / "cut.png").read_bytes()
    (folder / "photos" / "cut.png").write_bytes(whole[: len(whole) // 2])
    write_table(folder, [[image, mask, text] for image, (mask, text, _) in WRONG.items()])
    return folder


def test_all_that_is_wrong_is_named_with_its_line(wrong_folder: Path) -> None:
    folder = OwnFolder(wrong_folder)
    assert folder.rows == []
    assert [place for place, _ in folder.problems] == [f"pairs.csv, line {line}" for line in range(2, len(WRONG) + 2)]
    for (_, reason), (_, _, said) in zip(folder.problems, WRONG.values(), strict=True):
        assert said in reason


def test_repeated_and_contradicting_texts_are_named(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png")
    for number in (1, 2):
        write_mask(tmp_path / f"{number}.png", square(10 * number))
    rows = [["a.png", "1.png", "it"], ["a.png", "1.png", "IT"], ["a.png", "2.png", "it"], ["a.png", "2.png", "that"]]
    write_table(tmp_path, rows)
    folder = OwnFolder(tmp_path)
    assert folder.problems == [
        ("pairs.csv, line 3", "'IT' for a.png is there already: pairs.csv, line 2"),
        ("pairs.csv, line 4", "'it' for a.png has another mask already: pairs.csv, line 2"),
    ]
    assert folder.rows[0]["expressions"] == ["it", "that"]


def test_what_is_wrong_is_left_out_of_training_or_stops_it(tmp_path: Path) -> None:
    folder = write_good_folder(tmp_path / "data", count=3)
    (folder / "masks" / "1-left.png").unlink()
    train = load_referring_dataset(folder, "train", validation_share=0)
    assert sum(len(row["expressions"]) for row in train) == 8
    with pytest.raises(BadRowError, match=r"pairs.csv, line 5: there is no file 'masks/1-left.png'"):
        load_referring_dataset(folder, "train", on_bad_row="raise")


def test_cvat_puts_texts_into_attributes_and_images_beside_the_annotations(tmp_path: Path) -> None:
    write_photo(tmp_path / "images" / "a.png", 1)
    write_photo(tmp_path / "images" / "b.png", 2)
    attributes = {"occluded": False, "description": "the left one"}
    flat = square(20).flatten(order="F").astype(int)
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    run_lengths = {"counts": runs, "size": [HEIGHT, WIDTH]}
    annotations = [
        coco_annotation(1, 0, 2, attributes=attributes),
        coco_annotation(
            2, 0, 20, segmentation=run_lengths, iscrowd=1, attributes={**attributes, "description": "the other"}
        ),
        coco_annotation(3, 1, 2, segmentation=[], attributes=attributes),
        coco_annotation(4, 7, 2, attributes=attributes),
        coco_annotation(5, 1, 2, attributes={"occluded": False, "description": ""}),
    ]
    write_coco(tmp_path / "annotations" / "instances_default.json", ["a.png", "b.png"], annotations)
    folder = OwnFolder(tmp_path)
    (row,) = folder.rows
    masks = masks_by_text(row)
    assert np.array_equal(masks["the left one"], square(2))
    assert np.array_equal(masks["the other"], square(20))
    name = "instances_default.json, annotation"
    assert folder.problems == [
        (f"{name} 3", "a box without a mask: draw it as a polygon or as a mask"),
        (f"{name} 4", "there is no image 7 in the file"),
        (f"{name} 5", "the expression is empty"),
    ]


def test_label_studio_names_labels_alone_and_its_own_folders(tmp_path: Path) -> None:
    write_photo(tmp_path / "images" / "1f-a.png")
    annotations = [
        coco_annotation(0, 0, 2, ignore=0),
        coco_annotation(1, 0, 20, ignore=0),
        coco_annotation(2, 0, 40, ignore=0, category_id=2),
    ]
    write_coco(tmp_path / "result.json", ["../../label-studio/data/media/upload/1/1f-a.png"], annotations)
    with pytest.raises(ValueError, match=r"no annotation has a text .* text_field='category'"):
        OwnFolder(tmp_path)
    (row,) = load_referring_dataset(tmp_path, "train", text_field="category", validation_share=0)
    masks = masks_by_text(row)
    # All regions of a label are what its name means.
    assert np.array_equal(masks["square"], square(2) | square(20))
    assert np.array_equal(masks["star"], square(40))


def test_other_fields_with_text_are_named_and_can_be_chosen(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png")
    write_coco(tmp_path / "coco.json", ["a.png"], [coco_annotation(0, 0, 2, attributes={"note": "the left one"})])
    with pytest.raises(ValueError, match="there is text under note"):
        OwnFolder(tmp_path)
    assert OwnFolder(tmp_path, text_field="note").rows[0]["expressions"] == ["the left one"]


def test_files_of_subsets_are_splits(tmp_path: Path) -> None:
    for subset in ("train", "val"):
        write_photo(tmp_path / "images" / subset / f"{subset}.png")
        write_coco(
            tmp_path / "annotations" / f"instances_{subset}.json",
            [f"{subset}.png"],
            [coco_annotation(0, 0, 2, caption="it")],
        )
    assert load_referring_dataset(tmp_path, "train")["image_id"] == ["train.png"]
    assert load_referring_dataset(tmp_path, "val")["image_id"] == ["val.png"]


def test_what_predict_writes_as_polygons_is_read(tmp_path: Path) -> None:
    from processing.prediction.batch import coco_annotations

    write_photo(tmp_path / "a.png")
    result = {"expression": "it", "score": 0.9, "area": 100, "segmentation": encode_mask(square(2))}
    entry = {"image": "a.png", "size": [HEIGHT, WIDTH], "results": [result]}
    (tmp_path / "annotations.json").write_text(json.dumps(coco_annotations([entry])), encoding="utf-8")
    (row,) = OwnFolder(tmp_path).rows
    assert np.array_equal(masks_by_text(row)["it"], square(2))


def test_tables_that_are_not_utf_8_are_said_to_be(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png")
    write_mask(tmp_path / "m.png", square(3))
    text = "image,mask,expression\na.png,m.png,the square\na.png,m.png,das schöne\n"
    (tmp_path / "pairs.csv").write_bytes(text.encode("latin-1"))
    folder = OwnFolder(tmp_path)
    assert folder.problems[0] == ("pairs.csv, line 3", "not UTF-8: save the table as UTF-8")
    assert folder.rows[0]["expressions"][0] == "the square"


def test_folders_of_other_kinds_are_left_to_the_other_readers(tmp_path: Path) -> None:
    assert not is_own_folder(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,1\n", encoding="utf-8")
    (tmp_path / "notes.json").write_text("[1, 2]", encoding="utf-8")
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    assert not is_own_folder(tmp_path)
    assert not is_own_folder("someone/a-dataset")
    with pytest.raises(ValueError, match="neither a table"):
        OwnFolder(tmp_path)


def test_options_of_other_sources_are_refused(tmp_path: Path) -> None:
    folder = write_good_folder(tmp_path / "data", count=2)
    with pytest.raises(ValueError, match="\\['partition'\\] have no effect"):
        load_referring_dataset(folder, "train", partition="unc")
    with pytest.raises(ValueError, match="validation_share"):
        load_referring_dataset(folder, "train", validation_share=1.5)


def test_streams_and_excluded_images(tmp_path: Path) -> None:
    folder = write_good_folder(tmp_path / "data", count=4)
    rows = load_referring_dataset(
        folder, "train", validation_share=0, streaming=True, exclude_image_ids=["photos/0.png"]
    )
    assert [row["image_id"] for row in rows] == [f"photos/{number}.png" for number in (1, 2, 3)]
