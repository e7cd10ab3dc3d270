"""Write referring expressions from COCO instance annotations, as a folder that `load_referring_dataset` reads.

    python scripts/make_coco_refer.py annotations/instances_train2014.json train2014 data/coco_refer \
        --hold-out data/refcoco --hold-out data/refcocog
"""

import argparse
import logging
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from processing.data.leak_filter import held_out_by_all
from processing.photos.expressions import LEVELS
from processing.photos.refer_writer import write_coco_refer_folder


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n", maxsplit=1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("instances", type=Path, help="COCO annotations of instances, with categories")
    parser.add_argument("images", type=Path, help="folder of the photos")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="the same seed writes the same files")
    parser.add_argument("--max-per-level", type=int, default=4, help="most expressions of one level for one photo")
    parser.add_argument(
        "--absent-share", type=float, default=0.2, help="largest share of expressions without a target"
    )
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS), help="levels to write")
    parser.add_argument("--max-images", type=int, default=None, help="use no more than this many photos")
    parser.add_argument("--validation-share", type=float, default=0.0, help="share of the photos for the split val")
    parser.add_argument(
        "--paste",
        type=int,
        default=0,
        metavar="COUNT",
        help="additional images with objects of other photos pasted in",
    )
    parser.add_argument(
        "--hold-out",
        action="append",
        default=[],
        metavar="FOLDER",
        help="REFER folder or dataset whose validation and test images to leave out; may be given several times",
    )
    parser.add_argument(
        "--exclude-image-ids", type=Path, default=None, metavar="FILE", help="file of image ids to leave out"
    )
    parser.add_argument("--image-files", choices=("link", "copy"), default="link", help="how to bring the photos over")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    excluded = held_out_by_all(options.hold_out)
    if options.exclude_image_ids is not None:
        excluded |= set(options.exclude_image_ids.read_text("utf-8").split())
    counts = write_coco_refer_folder(
        options.instances,
        options.images,
        options.output,
        seed=options.seed,
        max_per_level=options.max_per_level,
        absent_share=options.absent_share,
        levels=options.levels,
        exclude_image_ids=excluded,
        validation_share=options.validation_share,
        max_images=options.max_images,
        pasted_images=options.paste,
        images=options.image_files,
    )
    print(f"{options.output}: {len(excluded)} images held out")
    for name, count in counts.items():
        print(f"{count:8d} {name.replace('_', ' ')}")


if __name__ == "__main__":
    main()
