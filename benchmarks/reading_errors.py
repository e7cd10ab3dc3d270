"""Compares the errors of a model with those of baselines that ignore some words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from benchmarks.stage_analysis import ExpressionRecord
from processing.evaluation.report import markdown_table
from processing.shapes.oracles import BASELINES, LabeledScene, head_matches


# The baselines whose answers differ from "any object that matches the head phrase".
COMPARED = ("nearest to the anchor", "outermost that way", "last relation unread")
LEVELS = ("relation", "chain2", "chain3")


def reading_errors(
    scenes: Sequence[LabeledScene], records: Sequence[ExpressionRecord]
) -> dict[str, dict[str, list[float]]]:
    """
    Finds the errors of a model, and the baselines that could make the same errors.

    Args:
        scenes (`Sequence[LabeledScene]`)
        records (`Sequence[ExpressionRecord]`): Records of all their expressions, from `stage_analysis.analyze`.

    Returns:
        `dict`: By level, lists with one entry per error. `fits the head phrase`: 0 or 1; by the name of a baseline in
        `COMPARED`: 1 if it could give the same answer, otherwise 0; `{baseline}, chance`: the share of the wrong
        objects matching the head phrase that it could give. Errors that do not match the head phrase are only in the
        first list.
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
        for baseline in COMPARED:
            answers = {index for _, objects in BASELINES[baseline][1](scene, expression.query) for index in objects}
            found[baseline].append(record["object"] in answers)
            found[f"{baseline}, chance"].append(sum(index in answers for index in wrong) / len(wrong))
    return errors


def reading_errors_table(scenes: Sequence[LabeledScene], records: Sequence[ExpressionRecord]) -> str:
    """Formats the shares of the errors in percent, with the values expected by chance in parentheses."""
    rows = [["level", "errors", "fit the head phrase", *COMPARED]]
    for level, found in reading_errors(scenes, records).items():
        fits = found["fits the head phrase"]
        cells = [
            f"{100 * np.mean(found[baseline]):.0f} ({100 * np.mean(found[f'{baseline}, chance']):.0f})"
            if found[baseline]
            else "-"
            for baseline in COMPARED
        ]
        rows.append([level, str(len(fits)), f"{100 * np.mean(fits):.0f}" if fits else "-", *cells])
    return markdown_table(rows)
