"""What a wrong answer shows of how an expression was read: which readers that leave words unread might give it too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from benchmarks.stage_analysis import ExpressionRecord
from processing.evaluation.report import markdown_table
from processing.shapes.oracles import BASELINES, LabeledScene, head_matches


# Of those in BASELINES, the ones whose answers differ from "any object that fits the head phrase".
COMPARED = ("nearest to the anchor", "outermost that way", "last relation unread")
LEVELS = ("relation", "chain2", "chain3")


def reading_errors(
    scenes: Sequence[LabeledScene], records: Sequence[ExpressionRecord]
) -> dict[str, dict[str, list[float]]]:
    """
    Args:
        scenes (`Sequence[LabeledScene]`)
        records (`Sequence[ExpressionRecord]`): Of all their expressions, from `stage_analysis.analyze`.

    Returns:
        `dict`: By level, one entry an error in every list. `fits the head phrase`: 0 or 1; by reader of `COMPARED`
        whether it might have given the same answer, 0 or 1; and under `{reader}, chance` which share it might have
        given of all wrong objects that fit the head phrase. Errors that do not fit it are in the first list alone.
    """
    asked = [(scene, expression) for scene in scenes for expression in scene.expressions]
    errors: dict[str, dict[str, list[float]]] = {level: defaultdict(list) for level in LEVELS}
    for (scene, expression), record in zip(asked, records, strict=True):
        if expression.level not in LEVELS or record["object"] in expression.targets:
            continue
        found = errors[expression.level]
        wrong = [index for index in head_matches(expression.query, scene.scene) if index not in expression.targets]
        found["fits the head phrase"].append(record["object"] in wrong)
        if record["object"] not in wrong:
            continue
        for reader in COMPARED:
            answers = {index for _, objects in BASELINES[reader][1](scene, expression.query) for index in objects}
            found[reader].append(record["object"] in answers)
            found[f"{reader}, chance"].append(sum(index in answers for index in wrong) / len(wrong))
    return errors


def reading_errors_table(scenes: Sequence[LabeledScene], records: Sequence[ExpressionRecord]) -> str:
    """Shares of the errors in points, with what chance would give in brackets."""
    rows = [["level", "errors", "fit the head phrase", *COMPARED]]
    for level, found in reading_errors(scenes, records).items():
        fits = found["fits the head phrase"]
        cells = [
            f"{100 * np.mean(found[reader]):.0f} ({100 * np.mean(found[f'{reader}, chance']):.0f})"
            if found[reader]
            else "-"
            for reader in COMPARED
        ]
        rows.append([level, str(len(fits)), f"{100 * np.mean(fits):.0f}" if fits else "-", *cells])
    return markdown_table(rows)
