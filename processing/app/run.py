"""Opens a web page to try a model, or writes it to a folder as a Hugging Face Space.

    jmceln app
    jmceln app --model FOLDER_OR_HUB_ID --port 7861
    jmceln app --model FOLDER --write-space space

Slow modules are imported inside the functions, so that `--help` and usage errors are fast.
"""

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..command_line import CommandParser
from ..predict import load_pipeline
from ..shipped_models import model_or_exit


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="jmceln app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        help="folder or Hub id of a JMCELN model with its processor (default: the one in checkpoints/ of this "
        "project)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 accepts connections from other machines (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, help="port of the page (default: the first free one from 7860 on)")
    parser.add_argument("--device", help='for example "cpu" or "cuda:0" (default: an accelerator if there is one)')
    parser.add_argument(
        "--write-space", type=Path, metavar="FOLDER", help="instead write a Hugging Face Space to this folder"
    )
    return parser


def make_page(model: str, name: str | None = None, device: str | None = None) -> Any:
    """
    Builds the page of a model, a `gradio.Blocks`.

    Raises:
        ValueError: If the model cannot be loaded.
    """
    from .examples import read_examples
    from .page import build_page
    from .predictions import Segmenter

    pipe = load_pipeline(model, device, "float32")
    return build_page(Segmenter(pipe.model, pipe.processor), name or Path(model).name, read_examples(Path(model)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves the page until it is interrupted, or writes the Space. Errors are one line, with exit code 1."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    model = model_or_exit(parser, options.model)
    if importlib.util.find_spec("gradio") is None:
        parser.exit(1, f"{parser.prog}: error: the page needs Gradio: pip install 'jmceln[app]'\n")
    # Before Gradio is imported: it must not report who uses the page.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        if options.write_space is not None:
            from .space import write_space

            write_space(Path(model), options.write_space)
            print(f"written: {options.write_space}")
            print(f"push it: hf upload USER/NAME {options.write_space} --repo-type space")
            return
        from .page import launch

        launch(make_page(model, device=options.device), server_name=options.host, server_port=options.port)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
