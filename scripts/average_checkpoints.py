"""Averages the weights of several training runs of a model, or of several checkpoints of one run.

    python scripts/average_checkpoints.py runs/averaged runs/photos_fine runs/photos/checkpoint-2000

The average of models that were fine-tuned from the same weights often has better scores than any of them, and is no
slower (Wortsman et al. 2022, "Model soups", arXiv:2203.05482). If a checkpoint has a running average of its weights
(`ema_decay`), that is used. Configuration, processor and code come from the first folder.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import torch
from safetensors.torch import load_file

from modeling_jmceln import JMCELNModel
from processing import JMCELNProcessor
from processing.training.weight_average import WeightAverage


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="output folder")
    parser.add_argument("models", type=Path, nargs="+", help="folders of at least two models or checkpoints")
    return parser.parse_args(arguments)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Reads the weights of a model or a checkpoint in float32, or their running average if there is one."""
    weights = JMCELNModel.from_pretrained(folder, dtype=torch.float32).state_dict()
    average = folder / WeightAverage.file_name
    return {**weights, **load_file(average)} if average.exists() else weights


def average_weights(models: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """
    Returns the mean of each weight. Integers, such as counters, come from the first model.

    Raises:
        ValueError: if the models do not have the same weights.
    """
    first = models[0]
    shapes = [{name: value.shape for name, value in model.items()} for model in models]
    for number, others in enumerate(shapes[1:], start=2):
        differing = sorted({name for name, _ in shapes[0].items() ^ others.items()})
        if differing:
            raise ValueError(
                f"Model {number} has other weights than the first, for example `{differing[0]}`: average only models"
                " of the same architecture that were trained from the same weights."
            )
    return {
        name: torch.stack([model[name] for model in models]).mean(dim=0) if value.is_floating_point() else value
        for name, value in first.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    if len(options.models) < 2:
        raise ValueError(f"An average needs at least two models, got {len(options.models)}.")
    model = JMCELNModel.from_pretrained(options.models[0], dtype=torch.float32)
    model.load_state_dict(average_weights([read_weights(folder) for folder in options.models]))
    model.save_pretrained(options.output)
    JMCELNProcessor.from_pretrained(options.models[0]).save_pretrained(options.output)
    print(f"{options.output}: the average of {len(options.models)} models")


if __name__ == "__main__":
    main()
