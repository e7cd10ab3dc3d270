"""Draws the mask, the landmarks, the attention and the alignment filter of each stage of a model.

    python benchmarks/stage_pictures.py --model runs/shapes --levels relation chain2 --output stages.png

The expressions are a random sample from the test split of the synthetic benchmark. On the left is the image, with
the referent outlined in green and its landmarks in orange. Each stage follows with its mask, its landmark mask,
and the mean attention of its context tokens to the pixels (empty without a contextual embedding). Stages after the
first also have their filter: it is bright where the stage uses its own prediction, and dark where it uses that of the
previous stage.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.stage_analysis import stage_probabilities
from modeling_jmceln import JMCELNModel
from processing import JMCELNProcessor
from processing.shapes.expressions import LEVELS
from processing.shapes.oracles import LabeledScene, labeled_scene
from processing.shapes.queries import landmarks_of


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=["relation", "chain2"], help="default: both")
    parser.add_argument("--count", type=int, default=3, help="expressions per level (default: %(default)s)")
    parser.add_argument(
        "--scenes", type=int, default=100, help="number of scenes to choose from (default: %(default)s)"
    )
    parser.add_argument("--image-size", type=int, default=96, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the sample (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("stages.png"), help="default: %(default)s")
    return parser.parse_args(arguments)


def choose(scenes: Sequence[LabeledScene], levels: Sequence[str], count: int, seed: int) -> list[tuple[int, int]]:
    """Chooses random expressions of each level, and returns their scenes and their positions there."""
    generator = random.Random(seed)
    chosen = []
    for level in levels:
        found = [
            (row, position)
            for row, scene in enumerate(scenes)
            for position, expression in enumerate(scene.expressions)
            if expression.level == level
        ]
        chosen += generator.sample(found, min(count, len(found)))
    return chosen


@torch.no_grad()
def draw_stages(model: Any, processor: Any, cases: Sequence[tuple[LabeledScene, int]]) -> Figure:
    """Draws one row of images per case: a scene and the index of one of its expressions."""
    num_stages = model.config.num_stages
    columns = [""]  # the expression is written there
    for stage in range(1, num_stages + 1):
        columns += [f"mask {stage}", f"landmarks {stage}", f"attention {stage}"]
        columns += [f"filter {stage}"] if stage > 1 else []
    figure = Figure(figsize=(1.7 * len(columns), 2.0 * len(cases)), layout="constrained")
    grid = figure.subplots(len(cases), len(columns), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, fontsize=8)
    for row, (scene, position) in zip(grid, cases, strict=True):
        expression = scene.expressions[position]
        inputs = processor(images=scene.image, text=[[expression.text]], return_tensors="pt")
        output = model(**inputs, output_attentions=True)
        height, width = output.image_features.pixel_features[-1].shape[1:3]
        row[0].imshow(scene.image)
        landmarks = landmarks_of(expression.query, scene.scene)
        for objects, color in ((landmarks, "orange"), (expression.targets, "lime")):
            if objects:
                row[0].contour(scene.masks[list(objects)].any(0), levels=[0.5], colors=color, linewidths=1.2)
        row[0].set_title(expression.text, fontsize=6, loc="left", wrap=True)
        pictures = iter(row[1:])
        for stage, probabilities in enumerate(stage_probabilities(output)):
            next(pictures).imshow(probabilities[0, 0], cmap="gray", vmin=0, vmax=1)
            next(pictures).imshow(output.landmark_logits[stage][0, 0].sigmoid(), cmap="gray", vmin=0, vmax=1)
            weights = output.attentions[stage][0, 0]
            axes = next(pictures)
            if weights.shape[-1] > height * width:
                axes.imshow(weights[..., -height * width :].mean((0, 1)).view(height, width), cmap="magma", vmin=0)
            if stage > 0:
                axes = next(pictures)
                if output.alignment_filters is not None:
                    axes.imshow(np.asarray(output.alignment_filters[stage - 1][0, 0]), cmap="viridis", vmin=0, vmax=1)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    settings = parse_arguments(arguments)
    model = JMCELNModel.from_pretrained(settings.model).eval()
    processor = JMCELNProcessor.from_pretrained(settings.model)
    scenes = [labeled_scene("test", index, image_size=settings.image_size) for index in range(settings.scenes)]
    chosen = choose(scenes, settings.levels, settings.count, settings.seed)
    figure = draw_stages(model, processor, [(scenes[row], position) for row, position in chosen])
    figure.savefig(settings.output, dpi=110)
    print(settings.output)


if __name__ == "__main__":
    main()
