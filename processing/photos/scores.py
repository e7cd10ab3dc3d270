"""
Scores of a model on generated expressions for photos, with standard errors over photos, and with controls and
baselines that ignore some or all words.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..data.masks import decode_mask, to_rle
from ..data.referring_datasets import load_referring_dataset
from ..evaluation.controls import CONTROLS
from ..evaluation.evaluation import EvaluationSettings, evaluate_model
from ..evaluation.journal import EvaluationJournal
from ..evaluation.run import weights_digest
from .refer_writer import REFERENCES_FILE


HEAD_NOUN = "head noun alone"
LARGEST_OBJECT = "largest object"
BOOTSTRAP_ROUNDS = 1000


class ScoredExpression(NamedTuple):
    """
    One expression of a photo.

    Attributes:
        photo: Id of the photo.
        level: Level of the expression, such as `position`.
        intersection, predicted, wanted: Areas in pixels; `wanted` is 0 for an expression without a target.
    """

    photo: str
    level: str
    intersection: int
    predicted: int
    wanted: int

    @property
    def union(self) -> int:
        return self.predicted + self.wanted - self.intersection

    @property
    def iou(self) -> float:
        return self.intersection / self.union if self.union else 1.0


class PhotoScores(NamedTuple):
    """
    The result of [`score_photos`].

    Attributes:
        scored: The scored expressions under `"model"` and under the name of each control: those in `CONTROLS`; each
            expression with a target replaced by its category (`HEAD_NOUN`); and a baseline without a model that always
            returns the largest annotated object (`LARGEST_OBJECT`).
        journal: The evaluation of the model, with the predicted masks.
    """

    scored: dict[str, list[ScoredExpression]]
    journal: EvaluationJournal


def score_photos(
    model: torch.nn.Module, processor: Any, folder: Path, split: str, journals: Path, progress: bool = True
) -> PhotoScores:
    """
    Scores a model on a folder of `jmceln benchmark-data photos`, at the original size of the photos.

    Args:
        model (`torch.nn.Module`): The model, in evaluation mode.
        processor: The processor of the model.
        folder (`Path`): Folder with `instances.json`, the references and `images/`.
        split (`str`): Split of the references, for example `"val"`.
        journals (`Path`): Folder of the journals, from which an interrupted evaluation resumes.
        progress (`bool`): Whether to show progress bars.
    """
    rows = load_referring_dataset(folder, split)
    settings = EvaluationSettings(controls=tuple(CONTROLS), keep_masks=True)
    weights = weights_digest(model)
    journal = EvaluationJournal(journals / "expressions", {"weights": weights, "settings": str(settings)})
    evaluate_model(model, processor, rows, settings, journal, progress=progress)
    scored: dict[str, list[ScoredExpression]] = defaultdict(list)
    for row in journal.rows():
        for expression in row["expressions"]:
            scored["model"].append(_scored(row, expression, expression["counts"]))
            for name, control in expression["controls"].items():
                scored[name].append(_scored(row, expression, control["counts"]))

    nouns = head_nouns(folder)
    noun_rows = [
        {**row, "expressions": [nouns.get((row["image_id"], text), text) for text in row["expressions"]]}
        for row in rows
    ]
    noun_settings = EvaluationSettings()
    noun_journal = EvaluationJournal(journals / "head_nouns", {"weights": weights, "settings": str(noun_settings)})
    evaluate_model(model, processor, noun_rows, noun_settings, noun_journal, progress=progress)
    scored[HEAD_NOUN] = [
        _scored(row, expression, expression["counts"])
        for row in noun_journal.rows()
        for expression in row["expressions"]
    ]
    scored[LARGEST_OBJECT] = score_largest_objects(rows, folder)
    return PhotoScores(dict(scored), journal)


def _scored(row: Mapping[str, Any], expression: Mapping[str, Any], counts: Sequence[int]) -> ScoredExpression:
    return ScoredExpression(str(row["image_id"]), expression["level"], *counts)


def head_nouns(folder: Path) -> dict[tuple[str, str], str]:
    """Returns the category, such as `"the dog"`, of each expression with a target, by photo and expression."""
    names = {category["id"]: category["name"] for category in _instances(folder)["categories"]}
    references = json.loads((folder / REFERENCES_FILE).read_text(encoding="utf-8"))
    return {
        (str(reference["image_id"]), sentence["sent"]): " and ".join(
            f"the {names[category]}" for category in dict.fromkeys(reference["category_id"])
        )
        for reference in references
        if not reference["no_target"]
        for sentence in reference["sentences"]
    }


def score_largest_objects(rows: Iterable[Mapping[str, Any]], folder: Path) -> list[ScoredExpression]:
    """Scores a baseline that always returns the largest annotated object of the photo."""
    instances = _instances(folder)
    sizes = {image["id"]: (image["height"], image["width"]) for image in instances["images"]}
    largest: dict[str, Mapping[str, Any]] = {}
    for annotation in instances["annotations"]:
        photo = str(annotation["image_id"])
        if photo not in largest or annotation["area"] > largest[photo]["area"]:
            largest[photo] = annotation
    scored = []
    for row in rows:
        annotation = largest[row["image_id"]]
        predicted = decode_mask(to_rle(annotation["segmentation"], *sizes[annotation["image_id"]])).astype(bool)
        wanted = [decode_mask(mask).astype(bool) for mask in row["masks"]]
        for index, level in zip(row["mask_index"], row["levels"], strict=True):
            areas = (int((predicted & wanted[index]).sum()), int(predicted.sum()), int(wanted[index].sum()))
            scored.append(ScoredExpression(row["image_id"], level, *areas))
    return scored


def _instances(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "instances.json").read_text(encoding="utf-8"))


def mean_iou(expressions: Sequence[ScoredExpression]) -> float:
    """Computes mIoU over expressions with a target."""
    return float(np.mean([item.iou for item in expressions if item.wanted]))


def overall_iou(expressions: Sequence[ScoredExpression]) -> float:
    """Computes oIoU over expressions with a target."""
    targets = [item for item in expressions if item.wanted]
    return sum(item.intersection for item in targets) / sum(item.union for item in targets)


def precision_at_half(expressions: Sequence[ScoredExpression]) -> float:
    """Computes P@0.5 over expressions with a target."""
    return float(np.mean([item.iou >= 0.5 for item in expressions if item.wanted]))


def no_target_accuracy(expressions: Sequence[ScoredExpression]) -> float:
    """Computes N-acc: the share of expressions without a target whose mask is empty."""
    return float(np.mean([item.predicted == 0 for item in expressions if not item.wanted]))


def target_accuracy(expressions: Sequence[ScoredExpression]) -> float:
    """Computes T-acc: the share of expressions with a target whose mask is not empty."""
    return float(np.mean([item.predicted > 0 for item in expressions if item.wanted]))


TARGET_SCORES = {"mIoU": mean_iou, "oIoU": overall_iou, "P@0.5": precision_at_half, "T-acc": target_accuracy}


def bootstrap_error(
    expressions: Sequence[ScoredExpression], score: Callable[[Sequence[ScoredExpression]], float], seed: int = 0
) -> float:
    """
    Computes the standard error of a score by bootstrap, with `BOOTSTRAP_ROUNDS` samples of photos with replacement.
    Photos are sampled instead of expressions, because results for expressions of the same photo are correlated.
    """
    by_photo: dict[str, list[ScoredExpression]] = defaultdict(list)
    for item in expressions:
        by_photo[item.photo].append(item)
    photos = list(by_photo.values())
    generator = np.random.default_rng(seed)
    draws = [generator.integers(len(photos), size=len(photos)) for _ in range(BOOTSTRAP_ROUNDS)]
    return float(np.std([score([item for index in draw for item in photos[index]]) for draw in draws]))


def scores_table(scored: Mapping[str, Sequence[ScoredExpression]]) -> list[list[str]]:
    """
    Returns the rows of a table in percent, header first: all expressions with a target, each level, the expressions
    without one, and the controls over all expressions with a target. Errors come from [`bootstrap_error`].
    """
    lines = [["expressions", "number", *TARGET_SCORES, "N-acc"]]

    def line(name: str, expressions: Sequence[ScoredExpression]) -> list[str]:
        cells = [_with_error(expressions, score) for score in TARGET_SCORES.values()]
        return [name, str(len(expressions)), *cells, "-"]

    targets = [item for item in scored["model"] if item.wanted]
    lines.append(line("all with a target", targets))
    levels = sorted({item.level for item in targets})
    lines.extend(line(level, [item for item in targets if item.level == level]) for level in levels)
    absent = [item for item in scored["model"] if not item.wanted]
    lines.append(["no target", str(len(absent)), *["-"] * len(TARGET_SCORES), _with_error(absent, no_target_accuracy)])
    for name, expressions in scored.items():
        if name != "model":
            lines.append(line(f"control: {name}", [item for item in expressions if item.wanted]))
    return lines


def controls_table(scored: Mapping[str, Sequence[ScoredExpression]]) -> list[list[str]]:
    """Returns the rows of a table of mIoU in percent, header first, with the model and each control per level."""
    lines = [["level", *scored]]
    for level in sorted({item.level for item in scored["model"] if item.wanted}):
        of_level = ([item for item in expressions if item.level == level] for expressions in scored.values())
        lines.append([level, *(f"{100 * mean_iou(expressions):.1f}" for expressions in of_level)])
    return lines


def _with_error(expressions: Sequence[ScoredExpression], score: Callable[[Sequence[ScoredExpression]], float]) -> str:
    return f"{100 * score(expressions):.1f} ± {100 * bootstrap_error(expressions, score):.1f}"
