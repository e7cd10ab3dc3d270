"""The evaluation loop with a model whose every prediction is known, against scores worked out without it."""

import io
import json
import logging

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import BatchFeature

from processing.data.canonical_rows import canonical_features
from processing.data.masks import decode_mask
from processing.evaluation.controls import CONTROLS, control_expressions
from processing.evaluation.evaluation import (
    EvaluationSettings,
    collect_results,
    configure_processor,
    evaluate_model,
    predict_masks,
    rows_at,
)
from processing.evaluation.journal import EvaluationJournal
from processing.evaluation.metrics import ReferringSegmentationMetric
from processing.evaluation.report import results_table, write_predictions
from processing.evaluation.sheet import choose_cases, draw_sheet
from tests.processing.canonical_rows import COLORS, canonical_row


HEADER = {"format": 1, "data": "made"}
SIZES = [(40, 48), (31, 57), (64, 64), (50, 33)]


class ColorModel(nn.Module):
    """Finds the pixels of the color that the expression names; counts how often it sees an image."""

    def __init__(self, margin=40.0):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.margin = margin
        self.encoded_images = 0
        self.calls = 0

    device = property(lambda self: self.anchor.device)
    dtype = property(lambda self: self.anchor.dtype)

    def get_image_features(self, pixel_values):
        self.encoded_images += len(pixel_values)
        return pixel_values

    def forward(self, image_features, input_ids, attention_mask):
        self.calls += 1
        assert input_ids.shape == attention_mask.shape
        wanted = torch.tensor([*COLORS.values(), (0, 0, 0)], dtype=torch.float32)[input_ids[:, :, 0]]
        distance = (image_features[:, None] - wanted[..., None, None]).abs().amax(dim=2)
        presence = torch.where(input_ids[:, :, 0] < len(COLORS), 8.0, -8.0)
        return BatchFeature({"logits": self.margin - distance, "presence_logits": presence})


class ColorProcessor:
    """Pixels as they are at one size, and of every expression the number of the color named in it."""

    def __init__(self, size=32):
        self.image_processor = self
        self.size = {"height": size, "width": size}
        self.keep_aspect_ratio = True

    def __call__(self, images, text, truncation, return_tensors):
        assert truncation
        assert return_tensors == "pt"
        size = (self.size["width"], self.size["height"])
        pixels = [np.asarray(image.convert("RGB").resize(size, Image.Resampling.NEAREST)) for image in images]
        most = max(map(len, text))
        numbers = torch.full((len(text), most, 1), len(COLORS))
        attention_mask = torch.zeros(len(text), most, 1, dtype=torch.long)
        for row, group in enumerate(text):
            for column, expression in enumerate(group):
                named = [index for index, color in enumerate(COLORS) if color in expression.split()]
                numbers[row, column, 0] = named[0] if named else len(COLORS)
                attention_mask[row, column] = 1
        pixel_values = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
        return BatchFeature({"pixel_values": pixel_values, "input_ids": numbers, "attention_mask": attention_mask})

    def post_process_referring_segmentation(self, outputs, threshold, mask_threshold, target_sizes, attention_mask):
        results = []
        is_real = attention_mask.any(-1)
        entries = zip(outputs["logits"], outputs["presence_logits"], target_sizes, is_real, strict=True)
        for logits, presence, size, real in entries:
            resized = nn.functional.interpolate(logits[None], size=tuple(size), mode="bilinear")[0]
            mask = resized.sigmoid() > mask_threshold
            mask[presence.sigmoid() < threshold] = False
            results.append({"masks": mask[real]})
        return results


@pytest.fixture
def rows():
    sentences = [(2, 1), (1,), (3, -1), (4,), (1, 1), (2, -2), (1, 1, 1)]
    rows = [canonical_row(index, count, SIZES[index % 4]) for index, count in enumerate(sentences)]
    for row in rows:
        row["levels"] = ["first" if index % 2 == 0 else "second" for index in range(len(row["expressions"]))]
    return rows


def run(rows, folder, settings=None, model=None, processor=None, **options):
    settings = settings or EvaluationSettings()
    model = model or ColorModel()
    journal = EvaluationJournal(folder, HEADER, options.get("process_index", 0))
    processor = processor or ColorProcessor()
    configure_processor(processor, settings)
    evaluate_model(model, processor, rows, settings, journal, **options)
    return model, journal, settings


