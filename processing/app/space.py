"""Writes a Hugging Face Space to a folder: the page, the code of the packages and a model."""

import importlib.metadata
import shutil
from pathlib import Path

import gradio
from packaging.requirements import Requirement

from ..safe_files import naming_full_disk


PACKAGES = ("modeling_jmceln", "processing")
EXTRAS = ("data",)  # the extras that the page needs, besides Gradio, which a Space has

README = """\
---
title: JMCELN
emoji: 🔎
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
app_file: app.py
license: apache-2.0
short_description: Find what words mean in a photo
---

# JMCELN: find what words mean in a photo

Drop a photo, say what to find, and see its mask. The model is in `model/`, its card in `model/README.md`.
Run it on your own machine: `pip install -r requirements.txt gradio=={gradio}`, then `python app.py`.
"""

APP = '''\
"""The page of this Space."""

from pathlib import Path

from processing.app.run import make_page
from processing.app.page import launch


MODEL = Path(__file__).resolve().parent / "model"

if __name__ == "__main__":
    launch(make_page(str(MODEL), "{name}"))
'''

# The Hub accepts binary files only through Git LFS.
ATTRIBUTES = "".join(
    f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in ("safetensors", "png", "jpg", "jpeg")
)


def write_space(model: Path, folder: Path) -> None:
    """
    Writes a Space.

    Args:
        model (`Path`): Folder of the model, with its processor and its examples.
        folder (`Path`): Folder to write to. It must not exist, or be empty.

    Raises:
        ValueError: If `model` is not a folder of a model, or if `folder` is not empty.
    """
    if not (model / "config.json").is_file():
        raise ValueError(f"a Space contains its model, but {str(model)!r} is not the folder of a model: download it")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{str(folder)!r} exists and is not empty: choose a new folder")
    with naming_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _fill(folder, model)
        except BaseException:
            # The next attempt would refuse a folder that is not empty. The folder itself may be the current one.
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise


def _fill(folder: Path, model: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    # Checkpoints and other files of a training run do not belong into a Space.
    shutil.copytree(
        model, folder / "model", ignore=shutil.ignore_patterns("checkpoint-*", "__pycache__", "*.bin", "*.pt")
    )
    (folder / "README.md").write_text(README.format(gradio=gradio.__version__), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    (folder / "app.py").write_text(APP.format(name=model.resolve().name), encoding="utf-8")
    (folder / ".gitattributes").write_text(ATTRIBUTES, encoding="utf-8")


def requirements() -> list[str]:
    """Returns the dependencies of the packages and of the page, as lines of a requirements file."""
    lines = []
    for line in importlib.metadata.requires("jmceln") or []:
        requirement = Requirement(line)
        wanted = requirement.marker is None or any(requirement.marker.evaluate({"extra": name}) for name in EXTRAS)
        if wanted:
            lines.append(f"{requirement.name}{requirement.specifier}")
    return sorted(set(lines))
