"""Show that every level of the synthetic benchmark needs its words: score baselines that ignore some of them.

    python scripts/shapes_oracles.py
    python scripts/shapes_oracles.py --images 2000 --output runs/oracles
    python scripts/shapes_oracles.py --images 50 --sheet sheet.png

Prints one table per score, and writes `oracles.json` and `oracles.md` to the output folder. In the levels position,
relation, chain2, chain3 and comparison, the baseline that uses only the head noun phrase must score below 0.35. The
script also computes the mean IoU of perfect logits at coarser resolutions, which is an upper bound for any model.
"""

import argparse
import json
import sys
from pathlib import Path


# With this, `python scripts/shapes_oracles.py` works in a clone that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from processing.evaluation.report import markdown_table
from processing.shapes.ceiling import resolution_ceiling
from processing.shapes.expressions import LEVELS
from processing.shapes.oracles import BASELINES, labeled_scene, oracle_scores
from processing.shapes.sheet import draw_sheet


STRIDES = (2, 4, 8)
SCORES = ("mIoU", "P@0.5")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    baselines = "\n".join(f"  {name}: {meaning}" for name, (meaning, _) in BASELINES.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"baselines:\n{baselines}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", default="test", help="split of the benchmark, any name (default: %(default)s)")
    parser.add_argument("--images", type=int, default=500, help="number of images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the benchmark (default: %(default)s)")
    parser.add_argument(
        "--image-size", type=int, default=128, help="height and width in pixels (default: %(default)s)"
    )
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS), help="levels (default: all)")
    parser.add_argument("--output", type=Path, help="folder for oracles.json and oracles.md (default: only print)")
    parser.add_argument("--sheet", type=Path, help="also draw samples of every level to this image file")
    parser.add_argument("--sheet-columns", type=int, default=6, help="samples per level (default: %(default)s)")
    parsed = parser.parse_args(arguments)
    if parsed.images < 1:
        parser.error(f"--images must be at least 1, got {parsed.images}")
    return parsed


def as_table(scores: dict[str, dict[str, dict[str, float]]], score: str) -> str:
    """Formats a Markdown table with one row per level and one column per baseline."""
    rows = [[score, *BASELINES, "expressions"]]
    for level, of_level in scores.items():
        cells = [f"{of_level[name][score]:.3f}" for name in BASELINES]
        rows.append([level, *cells, str(of_level["head phrase"]["expressions"])])
    return markdown_table(rows)


def main(arguments: list[str] | None = None) -> None:
    parsed = parse_arguments(arguments)
    items = [
        labeled_scene(parsed.split, index, parsed.seed, parsed.image_size, parsed.levels)
        for index in range(parsed.images)
    ]
    scores = oracle_scores(items)
    masks = [item.target_mask(one) for item in items for one in item.expressions if one.targets]
    strides = [stride for stride in STRIDES if parsed.image_size % stride == 0]
    ceilings = {stride: resolution_ceiling(masks, stride) for stride in strides}
    rows = [["stride of perfect logits", "mIoU after bilinear upsampling"]]
    rows += [[str(stride), f"{ceiling:.3f}"] for stride, ceiling in ceilings.items()]
    report = "\n\n".join([*(as_table(scores, score) for score in SCORES), markdown_table(rows)])
    print(report)
    if parsed.output is not None:
        parsed.output.mkdir(parents=True, exist_ok=True)
        settings = {key: getattr(parsed, key) for key in ("split", "images", "seed", "image_size", "levels")}
        content = {
            "settings": settings,
            "baselines": {name: meaning for name, (meaning, _) in BASELINES.items()},
            "scores": scores,
            "ceilings": ceilings,
        }
        (parsed.output / "oracles.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (parsed.output / "oracles.md").write_text(report + "\n", encoding="utf-8")
    if parsed.sheet is not None:
        parsed.sheet.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(items, columns=parsed.sheet_columns).save(parsed.sheet)


if __name__ == "__main__":
    main()
