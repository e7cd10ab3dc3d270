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


COMMANDS = {
    "check-data": Command("processing.own_data.check", "check your own data, and list the problems in it"),
    "fine-tune": Command("processing.own_data.fine_tune", "fine-tune a model on your own data"),
    "train": Command("processing.training.run", "train a model"),
    "evaluate": Command("processing.evaluation.run", "score a model on a dataset"),
    "predict": Command("processing.predict", "segment what expressions refer to in images"),
    "app": Command("processing.app.run", "open a web page to try a model"),
    "export": Command("processing.export.run", "export a model to ONNX and torch.export"),
    "benchmark-data": Command("processing.data.run", "write data for training and testing"),
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
    import_module(command.module).main(arguments[1:])


if __name__ == "__main__":
    main()
