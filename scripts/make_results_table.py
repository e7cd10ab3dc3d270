"""Write the results in a model card between its two markers, from the JSON files of jmceln evaluate.

    python scripts/make_results_table.py model_card.md outputs/evaluation/MODEL/*/results.json
    python scripts/make_results_table.py --check model_card.md    # fails if out of date; here without results

No number in the card is typed by hand. For tests that were not run, the table says so and gives the command to run
them. The scores that papers report come from docs/published_results.json, with the source of each number.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from processing.evaluation.report import fill_between, markdown_table, percent, results_table


BEGIN = "<!-- results:begin, written by scripts/make_results_table.py -->"
END = "<!-- results:end -->"
PUBLISHED = Path(__file__).resolve().parents[1] / "docs" / "published_results.json"
NOT_RUN = "not run"
COMPARISON_NOTE = (
    "In percent, the others as their sources report them: trained on the training split of the set that is tested, "
    "and not all compared at the same size of the masks (docs/evaluation.md)."
)
COMMAND = "jmceln evaluate --model MODEL"
REFCOCO_COMMAND = f"{COMMAND} --dataset jxu124/refcoco-benchmark --split"
GREFCOCO_COMMAND = f"{COMMAND} --dataset data/grefcoco --split val --image-folder data/train2014"

TEST_NAMES = {"refcoco_unc": "RefCOCO", "refcoco+_unc": "RefCOCO+", "refcocog_umd": "RefCOCOg"}


def model_label(results: Mapping[str, Any]) -> str:
    """Returns the name of the model and, unless it is "original", of the protocol."""
    name = Path(results["model"]["name"]).name
    protocol = results["settings"]["protocol"]
    return name if protocol == "original" else f"{name} ({protocol} protocol)"


def measured_section(results: Mapping[str, Any]) -> str:
    """Formats the table of one evaluation, with a heading about model, data and settings."""
    model, data, settings = results["model"], results["data"], results["settings"]
    size = results["image_processor"]["size"]
    limit = "" if settings["limit"] is None else f", only the first {settings['limit']} images"
    heading = (
        f"**{model_label(results)}** on {', '.join(data['parts'])}: {data['expressions']:,} expressions on "
        f"{data['images']:,} images{limit}. Input {size['height']}x{size['width']}, {model['dtype']}, "
        f"{model['parameters'] / 1e6:.1f} M parameters; {settings['protocol_description']}; in percent, mIoU ± "
        "standard error."
    )
    return f"{heading}\n\n{results_table(results)}"


def commands(tests: Sequence[str]) -> str:
    """Returns the commands to run the tests of RefCOCO, RefCOCO+ and RefCOCOg."""
    splits = [test.replace("refcoco+", "refcoco_plus").replace("/", "_") for test in tests]
    return "\n".join(f"{REFCOCO_COMMAND} {split}" for split in splits)


def is_whole(results: Mapping[str, Any]) -> bool:
    """Whether a result is for a whole split, so that it can be compared with published ones."""
    return results["settings"]["limit"] is None and len(results["data"]["parts"]) == 1


def comparison_rows(measured: Sequence[Mapping[str, Any]], tests: Sequence[str], score: str) -> list[list[str]]:
    """Returns one row per measured model and protocol, or one row that says that nothing was run."""
    scores: dict[str, dict[str, float | None]] = {}
    for results in filter(is_whole, measured):
        (part,) = results["data"]["parts"]
        if part in tests:
            scores.setdefault(model_label(results), {})[part] = results["scores"][score]
    rows = []
    for label, by_test in (scores or {"JMCELN": {}}).items():
        cells = [percent(by_test[test]) if test in by_test else NOT_RUN for test in tests]
        rows.append([f"**{label}**", *cells, "this repository"])
    return rows


def published_rows(models: Sequence[Mapping[str, Any]], sources: Mapping[str, str]) -> list[list[str]]:
    """Returns one row per published model."""
    return [
        [
            entry["model"],
            *("-" if value is None else f"{value:.2f}" for value in entry["percent"]),
            sources[entry["source"]],
        ]
        for entry in models
    ]


def refcoco_sections(measured: Sequence[Mapping[str, Any]], published: Mapping[str, Any]) -> list[str]:
    tests = published["refcoco"]["tests"]
    headers = [f"{TEST_NAMES[test.split('/')[0]]} {test.split('/')[1]}" for test in tests]
    run = {part for results in measured for part in results["data"]["parts"] if is_whole(results)}
    sections = []
    for score in ("oIoU", "mIoU"):
        rows = [
            [score, *headers, "source"],
            *comparison_rows(measured, tests, score),
            *published_rows(published["refcoco"][score], published["sources"]),
        ]
        sections.append(markdown_table(rows, has_last_column_of_text=True))
    missing = [test for test in tests if test not in run]
    if missing:
        sections.append(
            "`not run`: no data here. These commands fill the cells (with `--protocol lavt` those of LAVT's protocol):"
            f"\n\n```\n{commands(missing)}\n```"
        )
    return sections


def grefcoco_section(measured: Sequence[Mapping[str, Any]], published: Mapping[str, Any]) -> str:
    table, part = published["grefcoco"], published["grefcoco"]["part"]
    rows = [[f"gRefCOCO {part.split('/')[1]}", *table["scores"], "source"]]
    own = [results for results in measured if is_whole(results) and part in results["data"]["parts"]]
    for results in own:
        cells = [percent(results["scores"][score]) for score in table["scores"]]
        rows.append([f"**{model_label(results)}**", *cells, "this repository"])
    if not own:
        rows.append(["**JMCELN**", *[NOT_RUN] * len(table["scores"]), "this repository"])
    text = markdown_table(
        [*rows, *published_rows(table["models"], published["sources"])], has_last_column_of_text=True
    )
    if own:
        return text
    return f"{text}\n\n`not run`: no data here. With its REFER folder:\n\n```\n{GREFCOCO_COMMAND}\n```"


def results_text(measured: Sequence[Mapping[str, Any]], published: Mapping[str, Any]) -> str:
    """Returns the text between the markers."""
    ordered = sorted(measured, key=lambda results: (sorted(results["data"]["parts"]), model_label(results)))
    parts = ["### Measured", *(measured_section(results) for results in ordered)]
    if not ordered:
        parts.append("Nothing yet.")
    parts += [
        "### Beside other models",
        COMPARISON_NOTE,
        *refcoco_sections(ordered, published),
        grefcoco_section(ordered, published),
    ]
    return "\n\n".join(parts)


def fill(card: str, text: str) -> str:
    """Returns the card with the text between its markers. For errors, see `fill_between`."""
    return fill_between(card, BEGIN, END, f"\n\n{text}\n\n")


def read_results(path: Path) -> dict[str, Any]:
    """Reads a result of jmceln evaluate. Raises a `ValueError` for other JSON."""
    results = json.loads(path.read_text(encoding="utf-8"))
    missing = {"model", "data", "settings", "scores", "controls", "image_processor"} - set(results)
    if missing:
        raise ValueError(f"{path} is not a result of jmceln evaluate: it lacks {sorted(missing)}.")
    return results


def main(argument_list: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("card", type=Path, help="Markdown file with the two markers")
    parser.add_argument("results", type=Path, nargs="*", help="results.json files of jmceln evaluate")
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="scores that papers report")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the card is out of date")
    arguments = parser.parse_args(argument_list)

    measured = [read_results(path) for path in arguments.results]
    published = json.loads(arguments.published.read_text(encoding="utf-8"))
    card = arguments.card.read_text(encoding="utf-8")
    filled = fill(card, results_text(measured, published))
    if not arguments.check:
        arguments.card.write_text(filled, encoding="utf-8")
    elif filled != card:
        print(f"{arguments.card} is out of date: run scripts/make_results_table.py without --check.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
