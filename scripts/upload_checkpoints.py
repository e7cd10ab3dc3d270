"""Uploads the models in `checkpoints/` to the Hub, each to its own repository, tagged with this version.

    python scripts/upload_checkpoints.py NAMESPACE --dry-run     # lists the files; needs no account
    python scripts/upload_checkpoints.py NAMESPACE

Log in first (`hf auth login`). Each model gets one commit. If the tag exists already, the upload fails, so that a
version never changes.
"""

import argparse
import sys
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from modeling_jmceln import __version__
from processing.shipped_models import CHECKPOINTS, SHIPPED_MODELS


NEEDED = ("README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("namespace", help="user or organization on the Hub")
    parser.add_argument("--dry-run", action="store_true", help="list the files and upload nothing")
    parser.add_argument("--private", action="store_true", help="create repositories that only you can see")
    return parser.parse_args(arguments)


def files_of(checkpoint: str, namespace: str) -> dict[str, bytes | Path]:
    """
    Returns the files of a repository on the Hub by name: their paths, or their content if it differs.

    Raises:
        FileNotFoundError: If a file that is needed for loading is missing.
    """
    folder = CHECKPOINTS / checkpoint
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    files: dict[str, bytes | Path] = {path.relative_to(folder).as_posix(): path for path in paths}
    missing = [name for name in NEEDED if name not in files]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}.")
    # The examples of a card load the model from its folder; on the Hub, they load it from there.
    card = (folder / "README.md").read_text(encoding="utf-8")
    for name in SHIPPED_MODELS:
        card = card.replace(f"checkpoints/{name}", f"{namespace}/{name}")
    files["README.md"] = card.encode()
    return files


def upload(api: HfApi, namespace: str, checkpoint: str, private: bool = False) -> None:
    """Creates the repository if needed, commits all files at once, and sets the tag."""
    repository = f"{namespace}/{checkpoint}"
    api.create_repo(repository, private=private, exist_ok=True)
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else str(content))
        for name, content in files_of(checkpoint, namespace).items()
    ]
    api.create_commit(repository, operations, commit_message=f"Version {__version__}")
    api.create_tag(repository, tag=f"v{__version__}")


def main(arguments: list[str] | None = None, api: HfApi | None = None) -> None:
    options = parse_arguments(arguments)
    for checkpoint in SHIPPED_MODELS:
        files = files_of(checkpoint, options.namespace)
        sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
        print(f"{options.namespace}/{checkpoint}, tag v{__version__}: {sum(sizes.values()) / 1e6:.1f} MB")
        for name, size in sizes.items():
            print(f"  {size:>10,}  {name}")
        if not options.dry_run:
            upload(HfApi() if api is None else api, options.namespace, checkpoint, options.private)
            print("  uploaded")
    if options.dry_run:
        print("Nothing was uploaded.")


if __name__ == "__main__":
    main()
