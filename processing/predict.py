"""Finds what expressions refer to in a picture, and draws it.

    jmceln predict --model FOLDER_OR_HUB_ID --image photo.jpg --text "the red cup" --text "the spoon"
    jmceln predict --image photos/ --text "the red cup" --output-dir found --formats masks cut-outs
    jmceln predict --image questions.jsonl --output-dir found

Without `--model` it takes the small model of shapes that comes with the project, which knows nothing of photographs.

What takes seconds to import is imported inside the functions, so that `--help` and wrong usage answer at once.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_line import CommandParser


if TYPE_CHECKING:
    from . import ReferringImageSegmentationPipeline


DEFAULT_MODEL = Path(__file__).resolve().parents[1] / "checkpoints" / "jmceln-photos"


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="jmceln predict",
        description="Find what expressions refer to in a picture: writes the picture with one coloured mask an "
        "expression and a legend, and prints a table.",
        epilog='example: jmceln predict --image photo.jpg --text "the woman left of the blue car" --output found.png',
    )
    parser.add_argument(
        "--model",
        default=str(DEFAULT_MODEL),
        help="folder or Hub id of a trained JMCELN with its processor "
        f"(default: {DEFAULT_MODEL.parent.name}/{DEFAULT_MODEL.name} of this project)",
    )
    parser.add_argument(
        "--image",
        required=True,
        nargs="+",
        help="path or http(s) URL of the picture; with --output-dir also several of them, folders (of frames, too), "
        'patterns such as "photos/*.jpg", and .jsonl files or - for standard input, whose lines are '
        '{"image": PATH, "expressions": [...]}',
    )
    parser.add_argument(
        "--text", default=[], action="append", metavar="EXPRESSION", help="what to find; repeat it for more"
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="for many pictures: write all masks there as COCO RLE (predictions.jsonl) and in the --formats. The same "
        "command again goes on where it stopped",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=("masks", "cut-outs", "probabilities", "overlays", "polygons"),
        default=["masks"],
        help="what to write into --output-dir: PNG masks, PNG cut-outs with transparency, .npy probabilities, "
        "overlays, COCO annotations with polygons (default: masks)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("overlay.png"), help="picture to write (default: %(default)s)"
    )
    parser.add_argument(
        "--masks-dir", type=Path, metavar="DIR", help="also write every mask there, as a black and white PNG"
    )
    parser.add_argument(
        "--threshold",
        type=probability,
        default=0.5,
        help="nothing is found if the score is below this (default: %(default)s)",
    )
    parser.add_argument(
        "--mask-threshold",
        type=probability,
        default=0.5,
        help="a pixel belongs to the mask if its probability is above this (default: %(default)s)",
    )
    parser.add_argument("--device", help='for example "cpu" or "cuda:0" (default: an accelerator if there is one)')
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="precision of the model (default: %(default)s)",
    )
    return parser


def load_pipeline(model: str, device: str | None, dtype: str) -> "ReferringImageSegmentationPipeline":
    """The pipeline with the classes of this checkout: no code from the folder or the Hub is run."""
    import torch
    from transformers import AutoModel, AutoProcessor

    import modeling_jmceln  # noqa: F401 - registers the model with the Auto classes

    from . import ReferringImageSegmentationPipeline

    try:
        return ReferringImageSegmentationPipeline(
            model=AutoModel.from_pretrained(model, dtype=getattr(torch, dtype), trust_remote_code=False).eval(),
            processor=AutoProcessor.from_pretrained(model, trust_remote_code=False),
            device=device,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"cannot load the model {model!r}: {error}") from error


def find_and_draw(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Writes the pictures and returns what the pipeline answered."""
    from .image_loading_jmceln import array_to_pil_image, image_to_array
    from .visualization import draw_overlay

    # Not by Pillow's own conversion to RGB, which turns pictures of 16 bits white.
    image = array_to_pil_image(image_to_array(options.image[0]))
    pipe = load_pipeline(options.model, options.device, options.dtype)
    answers = pipe(image, options.text, threshold=options.threshold, mask_threshold=options.mask_threshold)
    captions = [f"{answer['score']:.2f}  {answer['label']}" for answer in answers]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw_overlay(image, [answer["mask"] for answer in answers], captions).save(options.output)
    if options.masks_dir is not None:
        options.masks_dir.mkdir(parents=True, exist_ok=True)
        for index, answer in enumerate(answers, start=1):
            answer["mask"].save(mask_path(options.masks_dir, index, answer["label"]))
    return answers


def format_table(answers: Sequence[dict[str, Any]]) -> str:
    """One line an expression: its score, the share of the picture that its mask covers, and the expression."""
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
    """Writes into the folder of `options`, prints what was done, and returns how many pictures failed."""
    from .app.predictions import Segmenter
    from .prediction.batch import predict_into_folder
    from .prediction.requests import read_requests

    pipe = load_pipeline(options.model, options.device, options.dtype)
    counts = predict_into_folder(
        Segmenter(pipe.model, pipe.processor),
        read_requests(options.image, options.text),
        options.output_dir,
        options.formats,
        options.threshold,
        options.mask_threshold,
        options.model,
    )
    before = f", {counts.done_before} done before" if counts.done_before else ""
    print(f"{counts.done} pictures done{before}, {counts.failed} failed: {options.output_dir}")
    return counts.failed


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Write the picture and the masks, and print the table; or write many into a folder.

    Exits with 1 and a line of what is wrong, also where only some of many pictures failed.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    is_one = len(options.image) == 1 and options.image[0] != "-" and not options.image[0].endswith(".jsonl")
    if options.output_dir is None and not is_one:
        parser.error("several pictures want a folder to write to: pass --output-dir DIR")
    if options.output_dir is None and not options.text:
        parser.error("say what to find: pass --text EXPRESSION")
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
