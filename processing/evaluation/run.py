"""Score a referring image segmentation model on a dataset: every expression, at the size of the original images.

    jmceln evaluate --model runs/shapes --dataset shapes --split test
    jmceln evaluate --model <folder or hub id> --dataset jxu124/refcoco-benchmark --split refcoco_unc_val
    torchrun --nproc_per_node 8 --no-python jmceln evaluate ...

Writes to the output folder: `results.json` (all settings and scores), `results.md` (the table), `sheet.png` (best,
worst and random cases), `predictions.jsonl` with `--save-predictions` (every mask as COCO RLE with its IoU), and
`journal/`. If the command is interrupted, run it again to resume from the journal. See docs/evaluation.md.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import AutoModel, AutoProcessor

import modeling_jmceln  # noqa: F401 - registers the model with AutoModel

from ..command_line import CommandParser
from ..data.referring_datasets import load_referring_dataset
from ..folder_lock import exclusive_folder
from ..model_loading import load_whole_model
from ..safe_files import naming_full_disk, replace_image, replace_text, replacing
from ..shapes.dataset import shapes_dataset
from .controls import CONTROLS
from .evaluation import (
    PROTOCOLS,
    EvaluationSettings,
    collect_results,
    configure_processor,
    evaluate_model,
    number_of_rows,
    rows_at,
)
from .journal import EvaluationJournal
from .report import results_table, write_predictions
from .sheet import choose_cases, draw_sheet


# Version of the format of results.json. Increase it when code for the old format would misread the new one.
RESULTS_FORMAT = 1
# Options of datasets other than the synthetic benchmark, as `load_referring_dataset` names them, and the revision.
SOURCE_OPTIONS = (
    *("dataset_name", "dataset_revision", "partition", "split_by", "sentence_field", "adapter", "columns"),
    *("on_bad_row", "image_folder", "streaming"),
)
PACKAGES = ("jmceln", "torch", "transformers", "datasets", "accelerate", "numpy", "pillow", "pycocotools")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        prog="jmceln evaluate",
        description=__doc__.split("\n\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument_group("model").add_argument
    add("--model", required=True, help="folder or Hub id of a model with its processor")
    add("--model-revision", default=None, help="branch, tag or commit on the Hub")
    add("--trust-remote-code", action="store_true", help="run the code that is saved with the model")
    add("--device", default=None, help="cpu, cuda, cuda:1, ...; by default the first accelerator, if there is one")
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="dtype of weights and inputs")

    add = parser.add_argument_group("data").add_argument
    add("--dataset", required=True, help="'shapes', a Hub id, a folder of parquet files or a REFER folder")
    add("--split", required=True, help="val, test, testA, testB, ... or another split of the dataset")
    add("--limit", type=int, default=None, help="evaluate only this many images")
    add("--image-folder", default=None, help="folder of COCO images, for datasets that contain only their paths")
    add("--adapter", default=None, help="adapter that reads a row; by default chosen by Hub id or columns")
    add("--columns", type=json.loads, default=None, help="JSON: the columns of a dataset of your own")
    add("--split-by", default=None, help="unc, umd or google, for REFER folders with several")
    add("--partition", default=None, help="partition to evaluate, for splits that mix several")
    add("--sentence-field", default="sent", choices=["sent", "raw"], help="cleaned expressions, or as typed")
    add("--dataset-name", default=None, help="Hub id of the dataset that a local folder is a copy of")
    add("--dataset-revision", default=None, help="branch, tag or commit on the Hub")
    add("--streaming", action="store_true", help="load images as needed, without downloading the whole dataset")
    add("--on-bad-row", default="raise", choices=["raise", "skip"], help="skipping rows changes the test set")
    add("--shapes-images", type=int, default=500, help="number of images of the synthetic benchmark")
    add("--shapes-image-size", type=int, default=128, help="height and width of these images in pixels")
    add("--shapes-seed", type=int, default=0, help="seed of the synthetic benchmark")
    add("--shapes-levels", nargs="+", default=None, help="evaluate only these levels")

    add = parser.add_argument_group("scoring").add_argument
    add("--protocol", default="original", choices=list(PROTOCOLS), help="; ".join(map(": ".join, PROTOCOLS.items())))
    add("--threshold", type=float, default=None, help="a lower score empties the mask; 0.5 by default, 0 with lavt")
    add("--mask-threshold", type=float, default=0.5, help="probability above which a pixel belongs to the mask")
    add("--image-size", type=int, default=None, help="input size; by default that of the processor, 480 with lavt")
    add("--strict-precision", action="store_false", dest="inclusive", help="P@X counts IoU > X, not IoU >= X")
    add(
        "--controls",
        nargs="*",
        choices=list(CONTROLS),
        default=(),
        help="also score these controls; all without names",
    )
    add("--seed", type=int, default=0, help="seed for shuffled words and random cases")

    add = parser.add_argument_group("running").add_argument
    add("--batch-size", type=int, default=1, help="images per call of the model")
    add("--max-expressions-per-call", type=int, default=16, help="expressions per image and call")
    add("--output-dir", type=Path, default=None, help="by default outputs/evaluation/<model>/<dataset>-<split>-...")
    add("--overwrite", action="store_true", help="start over instead of resuming from the journal")
    add("--save-predictions", action="store_true", help="write every mask as COCO RLE with its IoU")
    add("--sheet-cases", type=int, default=8, help="best, worst and random cases to draw, each; 0 draws no sheet")
    add("--no-progress", action="store_true", help="show no progress bar")
    return parser.parse_args(arguments)


def load_dataset(arguments: argparse.Namespace) -> Any:
    if arguments.dataset == "shapes":
        options = {} if arguments.shapes_levels is None else {"levels": tuple(arguments.shapes_levels)}
        return shapes_dataset(
            arguments.split,
            size=arguments.shapes_images,
            seed=arguments.shapes_seed,
            image_size=arguments.shapes_image_size,
            **options,
        )
    options = {name: value for name, value in given(arguments, SOURCE_OPTIONS).items() if name != "dataset_revision"}
    if arguments.dataset_revision is not None:
        options["revision"] = arguments.dataset_revision
    return load_referring_dataset(arguments.dataset, arguments.split, **options)


def given(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Returns the arguments with these names that are not `None`."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of all parameters and buffers, since the name of a folder does not identify the checkpoint in it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def package_versions() -> dict[str, str | None]:
    installed = {distribution.name.lower(): distribution.version for distribution in distributions()}
    return {package: installed.get(package) for package in PACKAGES}


def describe_data(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments that select the rows to score, without those that only say where images are."""
    if arguments.dataset == "shapes":
        names = [name for name in vars(arguments) if name.startswith("shapes_")]
    else:
        names = [name for name in SOURCE_OPTIONS if name not in ("image_folder", "streaming")]
    return given(arguments, ["dataset", "split", *names])


