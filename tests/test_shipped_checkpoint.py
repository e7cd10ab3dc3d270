"""The model of shapes that comes with the project: complete, of today's code, and as good as its card says."""

import json

import pytest

from modeling_jmceln import JMCELNModel
from processing.evaluation import run as evaluate
from processing.evaluation.report import results_table
from processing.shipped_models import CHECKPOINTS, SHIPPED_MODELS
from tests.tiny import tiny_config, tiny_processor


FOLDER = CHECKPOINTS / "jmceln-shapes"
SUBSET = 40


@pytest.fixture(scope="module")
def published():
    return json.loads((FOLDER / "test_results.json").read_text(encoding="utf-8"))


def test_it_is_small_and_whole():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12e6
    assert (FOLDER / "model.safetensors").is_file()
    assert not [path.name for path in FOLDER.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize("folder", [CHECKPOINTS / name for name in SHIPPED_MODELS], ids=lambda folder: folder.name)
def test_the_code_of_shipped_models_is_that_of_the_packages(folder, tmp_path):
    JMCELNModel(tiny_config()).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    of_today = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.py")}
    shipped = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    stale = [name for name in of_today | shipped if of_today.get(name) != shipped.get(name)]
    assert not stale, "copy these files from the packages, or run scripts/make_*_checkpoint.py again"


def test_its_card_holds_the_scores_of_these_weights(published):
    assert results_table(published) in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert evaluate.weights_digest(JMCELNModel.from_pretrained(FOLDER)) == published["model"]["weights_sha256"]


def test_it_is_as_good_as_its_card_says(published, tmp_path):
    results = evaluate.main(
        [
            *("--model", str(FOLDER), "--dataset", "shapes", "--split", "test", "--device", "cpu", "--no-progress"),
            *("--shapes-images", str(SUBSET), "--shapes-image-size", str(published["data"]["shapes_image_size"])),
            *("--sheet-cases", "0", "--output-dir", str(tmp_path)),
        ]
    )
    measured, promised = results["scores"], published["scores"]
    # The first scenes of the very same split: their mean lies within the chance of so few.
    assert abs(measured["mIoU"] - promised["mIoU"]) < 3 * measured["mIoU_standard_error"]
    assert abs(measured["P@0.5"] - promised["P@0.5"]) < 0.1
    for level in ("appearance", "position", "relation"):
        random_object = 0.102  # of scripts/shapes_oracles.py: reads nothing
        assert measured["groups"][level]["mIoU"] > 3 * random_object
