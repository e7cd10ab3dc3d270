"""The benchmark's instruments against known answers, and a whole run on tiny models. No test depends on a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import speed
from benchmarks.import_cost import IMPORT_PACKAGES, PACKAGES, modules_after, required_imports
from benchmarks.measuring import count_flops, fit_line, peak_memory, time_side_by_side
from benchmarks.speed_models import Encoders, Workload, build_model
from benchmarks.speed_report import as_markdown, document, flops_beyond_encoders, targets
from modeling_jmceln import attention


CPU = torch.device("cpu")


def test_peak_memory_is_exact() -> None:
    kept = []

    def call() -> None:
        first = torch.zeros(1000)  # 4,000 bytes
        second = first.double()  # 8,000 more
        del first
        kept.append(torch.zeros(500))  # 2,000, when the 4,000 are gone
        del second

    assert peak_memory(call, CPU) == 12_000
    assert peak_memory(lambda: None, CPU) == 0
    assert peak_memory(kept.clear, CPU) == 0


def test_flops_are_exact() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 4)])
            self.convolution = nn.Conv2d(3, 5, kernel_size=3, padding=1)

        def forward(self, rows: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
            rows = self.layers[1](self.layers[0](rows))
            return rows @ rows.T + self.convolution(image).sum()

    with torch.device("meta"):
        counts = count_flops(Parts(), rows=torch.zeros(10, 8), image=torch.zeros(1, 3, 6, 7))
    layers, convolution, product = 2 * 10 * (8 * 16 + 16 * 4), 2 * 6 * 7 * 5 * 3 * 9, 2 * 10 * 10 * 4
    expected = {"layers": layers, "convolution": convolution, "other": product}
    assert counts == {**expected, "total": sum(expected.values())}


def test_flops_of_the_model_are_those_of_its_parts_and_counted_as_on_a_device_with_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Keys that only fill whole vectors of a CPU are no operations of the model.
    monkeypatch.setattr(attention, "_KEY_BLOCK", 1)
    workload = Workload(size=64, expressions=3)
    meta = torch.device("meta")
    counts = count_flops(build_model(True, "eager", meta), **workload.inputs(99, meta))
    assert counts["backbone"] > 0
    assert counts["text_model"] > 0
    assert counts["fusion_layers"] > 0
    assert sum(value for name, value in counts.items() if name != "total") == counts["total"]
    assert counts == count_flops(build_model(True, "eager", CPU), **workload.inputs(99, CPU))


def test_operations_beyond_the_encoders_are_linear_in_the_expressions() -> None:
    benchmark = speed.Benchmark(speed.parse_arguments(["--tiny", "--device", "cpu"]))
    one, two, eight = (flops_beyond_encoders(benchmark.flops_of(64, count)) for count in (1, 2, 8))
    assert eight - one == 7 * (two - one)


def test_the_floor_is_the_models_own_encoders() -> None:
    model = build_model(True, "sdpa", CPU)
    inputs = Workload(size=64, expressions=2).inputs(99, CPU)
    with torch.no_grad():
        feature_maps, words = Encoders(model)(**inputs)
    assert [feature_map.shape[-1] for feature_map in feature_maps] == [16, 8, 4, 2]
    assert words.shape == (2, 20, 32)
    assert not any(parameter.eq(0).all() for name, parameter in model.named_parameters() if name.endswith("bias"))


def test_many_expressions_in_chunks_are_the_same_and_take_bounded_memory() -> None:
    model = build_model(True, "sdpa", CPU)
    inputs = Workload(size=64, expressions=40).inputs(99, CPU)
    with torch.inference_mode():
        whole = model(**inputs).logits
        torch.testing.assert_close(speed.predict_in_chunks(model, inputs, 7), whole, atol=1e-4, rtol=1e-4)
        results = 2 * whole.nbytes  # the chunks and what they are joined to
        in_chunks = peak_memory(lambda: speed.predict_in_chunks(model, inputs, 4), CPU) - results
        at_once = peak_memory(lambda: model(**inputs), CPU)
    assert in_chunks < at_once / 2


def test_calls_take_turns() -> None:
    order = []
    timings = time_side_by_side({name: lambda name=name: order.append(name) for name in "ab"}, CPU, rounds=3)
    assert order == ["a", "b", "a", "b", "a", "b", "a", "b"]
    assert timings["a"].ratio == 1
    assert timings["b"].lower <= timings["b"].seconds <= timings["b"].upper


def test_line_through_points() -> None:
    line = fit_line([1, 2, 4], [5, 7, 11])
    assert line["intercept"] == pytest.approx(3)
    assert line["slope"] == pytest.approx(2)
    assert line["largest_deviation"] == pytest.approx(0, abs=1e-9)
    assert fit_line([1, 2, 4], [3, 12, 48])["exponent"] == pytest.approx(2)
    with pytest.raises(ValueError, match="two different values of x"):
        fit_line([2, 2], [1, 3])


@pytest.mark.slow
def test_whole_run_writes_json_tables_figure_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    sections = ["flops", "inference", "batches", "training", "memory", "profile"]
    options = ["--tiny", "--device", "cpu", "--rounds", "1", "--expressions", "1", "8", "--batch_images", "1", "2"]
    results = speed.main([*options, "--output", str(output), "--sections", *sections])
    assert json.loads((output / "speed.json").read_text()) == json.loads(json.dumps(results))
    assert (output / "speed.png").stat().st_size > 0
    assert (output / "speed.md").read_text() in capsys.readouterr().out
    inference = [(row["model"], row["size"], row["expressions"]) for row in results["inference"]]
    first, second = ([("encoders", size, 1), ("jmceln", size, 1), ("jmceln", size, 8)] for size in (64, 96))
    assert inference == [*first, ("clipseg", 32, 1), ("clipseg", 32, 8), *second]
    memory = {(row["mode"], row["expressions"], row.get("gradient_checkpointing")): row for row in results["memory"]}
    assert memory["training", 8, True]["bytes"] < memory["training", 8, False]["bytes"]
    assert memory["inference in chunks", 200, None]["bytes"] > 0
    assert sum(row["share"] for row in results["profile"]) <= 1 + 1e-9
    wanted = [row["target"] for row in targets(results)]
    assert len(wanted) == 7

    docs = tmp_path / "docs"
    docs.mkdir()
    page = docs / "performance.md"
    page.write_text("before\n<!-- speed:cpu:begin -->\nold\n<!-- speed:cpu:end -->\nafter\n")
    for _ in range(2):  # a second time changes nothing
        document(results, docs)
        text = page.read_text()
        assert text.startswith("before\n<!-- speed:cpu:begin -->\n![")
        assert text.endswith("<!-- speed:cpu:end -->\nafter\n")
        assert as_markdown(results) in text
        assert "old" not in text
    assert (docs / "performance" / "cpu.png").exists()
    again = speed.main(["--from_json", str(docs / "performance" / "cpu.json"), "--output", str(output)])
    assert as_markdown(again) == as_markdown(results)
    page.write_text("no markers")
    with pytest.raises(ValueError, match="must contain each of the two markers"):
        document(results, docs)


@pytest.mark.slow
def test_small_preset_measures_the_shipped_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (folder,) = (folder for folder in speed.shipped_folders() if folder.name == "jmceln-shapes")
    monkeypatch.setattr(speed, "shipped_folders", lambda: [folder])
    options = ["--preset", "small", "--device", "cpu", "--sizes", "64", "--rounds", "1", "--output", str(tmp_path)]
    results = speed.main(options)
    record = results["shipped"][0]
    assert record["threads"] == 1
    assert record["bytes"]["training step"] > record["bytes"]["first expression"] > 0
    seconds = {name: timing["seconds"] for name, timing in record["seconds"].items()}
    assert seconds["training step"] > seconds["training step of the encoders"]
    assert seconds["32 expressions"] > seconds["1 expression"]
    assert [row["wanted"] for row in targets(results)] == ["≤ 0.9 s", "≤ 8 ms", "≤ 1.02", "≤ 150 ms", "≤ 10 %"]

    page = tmp_path / "performance.md"
    page.write_text(
        "<!-- speed:cpu:begin -->\n<!-- speed:cpu:end -->\n<!-- speed:small:begin -->\n<!-- speed:small:end -->\n"
    )
    document(results, tmp_path)
    before, after = page.read_text().split("<!-- speed:small:begin -->")
    assert "Shipped models" in after
    assert "Shipped models" not in before


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.parse_arguments(["--variants", "int4:sdpa:none"])
    assert "DTYPE:ATTENTION:COMPILE" in capsys.readouterr().err


def test_presets_compile_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = speed.parse_arguments(["--preset", "full", "--device", "cpu"]).variants
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_cuda = speed.parse_arguments(["--preset", "full", "--device", "cuda"]).variants
    assert on_cpu == [variant for variant in on_cuda if variant.endswith(":none")]
    assert len(on_cpu) < len(on_cuda)
    asked = ["float32:sdpa:default"]
    assert speed.parse_arguments(["--device", "cpu", "--variants", *asked]).variants == asked


@pytest.mark.slow
def test_preset_for_a_gpu_runs_on_tiny_models(tmp_path: Path) -> None:
    few = ["--batch_images", "1", "2", "--training_images", "1", "--many_expressions", "9", "--rounds", "1"]
    results = speed.main(["--preset", "gpu", "--tiny", "--device", "cpu", *few, "--output", str(tmp_path)])
    assert [(row["images"], row["expressions"]) for row in results["batches"]] == [(1, 1), (2, 1), (1, 8), (2, 8)]
    assert all(row["dtype"] == "bfloat16" for row in results["training"])
    assert all(row["flops_per_second"] > 0 for row in results["training"] if row["model"] == "jmceln")


@pytest.mark.slow
def test_importing_the_packages_brings_nothing_but_what_they_name() -> None:
    modules = modules_after(IMPORT_PACKAGES)
    own = {name for name in modules if name.split(".")[0] in PACKAGES}
    assert "processing.pipeline_jmceln" in own
    assert modules - modules_after(required_imports()) == own
    needed = {name.split(".")[0] for name in modules}
    only_for_data_and_training = {"datasets", "evaluate", "matplotlib", "onnx", "onnxruntime", "peft", "pycocotools"}
    assert not needed & (only_for_data_and_training | {"pandas", "tensorboard"})
