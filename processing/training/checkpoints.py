"""The checkpoints of a run: hashes of their files, and a search for the newest intact checkpoint."""

import hashlib
import json
import logging
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..safe_files import replace_text


logger = logging.getLogger(__name__)

CHECKSUMS_FILE = "checksums.json"
STATE_FILE = "trainer_state.json"

# FSDP and DeepSpeed write these instead of the files of a single process.
_SHARDED_FOLDERS = ("pytorch_model_fsdp_*", "global_step*")
_SHARDED_OPTIMIZERS = ("optimizer.bin", "optimizer_*", "global_step*")


class DamagedCheckpointError(ValueError):
    """A run cannot be resumed from a checkpoint. The message names the checkpoint and the reason."""


def write_checksums(checkpoint: str | Path) -> None:
    """
    Writes the size and the SHA-256 hash of each file of a complete checkpoint to its file `checksums.json`.

    Args:
        checkpoint (`str` or `Path`): Folder of the checkpoint.
    """
    checkpoint = Path(checkpoint)
    records = {
        path.relative_to(checkpoint).as_posix(): {"size": path.stat().st_size, "sha256": _hash(path)}
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != CHECKSUMS_FILE
    }
    replace_text(checkpoint / CHECKSUMS_FILE, json.dumps(records, indent=2))


def check_files(checkpoint: str | Path) -> None:
    """
    Checks that the files of a checkpoint have not changed since they were written.

    If there is no `checksums.json`, as in checkpoints of earlier releases or other programs, weights, archives and
    state are checked as far as their formats allow.

    Raises:
        DamagedCheckpointError: If the folder or a file is missing, or if a file has changed.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        raise DamagedCheckpointError(f"There is no checkpoint {str(checkpoint)!r}: it is not a folder.")
    damage = _changed_file(checkpoint) if (checkpoint / CHECKSUMS_FILE).is_file() else _broken_file(checkpoint)
    if damage is not None:
        raise DamagedCheckpointError(f"The checkpoint {str(checkpoint)!r} is damaged: {damage}.")


def check_resumable(checkpoint: str | Path) -> None:
    """
    Checks that a run can be resumed from a checkpoint.

    Raises:
        DamagedCheckpointError: As in [`check_files`], or if the checkpoint lacks the state of the optimizer or of the
            learning rate scheduler.
    """
    check_files(checkpoint)
    has_optimizer = _has(Path(checkpoint), "optimizer.pt")
    if has_optimizer and not _has(Path(checkpoint), "scheduler.pt"):
        raise DamagedCheckpointError(f"The checkpoint {str(checkpoint)!r} is damaged: `scheduler.pt` is missing.")
    if not has_optimizer and not any(_has(Path(checkpoint), pattern) for pattern in _SHARDED_OPTIMIZERS):
        raise DamagedCheckpointError(
            f"The checkpoint {str(checkpoint)!r} has no state of the optimizer, as with `save_only_model`. A run"
            " cannot be resumed from it; start a new run from its weights with `model_name_or_path`."
        )


def newest_intact_checkpoint(output_dir: str | Path) -> str | None:
    """
    Returns the newest checkpoint from which a run can be resumed. Checkpoints that are skipped are logged.

    Args:
        output_dir (`str` or `Path`):
            Output folder of a run. It may not exist yet.

    Returns:
        `str`, *optional*: Path of the checkpoint. `None` if there is none, or if the run was killed while it wrote its
        first one.

    Raises:
        DamagedCheckpointError: If there are complete checkpoints, but the run can be resumed from none of them.
    """
    damaged = []
    for folder in sorted(_checkpoints(Path(output_dir)), key=_step_in_name, reverse=True):
        if not (folder / CHECKSUMS_FILE).is_file() and _step(folder) is None:
            logger.warning("Skipped %s: the run was killed while writing it", folder)
            continue
        try:
            check_resumable(folder)
        except DamagedCheckpointError as error:
            logger.warning("Skipped a checkpoint: %s", error)
            damaged.append(str(error))
        else:
            return str(folder)
    if damaged:
        raise DamagedCheckpointError(
            f"The run cannot be resumed from any checkpoint in {str(output_dir)!r}. {' '.join(damaged)}"
            " `--resume_from_checkpoint never` starts again from the beginning in this folder."
        )
    return None


def delete_old_checkpoints(newest: str | Path, limit: int, keep: str | Path | None = None) -> None:
    """
    Deletes the oldest checkpoints of a run by their steps. Checkpoints of later steps than the newest are from an
    earlier run in the same folder, and are deleted first.

    Args:
        newest (`str` or `Path`): Folder of the checkpoint that was just written, which is always kept.
        limit (`int`): How many checkpoints may be left, including the kept ones.
        keep (`str` or `Path`, *optional*): Another checkpoint to keep, such as the best one.
    """
    newest = Path(newest)
    step = _step_in_name(newest)
    kept = {newest} if keep is None else {newest, Path(keep)}
    folders = _checkpoints(newest.parent)
    old = sorted(
        (folder for folder in folders if folder not in kept),
        key=lambda folder: (_step_in_name(folder) < step, _step_in_name(folder)),
    )
    for folder in old[: max(len(folders) - limit, 0)]:
        shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(output_dir: Path) -> list[Path]:
    return [folder for folder in output_dir.glob("checkpoint-*") if folder.name[11:].isdigit()]


def _step_in_name(folder: Path) -> int:
    return int(folder.name[11:])


def _changed_file(checkpoint: Path) -> str | None:
    try:
        records = json.loads((checkpoint / CHECKSUMS_FILE).read_text(encoding="utf-8"))
        expected = {name: (record["size"], record["sha256"]) for name, record in records.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"`{CHECKSUMS_FILE}` cannot be read"
    for name, (size, digest) in expected.items():
        path = checkpoint / name
        if not path.is_file():
            return f"`{name}` is missing"
        if path.stat().st_size != size:
            return f"`{name}` has {path.stat().st_size} bytes, but {size} were written"
        if _hash(path) != digest:
            return f"`{name}` is not what was written, by its hash"
    return None


def _broken_file(checkpoint: Path) -> str | None:
    if _step(checkpoint) is None:
        return f"`{STATE_FILE}` names no step"
    if not any(_has(checkpoint, pattern) for pattern in ("*.safetensors", *_SHARDED_FOLDERS)):
        return "`model.safetensors` is missing"
    files = [path for pattern in ("*.safetensors", "*.pt", "*.pth") for path in sorted(checkpoint.glob(pattern))]
    return next((f"`{path.name}` is cut off or damaged" for path in files if not _is_whole(path)), None)


def _is_whole(path: Path) -> bool:
    """Whether a file has the length in its header, and a zip archive the checksums of its members."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return True
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (SafetensorError, OSError, zipfile.BadZipFile):
        return False


def _step(checkpoint: Path) -> int | None:
    """Returns the step of a checkpoint, or `None` if its state cannot be read."""
    try:
        step = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def _has(folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern))


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
