"""The learning curve over photos, with training and evaluation replaced by something quick."""

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import photos_learning_curve
from processing.training.arguments import parse_arguments


HELD_OUT = [3, 6]


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for ten photos of a dog and a cup each, two of them held out."""
    photos = tmp_path / "photos"
    photos.mkdir()
    images, annotations = [], []
    for number in range(1, 11):
        name = f"{number}.jpg"
        Image.new("RGB", (96, 64), (number * 20, 90, 40)).save(photos / name)
        images.append({"id": number, "file_name": name, "height": 64, "width": 96})
        for category, left in ((1, 8), (2, 56)):
            box = [left, 20, 24, 24]
            corners = [left, 20, left + 24, 20, left + 24, 44, left, 44]
            common = {"image_id": number, "category_id": category, "bbox": box, "area": 576, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "segmentation": [corners], **common})
    categories = [{"id": 1, "name": "dog", "supercategory": "x"}, {"id": 2, "name": "cup", "supercategory": "x"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("".join(f"{number}\n" for number in HELD_OUT))
    monkeypatch.setattr(photos_learning_curve, "HELD_OUT", held_out)
    page = tmp_path / "page.md"
    page.write_text("".join(photos_learning_curve.MARKERS))
    monkeypatch.setattr(photos_learning_curve, "PAGE", page)
    paths = [tmp_path / "instances.json", photos, tmp_path / "encoders", tmp_path / "curve"]
    return [*map(str, paths), "--versions", "1", "--paste", "0", "--known-photos", "2", "--document"]


def photos_of(folder: str, split: str) -> set[int]:
    references = json.loads((Path(folder) / "refs(coco).json").read_text())
    images = {image["id"]: image for image in json.loads((Path(folder) / "instances.json").read_text())["images"]}
    used = {reference["image_id"] for reference in references if reference["split"] == split}
    return {photo for image in used for photo in images[image].get("source_image_ids", [image])}


def test_every_run_sees_its_share_and_answers_the_same(arguments, tmp_path, monkeypatch):
    trained, asked = [], []

    def train(given):
        model, data, settings = parse_arguments(given)
        assert model.vision_model == str(tmp_path / "encoders" / "vision")
        assert settings.max_steps == 600
        trained.append(photos_of(data.train_data[0]["name"], "train"))
        Path(settings.output_dir).mkdir()

    def evaluate(given):
        asked.append(photos_of(given[given.index("--dataset") + 1], "val"))
        scores = {"mIoU": len(trained) / 10, "mIoU_standard_error": 0.01, "P@0.5": 0.5}
        output = Path(given[given.index("--output-dir") + 1])
        output.mkdir()
        (output / "results.json").write_text(json.dumps({"scores": scores}))

    monkeypatch.setattr(photos_learning_curve.training, "main", train)
    monkeypatch.setattr(photos_learning_curve.evaluation, "main", evaluate)
    photos_learning_curve.main(arguments)
    few, half, all_photos = trained
    assert few < half < all_photos == set(range(1, 11)) - set(HELD_OUT)
    assert [len(photos) for photos in trained] == [2, 4, 8]
    assert asked == [set(HELD_OUT), few] * 3
    page = (tmp_path / "page.md").read_text()
    assert "| 2 (25 %) | 10.0 ± 1.0 | 50.0 | 10.0 ± 1.0 | 50.0 |" in page
    assert page.index("2 (25 %)") < page.index("4 (50 %)") < page.index("8 (100 %)")

    photos_learning_curve.main(arguments)
    assert len(trained) == 3


def test_known_photos_are_in_every_share(arguments):
    with pytest.raises(ValueError, match="smallest share has 1 photos, but every run must train on the 2"):
        photos_learning_curve.main([*arguments, "--shares", "10", "100"])
