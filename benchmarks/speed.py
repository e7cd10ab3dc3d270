"""Measures speed, memory and operations of JMCELN, of its encoders alone, and of CLIPSeg.

    python benchmarks/speed.py                                      # a quick look, a few minutes on two cores
    python benchmarks/speed.py --preset full --document             # everything, written to docs/performance.md
    python benchmarks/speed.py --preset small --document            # the shipped models, on one core and on two
    python benchmarks/speed.py --sections flops memory --sizes 480  # some sections at one size
    python benchmarks/speed.py --from_json runs/speed/speed.json --document

All models are measured in one process, and their calls alternate, so that other load on the machine affects all of
them alike. Weights are random, except in the section `shipped`: their values do not change the times. The output
folder gets `speed.json`, `speed.md` and `speed.png`. Options override the preset.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import torch
import transformers

from benchmarks.import_cost import measure_imports
from benchmarks.measuring import (
    Timing,
    count_flops,
    matmul_rate,
    peak_memory,
    precision,
    time_side_by_side,
)
from benchmarks.speed_models import Encoders, Workload, build_clipseg, build_model
from benchmarks.speed_report import as_markdown, document, draw
from benchmarks.speed_shipped import measure_model, shipped_folders
from modeling_jmceln import JMCELNModel


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "sections": ["flops", "inference", "training", "memory", "profile", "imports"],
        "sizes": [480],
        "expressions": [1, 2, 8],
        "variants": ["float32:sdpa:none"],
        "training_images": [1],
        "training_expressions": [1, 8],
        "memory_images": [1],
        "rounds": 3,
    },
    "small": {
        "sections": ["shipped"],
        "sizes": [288],
        "expressions": [1],
        "variants": ["float32:sdpa:none"],
        "rounds": 9,
    },
    "gpu": {
        "sections": ["flops", "inference", "batches", "training", "memory", "profile"],
        "sizes": [480],
        "expressions": [1, 2, 8],
        "variants": ["bfloat16:sdpa:default", "bfloat16:sdpa:none", "float32:sdpa:none"],
        "batch_images": [1, 4, 16, 64],
        "training_images": [1, 4, 16],
        "training_expressions": [1, 8],
        "memory_images": [4],
        "rounds": 5,
    },
    "full": {
        "sections": ["flops", "inference", "batches", "training", "memory", "profile", "imports"],
        "sizes": [480, 320, 640, 1024],
        "expressions": [1, 2, 4, 8, 32],
        "variants": [
            "float32:sdpa:none",
            "float32:eager:none",
            "bfloat16:sdpa:none",
            "bfloat16:eager:none",
            "float32:sdpa:default",
            "bfloat16:sdpa:default",
        ],
        "training_images": [1, 2],
        "training_expressions": [1, 8],
        "memory_images": [1, 4],
        "rounds": 5,
    },
}
TINY_SIZES = [64, 96]
CHUNK = 32
EMULATED = 4
TRAINING_COST = 3  # a backward pass costs about twice the forward pass


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="quick", help="which measurements to take")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, help="parts of the benchmark")
    parser.add_argument(
        "--sizes", type=int, nargs="+", help="sides of the input in pixels; sections that need one size use the first"
    )
    parser.add_argument("--expressions", type=int, nargs="+", help="numbers of expressions per image")
    parser.add_argument(
        "--variants",
        nargs="+",
        metavar="DTYPE:ATTENTION:COMPILE",
        help="float32 or bfloat16 (autocast), eager or sdpa, none or a mode of torch.compile (presets compile only on "
        "CUDA). The first variant is measured at all sizes and counts, the others at the first size with the smallest "
        "count and the largest count up to 8",
    )
    parser.add_argument("--batch_images", type=int, nargs="+", help="images per batch at inference")
    parser.add_argument("--training_images", type=int, nargs="+", help="images per training step")
    parser.add_argument("--training_expressions", type=int, nargs="+", help="expressions per image in training")
    parser.add_argument(
        "--memory_images", type=int, nargs="+", help="images per training step when memory is measured"
    )
    parser.add_argument(
        "--many_expressions", type=int, default=200, help="number of expressions whose memory is measured in chunks"
    )
    parser.add_argument("--rounds", type=int, help="how often each call is timed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to test the benchmark itself")
    parser.add_argument("--output", type=Path, default=Path("runs/speed"), help="output folder")
    parser.add_argument("--from_json", type=Path, help="measure nothing, and report the results in this file")
    parser.add_argument("--document", action="store_true", help="write the report into docs/performance.md")
    options = parser.parse_args(arguments)
    if options.variants is None and not options.device.startswith("cuda"):
        # Inductor takes longer for a Swin-B on two cores than all other measurements together.
        options.variants = [name for name in PRESETS[options.preset]["variants"] if name.endswith(":none")]
    for name, value in {"batch_images": [1, 2, 4, 8], **PRESETS[options.preset]}.items():
        if getattr(options, name) is None:
            setattr(options, name, TINY_SIZES if name == "sizes" and options.tiny else value)
    for variant in options.variants:
        parts = variant.split(":")
        if len(parts) != 3 or parts[0] not in ("float32", "bfloat16") or parts[1] not in ("eager", "sdpa"):
            parser.error(f"--variants needs DTYPE:ATTENTION:COMPILE, such as bfloat16:sdpa:none, got {variant}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; use --device cpu")
    return options


class Benchmark:
    """All measurements of one run. Each section adds its results to `results` and to `speed.json`."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.device = torch.device(options.device)
        self.size = options.sizes[0]
        self._flops: dict[tuple[int, int], dict[str, int]] = {}
        self.results: dict[str, Any] = {
            "machine": describe_machine(self.device, options.variants),
            "settings": {
                name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()
            },
        }

    def run(self) -> dict[str, Any]:
        for section in self.options.sections:
            start = time.perf_counter()
            self.results[section] = SECTIONS[section](self)
            print(f"{section}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
            text = json.dumps(self.results, indent=2) + "\n"
            (self.options.output / "speed.json").write_text(text, encoding="utf-8")
        return self.results

    def flops_of(self, size: int, expressions: int) -> dict[str, int]:
        if (size, expressions) not in self._flops:
            meta = torch.device("meta")
            model = build_model(self.options.tiny, "eager", meta)
            inputs = Workload(size, expressions).inputs(self.vocabulary(model), meta)
            self._flops[size, expressions] = count_flops(model, **inputs)
        return self._flops[size, expressions]

    @staticmethod
    def vocabulary(model: JMCELNModel) -> int:
        return model.config.text_config.vocab_size

    def few_counts(self) -> list[int]:
        """Returns the smallest count of expressions and the largest up to 8, to save time."""
        counts = sorted(self.options.expressions)
        return sorted({counts[0], max(count for count in counts if count <= max(counts[0], 8))})

    def measure_flops(self) -> list[dict[str, Any]]:
        return [
            {"size": size, "expressions": count, **self.flops_of(size, count)}
            for size in self.options.sizes
            for count in sorted({*self.options.expressions, 1, 2})
        ]

    def measure_inference(self) -> list[dict[str, Any]]:
        counts = sorted(self.options.expressions)
        few = self.few_counts()
        records = []
        for index, variant in enumerate(self.options.variants):
            if variant in self.results["machine"]["skipped_variants"]:
                continue
            for size in self.options.sizes if index == 0 else self.options.sizes[:1]:
                with_clipseg = size == self.size
                records += self._time_variant(variant, size, counts if index == 0 else few, with_clipseg)
        return records

    def _time_variant(self, variant: str, size: int, counts: list[int], with_clipseg: bool) -> list[dict[str, Any]]:
        dtype, attention, mode = variant.split(":")
        model = build_model(self.options.tiny, attention, self.device)
        modules: dict[str, torch.nn.Module] = {"encoders": Encoders(model), "jmceln": model}
        vocabulary = self.vocabulary(model)
        calls: dict[str, Callable[[], Any]] = {}
        cases: dict[str, tuple[str, int, int]] = {}

        def add(name: str, count: int, pixels: int, inputs: dict[str, Any]) -> None:
            module = modules[name]

            def call() -> Any:
                with torch.inference_mode(), precision(dtype, self.device):
                    return module(**inputs)

            calls[f"{name} {count}"] = call
            cases[f"{name} {count}"] = (name, count, pixels)

        if with_clipseg:
            modules["clipseg"] = build_clipseg(self.options.tiny, attention, self.device)
        if mode != "none":
            torch._dynamo.reset()
            modules = {name: torch.compile(module, mode=mode) for name, module in modules.items()}
        add("encoders", 1, size, Workload(size, 1).inputs(vocabulary, self.device))
        for count in counts:
            add("jmceln", count, size, Workload(size, count).inputs(vocabulary, self.device))
        if with_clipseg:
            clipseg_size = modules["clipseg"].config.vision_config.image_size
            for count in self.few_counts():
                inputs = Workload(clipseg_size, 1, count).inputs(vocabulary, self.device)
                # CLIPSeg takes one image per prompt, even if it is always the same one.
                inputs = {name: value.flatten(0, 1) if value.ndim == 3 else value for name, value in inputs.items()}
                add("clipseg", count, clipseg_size, inputs)

        timings = time_side_by_side(calls, self.device, self.options.rounds)
        records = []
        for key, (name, count, pixels) in cases.items():
            record: dict[str, Any] = {"model": name, "size": pixels, "images": 1, "expressions": count}
            record |= {"dtype": dtype, "attention": attention, "compile": mode, **timings[key].to_dict()}
            if name == "jmceln":
                record["flops_per_second"] = self.flops_of(size, count)["total"] / timings[key].seconds
            records.append(record)
        return records

    def measure_batches(self) -> list[dict[str, Any]]:
        """Measures time and peak memory of inference by batch size, in the first variant without compilation."""
        dtype, attention, _ = self.options.variants[0].split(":")
        model = build_model(self.options.tiny, attention, self.device)
        records = []
        for count in self.options.training_expressions:
            for images in self.options.batch_images:
                inputs = Workload(self.size, count, images).inputs(self.vocabulary(model), self.device)

                def call(inputs: dict[str, Any] = inputs) -> Any:
                    with torch.inference_mode(), precision(dtype, self.device):
                        return model(**inputs)

                record: dict[str, Any] = {"size": self.size, "images": images, "expressions": count}
                try:
                    memory = peak_memory(call, self.device)
                    timing = time_side_by_side({"jmceln": call}, self.device, self.options.rounds)["jmceln"]
                except torch.OutOfMemoryError:
                    records.append({**record, "out_of_memory": True})
                    break
                records.append({**record, **timing.to_dict(), **per_second(timing, images, count), "bytes": memory})
        return records

    def measure_training(self) -> list[dict[str, Any]]:
        """Times training steps of the encoders, the model, and the model with gradient checkpointing."""
        dtype, attention, _ = self.options.variants[0].split(":")
        model = build_model(self.options.tiny, attention, self.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
        calls: dict[str, Callable[[], Any]] = {}
        cases: dict[str, tuple[str, int, int, bool]] = {}
        for images in self.options.training_images:
            for count in self.options.training_expressions:
                for name, checkpointing in (("encoders", False), ("jmceln", False), ("jmceln", True)):
                    key = f"{name} {images} {count} {checkpointing}"
                    cases[key] = (name, images, count, checkpointing)
                    pass_both_ways = self._training_pass(
                        model, name, Workload(self.size, count, images), checkpointing
                    )

                    def step(pass_both_ways: Callable[[], None] = pass_both_ways) -> None:
                        pass_both_ways()
                        optimizer.step()
                        optimizer.zero_grad()

                    calls[key] = step
        timings = time_side_by_side(calls, self.device, self.options.rounds)
        records = []
        for key, (name, images, count, checkpointing) in cases.items():
            record = {"model": name, "size": self.size, "images": images, "expressions": count, "dtype": dtype}
            record |= {"attention": attention, "gradient_checkpointing": checkpointing, **timings[key].to_dict()}
            record |= per_second(timings[key], images, count)
            if name == "jmceln":
                flops = TRAINING_COST * images * self.flops_of(self.size, count)["total"]
                record["flops_per_second"] = flops / timings[key].seconds
            records.append(record)
        return records

    def _training_pass(
        self, model: JMCELNModel, name: str, workload: Workload, checkpointing: bool
    ) -> Callable[[], None]:
        """Returns a function that runs forward and backward and keeps the gradients."""
        dtype = self.options.variants[0].split(":")[0]
        inputs = workload.inputs(self.vocabulary(model), self.device)
        labels = workload.labels(self.device)
        encoders = Encoders(model)

        def call() -> None:
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            else:
                model.gradient_checkpointing_disable()
            with precision(dtype, self.device):
                if name == "jmceln":
                    loss = model(**inputs, labels=labels).loss
                else:
                    feature_maps, words = encoders(**inputs)
                    loss = sum(feature_map.float().mean() for feature_map in (*feature_maps, words))
            loss.backward()

        return call

    def measure_memory(self) -> list[dict[str, Any]]:
        """Measures peak bytes beyond the weights; in training, beyond weights, gradients and optimizer states."""
        dtype, attention, _ = self.options.variants[0].split(":")
        model = build_model(self.options.tiny, attention, self.device)
        weights = sum(parameter.nbytes for parameter in model.parameters())
        records = []

        def add(mode: str, images: int, count: int, fixed: int, call: Callable[[], Any], **more: Any) -> None:
            peak = peak_memory(call, self.device)
            record = {"mode": mode, "size": self.size, "images": images, "expressions": count, **more}
            records.append({**record, "bytes": peak, "fixed_bytes": fixed})

        def infer(count: int, chunk: int) -> None:
            inputs = Workload(self.size, count).inputs(self.vocabulary(model), self.device)
            with torch.inference_mode(), precision(dtype, self.device):
                predict_in_chunks(model, inputs, chunk)

        for count in sorted(self.options.expressions):
            add("inference", 1, count, weights, lambda count=count: infer(count, count))
        many = self.options.many_expressions
        add("inference in chunks", 1, many, weights, lambda: infer(many, CHUNK), chunk=CHUNK)

        model.train()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for images in self.options.memory_images:
            for count in self.options.training_expressions:
                for checkpointing in (False, True):
                    call = self._training_pass(model, "jmceln", Workload(self.size, count, images), checkpointing)
                    # Weights, gradients and both moments of AdamW.
                    add("training", images, count, 4 * weights, call, gradient_checkpointing=checkpointing)
        return records

    def measure_profile(self) -> list[dict[str, Any]]:
        """Profiles the operators that segment eight expressions in an encoded image."""
        dtype, attention, _ = self.options.variants[0].split(":")
        model = build_model(self.options.tiny, attention, self.device)
        inputs = Workload(self.size, 8).inputs(self.vocabulary(model), self.device)
        on_cuda = self.device.type == "cuda"
        activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_cuda
        with torch.inference_mode(), precision(dtype, self.device):
            image_features = model.get_image_features(inputs.pop("pixel_values"))
            model(image_features=image_features, **inputs)
            with torch.profiler.profile(activities=activities) as profiler:
                model(image_features=image_features, **inputs)
        name = "self_device_time_total" if on_cuda else "self_cpu_time_total"
        operators = sorted(profiler.key_averages(), key=lambda entry: -getattr(entry, name))
        total = sum(getattr(entry, name) for entry in operators)
        return [
            {"operator": entry.key, "calls": entry.count, "share": getattr(entry, name) / total}
            for entry in operators[:12]
        ]

    def measure_shipped(self) -> list[dict[str, Any]]:
        """Measures the shipped models on one core and on all cores."""
        return [
            measure_model(folder, self.size, threads, self.options.rounds, self.device)
            for folder in shipped_folders()
            for threads in sorted({1, min(2, os.cpu_count() or 1)})
        ]

    def measure_imports(self) -> dict[str, float]:
        return measure_imports(self.options.rounds)


SECTIONS: dict[str, Callable[[Benchmark], Any]] = {
    "flops": Benchmark.measure_flops,
    "inference": Benchmark.measure_inference,
    "batches": Benchmark.measure_batches,
    "training": Benchmark.measure_training,
    "memory": Benchmark.measure_memory,
    "profile": Benchmark.measure_profile,
    "imports": Benchmark.measure_imports,
    "shipped": Benchmark.measure_shipped,
}


def per_second(timing: Timing, images: int, expressions: int) -> dict[str, float]:
    return {
        "images_per_second": images / timing.seconds,
        "expressions_per_second": images * expressions / timing.seconds,
    }


def predict_in_chunks(model: JMCELNModel, inputs: dict[str, Any], chunk: int) -> torch.Tensor:
    """Encodes an image once and predicts the mask logits of its expressions, `chunk` at a time."""
    image_features = model.get_image_features(inputs["pixel_values"])
    logits = [
        model(image_features=image_features, input_ids=input_ids, attention_mask=attention_mask).logits
        for input_ids, attention_mask in zip(
            inputs["input_ids"].split(chunk, dim=1), inputs["attention_mask"].split(chunk, dim=1), strict=True
        )
    ]
    return torch.cat(logits, dim=1)


def describe_machine(device: torch.device, variants: Sequence[str]) -> dict[str, Any]:
    machine: dict[str, Any] = {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    rates = {dtype: matmul_rate(dtype, device) for dtype in ("float32", "bfloat16")}
    machine["matmul_flops_per_second"] = rates
    # A processor without bfloat16 instructions needs minutes for what takes a second in float32.
    is_emulated = rates["bfloat16"] < rates["float32"] / EMULATED
    machine["skipped_variants"] = [variant for variant in variants if is_emulated and "bfloat16" in variant]
    return machine


def processor_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes the report. Returns the results."""
    options = parse_arguments(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.from_json is not None:
        results = json.loads(options.from_json.read_text(encoding="utf-8"))
    else:
        results = Benchmark(options).run()
    markdown = as_markdown(results)
    print(markdown)
    (options.output / "speed.md").write_text(markdown, encoding="utf-8")
    draw(results, options.output / "speed.png")
    if options.document:
        document(results, Path(__file__).resolve().parents[1] / "docs")
    return results


if __name__ == "__main__":
    main()
