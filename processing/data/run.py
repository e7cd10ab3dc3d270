"""Write data for training and testing: expressions for photos with COCO annotations, or synthetic scenes.

    jmceln benchmark-data photos annotations/instances_train2014.json train2014 data/coco_refer \\
        --hold-out data/refcoco --hold-out data/refcocog
    jmceln benchmark-data photos instances.json images data/photos --versions 12 --longest-side 400 --paste 2500 \\
        --max-per-image 14 --validation-ids configs/photos_held_out_ids.txt
    jmceln benchmark-data shapes data/shapes_test.parquet --split test --images 500

`jmceln train` and `jmceln evaluate` accept the path of either.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from ..command_line import CommandParser
from ..photos.expressions import LEVELS as PHOTO_LEVELS
from ..photos.refer_writer import CocoPhotos, write_coco_refer_folder
from ..safe_files import naming_full_disk, replacing
from ..shapes.dataset import shapes_dataset
from ..shapes.expressions import LEVELS as SHAPES_LEVELS
from .leak_filter import held_out_by_all


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        prog="jmceln benchmark-data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(required=True, metavar="{photos,shapes}")
    _add_photos(kinds)
    _add_shapes(kinds)
    return parser.parse_args(arguments)


def _add_photos(kinds: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = kinds.add_parser(
        "photos",
        help="referring expressions for photos with COCO annotations",
        description="Write referring expressions for photos with COCO instance annotations, as a REFER folder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(write=write_photos)
    parser.add_argument("instances", type=Path, help="file of COCO instance annotations, with categories")
    parser.add_argument("images", type=Path, help="folder of the photos")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="random seed; the same seed writes the same files")
    parser.add_argument("--max-per-level", type=int, default=4, help="maximum expressions per photo and level")
    parser.add_argument("--max-per-image", type=int, default=None, help="maximum expressions per photo")
    parser.add_argument(
        "--absent-share", type=float, default=0.2, help="maximum share of expressions without a target"
    )
    parser.add_argument(
        "--levels", nargs="+", choices=PHOTO_LEVELS, default=list(PHOTO_LEVELS), help="levels to write"
    )
    parser.add_argument("--max-images", type=int, default=None, help="maximum number of photos")
    parser.add_argument("--validation-share", type=float, default=0.0, help="share of the photos for the split val")
    parser.add_argument(
        "--validation-ids", type=Path, default=None, metavar="FILE", help="file of image ids for the split val"
    )
    parser.add_argument(
        "--versions",
        type=int,
        default=0,
        help="number of versions of each training photo: all but the first are cropped, mirrored and recolored"
        " together with their masks before expressions are written; 0 keeps the photo unchanged",
    )
    parser.add_argument(
        "--longest-side",
        type=int,
        default=None,
        help="maximum pixels of the longer side of versions and pasted images",
    )
    parser.add_argument(
        "--persons-only",
        nargs=2,
        type=Path,
        default=None,
        metavar=("INSTANCES", "IMAGES"),
        help="additional photos in which only persons are annotated",
    )
    parser.add_argument("--persons-only-versions", type=int, default=0, help="number of versions of these photos")
    parser.add_argument(
        "--paste",
        type=int,
        default=0,
        metavar="COUNT",
        help="number of additional images with pasted objects from other photos",
    )
    parser.add_argument(
        "--hold-out",
        action="append",
        default=[],
        metavar="FOLDER",
        help="REFER folder or dataset whose validation and test images to leave out; can be repeated",
    )
    parser.add_argument(
        "--exclude-image-ids", type=Path, default=None, metavar="FILE", help="file of image ids to leave out"
    )
    parser.add_argument("--image-files", choices=("link", "copy"), default="link", help="link or copy the photos")


def _add_shapes(kinds: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = kinds.add_parser(
        "shapes",
        help="scenes of the synthetic benchmark",
        description="Write images of the synthetic benchmark with expressions and masks, as a Parquet file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(write=write_shapes)
    parser.add_argument("output", type=Path, help="Parquet file to write")
    parser.add_argument(
        "--split", default="test", help="train, validation, test or any other name; each has images of its own"
    )
    parser.add_argument("--images", type=int, default=500, help="number of images")
    parser.add_argument("--image-size", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the dataset")
    parser.add_argument(
        "--levels", nargs="+", choices=SHAPES_LEVELS, default=list(SHAPES_LEVELS), help="levels to write"
    )


def write_photos(options: argparse.Namespace) -> None:
    excluded = held_out_by_all(options.hold_out)
    if options.exclude_image_ids is not None:
        excluded |= set(options.exclude_image_ids.read_text("utf-8").split())
    held_out = set() if options.validation_ids is None else set(options.validation_ids.read_text("utf-8").split())
    sources = [CocoPhotos(options.instances, options.images, options.versions)]
    if options.persons_only is not None:
        instances, images = options.persons_only
        sources.append(CocoPhotos(instances, images, options.persons_only_versions, persons_only=True))
    counts = write_coco_refer_folder(
        sources,
        options.output,
        seed=options.seed,
        max_per_level=options.max_per_level,
        max_per_image=options.max_per_image,
        absent_share=options.absent_share,
        levels=options.levels,
        exclude_image_ids=excluded,
        validation_share=options.validation_share,
        validation_image_ids=held_out,
        max_images=options.max_images,
        pasted_images=options.paste,
        longest_side=options.longest_side,
        images=options.image_files,
        show_progress=True,
    )
    print(f"{options.output}: {len(excluded)} images held out")
    for name, count in counts.items():
        print(f"{count:8d} {name.replace('_', ' ')}")


def write_shapes(options: argparse.Namespace) -> None:
    rows = shapes_dataset(
        options.split, options.images, options.seed, image_size=options.image_size, levels=options.levels
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.output) as unfinished:
        rows.to_parquet(unfinished)
    print(f"{options.output}: {len(rows)} images, {sum(map(len, rows['expressions']))} expressions")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the data that the arguments describe."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    options = parse_arguments(arguments)
    with naming_full_disk(options.output):
        options.write(options)
