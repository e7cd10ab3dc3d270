"""Streaming scores of referring image segmentation: oIoU, mIoU and P@X, and four scores for no-target expressions.

Each pair of masks is reduced to three integers at once. Integers are summed exactly, and IoUs with `math.fsum`, which
rounds only once. The result therefore does not depend on the order of the samples, on how they are distributed over
processes, or on where an evaluation was resumed.

Definitions: oIoU, mIoU and P@X as in LAVT (Yang et al., CVPR 2022); gIoU, cIoU, N-acc and T-acc as in GRES (Liu et
al., CVPR 2023).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from .run_lengths import check_compressed


DEFAULT_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
NO_TARGET_RULES = ("grefcoco", "zero")


class PixelCounts(NamedTuple):
    """The counts of a pair of masks, in pixels."""

    intersection: int
    prediction_area: int
    target_area: int

    @property
    def union(self) -> int:
        return self.prediction_area + self.target_area - self.intersection

    @property
    def iou(self) -> float:
        """The IoU, which is 1.0 for two empty masks (the no-target rule of GRES)."""
        return self.intersection / self.union if self.union else 1.0


def _is_rle(mask: Any) -> bool:
    return isinstance(mask, Mapping) and "size" in mask and "counts" in mask


def _to_boolean(mask: Any, what: str) -> np.ndarray:
    """Converts a mask of any supported kind to a boolean array `(height, width)`."""
    if _is_rle(mask):
        from pycocotools import mask as coco_mask

        return coco_mask.decode(check_compressed(mask)).astype(bool)
    if hasattr(mask, "detach"):
        mask = mask.detach().cpu().numpy()
    array = np.asarray(mask)
    if array.ndim != 2:
        raise ValueError(f"A {what} mask must have the shape (height, width), got {array.shape}.")
    if array.dtype == bool:
        return array
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(
            f"A {what} mask must contain booleans or the integers 0 and 1, got {array.dtype}: apply a threshold first."
        )
    strange = np.setdiff1d(np.unique(array), (0, 1))
    if strange.size:
        raise ValueError(
            f"A {what} mask must contain only 0 and 1, got {strange[:4].tolist()}. Pass pixels to ignore (often 255) "
            "as a separate mask in `ignored`."
        )
    return array.astype(bool)


def count_pixels(prediction: Any, reference: Any, ignored: Any = None) -> PixelCounts:
    """
    Reduces a pair of masks to pixel counts.

    Args:
        prediction, reference:
            Masks `(height, width)` of the same size: a numpy array, torch tensor, PIL image or nested list of booleans
            or of the integers 0 and 1, or a COCO compressed RLE `{"size": [height, width], "counts": ...}` (needs
            `pycocotools`).
        ignored (*optional*):
            A mask of the pixels to ignore.

    Raises:
        ValueError: If the sizes differ, if a mask is not two-dimensional or contains other values than 0 and 1, if an
            RLE is damaged, or if the ignored pixels cover the whole target or the whole image.
        TypeError: If a mask contains floats (apply a threshold to probabilities first).
    """
    if _is_rle(prediction) and _is_rle(reference) and ignored is None:
        from pycocotools import mask as coco_mask

        pair = [check_compressed(prediction), check_compressed(reference)]
        _check_sizes(tuple(pair[0]["size"]), tuple(pair[1]["size"]), "reference")
        intersection = coco_mask.area(coco_mask.merge(pair, intersect=True))
        return PixelCounts(int(intersection), int(coco_mask.area(pair[0])), int(coco_mask.area(pair[1])))

    prediction = _to_boolean(prediction, "prediction")
    reference = _to_boolean(reference, "reference")
    _check_sizes(prediction.shape, reference.shape, "reference")
    if ignored is not None:
        ignored = _to_boolean(ignored, "ignored")
        _check_sizes(prediction.shape, ignored.shape, "ignored")
        left = reference & ~ignored
        # Otherwise, the target area of 0 would mean that the expression has no target.
        if ignored.all() or (reference.any() and not left.any()):
            raise ValueError(
                "The `ignored` mask covers the whole reference, so this sample cannot be scored: leave it out."
            )
        prediction, reference = prediction & ~ignored, left
    return PixelCounts(
        int(np.count_nonzero(prediction & reference)),
        int(np.count_nonzero(prediction)),
        int(np.count_nonzero(reference)),
    )


def _check_sizes(prediction: tuple[int, ...], other: tuple[int, ...], what: str) -> None:
    if prediction != other:
        raise ValueError(
            f"The prediction has {prediction[0]}x{prediction[1]} pixels and the {what} mask {other[0]}x{other[1]} "
            "(height x width): resize the prediction to the size of the reference, never the reverse."
        )


@dataclass
class _Tally:
    """The sums over a set of samples, and the IoU of each sample that has a target."""

    hits: list[int]
    ious: list[float] = field(default_factory=list)
    targets: int = 0
    no_targets: int = 0
    intersection: int = 0
    union: int = 0
    found: int = 0
    rightly_empty: int = 0
    false_area: int = 0

    def add(self, other: "_Tally") -> None:
        for name, value in vars(other).items():
            if name not in ("hits", "ious"):
                setattr(self, name, getattr(self, name) + value)
        self.hits = [own + theirs for own, theirs in zip(self.hits, other.hits, strict=True)]
        self.ious.extend(other.ious)


@dataclass
class _State:
    # Samples without an identifier are added to the tally of their group at once. Samples with an identifier are kept,
    # because a distributed sampler may repeat some of them in another process.
    tallies: dict[str | None, _Tally] = field(default_factory=dict)
    records: dict[str, tuple[int, int, int, str | None]] = field(default_factory=dict)


class ReferringSegmentationMetric:
    """
    Accumulates the scores of referring image segmentation. A sample is one expression for one image.

    A sample takes 32 bytes of memory, or about 200 bytes if it has an identifier.

    Args:
        thresholds (`Sequence[float]`, *optional*, defaults to `(0.5, 0.6, 0.7, 0.8, 0.9)`):
            The thresholds X of P@X.
        inclusive (`bool`, *optional*, defaults to `True`):
            Whether an IoU equal to X counts for P@X, as in LAVT, CARIS and ReLA; CRIS and CGFormer require a larger
            IoU. IoUs are compared as exact fractions, without rounding errors: 7 of 10 pixels are equal to 0.7.
        no_target (`str`, *optional*, defaults to `"grefcoco"`):
            How to score an expression whose reference mask is empty. `"grefcoco"`: if the prediction is empty, the IoU
            is 1 and nothing is added to intersection and union; otherwise, the IoU is 0 and the predicted area is
            added to the union. The expression counts in gIoU, cIoU and N-acc, but not in mIoU, oIoU and P@X. `"zero"`:
            it counts like any other expression, with an IoU of 0, as in the code of LAVT, which does not treat such
            expressions separately.

    Example:

    ```python
    >>> metric = ReferringSegmentationMetric()
    >>> metric.update(predictions=[[[1, 1], [0, 0]]], references=[[[1, 0], [0, 0]]])
    >>> scores = metric.compute()
    >>> scores["oIoU"], scores["mIoU"], scores["P@0.5"], scores["P@0.6"]
    (0.5, 0.5, 1.0, 0.0)
    ```
    """

    def __init__(
        self,
        thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
        inclusive: bool = True,
        no_target: str = "grefcoco",
    ):
        if no_target not in NO_TARGET_RULES:
            raise ValueError(f"`no_target` must be one of {list(NO_TARGET_RULES)}, got {no_target!r}.")
        # Through `str`, since the float 0.7 is slightly less than 7/10.
        self._fractions = [Fraction(str(threshold)) for threshold in thresholds]
        if not all(0 <= fraction <= 1 for fraction in self._fractions):
            raise ValueError(f"`thresholds` must lie between 0 and 1, got {list(thresholds)}.")
        self.thresholds = tuple(thresholds)
        self.inclusive = inclusive
        self.no_target = no_target
        self._state = _State()

    def reset(self) -> None:
        """Removes all samples."""
        self._state = _State()

    def update(
        self,
        predictions: Sequence[Any],
        references: Sequence[Any],
        groups: Sequence[str | None] | None = None,
        identifiers: Sequence[str | None] | None = None,
        ignored: Sequence[Any] | None = None,
    ) -> list[PixelCounts]:
        """
        Adds samples as masks. Each pair of masks can have its own size, which should be that of the original image.

        Args:
            predictions, references (`Sequence`):
                Masks in a format of `count_pixels`.
            groups (`Sequence[str]`, *optional*):
                A name per sample, such as a level or a dataset. `compute` also returns the scores of each group.
            identifiers (`Sequence[str]`, *optional*):
                A unique name per sample. A sample with a known identifier is not counted again, neither in the same
                process nor in `merge`: distributed samplers repeat samples to give all processes the same number.
            ignored (`Sequence`, *optional*):
                For each sample, `None` or a mask of the pixels to ignore.

        Returns:
            `list[PixelCounts]`: the counts of each sample.

        Raises:
            ValueError: If the lengths differ, or if an identifier is repeated with another reference or group.
        """
        columns = {"references": references, "groups": groups, "identifiers": identifiers, "ignored": ignored}
        for name, column in columns.items():
            if column is not None and len(column) != len(predictions):
                raise ValueError(
                    f"Got {len(predictions)} predictions but {len(column)} {name}: give one per prediction."
                )
        ignored = ignored if ignored is not None else [None] * len(predictions)
        counts = [count_pixels(*sample) for sample in zip(predictions, references, ignored, strict=True)]
        self.update_counts(counts, groups, identifiers)
        return counts

    def update_counts(
        self,
        counts: Iterable[Sequence[int]],
        groups: Iterable[str | None] | None = None,
        identifiers: Iterable[str | None] | None = None,
    ) -> None:
        """Adds samples as `(intersection, prediction area, target area)`. The other arguments are as in `update`."""
        counts = [PixelCounts(*map(int, sample)) for sample in counts]
        groups = list(groups) if groups is not None else [None] * len(counts)
        identifiers = list(identifiers) if identifiers is not None else [None] * len(counts)
        for sample, group, identifier in zip(counts, groups, identifiers, strict=True):
            smaller_area = min(sample.prediction_area, sample.target_area)
            if not 0 <= sample.intersection <= smaller_area:
                raise ValueError(
                    f"An intersection of {sample.intersection} pixels is impossible: the smaller mask has"
                    f" {smaller_area} pixels."
                )
            if identifier is None:
                self._tally(self._state.tallies, sample, group)
            else:
                self._record(identifier, (*sample, group))

    def merge(self, *others: "ReferringSegmentationMetric | Mapping[str, Any]") -> "ReferringSegmentationMetric":
        """
        Adds the samples of other metrics, given as objects or as their `state_dict()`, and returns this metric.
        Samples with the same identifier count once.

        Raises:
            ValueError: If the settings of the metrics differ.
        """
        for other in others:
            state = other.state_dict() if isinstance(other, ReferringSegmentationMetric) else other
            if state["settings"] != self._settings():
                raise ValueError(
                    f"Cannot merge a metric with the settings {state['settings']} into one with {self._settings()}: "
                    "use the same settings for all."
                )
            for group, values in state["tallies"]:
                self._group_tally(self._state.tallies, group).add(_Tally(**values))
            for identifier, record in state["records"].items():
                self._record(identifier, tuple(record))
        return self

    def state_dict(self) -> dict[str, Any]:
        """Returns all samples as lists, dicts, strings and numbers, which can be written as JSON or gathered."""
        return {
            "settings": self._settings(),
            "tallies": [(group, asdict(tally)) for group, tally in self._state.tallies.items()],
            "records": dict(self._state.records),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces all samples with those of a `state_dict`."""
        self.reset()
        self.merge(state)

    def compute(self) -> dict[str, Any]:
        """
        Computes the scores as fractions between 0 and 1. A score without any samples is `None`.

        Returns:
            `dict`:
                - `oIoU`: sum of the intersections divided by sum of the unions, of the expressions with a target.
                - `mIoU`: mean IoU of the expressions with a target; `mIoU_standard_error`: its standard error
                  (standard deviation divided by the square root of the number, for independent samples).
                - `P@X`: fraction of the expressions with a target whose IoU reaches X.
                - `gIoU`, `cIoU`: as mIoU and oIoU, but including no-target expressions by the rules of GRES.
                - `N-acc`: fraction of the no-target expressions with an empty prediction; `T-acc`: fraction of the
                  expressions with a target whose prediction is not empty.
                - `expressions`, `targets`, `no_targets`: numbers of samples; `intersection`, `union`: the sums in
                  pixels that cIoU is computed from.
                - `groups`: the same scores for each group, if there are groups.
        """
        tallies: dict[str | None, _Tally] = {}
        for group, tally in self._state.tallies.items():
            self._group_tally(tallies, group).add(tally)
        for *sample, group in self._state.records.values():
            self._tally(tallies, PixelCounts(*sample), group)

        total = _Tally([0] * len(self.thresholds))
        for tally in tallies.values():
            total.add(tally)
        scores = self._scores(total)
        named = sorted(group for group in tallies if group is not None)
        if named:
            scores["groups"] = {group: self._scores(tallies[group]) for group in named}
        return scores

    def __len__(self) -> int:
        """Number of samples."""
        tallied = sum(tally.targets + tally.no_targets for tally in self._state.tallies.values())
        return tallied + len(self._state.records)

    def _settings(self) -> dict[str, Any]:
        return {"thresholds": list(self.thresholds), "inclusive": self.inclusive, "no_target": self.no_target}

    def _group_tally(self, tallies: dict[str | None, _Tally], group: str | None) -> _Tally:
        return tallies.setdefault(group, _Tally([0] * len(self.thresholds)))

    def _record(self, identifier: str, record: tuple[int, int, int, str | None]) -> None:
        known = self._state.records.setdefault(identifier, record)
        # The target area and the group must be equal. The prediction may differ by a few pixels, since logits can
        # differ in the last bit between batches; the first one counts.
        if known[2:] != record[2:]:
            raise ValueError(
                f"The identifier {identifier!r} was given to two samples: one with a target of {known[2]} pixels in "
                f"group {known[3]!r}, one with a target of {record[2]} pixels in group {record[3]!r}. Give each "
                "sample its own identifier."
            )

    def _tally(self, tallies: dict[str | None, _Tally], sample: PixelCounts, group: str | None) -> None:
        tally = self._group_tally(tallies, group)
        if sample.target_area == 0 and self.no_target == "grefcoco":
            tally.no_targets += 1
            tally.rightly_empty += sample.prediction_area == 0
            tally.false_area += sample.prediction_area
            return
        union = sample.union
        tally.targets += 1
        tally.found += sample.prediction_area > 0
        tally.intersection += sample.intersection
        tally.union += union
        tally.ious.append(sample.intersection / union if union else 0.0)
        for index, threshold in enumerate(self._fractions):
            margin = sample.intersection * threshold.denominator - threshold.numerator * max(union, 1)
            tally.hits[index] += margin >= 0 if self.inclusive else margin > 0

    def _scores(self, tally: _Tally) -> dict[str, Any]:
        targets, everything = tally.targets, tally.targets + tally.no_targets
        union = tally.union + tally.false_area
        iou_sum = math.fsum(tally.ious)
        standard_error = None
        if targets > 1:
            mean = iou_sum / targets
            deviations = [iou - mean for iou in tally.ious]
            # The second term is what the rounding of the mean adds (Chan et al., 1983): equal scores have no error.
            squares = math.fsum(deviation**2 for deviation in deviations) - math.fsum(deviations) ** 2 / targets
            standard_error = math.sqrt(max(squares, 0.0) / (targets * (targets - 1)))
        scores = {
            "oIoU": _ratio(tally.intersection, tally.union),
            "mIoU": _ratio(iou_sum, targets),
            "mIoU_standard_error": standard_error,
        }
        for threshold, hits in zip(self.thresholds, tally.hits, strict=True):
            scores[f"P@{threshold}"] = _ratio(hits, targets)
        scores |= {
            "gIoU": _ratio(math.fsum((*tally.ious, tally.rightly_empty)), everything),
            "cIoU": _ratio(tally.intersection, union),
            "N-acc": _ratio(tally.rightly_empty, tally.no_targets),
            "T-acc": _ratio(tally.found, targets),
            "expressions": everything,
            "targets": targets,
            "no_targets": tally.no_targets,
            "intersection": tally.intersection,
            "union": union,
        }
        return scores


def _ratio(numerator: float, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
