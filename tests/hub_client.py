"""What a user does with a hub, in a process that was started with its address. Run by test_hub.py.

Called as `python -m tests.hub_client ACTION REQUEST`, where REQUEST is JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from modeling_jmceln import JMCELNModel
from processing import JMCELNProcessor


def push(folder: str, name: str) -> None:
    """Pushes model and processor of a folder."""
    JMCELNModel.from_pretrained(folder).push_to_hub(name)
    JMCELNProcessor.from_pretrained(folder).push_to_hub(name)


def error_of_loading(name: str) -> str:
    try:
        JMCELNModel.from_pretrained(name)
    except OSError as error:
        return str(error)
    return ""


def load_until_it_works(name: str, output: str) -> None:
    """Loads a model again and again; writes each error, and how many files of weights the cache then has."""
    attempts = []
    while len(attempts) < 10 and (error := error_of_loading(name)):
        attempts.append([error, len(list(Path(os.environ["HF_HOME"]).rglob("*.safetensors")))])
    Path(output).write_text(json.dumps(attempts), encoding="utf-8")


def write_rows(sources: list[dict[str, Any]], output: str) -> None:
    """Writes what the rows of datasets on the hub say, and the sizes of their images."""
    from processing.data.referring_datasets import load_referring_dataset

    written = []
    for source in sources:
        rows = load_referring_dataset(**source, on_bad_row="raise")
        written.append([{**row, "image": row["image"].size} for row in rows])
    Path(output).write_text(json.dumps(written), encoding="utf-8")


if __name__ == "__main__":
    {"load": load_until_it_works, "push": push, "rows": write_rows}[sys.argv[1]](**json.loads(sys.argv[2]))
