"""The command `jmceln`: names its subcommands, and imports only the one that is used."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple


class Command(NamedTuple):
    module: str  # with a function `main(arguments)`
    summary: str


COMMANDS = {
    "check-data": Command(".own_data.check", "see what is understood of your own data, and what is wrong in it"),
    "train": Command(".training.run", "train a model"),
    "evaluate": Command(".evaluation.run", "score a model on a dataset"),
    "predict": Command(".predict", "segment what expressions refer to in an image"),
    "app": Command(".app.run", "open a web page to try a model"),
    "export": Command(".export.run", "export a model to ONNX and torch.export"),
    "benchmark-data": Command(".data.run", "write data to train and to test on"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand; each has a `--help` of its own."""
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
    # Only the first argument is read here: the others, `--help` among them, are for the command.
    command = COMMANDS[parser.parse_args(arguments[:1]).command]
    import_module(command.module, __package__).main(arguments[1:])


if __name__ == "__main__":
    main()
