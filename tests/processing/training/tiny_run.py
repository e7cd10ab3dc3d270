"""A training run of seconds: rows on disk, and a YAML file that names them and a tiny model."""

from pathlib import Path
from typing import Any

import datasets
import yaml

from processing.data.canonical_rows import canonical_features
from processing.training.arguments import merge_settings
from tests.processing.canonical_rows import canonical_row
from tests.tiny import tiny_config


REFERENTS = [(4, 2), (1,), (2,), (1, 1, 3), (2, 2), (1,), (3, -1)]


def write_rows(folder: Path, count: int = 7) -> Path:
    """Canonical rows in the format of `datasets`."""
    rows = [canonical_row(number, REFERENTS[number % len(REFERENTS)]) for number in range(count)]
    datasets.Dataset.from_list(rows, features=canonical_features()).save_to_disk(folder / "rows")
    return folder / "rows"


def write_settings(folder: Path, **overrides: Any) -> Path:
    """A YAML file for `jmceln train` that trains for six steps on the rows of `folder`."""
    rows = folder / "rows"
    if not rows.is_dir():
        write_rows(folder)
    # With dropout, so that the state of the generators of chance matters.
    model = {**tiny_config().to_diff_dict(), "dropout": 0.1}
    settings = {
        "output_dir": str(folder / "run"),
        "train_data": [{"name": str(rows), "split": "train"}],
        "eval_data": {"made": {"name": str(rows), "split": "train"}},
        "max_expressions_per_image": 3,
        "max_expressions_per_image_eval": 2,
        "tokenizer": "words",
        "image_size": 32,
        "model_config": {
            name: value for name, value in model.items() if name not in ("model_type", "transformers_version")
        },
        "use_cpu": True,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "dataloader_drop_last": True,
        "learning_rate": 1.0e-3,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "num_pictures": 0,
        "disable_tqdm": True,
        "seed": 0,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(merge_settings(settings, overrides)), encoding="utf-8")
    return path
