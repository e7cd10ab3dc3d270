"""Draw a sheet of random pairs of expression and mask from a dataset, to check the expressions by eye.

python scripts/draw_expressions.py data/coco_refer train runs/expressions.png --number 60
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from processing.data.referring_datasets import load_referring_dataset
from processing.photos.pair_sheet import choose_pairs, draw_pair_sheet


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n", maxsplit=1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("dataset", help="folder or dataset that `load_referring_dataset` reads")
    parser.add_argument("split", help="split to draw from")
    parser.add_argument("output", type=Path, help="image file to write")
    parser.add_argument("--number", type=int, default=60, help="number of pairs, at most one per image")
    parser.add_argument("--columns", type=int, default=4, help="pairs per row")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    rows = load_referring_dataset(options.dataset, options.split)
    pairs = choose_pairs(rows, options.number, options.seed)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw_pair_sheet(rows, pairs, options.columns).save(options.output)
    print(f"{options.output}: {len(pairs)} pairs of {options.dataset}, split {options.split}")


if __name__ == "__main__":
    main()