def scores_without_the_loop(rows, settings):
    """One call of the model an expression, and the metric on its masks."""
    metric = ReferringSegmentationMetric()
    for row in rows:
        height, width = row["masks"][0]["size"]
        for text, index, level in zip(row["expressions"], row["mask_index"], row["levels"], strict=True):
            mask = predict_masks(ColorModel(), ColorProcessor(), [row["image"]], [[text]], [(height, width)], settings)
            metric.update([mask[0][0]], [decode_mask(row["masks"][index])], groups=[level])
    return metric.compute()


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("per_call", [1, 2, 16])
def test_scores_equal_those_of_single_calls(rows, tmp_path, batch_size, per_call):
    settings = EvaluationSettings(batch_size=batch_size, max_expressions_per_call=per_call)
    model, journal, _ = run(rows, tmp_path, settings)
    results = collect_results(journal, settings)
    expected = scores_without_the_loop(rows, settings)
    assert results["scores"] == expected
    assert 0.5 < expected["mIoU"] < 1
    assert expected["no_targets"] == 3
    assert set(expected["groups"]) == {"first", "second"}
    assert results["images"] == len(rows)
    assert results["expressions"] == sum(len(row["expressions"]) for row in rows)
    assert results["parts"] == {"made/train": len(rows)}
    assert model.encoded_images == len(rows)


def test_images_are_encoded_once_with_controls_too(rows, tmp_path):
    settings = EvaluationSettings(controls=tuple(CONTROLS), max_expressions_per_call=2)
    model, journal, _ = run(rows, tmp_path, settings)
    assert model.encoded_images == len(rows)
    results = collect_results(journal, settings)
    # What the model makes of the words does not depend on their order, but it does need them.
    assert results["scores"] == {**results["controls"]["shuffled words"]["scores"]}
    assert results["scores"] == scores_without_the_loop(rows, settings)
    the_object = results["controls"]["the object"]
    assert the_object["scores"]["mIoU"] == 0
    assert the_object["scores"]["N-acc"] == 1
    assert the_object["changed_expressions"] == results["expressions"]
    assert results["controls"]["another image"]["scores"]["mIoU"] < results["scores"]["mIoU"]


def test_control_expressions():
    own = ["the red square", "cup", "red red"]
    assert control_expressions("the object", own, [], "") == ["the object"] * 3
    shuffled = control_expressions("shuffled words", own, [], "0/1")
    assert shuffled == control_expressions("shuffled words", own, [], "0/1")
    assert shuffled[0] != own[0]
    assert sorted(shuffled[0].split()) == sorted(own[0].split())
    assert shuffled[1:] == own[1:]
    # What this image is asked for too would not be another image's.
    assert control_expressions("another image", own, ["cup", "a dog"], "") == ["a dog"] * 3
    with pytest.raises(ValueError, match="needs a second image"):
        control_expressions("another image", own, [], "")
    with pytest.raises(ValueError, match="Unknown control"):
        control_expressions("nonsense", own, [], "")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_streams_datasets_and_lists_give_the_same(rows, tmp_path, batch_size):
    settings = EvaluationSettings(controls=tuple(CONTROLS), batch_size=batch_size)
    dataset = datasets.Dataset.from_list(rows, features=canonical_features(with_levels=True))
    results = []
    for name, source in {"list": rows, "dataset": dataset, "stream": dataset.to_iterable_dataset()}.items():
        _, journal, _ = run(source, tmp_path / name, settings)
        results.append(collect_results(journal, settings))
        assert [row["image_id"] for row in rows_at(source, [4, 1]).values()] == ["1", "4"]
    assert results[0] == results[1] == results[2]


