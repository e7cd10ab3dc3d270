"""Examples in the folder of a model: `examples/examples.json`, and the images next to it."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Example:
    image: Path
    expressions: tuple[str, ...]
    attribution: str = ""  # attribution that the license of the photo requires


def read_examples(model_folder: Path) -> list[Example]:
    """
    Returns the examples in the folder of a model, if there are any.

    Raises:
        ValueError: If an image is missing.
    """
    folder = model_folder / "examples"
    if not (folder / "examples.json").is_file():
        return []
    examples = []
    for entry in json.loads((folder / "examples.json").read_text(encoding="utf-8")):
        image = folder / entry["image"]
        if not image.is_file():
            raise ValueError(f"{folder / 'examples.json'} lists the image {entry['image']!r}, which does not exist.")
        examples.append(Example(image, tuple(entry["expressions"]), entry.get("attribution", "")))
    return examples
