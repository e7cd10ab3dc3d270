"""Examples that a model brings along: `examples/examples.json` in its folder, and the images beside it."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Example:
    image: Path
    expressions: tuple[str, ...]
    attribution: str = ""  # whom the license of the photo asks to be named


def read_examples(model_folder: Path) -> list[Example]:
    """
    Those of a model, or none where it has none.

    Raises:
        ValueError: if an image is missing.
    """
    folder = model_folder / "examples"
    if not (folder / "examples.json").is_file():
        return []
    examples = []
    for entry in json.loads((folder / "examples.json").read_text(encoding="utf-8")):
        image = folder / entry["image"]
        if not image.is_file():
            raise ValueError(f"{folder / 'examples.json'} names the image {entry['image']!r}, which is not there.")
        examples.append(Example(image, tuple(entry["expressions"]), entry.get("attribution", "")))
    return examples
