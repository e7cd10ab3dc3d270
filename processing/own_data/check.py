"""Check a folder of photos, masks and texts, and list the problems in it.

    jmceln check-data FOLDER
    jmceln check-data cvat_export --text-field description --sheet sheet.png

FOLDER contains a table (CSV, TSV or JSON lines) with the columns image, mask and expression, or a COCO file whose
annotations have texts. Training leaves out everything that is listed as a problem. The exit code is 1 if there are
problems.

Slow modules are imported inside the functions, so that `--help` and usage errors are fast.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_line import CommandParser
from ..safe_files import naming_full_disk, replace_image
from ..shipped_models import model_or_exit


if TYPE_CHECKING:
    from .folder import OwnFolder


_NAMED_PROBLEMS = 200


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="jmceln check-data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder, table or COCO file")
    parser.add_argument(
        "--sheet",
        type=Path,
        default=Path("data_check.png"),
        help="image file to write, with images, outlines of masks and expressions (default: %(default)s)",
    )
    parser.add_argument("--number", type=int, default=24, help="number of images on the sheet (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed for the sheet (default: %(default)s)")
    add_data_options(parser)
    parser.add_argument(
        "--model",
        help="folder or Hub id of a model, whose tokenizer is checked for unknown words (default: the one in "
        "checkpoints/ of this project)",
    )
    return parser


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of all commands that read such a folder."""
    parser.add_argument(
        "--text-field",
        help='for COCO files: field or attribute of an annotation that contains its text, or "category" for the name'
        " of its label (default: the first of the usual names that has text)",
    )
    parser.add_argument("--image-folder", help="first folder to look for images in")


def report(folder: "OwnFolder") -> str:
    """Summarizes the data in one line."""
    expressions = sum(len(row["expressions"]) for row in folder.rows)
    masks = sum(len(row["masks"]) for row in folder.rows)
    return f"{folder.path}: {len(folder.rows)} images, {masks} masks, {expressions} expressions"


def describe_words(folder: "OwnFolder", model: str) -> list[str]:
    """Describes which words the tokenizer of a model does not know, and which expressions are too long for it."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    from ..training.unknown_words import find_unknown_words

    logging.set_verbosity_error()  # hides warnings about the long expressions that are counted here
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    expressions = [expression for row in folder.rows for expression in row["expressions"]]
    sentences = [f"{Path(model).name}: {find_unknown_words(tokenizer, expressions)}"]
    long = sum(len(tokenizer(expression)["input_ids"]) > tokenizer.model_max_length for expression in expressions)
    if long:
        sentences.append(
            f"{Path(model).name}: {long} expressions are longer than the {tokenizer.model_max_length} tokens that it"
            " reads; training cuts off their end"
        )
    return sentences


def draw_sheet(folder: "OwnFolder", number: int, seed: int, path: Path) -> None:
    """Writes a sheet of `number` random images, each with one of its expressions and the outline of its mask."""
    import datasets

    from ..data.canonical_rows import canonical_features
    from ..photos.pair_sheet import choose_pairs, draw_pair_sheet

    rows = datasets.Dataset.from_list(folder.rows, features=canonical_features())
    sheet = draw_pair_sheet(rows, choose_pairs(folder.rows, number, seed))
    with naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_image(path, sheet)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a summary, writes the sheet and lists the problems. Exits with 1 if there are any."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.number < 1:
        parser.error("--number must be at least 1")
    model = model_or_exit(parser, options.model)
    from .folder import OwnFolder

    try:
        folder = OwnFolder(options.folder, options.text_field, options.image_folder)
        print(report(folder))
        if folder.rows:
            draw_sheet(folder, options.number, options.seed, options.sheet)
            print(f"look at {options.sheet}: does each outline fit its words?")
            for sentence in describe_words(folder, model):
                print(sentence)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    if folder.problems:
        print(f"problems: {len(folder.problems)}; training leaves these entries out:")
        for place, reason in folder.problems[:_NAMED_PROBLEMS]:
            print(f"  {place}: {reason}")
        if len(folder.problems) > _NAMED_PROBLEMS:
            print(f"  and {len(folder.problems) - _NAMED_PROBLEMS} more")
        parser.exit(1)
    print("no problems found")
