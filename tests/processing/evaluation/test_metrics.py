"""The scores against brute force, pycocotools and the definitions of LAVT and GRES, each written out again here."""

import json
import math
import threading
from fractions import Fraction

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from processing.evaluation import METRIC_PATH, ReferringSegmentationMetric, count_pixels


SCORES = ("oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "gIoU", "cIoU", "N-acc", "T-acc")


def random_pairs(seed, number, empty_references=0.0, empty_predictions=0.0):
    """Pairs of boxes that overlap to every degree, each pair of a size of its own."""
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(number):
        height, width = generator.integers(5, 40, size=2)
        top, left = generator.integers(0, (height - 3, width - 3))
        reference = np.zeros((height, width), dtype=bool)
        reference[top : top + generator.integers(2, height), left : left + generator.integers(2, width)] = True
        prediction = np.roll(reference, generator.integers(0, 4, size=2), axis=(0, 1))
        prediction ^= generator.random(prediction.shape) < 0.05
        reference &= generator.random() >= empty_references
        prediction &= generator.random() >= empty_predictions
        pairs.append((prediction, reference))
    return pairs


def update_with(metric, pairs, **columns):
    return metric.update([prediction for prediction, _ in pairs], [reference for _, reference in pairs], **columns)


pair_lists = st.builds(
    random_pairs,
    seed=st.integers(0, 2**32 - 1),
    number=st.integers(1, 12),
    empty_references=st.sampled_from([0.0, 0.4, 1.0]),
    empty_predictions=st.sampled_from([0.0, 0.4, 1.0]),
)


def brute_force(pairs):
    """Every score by Python loops over pixels and float64 means."""
    rows = []
    for prediction, reference in pairs:
        both = either = predicted = wanted = 0
        for in_prediction, in_reference in zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True):
            both += in_prediction and in_reference
            either += in_prediction or in_reference
            predicted += in_prediction
            wanted += in_reference
        rows.append((both, either, predicted, wanted))
    targets = [row for row in rows if row[3]]
    nothing = [row for row in rows if not row[3]]
    ious = [both / either for both, either, _, _ in targets]
    unions = sum(row[1] for row in targets)
    all_ious = ious + [float(row[2] == 0) for row in nothing]
    all_unions = unions + sum(row[2] for row in nothing)
    intersections = sum(row[0] for row in targets)
    scores = {
        "oIoU": intersections / unions if targets else None,
        "mIoU": sum(ious) / len(ious) if targets else None,
        "gIoU": sum(all_ious) / len(all_ious),
        "cIoU": intersections / all_unions if all_unions else None,
        "N-acc": sum(row[2] == 0 for row in nothing) / len(nothing) if nothing else None,
        "T-acc": sum(row[2] > 0 for row in targets) / len(targets) if targets else None,
    }
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        scores[f"P@{threshold}"] = sum(iou >= threshold for iou in ious) / len(ious) if targets else None
    return scores


@settings(max_examples=60)
@given(pairs=pair_lists)
def test_scores_equal_brute_force(pairs):
    metric = ReferringSegmentationMetric()
    update_with(metric, pairs)
    scores = metric.compute()
    for name, expected in brute_force(pairs).items():
        if expected is None:
            assert scores[name] is None, name
        else:
            assert scores[name] == pytest.approx(expected, rel=1e-12, abs=1e-12), name


def test_standard_error_equals_numpy():
    pairs = random_pairs(7, 40)
    metric = ReferringSegmentationMetric()
    ious = [sample.iou for sample in update_with(metric, pairs)]
    assert metric.compute()["mIoU_standard_error"] == pytest.approx(
        np.std(ious, ddof=1) / math.sqrt(len(ious)), rel=1e-12
    )


@settings(max_examples=30)
@given(pairs=pair_lists)
def test_each_iou_equals_pycocotools(pairs):
    for prediction, reference in pairs:
        encoded = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in (prediction, reference)]
        counts = count_pixels(prediction, reference)
        assert count_pixels(*encoded) == counts
        assert counts[1:] == tuple(coco_mask.area(encoded))
        if counts.union:
            assert coco_mask.iou(encoded[:1], encoded[1:], [False])[0, 0] == pytest.approx(counts.iou, rel=1e-12)


