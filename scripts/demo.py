"""The whole job in minutes on a small machine: train a small JMCELN on the synthetic benchmark, score it, draw it.

    python scripts/demo.py

Writes into `runs/demo`: the trained model (`model/`, which loads everywhere with `trust_remote_code=True`), the scores
beside those of readers that ignore words (`scores.md`), all settings and scores (`evaluation/results.json`), and
pictures of every level (`demo.png`). Killed and started again, it goes on where it stopped.
"""

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from processing.evaluation import run as evaluate
from processing.evaluation.report import markdown_table
from processing.evaluation.sheet import Case, draw_sheet
from processing.shapes.dataset import shapes_dataset
from processing.shapes.oracles import labelled_scene, oracle_scores
from processing.training import run as train


IMAGE_SIZE = 96
TEST_SPLIT = "test"
READERS = {
    "head phrase": "reads only the head phrase",
    "random object": "random object",
    "largest object": "largest object",
}


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Further arguments go on to jmceln train, for example --max_steps 3000.",
    )
    parser.add_argument("--config", default="configs/demo.yaml", help="the training run (default: %(default)s)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/demo"), help="default: %(default)s")
    parser.add_argument("--test-images", type=int, default=200, help="of the test split (default: %(default)s)")
    parser.add_argument("--cases", type=int, default=3, help="pictures a level (default: %(default)s)")
    return parser.parse_known_args(arguments)


def scores_table(results: Mapping[str, Any], oracles: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A Markdown table: a row a level, the model's scores beside the mIoU of readers that ignore words."""
    header = ["level", "expressions", "mIoU", "oIoU", "P@0.5", *[f"mIoU, {text}" for text in READERS.values()]]
    rows = [header]
    for level, readers in oracles.items():
        scores = results["scores"]["groups"][level]
        # Of expressions without a target, IoU is 1 if nothing was predicted: the generalised mean counts them.
        names = ("gIoU", None, None) if level == "no_target" else ("mIoU", "oIoU", "P@0.5")
        cells = ["-" if name is None else f"{scores[name]:.3f}" for name in names]
        cells += [f"{readers[reader]['mIoU']:.3f}" for reader in READERS]
        rows.append([level, str(scores["expressions"]), *cells])
    return markdown_table(rows)


def draw_levels(predictions_path: Path, images: Any, cases: int, title: str) -> Any:
    """Random expressions of every level with what was predicted for them, a line of pictures a level."""
    with predictions_path.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    rows = [list(group) for _, group in itertools.groupby(lines, key=lambda line: line["image_id"])]
    of_level: dict[str, list[Case]] = {}
    for row, expressions in enumerate(rows):
        for index, line in enumerate(expressions):
            of_level.setdefault(line["level"], []).append(Case(row, index, line["iou"]))
    generator = random.Random(0)
    sections = {level: generator.sample(found, min(cases, len(found))) for level, found in of_level.items()}
    journal_rows = {
        row: {"expressions": [{"text": line["expression"], "mask": line["mask"]} for line in expressions]}
        for row, expressions in enumerate(rows)
    }
    dataset_rows = {case.row: images[case.row] for section in sections.values() for case in section}
    return draw_sheet(sections, dataset_rows, journal_rows, title, columns=cases)


def main(arguments: list[str] | None = None) -> None:
    settings, training_arguments = parse_arguments(arguments)
    start = time.perf_counter()
    model_folder = settings.output_dir / "model"
    train.main([settings.config, "--output_dir", str(model_folder), *training_arguments])
    trained = time.perf_counter()

    evaluation_folder = settings.output_dir / "evaluation"
    data = ["--shapes-images", str(settings.test_images), "--shapes-image-size", str(IMAGE_SIZE)]
    results = evaluate.main(
        [
            *("--model", str(model_folder), "--dataset", "shapes", "--split", TEST_SPLIT, *data),
            *("--batch-size", "8", "--save-predictions", "--sheet-cases", "0", "--overwrite"),
            *("--output-dir", str(evaluation_folder)),
        ]
    )
    if results is None:  # another process of a distributed run writes the files
        return
    oracles = oracle_scores(
        labelled_scene(TEST_SPLIT, index, image_size=IMAGE_SIZE) for index in range(settings.test_images)
    )
    table = scores_table(results, oracles)
    (settings.output_dir / "scores.md").write_text(table + "\n", encoding="utf-8")
    images = shapes_dataset(TEST_SPLIT, settings.test_images, image_size=IMAGE_SIZE)
    picture_path = settings.output_dir / "demo.png"
    draw_levels(
        evaluation_folder / "predictions.jsonl", images, settings.cases, "JMCELN on the synthetic benchmark"
    ).save(picture_path)
    print(f"\n{table}\n")
    print(f"Training took {trained - start:.0f} s, all of it {time.perf_counter() - start:.0f} s.")
    print(f"Pictures: {picture_path}   model: {model_folder}")


if __name__ == "__main__":
    main()