def journal_of(folder):
    return sorted(line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines() if '"row"' in line)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_a_killed_run_goes_on_to_the_same_result(rows, tmp_path, batch_size, stream):
    settings = EvaluationSettings(batch_size=batch_size, controls=("shuffled words", "another image"), keep_masks=True)
    source = datasets.Dataset.from_list(rows, features=canonical_features(with_levels=True))
    source = source.to_iterable_dataset() if stream else source
    _, whole, _ = run(source, tmp_path / "whole", settings)
    content = (tmp_path / "whole" / "process-00000.jsonl").read_bytes()
    # Killed before the header, within it, within a line, after one, and before the end.
    header_end = content.index(b"\n") + 1
    third_line = len(b"".join(content.splitlines(keepends=True)[:4]))
    for cut in (0, 5, header_end, header_end + 30, third_line, third_line + 1, len(content) - 1):
        folder = tmp_path / f"cut {cut}"
        folder.mkdir()
        (folder / "process-00000.jsonl").write_bytes(content[:cut])
        model, journal, _ = run(source, folder, settings)
        assert journal_of(folder) == journal_of(tmp_path / "whole")
        assert collect_results(journal, settings) == collect_results(whole, settings)
        assert model.encoded_images <= len(rows)
        if cut > third_line:
            assert model.encoded_images < len(rows)
    finished_model, _, _ = run(source, tmp_path / "whole", settings)
    assert finished_model.encoded_images == 0


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_processes_share_the_rows(rows, tmp_path, processes, batch_size):
    settings = EvaluationSettings(batch_size=batch_size, controls=("another image",))
    _, whole, _ = run(rows, tmp_path / "whole", settings)
    encoded = 0
    for rank in range(processes):
        _, journal, _ = run(rows, tmp_path / "shared", settings, process_index=rank, num_processes=processes)
        encoded += len((tmp_path / "shared" / f"process-{rank:05d}.jsonl").read_text().splitlines()) - 1
        if rank == 0:
            with pytest.raises(ValueError, match="lacks rows"):
                collect_results(journal, settings)
    assert encoded == len(rows)
    assert collect_results(journal, settings) == collect_results(whole, settings)
    # One process may finish what several began.
    (tmp_path / "shared" / "process-00001.jsonl").unlink()
    _, journal, _ = run(rows, tmp_path / "shared", settings)
    assert collect_results(journal, settings) == collect_results(whole, settings)


def test_a_journal_of_another_evaluation_is_refused(rows, tmp_path):
    run(rows[:1], tmp_path)
    with pytest.raises(ValueError, match=r"data: 'made' then, 'other' now"):
        EvaluationJournal(tmp_path, {**HEADER, "data": "other"})


