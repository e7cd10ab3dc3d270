"""Measures the effect of more training photos: trains the photographs' model on shares of its photos.

    python benchmarks/photos_learning_curve.py instances_train2017.json train2017 data/encoders runs/curve --document

All runs start from the same encoders and train for the same number of steps with the settings of configs/photos.yaml.
They are scored on the same expressions: those of the held-out photos, and those of some training photos that are in
every share. The gap between the two scores shows how much a model overfits to its photos. Finished runs are not
repeated, and a killed run resumes from its newest checkpoint. To share the work, start several processes with
different `--shares`. The table contains all finished runs.
"""

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from processing.evaluation import run as evaluation
from processing.evaluation.report import fill_page, markdown_table
from processing.photos.refer_writer import REFERENCES_FILE, CocoPhotos, write_coco_refer_folder
from processing.training import run as training


MARKERS = ("<!-- learning curve: begin -->\n", "<!-- learning curve: end -->")
PAGE = Path("docs/training.md")
CONFIGURATION = Path("configs/photos.yaml")
HELD_OUT = Path("configs/photos_held_out_ids.txt")
RESULTS_FILE = "curve.json"
EXPRESSIONS = {"max_per_level": 6, "max_per_image": 14, "absent_share": 0.18}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("instances", type=Path, help="COCO annotations")
    parser.add_argument("images", type=Path, help="folder of the photos")
    parser.add_argument("encoders", type=Path, help="folder that scripts/make_photo_encoders.py made")
    parser.add_argument("output", type=Path, help="folder for data, runs and results")
    parser.add_argument(
        "--shares", type=int, nargs="+", default=[25, 50, 100], metavar="PERCENT", help="default: 25 50 100"
    )
    parser.add_argument("--steps", type=int, default=600, help="steps per run (default: %(default)s)")
    parser.add_argument(
        "--image-size", type=int, default=224, help="side of the input in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--versions", type=int, default=13, help="versions of each training photo (default: %(default)s)"
    )
    parser.add_argument(
        "--paste", type=int, default=2500, help="images with pasted objects per run (default: %(default)s)"
    )
    parser.add_argument("--known-photos", type=int, default=40, help="training photos to score (default: %(default)s)")
    parser.add_argument("--document", action="store_true", help=f"write the table into {PAGE}")
    return parser.parse_args(arguments)


def split_photos(instances: Path, held_out: Path, seed: int = 0) -> tuple[list[int], list[int]]:
    """Returns the ids of the training photos, shuffled with a fixed seed, and of the held-out photos."""
    ids = sorted(image["id"] for image in json.loads(instances.read_text(encoding="utf-8"))["images"])
    held_out_ids = {int(line) for line in held_out.read_text(encoding="utf-8").split()}
    training_ids = [identifier for identifier in ids if identifier not in held_out_ids]
    random.Random(seed).shuffle(training_ids)
    return training_ids, [identifier for identifier in ids if identifier in held_out_ids]


def write_data(
    source: CocoPhotos, folder: Path, excluded: Sequence[int], validation: Sequence[int], pasted_images: int = 0
) -> Path:
    """Writes expressions for the photos that are not `excluded`, with `validation` as `val`, unless they exist."""
    if not (folder / REFERENCES_FILE).exists():
        write_coco_refer_folder(
            source,
            folder,
            exclude_image_ids=excluded,
            validation_image_ids=validation,
            pasted_images=pasted_images,
            longest_side=400,
            show_progress=True,
            **EXPRESSIONS,
        )
    return folder


def run_share(options: argparse.Namespace, share: int, training_ids: Sequence[int], held_out: Sequence[int]) -> None:
    """Trains on a share of the photos, scores the model, and writes the result."""
    count = round(share / 100 * len(training_ids))
    folder = options.output / f"share_{share}"
    data = write_data(
        CocoPhotos(options.instances, options.images, options.versions),
        options.output / f"data_{share}",
        excluded=training_ids[count:],
        validation=held_out,
        pasted_images=options.paste,
    )
    settings = {
        "output_dir": folder,
        "train_data": json.dumps([{"name": str(data), "split": "train"}]),
        "eval_data": json.dumps({"val": {"name": str(data), "split": "val"}}),
        "vision_model": options.encoders / "vision",
        "text_model": options.encoders / "text",
        "image_size": options.image_size,
        "max_steps": options.steps,
        "eval_strategy": "no",
    }
    training.main(
        [str(CONFIGURATION), *(part for name, value in settings.items() for part in (f"--{name}", str(value)))]
    )
    known = write_data(
        CocoPhotos(options.instances, options.images),
        options.output / f"known_{share}",
        excluded=[*training_ids[options.known_photos :], *held_out],
        validation=training_ids[: options.known_photos],
    )
    scores = {}
    for name, scored in (("held_out", data), ("known", known)):
        arguments = ["--model", str(folder), "--dataset", str(scored), "--split", "val"]
        evaluation.main([*arguments, "--output-dir", str(folder / name)])
        scores[name] = json.loads((folder / name / "results.json").read_text(encoding="utf-8"))["scores"]
    result = {"share": share, "photos": count, "steps": options.steps, "image_size": options.image_size, **scores}
    (folder / RESULTS_FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def curve_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table in percent, with one line per run, sorted by the number of photos."""
    table = [["photos", "held-out photos: mIoU", "P@0.5", "photos of the training: mIoU", "P@0.5"]]
    for result in sorted(results, key=lambda result: result["photos"]):
        cells = []
        for name in ("held_out", "known"):
            scores = result[name]
            error = scores["mIoU_standard_error"]
            cells += [f"{100 * scores['mIoU']:.1f} ± {100 * error:.1f}", f"{100 * scores['P@0.5']:.1f}"]
        table.append([f"{result['photos']} ({result['share']} %)", *cells])
    return markdown_table(table)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    training_ids, held_out = split_photos(options.instances, HELD_OUT)
    smallest = round(min(options.shares) / 100 * len(training_ids))
    if smallest < options.known_photos:
        raise ValueError(
            f"The smallest share has {smallest} photos, but every run must train on the {options.known_photos} of"
            " `--known-photos`: choose larger `--shares` or a smaller `--known-photos`."
        )
    options.output.mkdir(parents=True, exist_ok=True)
    for share in options.shares:
        if not (options.output / f"share_{share}" / RESULTS_FILE).exists():
            run_share(options, share, training_ids, held_out)
    results = [json.loads(path.read_text(encoding="utf-8")) for path in options.output.glob(f"share_*/{RESULTS_FILE}")]
    table = curve_table(results)
    print(table)
    if options.document:
        fill_page(PAGE, *MARKERS, f"{table}\n")


if __name__ == "__main__":
    main()
