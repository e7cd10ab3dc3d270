"""The settings of a run, saved next to its weights, so that a run is not resumed with other settings by mistake."""

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..safe_files import replace_text


SETTINGS_FILE = "settings.json"
# The last file that a run writes.
RESULTS_FILE = "all_results.json"

# Settings that may change when a run is resumed: paths, logging and speed.
_FREE = (
    *("trust_remote_code", "image_folder", "output_dir", "resume_from_checkpoint", "use_cpu", "local_rank"),
    *("num_pictures", "report_to", "run_name", "project", "trackio_space_id", "disable_tqdm"),
    *("fsdp", "fsdp_config", "deepspeed"),
)
_FREE_PREFIXES = (
    *("logging_", "log_", "include_", "hub_", "push_to_hub", "save_", "do_", "ddp_", "torch_compile"),
    *("eval_", "per_device_eval", "dataloader_num_workers", "dataloader_persistent", "dataloader_pin"),
    "dataloader_prefetch",
)


def read_settings(folder: str | Path) -> dict[str, Any] | None:
    """Returns the settings in the `output_dir` or in a checkpoint of a run, or `None` if there are none."""
    path = Path(folder) / SETTINGS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_settings(settings: Mapping[str, Any], folder: str | Path) -> None:
    """Writes settings to a folder, which is created if needed."""
    # With sharded weights, no process has created the folder of the checkpoint yet.
    Path(folder).mkdir(parents=True, exist_ok=True)
    replace_text(Path(folder) / SETTINGS_FILE, json.dumps(settings, indent=2, default=str))


def differing_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """
    Describes each setting that differs: `training.learning_rate was 0.001 and is 0.0001`.

    Settings that exist in only one of the two are ignored, since releases differ in them.
    """
    before, now = (json.loads(json.dumps(settings, default=str)) for settings in (before, now))
    found = []
    for part in ("model", "data", "training"):
        one, other = before.get(part, {}), now.get(part, {})
        for field in sorted(one.keys() & other.keys()):
            is_free = field in _FREE or (part == "training" and field.startswith(_FREE_PREFIXES))
            if not is_free:
                found += _differences(one[field], other[field], f"{part}.{field}")
    return found


def _differences(before: Any, now: Any, name: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        fields = sorted(before.keys() | now.keys())
        return [text for key in fields for text in _differences(before.get(key), now.get(key), f"{name}.{key}")]
    return [] if before == now else [f"{name} was {_in_short(before)} and is {_in_short(now)}"]


def _in_short(value: Any) -> str:
    return textwrap.shorten(repr(value), width=80, placeholder=" ...")
