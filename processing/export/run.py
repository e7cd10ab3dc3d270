"""Exports a trained model to ONNX and torch.export, in two graphs, and checks that they answer as the model does.

    jmceln export --model FOLDER_OR_HUB_ID --output runs/export
    jmceln export --model FOLDER_OR_HUB_ID --output runs/export --int8 --scenes 50

The image encoder runs once an image, the expression decoder once for any number of expressions:

    image_encoder        pixel_values (batch, 3, height, width) -> tokens, pixel_features_0..., upsampling_weights
    expression_decoder   those, input_ids and attention_mask (batch, expressions, length) -> logits, presence_logits

Batch, expressions and length are free (the programs of torch.export want at least two images and expressions: pad with
zeros); height and width are those of the processor. The graphs lie beside the processor,
so that `processing.export.onnx_inference.load_onnx_pipeline(FOLDER)` is the whole pipeline.
"""

import argparse
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from modeling_jmceln import JMCELNImageFeatures, JMCELNModel

from ..command_line import CommandParser
from .onnx_inference import DECODER, ENCODER, graph_path, load_onnx_pipeline


# The greatest difference of any pixel's probability between the model and what was exported.
TOLERANCE = 1e-3


class ImageEncoder(nn.Module):
    """`pixel_values` to the tensors of [`JMCELNImageFeatures`], one after the other."""

    def __init__(self, model: JMCELNModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.model.get_image_features(pixel_values, return_dict=True)
        return (features.last_hidden_state, *features.pixel_features, features.upsampling_weights)


class ExpressionDecoder(nn.Module):
    """Those tensors and expressions to mask logits and presence logits."""

    def __init__(self, model: JMCELNModel):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        tokens: torch.Tensor,
        pixel_features: Sequence[torch.Tensor],
        upsampling_weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        features = JMCELNImageFeatures(
            last_hidden_state=tokens, pixel_features=tuple(pixel_features), upsampling_weights=upsampling_weights
        )
        outputs = self.model(
            image_features=features, input_ids=input_ids, attention_mask=attention_mask, return_dict=True
        )
        return outputs.logits, outputs.presence_logits


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        prog="jmceln export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="folder or Hub id of a trained JMCELN with its processor")
    parser.add_argument("--output", type=Path, default=Path("runs/export"), help="folder to write to")
    parser.add_argument("--int8", action="store_true", help="also write graphs whose weights have 8 bits (for CPUs)")
    parser.add_argument(
        "--scenes", type=int, default=0, help="score that many scenes of the synthetic benchmark with every form"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each form is timed")
    return parser.parse_args(arguments)


def example_inputs(model: JMCELNModel, size: tuple[int, int], shape: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """Noise and random words for `(batch, expressions, length)`; one expression ends early, one is padding."""
    generator = torch.Generator().manual_seed(sum(shape))
    input_ids = torch.randint(1, model.config.text_config.vocab_size, shape, generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, 0, shape[2] // 2 + 1 :] = 0
    if shape[1] > 1:
        attention_mask[-1, -1] = 0
    pixel_values = torch.randn(shape[0], 3, *size, generator=generator)
    return {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Leaves out what the exporters say of themselves: missing torchvision operators, names of axes, deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


def trace(model: JMCELNModel, size: tuple[int, int]) -> dict[str, ExportedProgram]:
    """Both graphs as programs of torch.export."""
    inputs = example_inputs(model, size, (2, 3, 7))
    batch, expressions = Dim("batch"), Dim("expressions")
    encoder, decoder = ImageEncoder(model), ExpressionDecoder(model)
    tokens, *pixel_features, upsampling_weights = encoder(inputs["pixel_values"])
    # How long an expression may be is the text encoder's to say.
    words = {0: batch, 1: expressions, 2: Dim.DYNAMIC}
    return {
        ENCODER: torch.export.export(
            encoder, (inputs["pixel_values"],), dynamic_shapes={"pixel_values": {0: batch}}, strict=False
        ),
        DECODER: torch.export.export(
            decoder,
            (inputs["input_ids"], inputs["attention_mask"], tokens, pixel_features, upsampling_weights),
            dynamic_shapes={
                "input_ids": words,
                "attention_mask": words,
                "tokens": {0: batch},
                "pixel_features": [{0: batch} for _ in pixel_features],
                "upsampling_weights": {0: batch},
            },
            strict=False,
        ),
    }


def write_graphs(programs: dict[str, ExportedProgram], folder: Path, num_levels: int) -> None:
    """The programs as `.pt2` and as `.onnx`, whose inputs and outputs fit each other by name."""
    features = ["tokens", *(f"pixel_features_{level}" for level in range(num_levels)), "upsampling_weights"]
    names = {
        ENCODER: (["pixel_values"], features),
        DECODER: (["input_ids", "attention_mask", *features], ["logits", "presence_logits"]),
    }
    for name, program in programs.items():
        torch.export.save(program, folder / f"{name}.pt2")
        input_names, output_names = names[name]
        graph = torch.onnx.export(
            program, (), dynamo=True, input_names=input_names, output_names=output_names, verbose=False
        )
        graph.save(graph_path(folder, name, quantized=False), external_data=False)


def quantize(folder: Path) -> None:
    """Writes both graphs again with matrices of 8 bits; activations are rounded as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for name in (ENCODER, DECODER):
        quantize_dynamic(
            graph_path(folder, name, quantized=False),
            graph_path(folder, name, quantized=True),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            # With signed weights the sums of processors without VNNI saturate.
            weight_type=QuantType.QUInt8,
        )


def largest_difference(
    model: JMCELNModel,
    run: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]],
    size: tuple[int, int],
) -> float:
    """Of all probabilities, those of pixels and of presence, over batches of several shapes; padding left out."""
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
            # Of a number and what is no number, `max` may return the first.
            largest = float("inf") if math.isnan(difference) else max(largest, difference)
    return largest


def at_least_two(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    """With a second image or expression of zeros, which is padding, where there is one."""
    if tensor.shape[dimension] > 1:
        return tensor
    return torch.cat([tensor, torch.zeros_like(tensor)], dim=dimension)


def run_programs(folder: Path) -> Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]:
    """torch.export takes a size of one for another graph, so that its programs want two images and expressions."""
    encoder, decoder = (torch.export.load(folder / f"{name}.pt2").module() for name in (ENCODER, DECODER))

    def run(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        batch_size, num_expressions, _ = inputs["input_ids"].shape
        words = [at_least_two(at_least_two(inputs[name], 0), 1) for name in ("input_ids", "attention_mask")]
        tokens, *pixel_features, upsampling_weights = encoder(at_least_two(inputs["pixel_values"], 0))
        logits, presence_logits = decoder(*words, tokens, pixel_features, upsampling_weights)
        return logits[:batch_size, :num_expressions], presence_logits[:batch_size, :num_expressions]

    return run


def run_model(model: Any) -> Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]:
    """Of anything with the calls that the pipeline makes."""

    def run(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        features = model.get_image_features(inputs["pixel_values"])
        outputs = model(
            image_features=features, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        )
        return outputs.logits, outputs.presence_logits

    return run


def time_forms(models: dict[str, Any], inputs: dict[str, torch.Tensor], rounds: int) -> dict[str, float]:
    """Least seconds of each form, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):  # the first warms up
        for name, model in models.items():
            start = time.perf_counter()
            run_model(model)(inputs)
            seconds[name].append(time.perf_counter() - start)
    return {name: min(values[1:]) for name, values in seconds.items()}


def score_scenes(pipelines: dict[str, Any], count: int) -> dict[str, float]:
    """mIoU of each form on the first scenes of the benchmark's test split."""
    import numpy as np

    from ..data.masks import decode_mask
    from ..evaluation.metrics import ReferringSegmentationMetric
    from ..shapes.dataset import shapes_row

    metrics = {name: ReferringSegmentationMetric() for name in pipelines}
    for index in range(count):
        row = shapes_row("test", index)
        masks = [decode_mask(mask) for mask in row["masks"]]
        references = [masks[place] for place in row["mask_index"]]
        for name, pipe in pipelines.items():
            answers = pipe(row["image"], row["expressions"])
            metrics[name].update([np.asarray(answer["mask"]) > 0 for answer in answers], references)
    return {name: metric.compute()["mIoU"] for name, metric in metrics.items()}


def export(options: argparse.Namespace) -> dict[str, Any]:
    """
    Writes the graphs, the processor and `export.json`, which holds what is returned.

    Raises:
        RuntimeError: If any probability differs from the model's by more than 1e-3.
    """
    from transformers import AutoProcessor

    from .. import ReferringImageSegmentationPipeline  # with it the processor is registered with the Auto classes

    model = JMCELNModel.from_pretrained(options.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(options.model, trust_remote_code=False)
    size = (processor.image_processor.size["height"], processor.image_processor.size["width"])
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)

    with torch.no_grad():
        with quiet_exporter():
            programs = trace(model, size)
            num_levels = len(model.config.feature_strides) - 1
            write_graphs(programs, folder, num_levels)
            if options.int8:
                quantize(folder)
        pipelines = {"onnx": load_onnx_pipeline(folder)}
        if options.int8:
            pipelines["onnx int8"] = load_onnx_pipeline(folder, quantized=True)
        differences = {"torch.export": largest_difference(model, run_programs(folder), size)}
        differences |= {
            name: largest_difference(model, run_model(pipe.model), size) for name, pipe in pipelines.items()
        }
        report: dict[str, Any] = {
            "image_size": size,
            "largest_difference": differences,
            "bytes": {
                path.name: path.stat().st_size for path in sorted(folder.glob("*.onnx")) + sorted(folder.glob("*.pt2"))
            },
            "threads": torch.get_num_threads(),
        }
        models = {"torch": model, **{name: pipe.model for name, pipe in pipelines.items()}}
        for count in (1, 8):
            inputs = example_inputs(model, size, (1, count, 20))
            report[f"seconds, {count} expressions"] = time_forms(models, inputs, options.rounds)
        if options.scenes:
            original = ReferringImageSegmentationPipeline(model=model, processor=processor, device="cpu")
            report["mIoU"] = score_scenes({"torch": original, **pipelines}, options.scenes)
    (folder / "export.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name in ("torch.export", "onnx"):
        if not differences[name] <= TOLERANCE:
            raise RuntimeError(
                f"The graphs of {name} differ from the model by {differences[name]:.2e} in probability, more than"
                f" {TOLERANCE:g}: do not use them. {folder / 'export.json'} has all figures."
            )
    return report


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Export, print the report and return it."""
    report = export(parse_arguments(arguments))
    print(json.dumps(report, indent=2))
    return report
