"""Analysis of the stages of the cascade, on scenes with known objects.

A coarse stage cannot segment a small object well, even if it selects the right one. Besides the IoU, the analysis
therefore determines the object that a stage selects: the one with the highest mean probability.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from modeling_jmceln import JMCELNModel
from processing.evaluation.controls import CONTROLS, control_expressions
from processing.shapes.oracles import LabeledScene
from processing.shapes.queries import landmarks_of


# Keys of `ExpressionRecord["attention"]`: the attention of the context tokens to objects and to the background.
PLACES = ("referent", "landmark", "another object", "background")
ExpressionRecord = dict[str, Any]


@torch.no_grad()
def analyze(
    model: JMCELNModel,
    processor: Any,
    scenes: Sequence[LabeledScene],
    batch_size: int = 16,
    controls: Collection[str] = tuple(CONTROLS),
) -> list[ExpressionRecord]:
    """
    Runs the model on every expression of the scenes, and analyzes all stages.

    Args:
        model ([`JMCELNModel`])
        processor (`JMCELNProcessor`)
        scenes (`Sequence[LabeledScene]`): Scenes with at least one expression each.
        batch_size (`int`): Images per call.
        controls (`Collection[str]`): Names in `CONTROLS` to run as well. Each takes as long as the expressions.

    Returns:
        `list[dict]`: One per expression, in order. `level`; `presence`: whether the model predicts that the referent
        is in the image. For expressions with a target, also `ious`: IoU of the mask of each stage, the last one at
        full resolution and without the presence; `agreements`: IoU of the mask of each stage with the next one; and
        `controls`: IoU of the last mask for each control. For a single target, also `chosen`: whether each stage
        selects the right object; `object`: the index of the object that the last stage selects; `landmarks`, if there
        are any: the share of the `n` landmarks among the `n` objects with the highest mean landmark probability, for
        each stage; and `attention`: for each stage, the density of the attention of the context tokens on each of
        `PLACES`, relative to uniform attention (1), or `None` if there is no such place.
    """
    model.eval()
    records: list[ExpressionRecord] = []
    for start in range(0, len(scenes), batch_size):
        batch = scenes[start : start + batch_size]
        images = [scene.image for scene in batch]
        texts = [[expression.text for expression in scene.expressions] for scene in batch]
        output = _ask(model, processor, images, texts, output_attentions=True)
        probabilities = stage_probabilities(output)
        landmarks = _enlarged(output.landmark_logits, output.logits.shape[-2:])
        found = [
            [
                _record(scene, row, position, output, probabilities, landmarks)
                for position in range(len(scene.expressions))
            ]
            for row, scene in enumerate(batch)
        ]
        others = [scenes[(start + row + 1) % len(scenes)].expressions for row in range(len(batch))]
        for control in controls:
            replaced = [
                control_expressions(control, own, [expression.text for expression in other], f"{start + row}")
                for row, (own, other) in enumerate(zip(texts, others, strict=True))
            ]
            answers = _ask(model, processor, images, replaced).logits > 0
            for row, scene in enumerate(batch):
                for position, expression in enumerate(scene.expressions):
                    if expression.targets:
                        truth = scene.target_mask(expression)
                        iou = _iou(answers[row, position].numpy(), truth)
                        found[row][position].setdefault("controls", {})[control] = iou
        records += [record for scene_records in found for record in scene_records]
    return records


def stage_probabilities(output: Any) -> list[torch.Tensor]:
    """Returns the probabilities of each stage, `(batch, expressions, height, width)`, at the size of the input."""
    return [*_enlarged(output.stage_logits[:-1], output.logits.shape[-2:]), output.logits.float().sigmoid()]


def _enlarged(stage_logits: Sequence[torch.Tensor], size: Sequence[int]) -> list[torch.Tensor]:
    # Scenes of shapes need no padding to whole cells.
    return [
        nn.functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False).sigmoid()
        for logits in stage_logits
    ]


def _ask(model: JMCELNModel, processor: Any, images: Sequence, texts: Sequence, **options: Any) -> Any:
    inputs = processor(images=list(images), text=list(texts), return_tensors="pt").to(model.device)
    output = model(**inputs, **options)
    for name in ("logits", "presence_logits"):
        output[name] = output[name].cpu()
    return output


def _record(
    scene: LabeledScene,
    row: int,
    position: int,
    output: Any,
    probabilities: Sequence[torch.Tensor],
    landmark_probabilities: Sequence[torch.Tensor],
) -> ExpressionRecord:
    expression = scene.expressions[position]
    record: ExpressionRecord = {
        "level": expression.level,
        "has_target": bool(expression.targets),
        "presence": bool(output.presence_logits[row, position] > 0),
    }
    if not expression.targets:
        return record
    truth = scene.target_mask(expression)
    of_stages = [(stage[row, position] > 0.5).numpy() for stage in probabilities]
    record["ious"] = [_iou(mask, truth) for mask in of_stages]
    record["agreements"] = [_iou(mask, later) for mask, later in pairwise(of_stages)]
    if len(expression.targets) > 1:
        return record
    target = expression.targets[0]
    visible = scene.masks.reshape(len(scene.masks), -1).astype(np.float64)
    areas = visible.sum(1).clip(min=1)

    def densities(stage: torch.Tensor) -> np.ndarray:
        """Returns the mean probability over the visible pixels of each object."""
        return visible @ stage[row, position].flatten().double().cpu().numpy() / areas

    meant = [int(densities(stage).argmax()) for stage in probabilities]
    record["chosen"] = [index == target for index in meant]
    record["object"] = meant[-1]
    landmarks = landmarks_of(expression.query, scene.scene)
    if landmarks:
        densest = [densities(stage).argsort()[-len(landmarks) :] for stage in landmark_probabilities]
        record["landmarks"] = [len({*objects} & {*landmarks}) / len(landmarks) for objects in densest]
    if output.attentions is not None:
        record["attention"] = [
            look
            for weights in output.attentions
            if (look := _look(weights[row, position], scene, target, landmarks, output)) is not None
        ]
    return record


def _look(
    weights: torch.Tensor, scene: LabeledScene, target: int, landmarks: Sequence[int], output: Any
) -> dict[str, float | None] | None:
    """Computes the density of attention on each of `PLACES` from the weights `(heads, tokens, keys)` of one stage."""
    height, width = output.image_features.pixel_features[-1].shape[1:3]
    if weights.shape[-1] <= height * width:
        return None
    pixels = weights[..., -height * width :].double().mean((0, 1))
    pixels = (pixels / pixels.sum()).cpu().numpy()
    rows, columns = scene.masks.shape[1] // height, scene.masks.shape[2] // width
    # (objects, height * width): share of each cell that an object covers
    cover = (
        scene.masks.reshape(len(scene.masks), height, rows, width, columns).mean((2, 4)).reshape(len(scene.masks), -1)
    )
    others = [index for index in range(len(scene.masks)) if index != target and index not in landmarks]
    covers = {
        "referent": cover[target],
        "landmark": cover[list(landmarks)].sum(0),
        "another object": cover[others].sum(0),
        "background": 1 - cover.sum(0),
    }
    return {
        place: float((pixels * part).sum() / part.sum() * pixels.size) if part.sum() > 0 else None
        for place, part in covers.items()
    }


def _iou(mask: np.ndarray, other: np.ndarray) -> float:
    union = np.count_nonzero(mask | other)
    return np.count_nonzero(mask & other) / union if union else 1.0


def summarize(records: Sequence[ExpressionRecord]) -> dict[str, Any]:
    """
    Summarizes one run.

    Returns:
        `dict`: `levels`: for each level, `expressions`, and for those with targets `mIoU`, `P@0.5`, `chosen` (share of
        single targets that the last stage selects), the mIoU of each of the `controls`, and `by_way_of` for
        expressions with landmarks: their number, the share for which the last stage finds all `landmarks`, the
        accuracy with (`right_with`) and without them (`right_without`), and the shares that change from
        `wrong_to_right` and back between the first and the last stage; `stages`: one dict per stage with `mIoU`,
        `P@0.5`, `chosen`, `landmarks` and `attention`; `transitions`: the shares that change from wrong to right and
        back between the first and the last stage, by `P@0.5` and by `chosen`; `inconsistency`: mean 1 - IoU of
        successive stages; `N-acc` and `T-acc`: accuracy of the presence for absent and present referents.
    """
    with_target = [record for record in records if record["has_target"]]
    single = [record for record in with_target if "chosen" in record]
    summary: dict[str, Any] = {"levels": {}}
    for level in dict.fromkeys(record["level"] for record in records):
        found = [record for record in with_target if record["level"] == level]
        scores: dict[str, Any] = {"expressions": sum(record["level"] == level for record in records)}
        if found:
            scores["mIoU"] = _mean(record["ious"][-1] for record in found)
            scores["P@0.5"] = _mean(record["ious"][-1] >= 0.5 for record in found)
            scores["chosen"] = _mean(record["chosen"][-1] for record in found if "chosen" in record)
            asked = found[0].get("controls", ())
            scores["controls"] = {name: _mean(record["controls"][name] for record in found) for name in asked}
            scores["by_way_of"] = _by_way_of_landmarks([record for record in found if "landmarks" in record])
        summary["levels"][level] = scores
    stages = range(len(with_target[0]["ious"]))
    summary["stages"] = [
        {
            "mIoU": _mean(record["ious"][stage] for record in with_target),
            "P@0.5": _mean(record["ious"][stage] >= 0.5 for record in with_target),
            "chosen": _mean(record["chosen"][stage] for record in single),
            "landmarks": _mean(record["landmarks"][stage] for record in single if "landmarks" in record),
            "attention": _attention(single, stage),
        }
        for stage in stages
    ]
    right_by_iou = [[iou >= 0.5 for iou in record["ious"]] for record in with_target]
    summary["transitions"] = {
        "P@0.5": _transitions(right_by_iou),
        "chosen": _transitions([record["chosen"] for record in single]),
    }
    summary["inconsistency"] = [
        _mean(1 - record["agreements"][stage] for record in with_target) for stage in stages[:-1]
    ]
    summary["N-acc"] = _mean(not record["presence"] for record in records if not record["has_target"])
    summary["T-acc"] = _mean(record["presence"] for record in with_target)
    return summary


def _attention(records: Sequence[ExpressionRecord], stage: int) -> dict[str, float | None] | None:
    """Averages over the expressions with a landmark, so that all places are compared on the same expressions."""
    looks = [record["attention"][stage] for record in records if len(record.get("attention", ())) > stage]
    looks = [look for look in looks if look["landmark"] is not None]
    if not looks:
        return None
    return {place: _mean(look[place] for look in looks if look[place] is not None) for place in PLACES}


def _by_way_of_landmarks(records: Sequence[ExpressionRecord]) -> dict[str, float | None] | None:
    if not records:
        return None
    found = [record["landmarks"][-1] == 1 for record in records]
    right = [record["chosen"][-1] for record in records]
    return {
        "expressions": len(records),
        "landmarks": _mean(found),
        "right_with": _mean(ok for ok, all_found in zip(right, found, strict=True) if all_found),
        "right_without": _mean(ok for ok, all_found in zip(right, found, strict=True) if not all_found),
        **_transitions([record["chosen"] for record in records]),
    }


def _transitions(right: Iterable[Sequence[bool]]) -> dict[str, float | None]:
    pairs = [(stages[0], stages[-1]) for stages in right]
    return {
        "wrong_to_right": _mean(not first and last for first, last in pairs),
        "right_to_wrong": _mean(first and not last for first, last in pairs),
    }


def _mean(values: Iterator | Iterable[float | bool]) -> float | None:
    values = [float(value) for value in values]
    return sum(values) / len(values) if values else None


def merged(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Computes the mean and standard error of every number over runs: `{"mean", "standard_error", "runs"}`."""

    def merge(values: Sequence[Any]) -> Any:
        first = next((value for value in values if value is not None), None)
        if isinstance(first, Mapping):
            return {name: merge([value[name] for value in values if value is not None]) for name in first}
        if isinstance(first, list):
            return [merge(parts) for parts in zip(*values, strict=True)]
        if first is None:
            return None
        return mean_and_error([float(value) for value in values if value is not None])

    return merge(summaries)


def mean_and_error(values: Sequence[float]) -> dict[str, float | None]:
    """Computes the mean and, for two or more values, its standard error."""
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "standard_error": error, "runs": len(values)}
