"""Probe the feature maps of a trained model for the attributes of objects, with linear probes per map.

    python benchmarks/attribute_probe.py --model checkpoints/jmceln-shapes               # prints the table
    python benchmarks/attribute_probe.py --model checkpoints/jmceln-shapes --document    # into docs/results.md

"The star with the color of the ring" needs the color of the ring, which the expression does not name. A probe is
fitted on objects of the split `validation` and scored on objects of the split `test`, with expressions that compare.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import torch
from torch import nn
from tqdm.auto import tqdm

from modeling_jmceln import JMCELNModel
from processing import JMCELNProcessor
from processing.evaluation.report import fill_page, markdown_table
from processing.shapes.oracles import LabeledScene, labeled_scene
from processing.shapes.queries import ATTRIBUTES


MARKERS = ("<!-- probe: begin -->", "<!-- probe: end -->")
PAGE = Path("docs/results.md")


@torch.no_grad()
def maps_of(model: JMCELNModel, processor: Any, scene: LabeledScene) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the name and the values `(height, width, channels)` of each map for the first expression of the scene."""
    inputs = processor(images=scene.image, text=scene.expressions[0].text, return_tensors="pt")
    output = model(**inputs, output_hidden_states=True)
    pixel_features = output.image_features.pixel_features
    height, width = pixel_features[-1].shape[1:3]
    tokens = output.image_features.last_hidden_state[0, : height * width]
    yield "image alone: working map", tokens.unflatten(0, (height, width))
    yield "image alone: finest pixel features", pixel_features[0][0]
    for number, state in enumerate(output.hidden_states):
        name = f"with the words: after stage {number}" if number else "with the words: before the first stage"
        yield name, state[0].unflatten(0, (height, width))


def object_features(
    model: JMCELNModel, processor: Any, scenes: Sequence[LabeledScene]
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """Returns the mean of each map over each visible object, `(objects, channels)`, and the attributes."""
    features: dict[str, list[torch.Tensor]] = defaultdict(list)
    attributes: dict[str, list[str]] = defaultdict(list)
    for scene in tqdm(scenes, desc="objects", unit="scene", leave=False):
        # (objects, height, width)
        masks = torch.from_numpy(scene.masks).float()
        seen = [index for index, mask in enumerate(masks) if mask.any()]
        for index in seen:
            for attribute in ATTRIBUTES:
                attributes[attribute].append(getattr(scene.scene.objects[index], attribute))
        for name, values in maps_of(model, processor, scene):
            cover = nn.functional.adaptive_avg_pool2d(masks[seen], values.shape[:2])
            sums = torch.einsum("ohw,hwc->oc", cover, values)
            features[name].extend(sums / cover.sum((1, 2)).unsqueeze(-1))
    return {name: torch.stack(rows) for name, rows in features.items()}, dict(attributes)


def probe(
    features: torch.Tensor, labels: Sequence[str], test_features: torch.Tensor, test_labels: Sequence[str]
) -> float:
    """Returns the test accuracy of multinomial logistic regression on standardized features."""
    names = sorted({*labels, *test_labels})
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    features, test_features = (features - mean) / deviation, (test_features - mean) / deviation
    wanted, test_wanted = (torch.tensor([names.index(label) for label in each]) for each in (labels, test_labels))
    weight = torch.zeros(len(names), features.shape[1], requires_grad=True)
    bias = torch.zeros(len(names), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(features @ weight.T + bias, wanted) + 1e-3 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    found = (test_features @ weight.T + bias).argmax(1)
    return (found == test_wanted).float().mean().item()


def main(arguments: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--scenes", type=int, default=200, help="scenes of each split (default: %(default)s)")
    parser.add_argument("--document", action="store_true", help="also write the table to docs/results.md")
    settings = parser.parse_args(arguments)
    model = JMCELNModel.from_pretrained(settings.model).eval()
    processor = JMCELNProcessor.from_pretrained(settings.model)
    image_size = processor.image_processor.size["height"]
    (features, labels), (test_features, test_labels) = (
        object_features(
            model,
            processor,
            [
                labeled_scene(split, index, image_size=image_size, levels=("comparison",), expressions_per_image=1)
                for index in range(settings.scenes)
            ],
        )
        for split in ("validation", "test")
    )
    rows = [["map", *ATTRIBUTES]]
    for name, values in features.items():
        shares = [
            probe(values, labels[attribute], test_features[name], test_labels[attribute]) for attribute in ATTRIBUTES
        ]
        rows.append([name, *(f"{100 * share:.1f}" for share in shares)])
    counts = ", ".join(f"{len(set(labels[attribute]))} of {attribute}" for attribute in ATTRIBUTES)
    text = (
        f"Of {len(test_labels['kind']):,} objects of the split `test`, how many in a hundred are named right by probes"
        f" fitted on {len(labels['kind']):,} of the split `validation`; values: {counts}.\n\n{markdown_table(rows)}"
    )
    print(text)
    if settings.document:
        fill_page(PAGE, *MARKERS, f"\n\n{text}\n\n")
    return text


if __name__ == "__main__":
    main()
