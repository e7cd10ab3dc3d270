"""Comparison of exported graphs with the model: outputs, speed and scores."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from modeling_jmceln import JMCELNModel

from .graphs import example_inputs
from .onnx_inference import DECODER, ENCODER


def largest_difference(
    model: JMCELNModel,
    run: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]],
    size: tuple[int, int],
) -> float:
    """Returns the largest difference of any pixel or presence probability over batches of several shapes."""
    largest = 0.0
    for shape in ((2, 3, 7), (1, 1, 4), (3, 5, 12)):
        inputs = example_inputs(model, size, shape)
        wanted = model(**inputs)
        logits, presence_logits = run(inputs)
        is_real = inputs["attention_mask"].any(-1)
        for got, expected in ((logits, wanted.logits), (presence_logits, wanted.presence_logits)):
            if got.shape != expected.shape:
                raise RuntimeError(f"The export returns the shape {tuple(got.shape)}, not {tuple(expected.shape)}.")
            difference = (got[is_real].sigmoid() - expected[is_real].sigmoid()).abs().max().item()
            # `max` may ignore NaN.
            largest = float("inf") if math.isnan(difference) else max(largest, difference)
    return largest


def at_least_two(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    """Adds a second image or expression of zeros, which is padding, if there is only one."""
    if tensor.shape[dimension] > 1:
        return tensor
    return torch.cat([tensor, torch.zeros_like(tensor)], dim=dimension)


def run_programs(folder: Path) -> Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]:
    """
    Returns a function that runs the programs of torch.export. They need at least two images and expressions, because
    torch.export specializes graphs for a size of one.
    """
    encoder, decoder = (torch.export.load(folder / f"{name}.pt2").module() for name in (ENCODER, DECODER))

    def run(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        batch_size, num_expressions, _ = inputs["input_ids"].shape
        words = [at_least_two(at_least_two(inputs[name], 0), 1) for name in ("input_ids", "attention_mask")]
        tokens, *pixel_features, upsampling_weights = encoder(at_least_two(inputs["pixel_values"], 0))
        logits, presence_logits = decoder(*words, tokens, pixel_features, upsampling_weights)
        return logits[:batch_size, :num_expressions], presence_logits[:batch_size, :num_expressions]

    return run


def run_model(model: Any) -> Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]:
    """Returns a function that runs a model with the calls that the pipeline makes."""

    def run(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        features = model.get_image_features(inputs["pixel_values"])
        outputs = model(
            image_features=features, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        )
        return outputs.logits, outputs.presence_logits

    return run


def time_forms(
    models: dict[str, Any], inputs: Mapping[str, dict[str, torch.Tensor]], rounds: int
) -> dict[str, dict[str, float]]:
    """
    Measures how long each model takes to encode an image, and to answer expressions about an encoded image. The models
    run in turns.

    Args:
        models: The models by name.
        inputs: Batches of [`example_inputs`] by name, with different expressions of the same images.
        rounds (`int`): How often each call is timed.

    Returns:
        `dict`: Median seconds by model, for `"image"` and for the expressions of each batch by its name.
    """
    pixel_values = next(iter(inputs.values()))["pixel_values"]
    seconds = {call: {name: [] for name in models} for call in ("image", *inputs)}
    for _ in range(rounds + 1):  # the first warms up
        for name, model in models.items():
            start = time.perf_counter()
            features = model.get_image_features(pixel_values)
            seconds["image"][name].append(time.perf_counter() - start)
            for call, batch in inputs.items():
                start = time.perf_counter()
                model(image_features=features, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
                seconds[call][name].append(time.perf_counter() - start)
    return {
        call: {name: statistics.median(values[1:]) for name, values in by_model.items()}
        for call, by_model in seconds.items()
    }


def score_rows(pipelines: dict[str, Any], rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Computes the mIoU of each pipeline on rows of a dataset, see [`load_referring_dataset`]."""
    import numpy as np

    from ..data.masks import decode_mask
    from ..evaluation.metrics import ReferringSegmentationMetric

    metrics = {name: ReferringSegmentationMetric() for name in pipelines}
    for row in rows:
        masks = [decode_mask(mask) for mask in row["masks"]]
        references = [masks[place] for place in row["mask_index"]]
        for name, pipe in pipelines.items():
            answers = pipe(row["image"], row["expressions"])
            metrics[name].update([np.asarray(answer["mask"]) > 0 for answer in answers], references)
    return {name: metric.compute()["mIoU"] for name, metric in metrics.items()}
