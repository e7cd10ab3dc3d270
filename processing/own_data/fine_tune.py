"""Fine-tune a model on your own photos, masks and texts, and compare its answers before and after.

    jmceln fine-tune FOLDER
    jmceln fine-tune FOLDER --output-dir runs/mine --lora 8 --learning_rate 5e-4

FOLDER has the format that `jmceln check-data FOLDER` checks. A fifth of the photos is held out: training stops when
their score no longer improves, and the scores and examples before and after are of these photos. All other options are
those of `jmceln train`, with defaults from processing/own_data/fine_tune.yaml.

Slow modules are imported inside the functions, so that `--help` and usage errors are fast.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..safe_files import naming_full_disk, replace_image
from ..shipped_models import model_or_exit
from .check import add_data_options, report


if TYPE_CHECKING:
    from PIL import Image

    from ..evaluation.answers import Answer


SETTINGS = Path(__file__).with_name("fine_tune.yaml")
SHEET = "before_after.png"
_TILE_SIDE, _COLUMNS = 200, 2


def build_parser() -> argparse.ArgumentParser:
    # All other options are passed on to the training, which suggests the nearest one for an unknown option.
    parser = argparse.ArgumentParser(
        prog="jmceln fine-tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", help="folder, table or COCO file")
    parser.add_argument(
        "--model",
        help="folder or Hub id of the model to fine-tune (default: the one in checkpoints/ of this project)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs/fine_tune"),
        help="folder for the new model (default: %(default)s)",
    )
    parser.add_argument(
        "--lora",
        type=int,
        default=0,
        metavar="RANK",
        help="train adapters of this rank instead of the matrices of the encoders (needs the extra `peft`)",
    )
    parser.add_argument(
        "--validation-share",
        type=float,
        default=0.2,
        help="share of the photos to hold out, if the data has no splits (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the held-out photos (default: %(default)s)"
    )
    parser.add_argument(
        "--number", type=int, default=12, help="number of expressions on the sheet (default: %(default)s)"
    )
    add_data_options(parser)
    return parser


def training_arguments(options: argparse.Namespace) -> list[str]:
    """Returns the arguments for `jmceln train`."""
    source = {
        "name": options.folder,
        "text_field": options.text_field,
        "image_folder": options.image_folder,
        "validation_share": options.validation_share,
        "split_seed": options.seed,
    }
    source = {name: value for name, value in source.items() if value is not None}
    arguments = [str(SETTINGS), "--model_name_or_path", options.model, "--output_dir", str(options.output_dir)]
    arguments += ["--train_data", json.dumps([{**source, "split": "train"}])]
    arguments += ["--eval_data", json.dumps({"val": {**source, "split": "val"}})]
    if options.lora:
        # Adapters start at zero and need the learning rate of new parts.
        arguments += ["--lora_rank", str(options.lora)]
        arguments += ["--backbone_learning_rate_scale", "1", "--text_learning_rate_scale", "1"]
    return arguments


def ask_model(model: str, rows: Sequence[Mapping[str, Any]]) -> "list[list[Answer]]":
    """Returns the answers of the model in a folder to each expression of each row."""
    from ..evaluation.answers import ask_all
    from ..predict import load_pipeline

    pipe = load_pipeline(model, None, "float32")
    return ask_all(pipe.model, pipe.processor, rows)


def describe_scores(answers: "Sequence[Sequence[Answer]]") -> str:
    """Formats the scores over all expressions of the held-out photos."""
    from ..evaluation import ReferringSegmentationMetric

    metric = ReferringSegmentationMetric()
    metric.update_counts([answer.counts() for of_row in answers for answer in of_row])
    scores = metric.compute()
    named = [f"{name} {scores[name]:.3f}" for name in ("mIoU", "P@0.5", "N-acc") if scores[name] is not None]
    return ", ".join(named)


def draw_before_after(
    rows: Sequence[Mapping[str, Any]],
    before: "Sequence[Sequence[Answer]]",
    after: "Sequence[Sequence[Answer]]",
    number: int,
    seed: int = 0,
) -> "Image.Image":
    """Draws random expressions of the held-out photos: the photo, the answer before and the answer after."""
    from PIL import ImageOps

    from ..evaluation.answers import grid, mark, with_caption
    from ..evaluation.sheet import MASK_COLORS

    cases = [(row, index) for row in range(len(rows)) for index in range(len(rows[row]["expressions"]))]
    chosen = sorted(random.Random(seed).sample(cases, min(number, len(cases))))
    tiles = []
    for row, index in chosen:
        photo = rows[row]["image"].convert("RGB")
        answers = (before[row][index], after[row][index])
        pictures = [photo, *(mark(photo, answer) for answer in answers)]
        pictures = [ImageOps.contain(picture, (_TILE_SIDE, _TILE_SIDE)) for picture in pictures]
        caption = f"{rows[row]['expressions'][index]}: IoU {answers[0].iou():.2f} before, {answers[1].iou():.2f} after"
        tiles.append(with_caption(grid(pictures, len(pictures)), [(caption, "black")]))
    sheet = grid(tiles, _COLUMNS)
    title = "Random expressions of held-out photos: the photo, before, after."
    return with_caption(ImageOps.expand(sheet, border=8, fill="white"), [(title, "black"), *MASK_COLORS.items()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, writes the model and the sheet, and prints the scores. Errors are one line, with exit code 1."""
    parser = build_parser()
    options, others = parser.parse_known_args(arguments)
    options.model = model_or_exit(parser, options.model)
    from ..data.referring_datasets import load_referring_dataset
    from ..training.run import main as train
    from .folder import OwnFolder

    try:
        folder = OwnFolder(options.folder, options.text_field, options.image_folder)
        print(report(folder))
        if folder.problems:
            print(
                f"problems: {len(folder.problems)}; these entries are left out: see `jmceln check-data"
                f" {options.folder}`"
            )
        train([*training_arguments(options), *others])
        rows: Any = load_referring_dataset(
            options.folder,
            "val",
            text_field=options.text_field,
            image_folder=options.image_folder,
            validation_share=options.validation_share,
            split_seed=options.seed,
        )
        before, after = (ask_model(model, rows) for model in (options.model, str(options.output_dir)))
        sheet = draw_before_after(rows, before, after, options.number)
        with naming_full_disk(options.output_dir):
            replace_image(options.output_dir / SHEET, sheet)
    except (OSError, ValueError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    print(f"held out: {len(rows)} photos, {sum(map(len, before))} expressions")
    print(f"before: {describe_scores(before)}")
    print(f"after:  {describe_scores(after)}")
    print(f"pictures: {options.output_dir / SHEET}")
    print(f'try it: jmceln predict --model {options.output_dir} --image PHOTO --text "..."')
