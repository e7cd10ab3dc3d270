"""Make the photographs' model that ships with the project, with its scores and its card, from a training run.

    python scripts/make_photos_checkpoint.py runs/photos data/coco_photos checkpoints/jmceln-photos

Weights are written in half precision and load in float32. The scores come from the photos of the split `val`, which
the run has not trained on; the pictures on the card from those of them whose license allows it. The README gets the
same table. Run it again when the code of the model changes (a test says so).
"""

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import torch
from PIL import Image

from modeling_jmceln import JMCELNModel
from processing import JMCELNProcessor
from processing.data.referring_datasets import load_referring_dataset
from processing.evaluation.evaluation import EvaluationSettings
from processing.evaluation.journal import EvaluationJournal
from processing.evaluation.report import fill_page, markdown_table
from processing.evaluation.sheet import Case, choose_cases, draw_sheet
from processing.photos.scores import controls_table, score_photos, scores_table


SHOWABLE_LICENSES = (4, 5, 7)
"""Ids of COCO's licenses that allow to show a photo elsewhere: CC BY, CC BY-SA, no known restrictions."""

PICTURES_PER_SHEET = 18
JPEG_QUALITY = 75
SHEET_WIDTH = 1000
README = Path(__file__).resolve().parents[1] / "README.md"
EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "photos"
EXAMPLE_SIDE = 400
"""Longest side of the example photos in the checkpoint, in pixels."""

CARD = """---
library_name: transformers
pipeline_tag: image-segmentation
license: apache-2.0
language: en
tags:
- referring-image-segmentation
- custom_code
---

# JMCELN for photographs

A photo and an expression go in, the mask of what is meant comes out. A small model ({parameters:.1f} M parameters, of
which {own:.1f} M are JMCELN's own; {megabytes:.0f} MB in half precision) for photos of everyday scenes: people,
animals, vehicles, furniture, food, the 80 categories of COCO. It runs on a CPU.

```python
from transformers import pipeline

pipe = pipeline("referring-image-segmentation", model="{name}", trust_remote_code=True)
pipe("photo.jpg", ["the dog on the left", "red car"])
```

## Scores

On {photos} photos that it was not trained on, {expressions:,} expressions written by a program from COCO's annotations
(`jmceln benchmark-data photos`), masks at the original size of the photos. In percent, ± one standard error over
photos (bootstrap). `mIoU`, `oIoU` and `P@0.5` count expressions with a target; an empty answer counts 0. `T-acc` is
the share of them that get a mask at all, `N-acc` the share of expressions without a target that get none.

{table}

Controls replace the words, to show what the model owes to reading them: `the object` and `another image` ask for
something else, `shuffled words` leaves out the order, `head noun alone` leaves the category's name of the expression,
and `largest object` always answers with the largest annotated object, without a model. Their mIoU by level:

{controls}

## What it answers

Drawn at random from the photos above whose license allows to show them; green is right, orange too much, blue missed.

![random results](random.jpg)

The worst of those photos:

![failures](failures.jpg)

{attributions}

## How it was made

```bash
python scripts/make_photo_encoders.py data/encoders
{data_command}
jmceln train photos.yaml
jmceln train photos_fine.yaml
python scripts/average_checkpoints.py runs/photos_averaged runs/photos_fine runs/photos
```

- **Encoders**: vision from an SSD MobileNetV2 that was trained to detect on COCO (TensorFlow detection model zoo,
  Apache-2.0), with its class predictors; text from the first {text_layers} layers of all-MiniLM-L6-v2 (Apache-2.0).
- **Photos**: {training_photos} of COCO 2017, named with their licenses in `training_photos.json`, in {images:,}
  images: cropped, scaled, flipped, with changed colors, and with objects pasted in from one another. The annotations
  are COCO's (CC BY 4.0); {training_expressions:,} expressions were written from them after each change.
- **Training**: {training}{presence_shift}

## The leak

The detector behind the vision encoder has seen COCO's training photos with their boxes, very likely those of the test
above too, and RefCOCO's validation and test photos are COCO training photos as well. Scores on any of them flatter the
model. MiniLM was trained on COCO's captions, among many other texts. For claims on benchmarks train on an encoder that
has not seen COCO: `make_photo_encoders.py --vision imagenet`.

## What it cannot do

- **Other things** than COCO's categories: it answers with what looks nearest, or says that nothing is there.
- **Reading in full**: words beyond the name of the category help with positions. On the other levels the name alone
  does nearly as well, and the order of the words matters little (see the controls above).
- **Small objects**: it sees photos at {size} x {size} pixels.
- **Counting** beyond the first few, and reasoning over several steps: see `chain` above.
- **Fine distinctions** within a category: brands, kinds, actions, text, who somebody is. Expressions say nothing of
  gender or identity, and it has not learned words for them.
- **Loose wording**: expressions were written by a program. People write more freely, and it is less sure of that.
- English alone.
"""

