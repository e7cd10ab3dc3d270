"""Reports of an evaluation: a Markdown table of the scores, and every prediction as a line of JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .evaluation import EvaluationSettings
from .journal import EvaluationJournal


_COLUMNS = ("oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9")
_NO_TARGET_COLUMNS = ("gIoU", "cIoU", "N-acc", "T-acc")


def percent(score: float | None) -> str:
    """Formats a fraction as a percentage with two decimals, or as a dash if the score is not defined."""
    return "-" if score is None else f"{100 * score:.2f}"


def markdown_table(rows: Sequence[Sequence[str]], has_last_column_of_text: bool = False) -> str:
    """
    Formats a header and further rows as a Markdown table. The first column is left-aligned, as is the last one with
    `has_last_column_of_text`; all others are right-aligned.
    """
    header, *body = rows
    rule = ["---", *["---:"] * (len(header) - 1)]
    if has_last_column_of_text:
        rule[-1] = "---"
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *body))


def fill_between(page: str, begin: str, end: str, text: str) -> str:
    """
    Replaces the text between two markers of a page.

    Raises:
        ValueError: If a marker is missing, if it occurs twice, or if the markers are in the wrong order.
    """
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(
            "The page must contain each of the two markers once, in this order, with the text to replace between"
            f" them:\n{begin}\n{end}"
        )
    before, rest = page.split(begin)
    return f"{before}{begin}{text}{end}{rest.split(end)[1]}"


def fill_page(page: Path, begin: str, end: str, text: str) -> None:
    """Replaces the text between two markers of a file. An error of [`fill_between`] leaves the file unchanged."""
    page.write_text(fill_between(page.read_text(encoding="utf-8"), begin, end, text), encoding="utf-8")


def results_table(results: Mapping[str, Any]) -> str:
    """
    Formats the scores of `collect_results` as a Markdown table in percent, with a row for all expressions, each level
    and each control. If there are expressions without a target, the table has the columns for them.
    """
    scores = results["scores"]
    lines = {"all": scores, **scores.get("groups", {})}
    lines |= {f"control: {name}": control["scores"] for name, control in results["controls"].items()}
    columns = _COLUMNS + (_NO_TARGET_COLUMNS if scores["no_targets"] else ())
    table = [["", "expressions", *columns]]
    for name, line in lines.items():
        cells = [percent(line[column]) for column in columns]
        if line["mIoU_standard_error"] is not None:
            cells[columns.index("mIoU")] += f" ± {percent(line['mIoU_standard_error'])}"
        table.append([name, str(line["expressions"]), *cells])
    return markdown_table(table)


def write_predictions(journal: EvaluationJournal, settings: EvaluationSettings, path: Path) -> None:
    """
    Writes one line of JSON per expression, in the order of the data: `image_id`, `ref_id`, `expression`, `level`,
    `iou`, the pixel counts, and the mask as COCO RLE if the journal contains it.
    """
    rows = {row["row"]: row for row in journal.rows()}
    with path.open("w", encoding="utf-8") as file:
        for index in sorted(rows):
            for expression in rows[index]["expressions"]:
                intersection, prediction_area, target_area = expression["counts"]
                line = {
                    "image_id": rows[index]["image_id"],
                    "ref_id": expression["ref_id"],
                    "expression": expression["text"],
                    "level": expression["level"],
                    "iou": settings.sample_iou(expression["counts"]),
                    "intersection": intersection,
                    "prediction_area": prediction_area,
                    "target_area": target_area,
                    "mask": expression.get("mask"),
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
