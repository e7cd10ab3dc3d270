"""The command `jmceln`: lists its subcommands, and imports only the one that is used.

This module is outside the packages because importing a package imports torch and transformers, which takes seconds.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple


class Command(NamedTuple):
    module: str  # with a function `main(arguments)`
    summary: str
    extra: str  # of this distribution: the packages that the command may need beside the dependencies


COMMANDS = {
    "check-data": Command("processing.own_data.check", "check your own data, and list the problems in it", "train"),
    "fine-tune": Command("processing.own_data.fine_tune", "fine-tune a model on your own data", "train"),
    "train": Command("processing.training.run", "train a model", "train"),
    "evaluate": Command("processing.evaluation.run", "score a model on a dataset", "train"),
    "predict": Command("processing.predict", "segment what expressions refer to in images", "data"),
    "app": Command("processing.app.run", "open a web page to try a model", "app"),
    "export": Command("processing.export.run", "export a model to ONNX and torch.export", "export"),
    "benchmark-data": Command("processing.data.run", "write data for training and testing", "train"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a subcommand."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="jmceln",
        description="Referring image segmentation with JMCELN.",
        usage="jmceln COMMAND ...",
        epilog="commands:\n"
        + "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
        + "\n\njmceln COMMAND --help explains the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # Only the first argument is parsed here. All others, including `--help`, are passed to the command.
    command = COMMANDS[parser.parse_args(arguments[:1]).command]
    try:
        import_module(command.module).main(arguments[1:])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("processing", "modeling_jmceln"):
            raise
        parser.error(
            f"this command needs the package {error.name!r}, which is not installed: pip install"
            f" 'jmceln[{command.extra}]', or from a clone pip install '.[{command.extra}]'"
        )


if __name__ == "__main__":
    main()