def test_a_damaged_line_of_a_journal_is_named_and_its_image_evaluated_again(rows, tmp_path, caplog):
    _, journal, settings = run(rows, tmp_path / "journal")
    whole = collect_results(journal, settings)
    (path,) = (tmp_path / "journal").glob("process-*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    for damage in (
        b"{\n",
        b"\xff\xfe\n",
        b"5\n",
        b"{}\n",
        lines[3][: len(lines[3]) // 2] + b"\n",
        b"[" * 10**5 + b"\n",
    ):
        path.write_bytes(b"".join([*lines[:3], damage, *lines[4:]]))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            _, journal, _ = run(rows, tmp_path / "journal")
            assert collect_results(journal, settings) == whole
        assert "skipped line 4 of" in caplog.text
    path.write_bytes(b"\n".join([b"{", *lines[1:]]))
    with pytest.raises(ValueError, match="first line is not a header"):
        run(rows, tmp_path / "journal")


def test_a_row_that_cannot_be_decoded_is_named(rows, tmp_path):
    buffer = io.BytesIO()
    rows[2]["image"].save(buffer, "PNG")
    rows[2]["image"] = {"bytes": buffer.getvalue()[:-40], "path": None}
    dataset = datasets.Dataset.from_list(rows, features=canonical_features(with_levels=True))
    with pytest.raises(ValueError, match="Row 2 cannot be read: image file is truncated"):
        run(dataset, tmp_path)


def test_a_journal_of_other_annotations_is_refused(rows, tmp_path):
    run(rows, tmp_path)
    changed = [*rows[:1], {**rows[1], "expressions": ["something else", *rows[1]["expressions"][1:]]}, *rows[2:]]
    for others in (changed, rows[:-1]):
        with pytest.raises(ValueError, match="has other annotations"):
            run(others, tmp_path)


def test_limit(rows, tmp_path):
    settings = EvaluationSettings(limit=3)
    _, journal, _ = run(rows, tmp_path, settings)
    assert collect_results(journal, settings)["scores"] == scores_without_the_loop(rows[:3], settings)


def test_protocol_lavt_by_its_own_definition(rows, tmp_path):
    """Image and ground truth stretched to 480x480, IoU over all samples, 0 where the union is empty."""
    settings = EvaluationSettings(protocol="lavt")
    processor = ColorProcessor()
    _, journal, _ = run(rows, tmp_path, settings, processor=processor)
    assert processor.size == {"height": 480, "width": 480}
    assert processor.keep_aspect_ratio is False
    intersections, unions, ious = 0, 0, []
    for row in rows:
        pixels = np.asarray(row["image"].resize((480, 480), Image.Resampling.NEAREST), dtype=np.float32)
        for text, index in zip(row["expressions"], row["mask_index"], strict=True):
            target = np.asarray(
                Image.fromarray(decode_mask(row["masks"][index])).resize((480, 480), Image.Resampling.NEAREST)
            )
            color = next(COLORS[word] for word in text.split() if word in COLORS)
            # Two classes and the larger logit, as argmax over (0, logit).
            prediction = 40 - np.abs(pixels - np.array(color, np.float32)).max(axis=2) > 0
            intersection, union = (prediction & target).sum(), (prediction | target).sum()
            ious.append(intersection / union if union else 0.0)
            intersections, unions = intersections + intersection, unions + union
    scores = collect_results(journal, settings)["scores"]
    assert scores["mIoU"] == pytest.approx(np.mean(ious), rel=1e-12)
    assert scores["oIoU"] == pytest.approx(intersections / unions, rel=1e-12)
    assert scores["P@0.9"] == np.mean(np.array(ious) >= 0.9)
    assert scores["N-acc"] is None


def test_thresholds_reach_the_masks(rows, tmp_path):
    nameless = [{**row, "expressions": ["it"] * len(row["expressions"])} for row in rows[:2]]
    scores = {}
    for name, settings in {
        "usual": EvaluationSettings(),
        "no presence": EvaluationSettings(threshold=0.0),
        "certain": EvaluationSettings(threshold=0.0, mask_threshold=1.0),
    }.items():
        _, journal, _ = run(nameless, tmp_path / name, settings, ColorModel(margin=300.0))
        scores[name] = collect_results(journal, settings)["scores"]["T-acc"]
    assert scores == {"usual": 0, "no presence": 1, "certain": 0}


def test_image_and_mask_of_different_sizes_are_refused(rows, tmp_path):
    rows[1]["image"] = rows[1]["image"].rotate(90, expand=True)
    with pytest.raises(ValueError, match="Image 1 has 57x31 pixels, but the mask of 1-0 has 31x57"):
        run(rows, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "cris"}, "protocol"),
        ({"controls": ("nonsense",)}, "Unknown controls"),
        ({"batch_size": 0}, "batch_size"),
        ({"limit": 0}, "limit"),
        ({"threshold": 50}, "threshold"),
        ({"mask_threshold": -1}, "mask_threshold"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**options)


def test_table_predictions_and_sheet(rows, tmp_path):
    settings = EvaluationSettings(controls=("the object",), keep_masks=True)
    _, journal, _ = run(rows, tmp_path / "journal", settings)
    results = collect_results(journal, settings)

    table = results_table(results).splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["all", "first", "second", "control: the object"]
    assert f"{100 * results['scores']['oIoU']:.2f}" in table[2]
    assert "N-acc" in table[0]
    assert len({line.count("|") for line in table}) == 1

    write_predictions(journal, settings, tmp_path / "predictions.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["expression"] for line in lines] == [text for row in rows for text in row["expressions"]]
    masks_of = {row["image_id"]: row for row in rows}
    metric = ReferringSegmentationMetric()
    for line in lines:
        row = masks_of[line["image_id"]]
        reference = row["masks"][row["ref_ids"].index(line["ref_id"])]
        (counts,) = metric.update([line["mask"]], [reference])
        assert line["iou"] == pytest.approx(counts.iou)
    assert metric.compute()["mIoU"] == results["scores"]["mIoU"]

    cases = choose_cases(journal.rows(), settings, number=3, seed=1)
    assert cases == choose_cases(journal.rows(), settings, number=3, seed=1)
    assert cases["worst"][0].iou == min(line["iou"] for line in lines)
    assert cases["best"][0].iou == max(line["iou"] for line in lines if line["target_area"])
    assert all(len({case.row for case in section}) == 3 for section in cases.values())
    numbers = {case.row for section in cases.values() for case in section}
    journal_rows = {row["row"]: row for row in journal.rows()}
    sheet = draw_sheet(cases, rows_at(rows, numbers), journal_rows, "made")
    assert sheet.mode == "RGB"
    assert sheet.getextrema() == ((0, 255), (0, 255), (0, 255))
