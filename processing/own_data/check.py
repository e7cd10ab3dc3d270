"""Show what is understood of a folder of photos, masks and texts, and list what is wrong.

    jmceln check-data FOLDER
    jmceln check-data cvat_export --text-field description --sheet sheet.png

FOLDER holds a table (CSV, TSV or JSON lines) with the columns image, mask and expression, or a COCO file whose
annotations have a text. What is listed as wrong is left out of training. The exit code is 1 if anything is.

What takes seconds to import is imported inside the functions, so that `--help` and wrong usage answer at once.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_line import CommandParser
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
        help="picture to write: images, outlines of masks, expressions (default: %(default)s)",
    )
    parser.add_argument("--number", type=int, default=24, help="images on the sheet (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draws other images for the sheet (default: %(default)s)")
    add_data_options(parser)
    parser.add_argument(
        "--model",
        help="folder or Hub id of a model, whose tokenizer is checked for unknown words (default: the one in "
        "checkpoints/ of this project)",
    )
    return parser


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how a folder is read, for all commands that read one."""
    parser.add_argument(
        "--text-field",
        help='for COCO files: field or attribute of an annotation that holds its text, or "category" for the names of'
        " the labels (default: the first of the usual names that has text)",
    )
    parser.add_argument("--image-folder", help="where to look for the images first")


def report(folder: "OwnFolder") -> str:
    """What was understood, in one line."""
    expressions = sum(len(row["expressions"]) for row in folder.rows)
    masks = sum(len(row["masks"]) for row in folder.rows)
    return f"{folder.path}: {len(folder.rows)} images, {masks} masks, {expressions} expressions"


def describe_words(folder: "OwnFolder", model: str) -> list[str]:
    """How the tokenizer of a model copes with the expressions, a sentence each."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    from ..training.unknown_words import find_unknown_words

    logging.set_verbosity_error()  # it would warn of the long expressions that are counted here
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
    """Write a picture of `number` random images, each with one of its expressions and the outline of its mask."""
    import datasets

    from ..data.canonical_rows import canonical_features
    from ..photos.pair_sheet import choose_pairs, draw_pair_sheet

    rows = datasets.Dataset.from_list(folder.rows, features=canonical_features())
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_pair_sheet(rows, choose_pairs(folder.rows, number, seed)).save(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what was understood, write the sheet, and list what is wrong; then exit with 1."""
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
        print(f"{len(folder.problems)} things are wrong; training leaves them out:")
        for place, reason in folder.problems[:_NAMED_PROBLEMS]:
            print(f"  {place}: {reason}")
        if len(folder.problems) > _NAMED_PROBLEMS:
            print(f"  and {len(folder.problems) - _NAMED_PROBLEMS} more")
        parser.exit(1)
    print("nothing is wrong")