def scores_as_lavt_defines_them(pairs):
    """Overall IoU, mean IoU (0 where the union is empty) and precision (IoU at least X), over every sample."""
    intersections = np.array([np.logical_and(*pair).sum() for pair in pairs], dtype=np.float64)
    unions = np.array([np.logical_or(*pair).sum() for pair in pairs], dtype=np.float64)
    ious = np.divide(intersections, unions, out=np.zeros_like(unions), where=unions > 0)
    precision = {f"P@{x}": np.mean(ious >= x) for x in (0.5, 0.6, 0.7, 0.8, 0.9)}
    return {"oIoU": intersections.sum() / unions.sum(), "mIoU": ious.mean(), **precision}


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_the_definitions_of_lavt(seed):
    pairs = random_pairs(seed, 60, empty_references=0.1, empty_predictions=0.1)
    metric = ReferringSegmentationMetric(no_target="zero")
    update_with(metric, pairs)
    scores = metric.compute()
    for name, expected in scores_as_lavt_defines_them(pairs).items():
        assert scores[name] == pytest.approx(expected, rel=1e-12), name
    assert scores["N-acc"] is None


def scores_as_gres_defines_them(samples):
    """From the paper's text (Liu et al. 2023, section 3) and the rules of its published evaluation."""
    mean_terms, intersections, unions, outcomes, hits, targets = [], 0, 0, {"TP": 0, "FN": 0, "TN": 0, "FP": 0}, 0, 0
    for prediction, reference in samples:
        says_nothing, is_nothing = not prediction.any(), not reference.any()
        if is_nothing:
            outcomes["TP" if says_nothing else "FN"] += 1
            mean_terms.append(1.0 if says_nothing else 0.0)
            unions += 0 if says_nothing else np.logical_or(prediction, reference).sum()
            continue
        outcomes["FP" if says_nothing else "TN"] += 1
        intersection = 0 if says_nothing else np.logical_and(prediction, reference).sum()
        union = np.logical_or(prediction, reference).sum()
        mean_terms.append(intersection / union)
        intersections, unions, targets = intersections + intersection, unions + union, targets + 1
        hits += intersection / union >= 0.7
    return {
        "gIoU": np.mean(mean_terms),
        "cIoU": intersections / unions,
        "N-acc": outcomes["TP"] / (outcomes["TP"] + outcomes["FN"]),
        "T-acc": outcomes["TN"] / (outcomes["TN"] + outcomes["FP"]),
        "P@0.7": hits / targets,
    }


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_the_definitions_of_gres(seed):
    pairs = random_pairs(100 + seed, 80, empty_references=0.3, empty_predictions=0.3)
    metric = ReferringSegmentationMetric()
    update_with(metric, pairs)
    scores = metric.compute()
    for name, expected in scores_as_gres_defines_them(pairs).items():
        assert scores[name] == pytest.approx(expected, rel=1e-12), name


def test_no_target_rules_by_hand():
    empty, one, two = np.zeros((1, 4), bool), np.array([[1, 0, 0, 0]], bool), np.array([[1, 1, 0, 0]], bool)
    metric = ReferringSegmentationMetric()
    metric.update([empty, two, empty, one], [empty, empty, two, two])
    scores = metric.compute()
    # Found nothing where nothing is: 1. Two pixels where nothing is: 0. Missed two pixels: 0. One of two pixels: 1/2.
    assert scores["gIoU"] == 1.5 / 4
    assert (scores["intersection"], scores["union"]) == (1, 0 + 2 + 2 + 2)
    assert scores["cIoU"] == 1 / 6
    assert (scores["mIoU"], scores["oIoU"]) == (0.25, 0.25)
    assert (scores["N-acc"], scores["T-acc"], scores["P@0.5"]) == (0.5, 0.5, 0.5)
    assert (scores["expressions"], scores["targets"], scores["no_targets"]) == (4, 2, 2)


def test_overall_and_mean_iou_differ_and_are_both_named():
    metric = ReferringSegmentationMetric()
    large, small = np.ones((100, 100), bool), np.zeros((100, 100), bool)
    half_of_small = small.copy()
    small[0, :2], half_of_small[0, :1] = True, True
    metric.update([large, half_of_small], [large, small])
    scores = metric.compute()
    assert scores["mIoU"] == 0.75
    assert scores["oIoU"] == 10001 / 10002


