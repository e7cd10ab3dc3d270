"""Streaming scores of referring image segmentation: oIoU, mIoU and P@X, and the four that know no-target expressions.

Every mask is reduced to three integers as it arrives. Sums are of integers, or of IoUs by `math.fsum`, which rounds
only once. So the result does not depend on the order of the samples, on how they were spread over processes, or on
where an evaluation was resumed.

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
    """What a pair of masks comes down to, in pixels."""

    intersection: int
    prediction_area: int
    target_area: int

    @property
    def union(self) -> int:
        return self.prediction_area + self.target_area - self.intersection

    @property
    def iou(self) -> float:
        """The plain IoU, with 1.0 for two empty masks (the no-target rule of GRES)."""
        return self.intersection / self.union if self.union else 1.0


def _is_rle(mask: Any) -> bool:
    return isinstance(mask, Mapping) and "size" in mask and "counts" in mask


def _to_boolean(mask: Any, what: str) -> np.ndarray:
    """A mask of any supported kind as a boolean array `(height, width)`."""
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
            f"A {what} mask must hold booleans or the integers 0 and 1, got {array.dtype}: threshold it first."
        )
    strange = np.setdiff1d(np.unique(array), (0, 1))
    if strange.size:
        raise ValueError(
            f"A {what} mask must hold 0 and 1 only, got {strange[:4].tolist()}. Pass pixels that are to be left out "
            "(often written as 255) as a mask of their own in `ignored`."
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
            A mask of the pixels that count neither for nor against the prediction.

    Raises:
        ValueError: If the sizes differ, a mask is not two-dimensional or holds other values than 0 and 1, an RLE is
            damaged, or nothing of the target, or of the whole image, is left beside the ignored pixels.
        TypeError: If a mask holds floats (scores have to be thresholded first).
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
        # Its target area of 0 would say that the expression has no target.
        if ignored.all() or (reference.any() and not left.any()):
            raise ValueError(
                "The `ignored` mask covers the whole reference, so the sample cannot be scored: leave it out."
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
            f"The prediction is {prediction[0]}x{prediction[1]} and the {what} mask {other[0]}x{other[1]} (height x "
            "width): bring the prediction to the size of the reference before scoring, never the reverse."
        )


@dataclass
class _Tally:
    """What is known of some of the samples: counts, and the IoU of each that has a target."""

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
    # Samples without an identifier are summed up by group at once; those with one are kept as four small values each,
    # since only the whole set tells which of them a padding sampler has repeated.
    tallies: dict[str | None, _Tally] = field(default_factory=dict)
    records: dict[str, tuple[int, int, int, str | None]] = field(default_factory=dict)


class ReferringSegmentationMetric:
    """
    Accumulates the scores of referring image segmentation, sample by sample (a sample: one expression on one image).

    A sample costs 32 bytes of memory, one that is given an identifier about 200 bytes.

    Args:
        thresholds (`Sequence[float]`, *optional*, defaults to `(0.5, 0.6, 0.7, 0.8, 0.9)`):
            The X of P@X.
        inclusive (`bool`, *optional*, defaults to `True`):
            Whether an IoU equal to X counts for P@X, as in LAVT, CARIS and ReLA; CRIS and CGFormer ask for more. The
            comparison is of exact fractions: 7 of 10 pixels is 0.7, whatever floats make of it.
        no_target (`str`, *optional*, defaults to `"grefcoco"`):
            What becomes of an expression whose reference mask is empty. `"grefcoco"`: it is right if nothing was
            predicted (IoU 1, nothing added to intersection and union), else wrong (IoU 0, the predicted area added to
            the union); it enters gIoU, cIoU and N-acc, but neither mIoU, oIoU nor P@X. `"zero"`: it is a sample like
            any other, with IoU 0 (the code of LAVT, which knows no such expressions).

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
        # str() first: 0.7 as a float is a little less than seven tenths.
        self._fractions = [Fraction(str(threshold)) for threshold in thresholds]
        if not all(0 <= fraction <= 1 for fraction in self._fractions):
            raise ValueError(f"`thresholds` must lie between 0 and 1, got {list(thresholds)}.")
        self.thresholds = tuple(thresholds)
        self.inclusive = inclusive
        self.no_target = no_target
        self._state = _State()

    def reset(self) -> None:
        """Forgets every sample."""
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
        Adds samples given as masks; each pair may have a size of its own, which should be that of the original image.

        Args:
            predictions, references (`Sequence`):
                Masks as `count_pixels` takes them.
            groups (`Sequence[str]`, *optional*):
                A name for each sample (a level, a data set): `compute` returns the scores of each group as well.
            identifiers (`Sequence[str]`, *optional*):
                What tells samples apart. A sample seen before is not counted again, within a process or over merged
                ones: padding samplers repeat samples to give every process the same number.
            ignored (`Sequence`, *optional*):
                For each sample, None or a mask of the pixels that do not count.

        Returns:
            `list[PixelCounts]`: the counts of each sample.

        Raises:
            ValueError: If the lengths differ, or an identifier comes back with another reference or group.
        """
        columns = {"references": references, "groups": groups, "identifiers": identifiers, "ignored": ignored}
        for name, column in columns.items():
            if column is not None and len(column) != len(predictions):
                raise ValueError(f"Got {len(predictions)} predictions but {len(column)} {name}.")
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
        """Adds samples given as `(intersection, prediction area, target area)`; the rest is as in `update`."""
        counts = [PixelCounts(*map(int, sample)) for sample in counts]
        groups = list(groups) if groups is not None else [None] * len(counts)
        identifiers = list(identifiers) if identifiers is not None else [None] * len(counts)
        for sample, group, identifier in zip(counts, groups, identifiers, strict=True):
            smaller_area = min(sample.prediction_area, sample.target_area)
            if not 0 <= sample.intersection <= smaller_area:
                raise ValueError(
                    f"An intersection of {sample.intersection} pixels cannot be: the smaller mask has {smaller_area}."
                )
            if identifier is None:
                self._tally(self._state.tallies, sample, group)
            else:
                self._record(identifier, (*sample, group))

    def merge(self, *others: "ReferringSegmentationMetric | Mapping[str, Any]") -> "ReferringSegmentationMetric":
        """
        Adds the samples of other accumulators (of other processes, as objects or as their `state_dict()`), and returns
        this one. Samples with the same identifier count once.
        """
        for other in others:
            state = other.state_dict() if isinstance(other, ReferringSegmentationMetric) else other
            if state["settings"] != self._settings():
                raise ValueError(f"Cannot merge scores of {state['settings']} into scores of {self._settings()}.")
            for group, values in state["tallies"]:
                self._group_tally(self._state.tallies, group).add(_Tally(**values))
            for identifier, record in state["records"].items():
                self._record(identifier, tuple(record))
        return self

    def state_dict(self) -> dict[str, Any]:
        """All that has been accumulated, as lists, dicts, strings and numbers (fit for JSON and for gathering)."""
        return {
            "settings": self._settings(),
            "tallies": [(group, asdict(tally)) for group, tally in self._state.tallies.items()],
            "records": dict(self._state.records),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces what has been accumulated by what `state_dict` returned."""
        self.reset()
        self.merge(state)

    def compute(self) -> dict[str, Any]:
        """
        Returns the scores as fractions between 0 and 1. A score that nothing was seen for is None.

        Returns:
            `dict`:
                - `oIoU`: sum of the intersections over sum of the unions, over expressions with a target.
                - `mIoU`: mean of the IoUs, over expressions with a target; `mIoU_standard_error`: its standard error
                  (standard deviation over the square root of the number, samples taken as independent).
                - `P@X`: fraction of the expressions with a target whose IoU reaches X.
                - `gIoU`, `cIoU`: as mIoU and oIoU, with the no-target expressions counted in by the rules of GRES.
                - `N-acc`: fraction of the no-target expressions for which nothing was predicted; `T-acc`: fraction of
                  the expressions with a target for which something was.
                - `expressions`, `targets`, `no_targets`: how many samples; `intersection`, `union`: the sums in pixels
                  behind cIoU.
                - `groups`: the same scores for each group, if groups were given.
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
        """How many samples count."""
        tallied = sum(tally.targets + tally.no_targets for tally in self._state.tallies.values())
        return tallied + len(self._state.records)

    def _settings(self) -> dict[str, Any]:
        return {"thresholds": list(self.thresholds), "inclusive": self.inclusive, "no_target": self.no_target}

    def _group_tally(self, tallies: dict[str | None, _Tally], group: str | None) -> _Tally:
        return tallies.setdefault(group, _Tally([0] * len(self.thresholds)))

    def _record(self, identifier: str, record: tuple[int, int, int, str | None]) -> None:
        known = self._state.records.setdefault(identifier, record)
        # The target area and the group belong to the data. The prediction may differ by a few pixels, since the other
        # members of a batch can change the last bit of a logit: the first one stands.
        if known[2:] != record[2:]:
            raise ValueError(
                f"The identifier {identifier!r} stands for two samples: one with a target of {known[2]} pixels in "
                f"group {known[3]!r}, one with a target of {record[2]} pixels in group {record[3]!r}."
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
            squares = math.fsum((iou - mean) ** 2 for iou in tally.ious)
            standard_error = math.sqrt(squares / (targets * (targets - 1)))
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
