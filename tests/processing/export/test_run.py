"""Exported graphs answer as the model does, and so does the pipeline on them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from modeling_jmceln import JMCELNModel
from processing import ReferringImageSegmentationPipeline
from processing.export import run as export
from processing.export.onnx_inference import ONNXReferringModel, load_onnx_pipeline
from processing.export.runtime_operators import TRANSLATIONS
from tests.tiny import tiny_config, tiny_processor


REPOSITORY = Path(__file__).resolve().parents[3]
# Sends SIGKILL to itself after the image encoder is written, before the expression decoder is.
KILLED_BETWEEN_GRAPHS = """
import os, signal, sys
from processing.export import graphs, run

def path_of_graph(folder, name, quantized, original=graphs.graph_path):
    if name == graphs.DECODER:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(folder, name, quantized)

graphs.graph_path = path_of_graph
run.main(sys.argv[1:])
"""

pytestmark = pytest.mark.slow  # tracing and writing two graphs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    JMCELNModel(tiny_config()).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    export.main(["--model", str(checkpoint), "--output", str(folder), "--int8", "--scenes", "1", "--rounds", "1"])
    return folder


def test_report_holds_parity_sizes_and_scores(exported: Path) -> None:
    report = json.loads((exported / "export.json").read_text())
    assert report["largest_difference"]["onnx"] <= export.TOLERANCE
    assert report["largest_difference"]["torch.export"] <= export.TOLERANCE
    assert 0 < report["largest_difference"]["onnx int8"] < 0.1
    sizes = report["bytes"]
    assert sizes == {path.name: path.stat().st_size for path in exported.iterdir() if path.suffix in (".onnx", ".pt2")}
    for name in ("image_encoder", "expression_decoder"):
        assert sizes[f"{name}.int8.onnx"] < sizes[f"{name}.onnx"]
    assert report["seconds"].keys() == {"image", "1 expression", "8 expressions"}
    for scores in (report["mIoU"], *report["seconds"].values()):
        assert scores.keys() == {"torch", "onnx", "onnx int8"}
    assert all(seconds > 0 for by_form in report["seconds"].values() for seconds in by_form.values())
    assert report["mIoU"]["onnx"] == pytest.approx(report["mIoU"]["torch"], abs=1e-3)


def test_graphs_are_valid_and_free_in_batch_expressions_and_length(exported: Path) -> None:
    shapes = {}
    for name in ("image_encoder", "expression_decoder"):
        graph = onnx.load(exported / f"{name}.onnx")
        onnx.checker.check_model(graph)
        for value in (*graph.graph.input, *graph.graph.output):
            shapes[value.name] = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
    # A free axis has a name in place of a length.
    free = {name: [isinstance(length, str) for length in shape] for name, shape in shapes.items()}
    assert free["pixel_values"] == [True, False, False, False]
    assert free["input_ids"] == free["attention_mask"] == [True, True, True]
    assert free["logits"] == [True, True, False, False]
    assert free["presence_logits"] == [True, True]
    assert shapes["pixel_values"][2:] == shapes["logits"][2:] == [64, 64]


def test_slow_operators_are_replaced(exported: Path) -> None:
    config = tiny_config()
    # In each pixel attention, the rotations of queries, keys, values and outputs.
    attentions = {
        "image_encoder": config.num_image_layers,
        "expression_decoder": config.num_fusion_layers + config.num_stages,
    }
    for name, count in attentions.items():
        graph = onnx.load(exported / f"{name}.onnx").graph
        operators = [node.op_type for node in graph.node]
        assert operators.count("MultiHeadAttention") == count, name
        assert operators.count("RotaryEmbedding") == 4 * count, name
        axes = [attribute.i for node in graph.node if node.op_type == "Softmax" for attribute in node.attribute]
        assert set(axes) <= {-1, 3}, name


def test_only_matrix_products_become_8_bit_and_have_signed_weights_of_7_bits(exported: Path) -> None:
    for name in ("image_encoder", "expression_decoder"):
        before, after = (onnx.load(exported / f"{name}{suffix}.onnx").graph for suffix in ("", ".int8"))
        weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in after.initializer}
        products = [node for node in after.node if node.op_type == "MatMulInteger"]
        assert len(products) > 5
        for node in products:
            assert weights[node.input[1]].dtype == np.int8
            assert np.abs(weights[node.input[1]]).max() <= 64
        convolutions = [[node.op_type for node in graph.node].count("Conv") for graph in (before, after)]
        assert convolutions[0] == convolutions[1] > 0


class PlainSoftmax(torch.nn.Module):
    def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return logits.softmax(1), logits.softmax(-3), logits.softmax(-1)


class PlainAttention(torch.nn.Module):
    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        attend = torch.nn.functional.scaled_dot_product_attention
        mask = torch.zeros(7, 7).masked_fill(torch.ones(7, 7).triu(2).bool(), -1e4)
        return (
            attend(states, states[:, :, :3], states[:, :, :3]),
            attend(states, states, states, scale=0.7),
            attend(states, states, states, is_causal=True),
            attend(states, states, states, attn_mask=mask),
            attend(states, states, states[..., :4]),
        )


@pytest.mark.parametrize("module", [PlainSoftmax(), PlainAttention()])
def test_replaced_operators_compute_the_same(module: torch.nn.Module, tmp_path: Path) -> None:
    # A softmax of values whose exponentials overflow.
    states = torch.randn(2, 5, 7, 8, generator=torch.Generator().manual_seed(0)) * 100
    program = torch.onnx.export(
        module.eval(), (states,), dynamo=True, custom_translation_table=TRANSLATIONS, input_names=["x"], verbose=False
    )
    program.save(tmp_path / "module.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "module.onnx", providers=["CPUExecutionProvider"])
    for found, expected in zip(session.run(None, {"x": states.numpy()}), module(states), strict=True):
        np.testing.assert_allclose(np.asarray(found), expected.numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "photos"], "--dataset and --split belong together"),
        (["--split", "val"], "--dataset and --split belong together"),
        (["--dataset", "photos", "--split", "val", "--scenes", "3"], "both choose what to score"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_named(
    arguments: list[str], message: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        export.parse_arguments(["--model", str(checkpoint), *arguments])
    assert message in capsys.readouterr().err


def test_an_empty_dataset_is_refused_before_anything_is_written(checkpoint: Path, tmp_path: Path) -> None:
    folder, empty = tmp_path / "export", tmp_path / "empty"
    empty.mkdir()
    with pytest.raises((ValueError, OSError), match="empty"):
        export.main(["--model", str(checkpoint), "--output", str(folder), "--dataset", str(empty), "--split", "val"])
    assert not folder.exists()


def test_pipeline_on_graphs_answers_as_on_the_model(checkpoint: Path, exported: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels), Image.fromarray(pixels[:40, ::-1].copy())]
    texts = [["the red circle", "a star", "large square above"], ["the small green star"]]
    model = JMCELNModel.from_pretrained(checkpoint).eval()
    original = ReferringImageSegmentationPipeline(model=model, processor=tiny_processor(), device="cpu")
    # An untrained model is sure of nothing: this threshold is exceeded by some pixels of each expression.
    options = {"threshold": 0.0, "mask_threshold": 0.22, "batch_size": 2, "expressions_per_call": 4}
    expected, answers = (
        pipe(images, texts, return_overlay=True, **options) for pipe in (original, load_onnx_pipeline(exported))
    )
    assert [len(found) for found in answers] == [3, 1]
    for found, wanted in zip(chain(*answers), chain(*expected), strict=True):
        assert found["label"] == wanted["label"]
        assert found["score"] == pytest.approx(wanted["score"], abs=1e-3)
        assert found["mask"].mode == "L"
        assert found["mask"].size == wanted["mask"].size
        assert 0 < np.asarray(wanted["mask"]).mean() < 255
        assert np.mean(np.asarray(found["mask"]) != np.asarray(wanted["mask"])) < 1e-2
        assert found["overlay"].size == wanted["overlay"].size


def test_another_size_is_refused(exported: Path) -> None:
    with pytest.raises(ValueError, match=r"need images of shape \(3, 64, 64\), got \(3, 32, 64\)"):
        ONNXReferringModel(exported).get_image_features(torch.zeros(1, 3, 32, 64))


def test_padded_images_are_refused(exported: Path) -> None:
    model, pixel_values, pixel_mask = ONNXReferringModel(exported), torch.zeros(1, 3, 64, 64), torch.ones(1, 64, 64)
    whole = model.get_image_features(pixel_values, pixel_mask)
    assert whole.keys() == model.get_image_features(pixel_values).keys()
    pixel_mask[:, 40:] = 0
    with pytest.raises(ValueError, match="keep_aspect_ratio=False"):
        model.get_image_features(pixel_values, pixel_mask)


def test_missing_graphs_are_named(checkpoint: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"jmceln export` and `--int8` first"):
        ONNXReferringModel(checkpoint, quantized=True)


def test_a_wrong_export_is_noticed(checkpoint: Path) -> None:
    model = JMCELNModel.from_pretrained(checkpoint).eval()

    def run(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits, presence_logits = export.run_model(model)(inputs)
        return logits + 0.1, presence_logits

    with torch.no_grad():
        assert export.largest_difference(model, export.run_model(model), (64, 64)) < 1e-6
        assert export.largest_difference(model, run, (64, 64)) > export.TOLERANCE
        nothing = export.largest_difference(
            model, lambda inputs: tuple(value * torch.nan for value in run(inputs)), (64, 64)
        )
        assert nothing == float("inf")
        with pytest.raises(RuntimeError, match="returns the shape"):
            export.largest_difference(model, lambda inputs: (run(inputs)[0][:, :1], run(inputs)[1]), (64, 64))


def test_the_script_fails_on_a_wrong_export(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "trace", lambda *_: {})
    monkeypatch.setattr(export, "write_graphs", lambda *_: None)
    monkeypatch.setattr(
        export,
        "load_onnx_pipeline",
        lambda *_: ReferringImageSegmentationPipeline(
            model=JMCELNModel.from_pretrained(checkpoint), processor=tiny_processor(), device="cpu"
        ),
    )
    monkeypatch.setattr(export, "run_programs", lambda *_: None)
    monkeypatch.setattr(export, "largest_difference", lambda *_: 0.01)
    with pytest.raises(RuntimeError, match="differ from those of the model by 1"):
        export.main(["--model", str(checkpoint), "--output", str(tmp_path), "--rounds", "1"])
    assert json.loads((tmp_path / "export.json").read_text())["largest_difference"]["onnx"] == 0.01


def test_a_killed_export_leaves_no_graphs_of_two_models(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "export")
    torch.manual_seed(1)
    JMCELNModel(tiny_config()).save_pretrained(tmp_path / "other")
    tiny_processor().save_pretrained(tmp_path / "other")
    completed = subprocess.run(
        [sys.executable, "-c", KILLED_BETWEEN_GRAPHS, "--model", str(tmp_path / "other"), "--output", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == -signal.SIGKILL, completed.stderr
    assert (folder / "image_encoder.onnx").read_bytes() != (exported / "image_encoder.onnx").read_bytes()
    assert not (folder / "expression_decoder.onnx").exists()
    assert not (folder / "export.json").exists()
    for quantized in (False, True):
        with pytest.raises(FileNotFoundError, match="export a model"):
            load_onnx_pipeline(folder, quantized)


def test_weights_that_are_not_finite_are_refused_and_older_graphs_stay(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "export")
    model = JMCELNModel(tiny_config())
    torch.nn.init.constant_(model.text_norm.bias, float("nan"))
    model.save_pretrained(tmp_path / "broken")
    tiny_processor().save_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match=r"broken has weights that are NaN or infinite, in 1 .*`text_norm.bias`"):
        export.main(["--model", str(tmp_path / "broken"), "--output", str(folder)])
    for path in exported.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
