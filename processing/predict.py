"""Finds what expressions refer to in images, and draws or saves the masks.

    jmceln predict --model FOLDER_OR_HUB_ID --image photo.jpg --text "the red cup" --text "the spoon"
    jmceln predict --image photos/ --text "the red cup" --output-dir found --formats masks cut-outs
    jmceln predict --image questions.jsonl --output-dir found

Without `--model`, it uses the checkpoint for photographs that ships with the repository.

Slow modules are imported inside the functions, so that `--help` and usage errors are fast.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_line import CommandParser
from .prediction.video import is_video
from .safe_files import naming_full_disk, replace_image
from .shipped_models import model_or_exit


if TYPE_CHECKING:
    from . import ReferringImageSegmentationPipeline


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def positive_integer(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="jmceln predict",
        description="Find what expressions refer to in an image. Writes the image with one colored mask per "
        "expression and a legend, and prints a table of the scores.",
        epilog='example: jmceln predict --image photo.jpg --text "the woman left of the blue car" --output found.png',
    )
    parser.add_argument(
        "--model",
        help="folder or Hub id of a JMCELN model with its processor (default: the one in checkpoints/ of this "
        "project)",
    )
    parser.add_argument(
        "--image",
        required=True,
        nargs="+",
        help="path or http(s) URL of the image; with --output-dir also several images, video files, "
        'folders (also of frames), patterns such as "photos/*.jpg", and .jsonl files or - for standard input, with '
        'lines {"image": PATH, "expressions": [...]}',
    )
    parser.add_argument(
        "--text", default=[], action="append", metavar="EXPRESSION", help="what to find; can be repeated"
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="for many images: write all masks to this folder, as COCO RLE (predictions.jsonl) and in the --formats. "
        "If it is interrupted, run the same command again to continue",
    )
    parser.add_argument(
        "--frame-step",
        type=positive_integer,
        default=1,
        metavar="N",
        help="of videos, segment every Nth frame (default: every frame)",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=("masks", "cut-outs", "probabilities", "overlays", "polygons"),
        default=["masks"],
        help="files to write to --output-dir: PNG masks, PNG cut-outs with transparency, .npy probabilities, "
        "overlays, COCO annotations with polygons (default: masks)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("overlay.png"), help="image file to write (default: %(default)s)"
    )
    parser.add_argument(
        "--masks-dir", type=Path, metavar="DIR", help="also write every mask to this folder, as a black and white PNG"
    )
    parser.add_argument(
        "--threshold",
        type=probability,
        default=0.5,
        help="if the score is below this number, the mask is empty (default: %(default)s)",
    )
    parser.add_argument(
        "--mask-threshold",
        type=probability,
        default=0.5,
        help="a pixel belongs to the mask if its probability is above this number (default: %(default)s)",
    )
    parser.add_argument("--device", help='for example "cpu" or "cuda:0" (default: an accelerator if there is one)')
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="dtype of the model (default: %(default)s)",
    )
    return parser


def load_pipeline(model: str, device: str | None, dtype: str) -> "ReferringImageSegmentationPipeline":
    """Loads the pipeline with the classes of this package. No code from the folder or the Hub is run."""
    import torch
    from transformers import AutoModel, AutoProcessor

    import modeling_jmceln  # noqa: F401 - registers the model with the Auto classes

    from . import ReferringImageSegmentationPipeline
    from .model_loading import load_whole_model

    try:
        return ReferringImageSegmentationPipeline(
            model=load_whole_model(AutoModel, model, dtype=getattr(torch, dtype), trust_remote_code=False),
            processor=AutoProcessor.from_pretrained(model, trust_remote_code=False),
            device=device,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"cannot load the model {model!r}: {error}") from error


def find_and_draw(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Writes the overlay and the masks, and returns the results of the pipeline."""
    from .image_loading_jmceln import array_to_pil_image, image_to_array
    from .visualization import draw_overlay

    # Not `Image.convert("RGB")`, which turns 16-bit images white.
    image = array_to_pil_image(image_to_array(options.image[0]))
    pipe = load_pipeline(options.model, options.device, options.dtype)
    answers = pipe(image, options.text, threshold=options.threshold, mask_threshold=options.mask_threshold)
    captions = [f"{answer['score']:.2f}  {answer['label']}" for answer in answers]
    overlay = draw_overlay(image, [answer["mask"] for answer in answers], captions)
    with naming_full_disk(options.output):
        options.output.parent.mkdir(parents=True, exist_ok=True)
        replace_image(options.output, overlay)
    if options.masks_dir is not None:
        with naming_full_disk(options.masks_dir):
            options.masks_dir.mkdir(parents=True, exist_ok=True)
            for index, answer in enumerate(answers, start=1):
                answer["mask"].save(mask_path(options.masks_dir, index, answer["label"]))
    return answers


def format_table(answers: Sequence[dict[str, Any]]) -> str:
    """Formats one line per expression: its score, the share of the image that its mask covers, and the expression."""
    lines = [f"{'score':>6}  {'area':>6}  expression"]
    for answer in answers:
        area = answer["mask"].histogram()[255] / (answer["mask"].width * answer["mask"].height)
        nothing = "  (nothing found)" if area == 0 else ""
        lines.append(f"{answer['score']:6.3f}  {area:6.1%}  {answer['label']}{nothing}")
    return "\n".join(lines)


def mask_path(folder: Path, index: int, expression: str) -> Path:
    name = re.sub(r"[^\w]+", "-", expression.lower()).strip("-")[:60]
    return folder / f"{index:02d}-{name}.png"


def predict_many(options: argparse.Namespace) -> int:
    """Writes the results for many images to `--output-dir`, prints a summary, and returns how many images failed."""
    from .app.predictions import Segmenter
    from .folder_lock import exclusive_folder
    from .prediction.batch import predict_into_folder
    from .prediction.requests import read_requests

    pipe = load_pipeline(options.model, options.device, options.dtype)
    with naming_full_disk(options.output_dir), exclusive_folder(options.output_dir):
        counts = predict_into_folder(
            Segmenter(pipe.model, pipe.processor),
            read_requests(options.image, options.text, options.frame_step),
            options.output_dir,
            options.formats,
            options.threshold,
            options.mask_threshold,
            options.model,
        )
    before = f", {counts.done_before} done before" if counts.done_before else ""
    print(f"{counts.done} images done{before}, {counts.failed} failed: {options.output_dir}")
    return counts.failed


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Writes the overlay and the masks of one image and prints the table, or writes the results for many images.

    Prints an error in one line and exits with 1, also if only some of many images fail.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    many = options.image[0] == "-" or options.image[0].endswith(".jsonl") or is_video(options.image[0])
    is_one = len(options.image) == 1 and not many
    if options.output_dir is None and not is_one:
        parser.error("there are several images: pass the folder to write to as --output-dir DIR")
    if options.output_dir is None and not options.text:
        parser.error("there is no expression: pass --text EXPRESSION")
    options.model = model_or_exit(parser, options.model)
    try:
        if options.output_dir is not None:
            if predict_many(options):
                parser.exit(1)
            return
        answers = find_and_draw(options)
    except (OSError, ValueError, TypeError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    print(format_table(answers))
    print(f"written: {options.output}")