def default_output_folder(arguments: argparse.Namespace) -> Path:
    model, dataset = (Path(name).name or name for name in (arguments.model, arguments.dataset))
    return Path("outputs", "evaluation", model, f"{dataset}-{arguments.split}-{arguments.protocol}")


def main(argument_list: list[str] | None = None) -> dict[str, Any] | None:
    """Runs the evaluation and returns its results on the main process."""
    transformers.logging.set_verbosity_warning()
    arguments = parse_arguments(argument_list)
    fields = given(
        arguments, [field.name for field in dataclasses.fields(EvaluationSettings) if field.name in arguments]
    )
    fields["controls"] = tuple(CONTROLS) if arguments.controls == [] else tuple(arguments.controls)
    settings = EvaluationSettings(**fields, keep_masks=arguments.save_predictions or arguments.sheet_cases > 0)
    state = PartialState(cpu=arguments.device == "cpu")
    output_folder = arguments.output_dir or default_output_folder(arguments)
    command = shlex.join(["jmceln", "evaluate", *(argument_list or sys.argv[1:])])
    with naming_full_disk(output_folder), exclusive_folder(output_folder) if state.is_main_process else nullcontext():
        return run(arguments, settings, state, output_folder, command)


def run(
    arguments: argparse.Namespace, settings: EvaluationSettings, state: PartialState, output_folder: Path, command: str
) -> dict[str, Any] | None:
    """Scores the model or goes on with what a killed evaluation did, and returns the results on the main process."""
    device = torch.device(arguments.device) if arguments.device and state.num_processes == 1 else state.device
    options = {"trust_remote_code": arguments.trust_remote_code, "revision": arguments.model_revision}
    processor = AutoProcessor.from_pretrained(arguments.model, **options)
    configure_processor(processor, settings)
    model = load_whole_model(AutoModel, arguments.model, dtype=getattr(torch, arguments.dtype), **options).to(device)
    with state.main_process_first():
        dataset = load_dataset(arguments)

    if arguments.overwrite and state.is_main_process and (output_folder / "journal").exists():
        shutil.rmtree(output_folder / "journal")
    state.wait_for_everyone()
    model_facts = {
        "name": arguments.model,
        "revision": arguments.model_revision,
        "commit": getattr(model.config, "_commit_hash", None),
        "class": type(model).__name__,
        "parameters": model.num_parameters(),
        "weights_sha256": weights_digest(model),
        "dtype": arguments.dtype,
    }
    data_facts = describe_data(arguments)
    header = {
        "format": RESULTS_FORMAT,
        "weights_sha256": model_facts["weights_sha256"],
        "dtype": arguments.dtype,
        "device": device.type,
        "image_processor": processor.image_processor.to_dict(),
        "data": data_facts,
        "settings": dataclasses.asdict(settings),
    }
    journal = EvaluationJournal(output_folder / "journal", header, state.process_index)
    start = time.perf_counter()
    scored = evaluate_model(
        model,
        processor,
        dataset,
        settings,
        journal,
        state.process_index,
        state.num_processes,
        progress=state.is_main_process and not arguments.no_progress,
    )
    seconds = time.perf_counter() - start
    state.wait_for_everyone()
    if not state.is_main_process:
        return None

    collected = collect_results(
        journal, settings, None if arguments.streaming else number_of_rows(dataset, settings.limit)
    )
    results = {
        "format": RESULTS_FORMAT,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "model": model_facts,
        "image_processor": header["image_processor"],
        "data": {
            **data_facts,
            **{name: collected[name] for name in ("parts", "images", "expressions", "annotations_sha256")},
        },
        "settings": {**header["settings"], "protocol_description": PROTOCOLS[settings.protocol]},
        "scores": collected["scores"],
        "controls": collected["controls"],
        "run": {
            "command": command,
            "expressions_scored_by_main_process": scored,
            "seconds": round(seconds, 3),
            "processes": state.num_processes,
            "device": device_name(device),
            "python": platform.python_version(),
            "packages": package_versions(),
        },
    }
    replace_text(output_folder / "results.json", json.dumps(results, indent=2) + "\n")
    title = f"{model_facts['name']} on {data_facts['dataset']} {data_facts['split']}, protocol {settings.protocol}"
    table = f"{title}, in percent\n\n{results_table(results)}\n"
    replace_text(output_folder / "results.md", table)
    print(f"{table}\n{output_folder / 'results.json'}")
    if arguments.save_predictions:
        with replacing(output_folder / "predictions.jsonl") as unfinished:
            write_predictions(journal, settings, unfinished)
    if arguments.sheet_cases:
        cases = choose_cases(journal.rows(), settings, arguments.sheet_cases, arguments.seed)
        numbers = {case.row for section in cases.values() for case in section}
        journal_rows = {row["row"]: row for row in journal.rows() if row["row"] in numbers}
        sheet = draw_sheet(cases, rows_at(dataset, numbers), journal_rows, title)
        replace_image(output_folder / "sheet.png", sheet)
    return results


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {os.cpu_count()} cores)"
