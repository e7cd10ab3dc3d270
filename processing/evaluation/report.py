"""The results of an evaluation for reading: a Markdown table, and every prediction as a line of JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .evaluation import EvaluationSettings
from .journal import EvaluationJournal


_COLUMNS = ("oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9")
_NO_TARGET_COLUMNS = ("gIoU", "cIoU", "N-acc", "T-acc")


def percent(score: float | None) -> str:
    """A fraction as a percentage with two decimals, and a dash for a score that is not defined."""
    return "-" if score is None else f"{100 * score:.2f}"


def markdown_table(rows: Sequence[Sequence[str]], has_last_column_of_text: bool = False) -> str:
    """
    A Markdown table of a header and further rows. The first column, and the last one if it is of text, are aligned to
    the left, all others to the right.
    """
    header, *body = rows
    rule = ["---", *["---:"] * (len(header) - 1)]
    if has_last_column_of_text:
        rule[-1] = "---"
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *body))


def fill_between(page: str, begin: str, end: str, text: str) -> str:
    """
    Puts a text between two markers of a page.

    Raises:
        ValueError: If a marker is missing, comes twice, or they stand in the wrong order.
    """
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(
            "The page must hold the lines that the text goes between: it needs these two lines once each, in this"
            f" order:\n{begin}\n{end}"
        )
    before, rest = page.split(begin)
    return f"{before}{begin}{text}{end}{rest.split(end)[1]}"


def fill_page(page: Path, begin: str, end: str, text: str) -> None:
    """Puts a text between two markers of the page in a file; errors as [`fill_between`], which leave it as it is."""
    page.write_text(fill_between(page.read_text(encoding="utf-8"), begin, end, text), encoding="utf-8")


def results_table(results: Mapping[str, Any]) -> str:
    """
    The scores of `collect_results` as a Markdown table in percent: all expressions, each level, then each control. The
    columns for expressions without a target appear where there are any.
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
    Writes a line of JSON an expression, in the order of the data: `image_id`, `ref_id`, `expression`, `level`, `iou`,
    the pixel counts, and the mask as COCO RLE if the journal has kept it.
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