@pytest.mark.parametrize("tenths", [5, 6, 7, 8, 9])
def test_an_iou_equal_to_the_threshold(tenths):
    counts = [(tenths, tenths, 10)]
    name = f"P@{tenths / 10}"
    for inclusive in (True, False):
        metric = ReferringSegmentationMetric(inclusive=inclusive)
        metric.update_counts(counts)
        assert metric.compute()[name] == float(inclusive)


def test_unions_beyond_32_bits_and_nearly_equal_ious_stay_exact():
    metric = ReferringSegmentationMetric(thresholds=(0.7,))
    area = 10**15
    metric.update_counts([(7 * area // 10, area, 7 * area // 10), (7 * area // 10 - 1, area, 7 * area // 10 - 1)])
    scores = metric.compute()
    assert scores["P@0.7"] == 0.5
    assert (scores["intersection"], scores["union"]) == (14 * area // 10 - 1, 2 * area)


@settings(max_examples=30)
@given(pairs=pair_lists, processes=st.integers(1, 4), random=st.randoms(use_true_random=False))
def test_order_processes_and_padding_do_not_change_a_bit(pairs, processes, random):
    groups = [str(index % 3) for index in range(len(pairs))]
    whole = ReferringSegmentationMetric()
    update_with(whole, pairs, groups=groups)

    order = list(range(len(pairs)))
    random.shuffle(order)
    padded = order + order[: -len(order) % processes]
    parts = []
    for rank in range(processes):
        part = ReferringSegmentationMetric()
        for index in padded[rank::processes]:
            update_with(part, [pairs[index]], groups=[groups[index]], identifiers=[f"sample {index}"])
        parts.append(json.loads(json.dumps(part.state_dict())))
    merged = ReferringSegmentationMetric().merge(*parts)
    assert merged.compute() == whole.compute()
    assert len(merged) == len(pairs)


def test_merging_without_identifiers_adds_up():
    pairs = random_pairs(3, 20, empty_references=0.2)
    whole, first, second = (ReferringSegmentationMetric() for _ in range(3))
    update_with(whole, pairs)
    update_with(first, pairs[:7])
    update_with(second, pairs[7:])
    assert first.merge(second).compute() == whole.compute()


def test_state_grows_by_one_number_for_each_sample_with_a_target():
    metric = ReferringSegmentationMetric()
    metric.update_counts([(1, 2, 4), (0, 5, 0)] * 10_000)
    ((group, tally),) = metric.state_dict()["tallies"]
    assert group is None
    assert tally.pop("ious") == [0.2] * 10_000
    assert len(json.dumps(tally)) < 400
    assert len(metric) == 20_000


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=60))
def test_means_are_the_exact_ones_rounded_once(samples):
    counts = [(both, both + more, both + missed) for both, more, missed in samples]
    metric = ReferringSegmentationMetric()
    metric.update_counts(counts)
    ious = [Fraction(both, both + more + missed) for both, more, missed in samples if both + missed]
    scores = metric.compute()
    if ious:
        assert scores["mIoU"] == pytest.approx(float(sum(ious) / len(ious)), rel=4e-16)
    if len(ious) > 1:
        mean = sum(ious) / len(ious)
        squares = sum((iou - mean) ** 2 for iou in ious) / (len(ious) * (len(ious) - 1))
        assert scores["mIoU_standard_error"] == pytest.approx(math.sqrt(squares), rel=1e-12, abs=1e-17)


def test_groups_are_scored_apart():
    pairs = random_pairs(11, 12, empty_references=0.3)
    groups = ["appearance" if index % 2 else "position" for index in range(12)]
    metric = ReferringSegmentationMetric()
    update_with(metric, pairs, groups=groups)
    scores = metric.compute()
    for group in ("appearance", "position"):
        alone = ReferringSegmentationMetric()
        update_with(alone, [pair for pair, name in zip(pairs, groups, strict=True) if name == group])
        assert scores["groups"][group] == alone.compute()


def test_ignored_pixels_count_neither_way():
    prediction, reference = np.array([[1, 1, 0, 1]], bool), np.array([[1, 0, 1, 0]], bool)
    assert count_pixels(prediction, reference, ignored=np.array([[0, 0, 1, 1]], bool)) == (1, 2, 1)


@pytest.mark.parametrize("reference", [[[1, 0, 0, 0]], [[0, 0, 0, 0]]])
def test_a_reference_that_is_ignored_as_a_whole_is_no_correct_no_target(reference):
    nothing = np.zeros((1, 4), bool)
    with pytest.raises(ValueError, match="leave it out"):
        count_pixels(nothing, reference, ignored=np.ones((1, 4), bool))
    if np.any(reference):
        with pytest.raises(ValueError, match="leave it out"):
            count_pixels(nothing, reference, ignored=reference)


def test_every_kind_of_mask_gives_the_same_counts():
    prediction, reference = random_pairs(5, 1)[0]
    expected = count_pixels(prediction, reference)
    rle = coco_mask.encode(np.asfortranarray(prediction.astype(np.uint8)))
    text_rle = {"size": rle["size"], "counts": rle["counts"].decode()}
    kinds = [
        torch.from_numpy(prediction),
        prediction.astype(np.uint8),
        prediction.tolist(),
        Image.fromarray(prediction),
        rle,
        text_rle,
    ]
    for kind in kinds:
        assert count_pixels(kind, reference) == expected


def run_lengths(size):
    return coco_mask.encode(np.ones(size, np.uint8, order="F"))


@pytest.mark.parametrize(
    ("prediction", "reference", "error", "message"),
    [
        (np.full((2, 2), 0.3), np.ones((2, 2), bool), TypeError, "apply a threshold"),
        (np.full((2, 2), 255, np.uint8), np.ones((2, 2), bool), ValueError, "255"),
        (np.ones((2, 3), bool), np.ones((2, 2), bool), ValueError, "2x3"),
        (np.ones((1, 2, 2), bool), np.ones((2, 2), bool), ValueError, r"\(height, width\)"),
        (run_lengths((2, 3)), run_lengths((2, 2)), ValueError, "2x3 pixels and the reference mask 2x2"),
        (run_lengths((2, 3)), np.ones((2, 2), bool), ValueError, "2x3 pixels and the reference mask 2x2"),
    ],
)
def test_masks_that_cannot_be_scored_are_refused(prediction, reference, error, message):
    with pytest.raises(error, match=message):
        count_pixels(prediction, reference)


# Each of them hung, crashed or miscounted in pycocotools, or claims more memory than any image takes.
DAMAGED = [
    ({"size": [3, 5], "counts": "0`0"}, "add up to 16 pixels for a size of 3 x 5"),
    ({"size": [4, 4], "counts": ""}, "add up"),
    ({"size": [4, 4], "counts": "0@0"}, "negative run"),
    ({"size": [4, 4], "counts": "a"}, "middle of a run"),
    ({"size": [4, 4], "counts": "0 0"}, "character ' '"),
    ({"size": [4, 4], "counts": "0é"}, "character 'é'"),
    ({"size": [4, 4], "counts": "o" * 9 + "0"}, "exceeds the size of any image"),
    ({"size": [4, 4], "counts": [8, 8]}, "compressed"),
    ({"size": [4], "counts": "`0"}, "height, width"),
    ({"size": [4.5, 4], "counts": "`0"}, "integers"),
    ({"size": [10**5, 10**5], "counts": "PQl2T6"}, "more than the limit"),
    ({"size": [-4, -4], "counts": "`0"}, "positive integers"),
]


@pytest.mark.parametrize(("rle", "message"), DAMAGED)
def test_damaged_run_lengths_are_refused(rle, message):
    whole = coco_mask.encode(np.asfortranarray(np.ones((4, 4), np.uint8)))
    for pair in ((rle, whole), (whole, rle), (rle, np.ones((4, 4), bool))):
        with pytest.raises(ValueError, match=message):
            count_pixels(*pair)


@settings(max_examples=300)
@given(
    counts=st.binary(max_size=12) | st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12),
    height=st.integers(-1, 40),
    width=st.integers(-1, 40),
)
def test_any_run_lengths_are_counted_or_refused(counts, height, width):
    rle = {"size": [height, width], "counts": counts}
    try:
        found = count_pixels(rle, rle)
    except ValueError:
        return
    assert 0 <= found.intersection == found.prediction_area <= height * width


def test_samples_that_cannot_be_are_refused():
    metric = ReferringSegmentationMetric()
    with pytest.raises(ValueError, match="intersection of 3"):
        metric.update_counts([(3, 2, 5)])
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        metric.update([np.ones((1, 1), bool)] * 2, [np.ones((1, 1), bool)])
    metric.update_counts([(1, 2, 5)], identifiers=["a"])
    with pytest.raises(ValueError, match="'a' was given to two samples"):
        metric.update_counts([(1, 2, 6)], identifiers=["a"])
    with pytest.raises(ValueError, match="Cannot merge"):
        metric.merge(ReferringSegmentationMetric(inclusive=False))
    with pytest.raises(ValueError, match="no_target"):
        ReferringSegmentationMetric(no_target="ignore")
    with pytest.raises(ValueError, match="thresholds"):
        ReferringSegmentationMetric(thresholds=(50,))


def test_without_samples_every_score_is_none():
    scores = ReferringSegmentationMetric().compute()
    assert {scores[name] for name in SCORES} == {None}
    assert scores["expressions"] == 0


class TestEvaluateMetric:
    """The folder that `evaluate.load` takes."""

    @pytest.fixture
    def load(self, tmp_path):
        def load_metric(**arguments):
            return evaluate.load(METRIC_PATH, cache_dir=str(tmp_path), **arguments)

        return load_metric

    def test_loads_wherever_one_stands(self, load, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        scores = load().compute(predictions=[[[1, 1], [0, 0]]], references=[[[1, 0], [0, 0]]])
        assert scores["mIoU"] == 0.5

    def test_equals_the_accumulator(self, load):
        pairs = random_pairs(21, 15, empty_references=0.3, empty_predictions=0.2)
        groups = [str(index % 2) for index in range(15)]
        own = ReferringSegmentationMetric()
        update_with(own, pairs, groups=groups)
        metric = load()
        for start in range(0, 12, 4):
            part = pairs[start : start + 4]
            metric.add_batch(
                predictions=[pair[0] for pair in part],
                references=[pair[1] for pair in part],
                groups=groups[start : start + 4],
            )
        for pair, group in zip(pairs[12:], groups[12:], strict=True):
            metric.add(prediction=pair[0], reference=pair[1], group=group)
        assert metric.compute() == own.compute()

    def test_arrays_of_all_columns(self, load):
        predictions, references = np.random.default_rng(23).random((2, 4, 9, 7)) < 0.5
        ignored = np.zeros_like(references)
        ignored[:, 0] = True
        scores = load().compute(
            predictions=predictions, references=references, ignored=ignored, groups=np.array(["a", "b", "a", "b"])
        )
        own = ReferringSegmentationMetric()
        own.update(predictions, references, groups=["a", "b", "a", "b"], ignored=ignored)
        assert scores == own.compute()

    def test_settings_identifiers_and_rle(self, load):
        prediction, reference = random_pairs(22, 1)[0]
        masks = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in (prediction, reference)]
        scores = load().compute(
            predictions=[masks[0]] * 2,
            references=[masks[1]] * 2,
            identifiers=["a", "a"],
            thresholds=(0.25,),
            inclusive=False,
            no_target="zero",
        )
        assert scores["expressions"] == 1
        assert "P@0.25" in scores
        assert "P@0.5" not in scores

    def test_processes_share_their_samples(self, load):
        pairs = random_pairs(23, 5)
        own = ReferringSegmentationMetric()
        update_with(own, pairs)
        metrics = [load(num_process=2, process_id=rank, experiment_id="shared") for rank in range(2)]
        # Each waits for the other's file, as processes would.
        results = {}

        def run(rank):
            samples = [0, 1, 2] if rank == 0 else [3, 4, 0]
            results[rank] = metrics[rank].compute(
                predictions=[pairs[index][0] for index in samples],
                references=[pairs[index][1] for index in samples],
                identifiers=[str(index) for index in samples],
            )

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results[0] == own.compute()
        assert results[1] is None

    def test_one_side_alone_is_refused(self, load):
        with pytest.raises(ValueError, match="both"):
            load().compute(predictions=[[[1]]])
        with pytest.raises(ValueError, match="1 predictions but 2 references"):
            load().compute(predictions=[[[1]]], references=[[[1]], [[0]]])
