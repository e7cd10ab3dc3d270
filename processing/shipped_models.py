"""The checkpoints in a clone of the repository. A wheel contains none."""

import argparse
from pathlib import Path


CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
# In order of preference.
SHIPPED_MODELS = ("jmceln-photos", "jmceln-shapes")


def shipped_model() -> str | None:
    """Returns the folder of the preferred shipped checkpoint, or `None` if this installation has none."""
    return next((str(CHECKPOINTS / name) for name in SHIPPED_MODELS if (CHECKPOINTS / name).is_dir()), None)


def model_or_exit(parser: argparse.ArgumentParser, model: str | None) -> str:
    """Returns `model`, or a shipped checkpoint if it is `None`. Without either, exits with an error of `parser`."""
    chosen = model or shipped_model()
    if chosen is None:
        parser.error("this installation has no shipped checkpoints: pass --model FOLDER_OR_HUB_ID")
    return chosen
