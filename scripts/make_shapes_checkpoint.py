"""Make the checkpoint for the synthetic benchmark that ships with the project, with its model card, from a run.

    jmceln evaluate --model runs/shapes_last --dataset shapes --split test --shapes-images 500 \\
        --shapes-image-size 96 --controls --sheet-cases 4 --output-dir runs/shapes_last/evaluation
    python scripts/make_shapes_checkpoint.py runs/shapes_last checkpoints/jmceln-shapes

The checkpoint contains the current code of the model, so run this again when the code changes (a test checks this). No
number in the card is typed by hand: settings come from the files in `configs/`, scores from the evaluation.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from modeling_jmceln import JMCELNModel
from processing import JMCELNProcessor
from processing.evaluation.report import results_table
from processing.shapes.ceiling import resolution_ceiling
from processing.shapes.dataset import shapes_row
from processing.shapes.oracles import labeled_scene
from processing.training.arguments import load_settings


CARD = """---
library_name: transformers
pipeline_tag: image-segmentation
license: apache-2.0
language: en
tags:
- referring-image-segmentation
- custom_code
- synthetic
---

# JMCELN on shapes

A small JMCELN ({parameters:.2f} M parameters) for the project's synthetic benchmark: scenes of eight to twelve shapes,
{size} x {size} pixels, and expressions from "the small striped red star" to "the star left of the ring above the box".
Use it to try the package, for tests and for experiments. **It knows nothing about photos**; for these there is
`checkpoints/jmceln-photos`.

```python
from transformers import pipeline

pipe = pipeline("referring-image-segmentation", model="{name}", trust_remote_code=True)
pipe("scene.png", ["the red star", "the leftmost ring"])
```

## How it was made

With the code of this project, in this order:

```bash
python scripts/pretrain_shapes_backbone.py configs/shapes_backbone.yaml
{trainings}
```

- The first command trains the backbone to recognize shapes, without expressions. The others train the whole model, on
  {images:,} scenes of the split `train` in total, with eight expressions each. Scenes are made as they are read, and
  none appears twice. The last two commands draw the levels that are learned last more often than the others.
{runs}
- `configs/shapes.yaml` was trained at commit 8c5d026, when stages did not yet compare each pixel with the area
  under the previous masks; those parts were new in the run of `configs/shapes_hard.yaml`.
- Until the last run, each stage also mixed the features of neighboring pixels before it scored them. These layers were
  then left out, and the last run trained the rest without them.
- The last run took {machine} (since it was last started); torch {torch}, transformers {transformers}.

## Scores

On the split `test`: {expressions:,} expressions on {test_images:,} scenes, none of them in training. In percent, with
masks at the size of the image. Controls replace the expressions; the scores of a model that reads must fall on them.

{table}

Perfect logits at the stride of the model's last stage ({stride}), enlarged bilinearly, would score mIoU {ceiling:.3f}
on these masks; the model's learned upsampling can exceed this.

```bash
{command}
```

## Limits

The model knows only the English of the benchmark's grammar, {words} words. It has seen only plain shapes on plain or
noisy backgrounds, {size} x {size}. It understands chains of three objects and comparisons of an attribute ("the same
color as") least.
"""

CONFIGURATIONS = ("configs/shapes.yaml", "configs/shapes_hard.yaml", "configs/shapes_last.yaml")
"""The training runs of the model, one after the other."""

EXAMPLES = {
    9: ("the leftmost heart", "rhombus placed farthest from the blue shape", "the spotted circles"),
    6: (
        "the triangle in the center",
        "thing right of the spotted shape placed below the cyan shape",
        "the stripy heart",
    ),
    3: ("the small circle", "all the orange squares in the bottom half", "the purple bicycle"),
}
"""Scenes of the split "test" with expressions for `jmceln app`, including one without a target and an unknown word."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of the training")
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--results", type=Path, help="evaluation results (default: RUN/evaluation/results.json)")
    return parser.parse_args(arguments)


def describe(run: Mapping[str, Any]) -> str:
    """Describes the most important settings of a training run."""
    return (
        f"{run['max_steps']:,} steps, learning rate {float(run['learning_rate'])}, seed {run['seed']}, data of seed"
        f" {run['train_data'][0].get('seed', 0)}, an average of the weights with decay {run['ema_decay']}"
    )


def write_examples(folder: Path) -> None:
    """Writes the scenes of `EXAMPLES` and a file with their expressions."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index, expressions in EXAMPLES.items():
        image = folder / f"scene-{index}.png"
        shapes_row("test", index, image_size=384)["image"].save(image, optimize=True)
        entries.append({"image": image.name, "expressions": expressions})
    (folder / "examples.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def card(
    name: str,
    settings: Mapping[str, Any],
    training: Mapping[str, Any],
    results: Mapping[str, Any],
    processor: Any,
    stride: int,
) -> str:
    """Returns the model card.

    Raises:
        ValueError: If the settings of the run are not those of the last of `CONFIGURATIONS`.
    """
    trainings = {path: load_settings(path) for path in CONFIGURATIONS}
    for name_of_setting in ("max_steps", "learning_rate", "seed"):
        wanted, found = trainings[CONFIGURATIONS[-1]][name_of_setting], settings["training"][name_of_setting]
        if float(wanted) != float(found):
            raise ValueError(
                f"The run has {name_of_setting} = {found}, but {CONFIGURATIONS[-1]} says {wanted}: train with it."
            )
    versions, test = settings["versions"], results["data"]
    scenes = (
        labeled_scene(test["split"], index, test["shapes_seed"], test["shapes_image_size"])
        for index in range(test["shapes_images"])
    )
    masks = (
        scene.target_mask(expression) for scene in scenes for expression in scene.expressions if expression.targets
    )
    return CARD.format(
        name=name,
        parameters=results["model"]["parameters"] / 1e6,
        size=test["shapes_image_size"],
        trainings="\n".join(f"jmceln train {path}" for path in trainings),
        images=sum(run["max_steps"] * run["per_device_train_batch_size"] for run in trainings.values()),
        runs="\n".join(f"- `{path}`: {describe(run)}." for path, run in trainings.items()),
        machine=f"{training['train_runtime'] / 60:.0f} minutes on {results['run']['device']}",
        torch=versions["torch"],
        transformers=versions["transformers"],
        expressions=test["expressions"],
        test_images=test["images"],
        table=results_table(results),
        stride=stride,
        ceiling=resolution_ceiling(masks, stride),
        command=results["run"]["command"],
        words=len(processor.tokenizer) - len(processor.tokenizer.all_special_ids),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    paths = parse_arguments(arguments)
    results = json.loads((paths.results or paths.run / "evaluation" / "results.json").read_text(encoding="utf-8"))
    settings = json.loads((paths.run / "settings.json").read_text(encoding="utf-8"))
    training = json.loads((paths.run / "all_results.json").read_text(encoding="utf-8"))
    model = JMCELNModel.from_pretrained(paths.run)
    processor = JMCELNProcessor.from_pretrained(paths.run)
    text = card(paths.output.as_posix(), settings, training, results, processor, model.config.feature_strides[0])
    if paths.output.exists():
        shutil.rmtree(paths.output)
    model.save_pretrained(paths.output)
    processor.save_pretrained(paths.output)
    write_examples(paths.output / "examples")
    (paths.output / "README.md").write_text(text, encoding="utf-8")
    (paths.output / "test_results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in paths.output.iterdir())
    print(f"{paths.output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
