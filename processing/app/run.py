"""Opens a web page to try a model on, or writes the folder of a Hugging Face Space with it.

    jmceln app
    jmceln app --model FOLDER_OR_HUB_ID --port 7861
    jmceln app --model FOLDER --write-space space

What takes seconds to import is imported inside the functions, so that `--help` and wrong usage answer at once.
"""

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..command_line import CommandParser
from ..predict import DEFAULT_MODEL, load_pipeline


CHECKPOINTS = DEFAULT_MODEL.parent
# The first that is there.
SHIPPED_MODELS = ("jmceln-photos", "jmceln-shapes")


def shipped_model() -> str | None:
    """Folder of a model that comes with the project; a wheel brings none."""
    return next((str(CHECKPOINTS / name) for name in SHIPPED_MODELS if (CHECKPOINTS / name).is_dir()), None)


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="jmceln app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", help="folder or Hub id of a trained JMCELN with its processor (default: one from checkpoints/)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--device", help='for example "cpu" or "cuda:0" (default: an accelerator if there is one)')
    parser.add_argument(
        "--write-space", type=Path, metavar="FOLDER", help="write a Hugging Face Space there instead, ready to push"
    )
    return parser


def make_page(model: str, name: str | None = None, device: str | None = None) -> Any:
    """
    The page of a model, a `gradio.Blocks`.

    Raises:
        ValueError: If the model cannot be loaded.
    """
    from .examples import read_examples
    from .page import build_page
    from .predictions import Segmenter

    pipe = load_pipeline(model, device, "float32")
    return build_page(Segmenter(pipe.model, pipe.processor), name or Path(model).name, read_examples(Path(model)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the page until it is interrupted, or write the Space; exits with 1 and a line of what is wrong."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    model = options.model or shipped_model()
    if model is None:
        parser.error("no model comes with this installation: pass --model FOLDER_OR_HUB_ID")
    if importlib.util.find_spec("gradio") is None:
        parser.exit(1, f"{parser.prog}: error: the page needs Gradio: pip install 'jmceln[app]'\n")
    # Before Gradio is imported: nothing is reported about who uses the page.
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