PRESENCE_SHIFT = """
- **Threshold**: {:+.2f} was added to every presence logit, so that the default threshold of 0.5
  balances N-acc and T-acc. This one number was chosen on the photos of the test above."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of the training")
    parser.add_argument("data", type=Path, help="folder of the photos and expressions that it was trained on")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument(
        "--instances", type=Path, nargs="+", required=True, help="COCO files with the licenses of the photos"
    )
    parser.add_argument("--data-command", required=True, help="command that made the data, for the card")
    parser.add_argument("--training", required=True, help="a sentence on the training, for the card")
    parser.add_argument(
        "--presence-shift",
        type=float,
        default=0.0,
        help="added to every presence logit, so that the default threshold balances N-acc and T-acc",
    )
    return parser.parse_args(arguments)


def save_in_half_precision(model: JMCELNModel, folder: Path) -> None:
    """
    Save weights as float16 beside a configuration that says float32, in which they load again.

    Raises:
        ValueError: if a weight is too large for float16.
    """
    weights = {}
    for name, tensor in model.state_dict().items():
        weights[name] = tensor.half() if tensor.is_floating_point() else tensor
        if tensor.is_floating_point() and not torch.isfinite(weights[name]).all():
            raise ValueError(f"`{name}` does not fit into float16: its largest value is {tensor.abs().max():.3g}.")
    for encoder in (model.config.backbone_config, model.config.text_config):
        encoder._name_or_path = ""  # a folder of the machine that trained
    model.save_pretrained(folder, state_dict=weights)


def read_photos(files: Sequence[Path]) -> dict[int, dict[str, Any]]:
    """Photos of COCO files by id, with `license_id`, `license` and `flickr_url`."""
    photos = {}
    for path in files:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {entry["id"]: entry["name"] for entry in content["licenses"]}
        for image in content["images"]:
            photos[image["id"]] = {
                "id": image["id"],
                "license_id": image["license"],
                "license": names[image["license"]],
                "flickr_url": image["flickr_url"],
            }
    return photos


def trained_photos(data: Path) -> tuple[set[int], int]:
    """Ids of the photos that the images of the split `train` were made of, and how many images these are."""
    references = json.loads(next(data.glob("refs*.json")).read_text(encoding="utf-8"))
    images = {image["id"]: image for image in json.loads((data / "instances.json").read_text("utf-8"))["images"]}
    trained = {reference["image_id"] for reference in references if reference["split"] == "train"}
    photos = {photo for image in trained for photo in images[image].get("source_image_ids", [image])}
    return photos, len(trained)


def draw_sheets(
    rows: Any, journal: EvaluationJournal, photos: Mapping[int, Mapping[str, Any]], folder: Path
) -> list[Mapping[str, Any]]:
    """Write `random.jpg` and `failures.jpg` from photos that may be shown; returns those that are on them."""
    showable = [row for row in journal.rows() if photos[int(row["image_id"])]["license_id"] in SHOWABLE_LICENSES]
    by_row = {row["row"]: row for row in showable}
    # Of each photo more than one random expression, since few photos may be shown.
    rounds = [choose_cases(showable, EvaluationSettings(), len(showable), seed)["random"] for seed in range(2)]
    random_cases: list[Case] = list(dict.fromkeys(case for cases in rounds for case in cases))[:PICTURES_PER_SHEET]
    failures = choose_cases(showable, EvaluationSettings(), PICTURES_PER_SHEET // 2)["worst"]
    pictures = {row: rows[row] for row in {case.row for case in (*random_cases, *failures)}}
    for name, cases in (("random", random_cases), ("failures", failures)):
        sheet = draw_sheet({name: cases}, pictures, by_row, "The photo, and beside it the answer")
        sheet.thumbnail((SHEET_WIDTH, sheet.height))
        sheet.save(folder / f"{name}.jpg", quality=JPEG_QUALITY)
    return [photos[int(by_row[row]["image_id"])] for row in sorted(pictures)]


def write_examples(folder: Path, photos: Mapping[int, Mapping[str, Any]]) -> None:
    """Write the project's example photos, small, with their expressions, for the page that tries the model."""
    folder.mkdir()
    examples = []
    for name, expressions in json.loads((EXAMPLES / "expressions.json").read_text(encoding="utf-8")).items():
        with Image.open(EXAMPLES / name) as photo:
            photo.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
            photo.save(folder / name, quality=JPEG_QUALITY)
        source = photos[int(Path(name).stem)]
        attribution = f"{source['flickr_url']} ({source['license']}), made smaller"
        examples.append({"image": name, "expressions": expressions, "attribution": attribution})
    (folder / "examples.json").write_text(json.dumps(examples, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    model = JMCELNModel.from_pretrained(options.run, dtype=torch.float32).eval()
    processor = JMCELNProcessor.from_pretrained(options.run)
    with torch.no_grad():
        model.presence_head.output.bias += options.presence_shift
    if options.output.exists():
        shutil.rmtree(options.output)
    save_in_half_precision(model, options.output)
    processor.save_pretrained(options.output)
    # What is scored are the weights that lie in the folder.
    model = JMCELNModel.from_pretrained(options.output, dtype=torch.float32).eval()

    scores = score_photos(model, processor, options.data, "val", options.run / "held_out_scores")
    table = scores_table(scores.scored)
    photos = read_photos(options.instances)
    rows = load_referring_dataset(options.data, "val")
    shown = draw_sheets(rows, scores.journal, photos, options.output)
    trained, num_images = trained_photos(options.data)
    ids_by_license = {
        name: [photo for photo in sorted(trained) if photos[photo]["license"] == name]
        for name in sorted({photo["license"] for photo in photos.values()})
    }
    (options.output / "training_photos.json").write_text(json.dumps(ids_by_license) + "\n", encoding="utf-8")
    write_examples(options.output / "examples", photos)
    own = [
        parameter for name, parameter in model.named_parameters() if not name.startswith(("backbone.", "text_model."))
    ]
    weights_size = (options.output / "model.safetensors").stat().st_size
    train_rows = load_referring_dataset(options.data, "train").select_columns(["expressions"])
    licenses = Counter(photo["license"] for photo in shown)
    attributions = "\n".join(f"- {photo['flickr_url']} ({photo['license']})" for photo in shown)
    card = CARD.format(
        name=options.output.as_posix(),
        parameters=model.num_parameters() / 1e6,
        own=sum(weight.numel() for weight in own) / 1e6,
        megabytes=weights_size / 1e6,
        photos=len(rows),
        expressions=len(scores.scored["model"]),
        table=markdown_table(table),
        controls=markdown_table(controls_table(scores.scored)),
        attributions=f"Photos by Flickr users ({', '.join(sorted(licenses))}):\n\n{attributions}",
        data_command=options.data_command,
        text_layers=model.config.text_config.num_hidden_layers,
        training_photos=len(trained),
        images=num_images,
        training_expressions=sum(len(row["expressions"]) for row in train_rows),
        training=options.training,
        presence_shift=PRESENCE_SHIFT.format(options.presence_shift) if options.presence_shift else "",
        size=processor.image_processor.size["height"],
    )
    (options.output / "README.md").write_text(card, encoding="utf-8")
    (options.output / "test_results.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    fill_page(README, "<!-- photos: begin -->\n", "<!-- photos: end -->", f"{markdown_table(table)}\n")
    size = sum(path.stat().st_size for path in options.output.rglob("*") if path.is_file())
    print(f"{markdown_table(table)}\n{options.output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
