"""Exports a trained model to ONNX and torch.export, as two graphs, and compares their outputs with the model.

    jmceln export --model FOLDER_OR_HUB_ID --output runs/export
    jmceln export --model FOLDER_OR_HUB_ID --output runs/export --int8 --scenes 50
    jmceln export --model FOLDER_OR_HUB_ID --output runs/export --int8 --dataset FOLDER --split val

The image encoder runs once per image, the expression decoder once for any number of expressions:

    image_encoder        pixel_values (batch, 3, height, width) -> tokens, pixel_features_0..., upsampling_weights
    expression_decoder   those, input_ids and attention_mask (batch, expressions, length) -> logits, presence_logits

Batch, expressions and length can have any size (the programs of torch.export need at least two images and expressions:
pad with zeros). Height and width are those of the processor, which is saved in the same folder.
`processing.export.onnx_inference.load_onnx_pipeline(FOLDER)` loads the complete pipeline.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from modeling_jmceln import JMCELNModel

from ..command_line import CommandParser
from ..safe_files import naming_full_disk, replace_text
from .comparison import largest_difference, run_model, run_programs, score_rows, time_forms
from .graphs import example_inputs, quantize, quiet_exporter, trace, write_graphs
from .onnx_inference import load_onnx_pipeline


# The largest allowed difference of any probability between the model and the exported graphs.
TOLERANCE = 1e-3
# A typical expression has about six words, and the tokenizer adds two tokens.
TIMED_TOKENS = 8
REPORT = "export.json"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        prog="jmceln export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="folder or Hub id of a JMCELN model with its processor")
    parser.add_argument("--output", type=Path, default=Path("runs/export"), help="folder to write to")
    parser.add_argument("--int8", action="store_true", help="also write graphs with 8-bit weights (for CPUs)")
    parser.add_argument(
        "--scenes", type=int, default=0, help="also score all graphs on this many scenes of the synthetic benchmark"
    )
    parser.add_argument("--dataset", help="also score all graphs on this dataset: a name or folder, as in `evaluate`")
    parser.add_argument("--split", help="split of `--dataset`, such as val")
    parser.add_argument("--rounds", type=int, default=3, help="how often each graph is timed")
    parser.add_argument("--threads", type=int, help="number of cores to use; by default as torch chooses")
    options = parser.parse_args(arguments)
    if (options.dataset is None) != (options.split is None):
        parser.error("--dataset and --split belong together: give both, such as --dataset FOLDER --split val")
    if options.dataset is not None and options.scenes:
        parser.error("--dataset and --scenes both choose what to score: give one of them")
    for name in ("rounds", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


def export(options: argparse.Namespace) -> dict[str, Any]:
    """
    Writes the graphs, the processor and the report `export.json`, and returns the report.

    Raises:
        RuntimeError: If any probability differs from that of the model by more than 1e-3.
    """
    from transformers import AutoProcessor

    from .. import ReferringImageSegmentationPipeline  # this also registers the processor with the Auto classes
    from ..model_loading import load_whole_model

    rows = rows_to_score(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = load_whole_model(JMCELNModel, options.model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(options.model, trust_remote_code=False)
    size = (processor.image_processor.size["height"], processor.image_processor.size["width"])
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    remove_graphs(folder)
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
        inputs = {
            f"{count} expression{'s' * (count > 1)}": example_inputs(model, size, (1, count, TIMED_TOKENS))
            for count in (1, 8)
        }
        report["seconds"] = time_forms(models, inputs, options.rounds)
        if rows is not None:
            original = ReferringImageSegmentationPipeline(model=model, processor=processor, device="cpu")
            report["mIoU"] = score_rows({"torch": original, **pipelines}, rows)
    replace_text(folder / REPORT, json.dumps(report, indent=2) + "\n")
    for name in ("torch.export", "onnx"):
        if not differences[name] <= TOLERANCE:
            raise RuntimeError(
                f"The probabilities of the {name} graphs differ from those of the model by {differences[name]:.2e},"
                f" more than {TOLERANCE:g}: do not use these graphs. See {folder / REPORT} for details."
            )
    return report


def rows_to_score(options: argparse.Namespace) -> Iterable[Mapping[str, Any]] | None:
    """Returns the rows that the options name, if any, before anything is written."""
    if options.dataset is not None:
        from ..data.referring_datasets import load_referring_dataset

        return load_referring_dataset(options.dataset, options.split)
    if options.scenes:
        from ..shapes.dataset import shapes_row

        return [shapes_row("test", index) for index in range(options.scenes)]
    return None


def remove_graphs(folder: Path) -> None:
    """Remove what an earlier export wrote, so that a killed one leaves no graphs of two models side by side."""
    for path in [folder / REPORT, *folder.glob("*.onnx"), *folder.glob("*.pt2")]:
        path.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Exports the model, prints the report and returns it."""
    options = parse_arguments(arguments)
    with naming_full_disk(options.output):
        report = export(options)
    print(json.dumps(report, indent=2))
    return report
