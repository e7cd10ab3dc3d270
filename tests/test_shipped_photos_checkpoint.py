"""The model for photographs that comes with the project: complete, of today's code, and able to tell things apart."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer, pipeline

from processing.app.examples import read_examples
from processing.shipped_models import CHECKPOINTS


FOLDER = CHECKPOINTS / "jmceln-photos"
PHOTOS = FOLDER.parents[1] / "examples" / "photos"


@pytest.fixture(scope="module")
def pipe():
    return pipeline("referring-image-segmentation", model=str(FOLDER), trust_remote_code=True)


def test_it_is_small_and_whole():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 50e6
    assert (FOLDER / "model.safetensors").is_file()
    assert not [path.name for path in FOLDER.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_it_names_no_folder_of_the_machine_that_trained_it():
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert not any(config[encoder].get("_name_or_path") for encoder in ("backbone_config", "text_config"))


def test_half_precision_on_disk_is_float32_in_memory():
    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    assert model.dtype == torch.float32
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_its_card_names_what_it_was_trained_on():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    trained = {photo for ids in json.loads((FOLDER / "training_photos.json").read_text()).values() for photo in ids}
    held_out = (FOLDER.parents[1] / "configs" / "photos_held_out_ids.txt").read_text(encoding="utf-8").split()
    assert f"{len(trained)} of COCO 2017" in card
    assert not trained & {int(number) for number in held_out if number.isdigit()}, "trained on photos of the test"
    table = json.loads((FOLDER / "test_results.json").read_text(encoding="utf-8"))
    assert all(cell in card for line in table for cell in line)


@pytest.mark.parametrize(
    ("photo", "expressions"),
    [
        # Things that lie apart: their masks must too.
        ("000000173350.jpg", ["the toilet", "the dog at the bottom"]),
        ("000000516008.jpg", ["the laptop", "the mouse"]),
        ("000000000127.jpg", ["the cup", "the cake"]),
    ],
)
def test_it_tells_things_apart(pipe, photo, expressions):
    first, second = pipe(str(PHOTOS / photo), expressions, threshold=0)
    masks = [np.asarray(answer["mask"]) > 0 for answer in (first, second)]
    assert all(mask.size == np.prod(Image.open(PHOTOS / photo).size) for mask in masks)
    assert all(mask.mean() > 0.003 for mask in masks)
    assert (masks[0] & masks[1]).sum() < 0.1 * min(mask.sum() for mask in masks)


def test_what_is_not_there_is_not_found(pipe):
    expressions = json.loads((PHOTOS / "expressions.json").read_text(encoding="utf-8"))
    scores = {
        name: [answer["score"] for answer in pipe(str(PHOTOS / name), texts)] for name, texts in expressions.items()
    }
    # The last expression of each photo names what it does not show.
    assert np.mean([found[-1] for found in scores.values()]) < np.mean([found[0] for found in scores.values()]) - 0.3


def test_a_photo_may_be_asked_for_words_that_no_template_has(pipe):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert tokenizer.unk_token_id not in tokenizer("the puppy beside the lavatory")["input_ids"]
    (answer,) = pipe(str(PHOTOS / "000000173350.jpg"), "the puppy beside the lavatory")
    assert 0 <= answer["score"] <= 1


def test_examples_for_the_page_are_there():
    examples = read_examples(FOLDER)
    assert len(examples) == len(list(PHOTOS.glob("*.jpg")))
    assert all(example.attribution for example in examples)
