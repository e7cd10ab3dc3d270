"""The checkpoints in a clone of the repository. A wheel has none, but may be installed from a clone and used there."""

import argparse
from pathlib import Path


CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
# In order of preference.
SHIPPED_MODELS = ("jmceln-photos", "jmceln-shapes")


def shipped_model() -> str | None:
    """
    Returns the folder of the preferred shipped checkpoint: that of the clone that this package runs from, or else that
    of the clone that is the current directory. `None` if there is neither.
    """
    folders = [parent / name for parent in (CHECKPOINTS, Path("checkpoints")) for name in SHIPPED_MODELS]
    return next((str(folder) for folder in folders if folder.is_dir()), None)


def model_or_exit(parser: argparse.ArgumentParser, model: str | None) -> str:
    """Returns `model`, or a shipped checkpoint if it is `None`. Without either, exits with an error of `parser`."""
    chosen = model or shipped_model()
    if chosen is None:
        parser.error("this installation has no shipped checkpoints: pass --model FOLDER_OR_HUB_ID")
    return chosen
