"""Measure the effect of LCE and PAN: train and score variants of equal size on the synthetic benchmark.

    python benchmarks/ablation.py                                # all of benchmarks/ablation.yaml, then the report
    python benchmarks/ablation.py --seeds 0 --max_steps 200 --output-dir runs/ablation_look    # a short look
    python benchmarks/ablation.py --report-only --document       # tables, plot and docs/results.md of finished runs

Every variant is trained with `jmceln train` from the same weights on the same data in the same order, once per seed.
The results of finished runs are saved as JSON and not repeated; an interrupted run resumes from its newest checkpoint.
All variants run with the first seed before the second, so that they can be compared early, and each run updates the
report. With `--document`, finished runs are also saved in docs/ablation.json. On another machine, they are not
repeated if the settings, the code of the model and the scenes, and the initial weights are the same.

A small model uses only one core: start the command once per core, each with other `--seeds` or variants (`--only`) and
OMP_NUM_THREADS=1, and write the report at the end with `--report-only`. This report also includes documented runs with
the same settings and scenes whose model code was different, and says so.
"""

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import yaml
from tqdm.auto import tqdm

import modeling_jmceln
from benchmarks.ablation_report import REPORTED_DIFFERENCES, as_markdown, document, draw
from benchmarks.stage_analysis import analyze, summarize
from modeling_jmceln import JMCELNModel
from processing import JMCELNProcessor
from processing.evaluation.controls import CONTROLS
from processing.shapes.dataset import shapes_row
from processing.shapes.oracles import LabeledScene, labeled_scene, oracle_scores
from processing.training import run as train
from processing.training.arguments import load_settings


FULL_MODEL = "cascade + LCE + PAN"
DOCUMENTED = Path("docs/ablation.json")
_DIGESTED_SCENES = 16


def parse_settings(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All other arguments are passed on to jmceln train, for example --max_steps 3000.",
    )
    parser.add_argument("--plan", type=Path, default=Path("benchmarks/ablation.yaml"), help="default: %(default)s")
    parser.add_argument("--output-dir", type=Path, help="default: as in the plan")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: as in the plan")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="variants to run (default: all, and the sweeps)")
    parser.add_argument("--test-images", type=int, help="default: as in the plan")
    parser.add_argument("--report-only", action="store_true", help="train nothing, only report finished runs")
    parser.add_argument("--document", action="store_true", help="also write docs/results.md and its plot")
    return parser.parse_known_args(arguments)


def load_plan(path: Path) -> dict[str, Any]:
    """Loads the plan and adds its sweeps as variants, whose names are in `swept`."""
    plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    swept = {
        f"{field} = {value}": {field: value} for field, values in plan.get("sweeps", {}).items() for value in values
    }
    plan["variants"] = {**plan["variants"], **swept}
    plan["swept"] = list(swept)
    return plan


def run_name(variant: str, seed: int) -> str:
    return f"{variant.replace(' + ', '_').replace(' = ', '_').replace(' ', '_')}-{seed}"


def digest_of_scenes(train_data: Sequence[Mapping[str, Any]], test: Mapping[str, Any]) -> str:
    """Digest of the first training and test scenes, which depends on the data and not on the text of the code."""
    digest = hashlib.sha256()
    for data in (*train_data, {"split": test["split"], "image_size": test["image_size"]}):
        options = {name: value for name, value in data.items() if name not in ("name", "size")}
        for index in range(_DIGESTED_SCENES):
            row = shapes_row(index=index, **options)
            digest.update(row.pop("image").tobytes())
            digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def digest_of_files(paths: Iterable[Path]) -> str | None:
    """Digest of the contents of files, or `None` without files."""
    contents = [path.read_bytes() for path in paths]
    return hashlib.sha256(b"".join(contents)).hexdigest() if contents else None


def describe_run(
    variant: str, seed: int, plan: Mapping[str, Any], training_arguments: Sequence[str]
) -> dict[str, Any]:
    """Returns the settings of a run and, as `made_with`, digests of everything else that its scores depend on."""
    settings = {
        "variant": variant,
        "seed": seed,
        "fields": plan["variants"][variant],
        "seed_settings": plan["seed_settings"],
        "run": load_settings(plan["run"]),
        "arguments": list(training_arguments),
        "test": plan["test"],
    }
    parts = [settings["run"].get(part) for part in ("model_name_or_path", "vision_model")]
    weights = [Path(part) / "model.safetensors" for part in parts if part]
    made_with = {
        "scenes": digest_of_scenes(settings["run"]["train_data"], plan["test"]),
        "model": digest_of_files(sorted(Path(modeling_jmceln.__file__).parent.glob("*.py"))),
        "weights": digest_of_files(path for path in weights if path.is_file()),
    }
    # Through JSON, so that it is equal to what is read from a file.
    return json.loads(json.dumps({**settings, "made_with": made_with}))


def folder_name(run: Mapping[str, Any]) -> str:
    """Returns the folder name of a run: a readable name and a digest of its description."""
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    return f"{run_name(run['variant'], run['seed'])}-{digest[:8]}"


def differences(result: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """Lists the differences between a finished run and a description. `made_with.weights` may be `"unknown"`."""
    then, now = ({key: value for key, value in one.items() if key in run} for one in (result, run))
    found = []
    for key in run:
        if isinstance(run[key], Mapping) and isinstance(then.get(key), Mapping):
            names = sorted({*then[key], *now[key]})
            found += [f"{key}.{name}" for name in names if then[key].get(name) != now[key].get(name)]
        elif then.get(key) != now[key]:
            found.append(key)
    return found


def read_finished(
    run: Mapping[str, Any], output_dir: Path, documented: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any] | None, list[str]]:
    """
    Returns the result of a finished run, here or among those `documented`, and its differences from the description.
    The result is `None` if there is no run of this name.

    Raises:
        ValueError: If a run of this name that was finished here differs from the description.
    """
    path = output_dir / f"{run_name(run['variant'], run['seed'])}.json"
    if path.is_file():
        result = json.loads(path.read_text(encoding="utf-8"))
        if found := differences(result, run):
            raise ValueError(
                f"{path} was made with other {', '.join(found)}: give the same arguments again, remove it, or choose"
                " another --output-dir."
            )
        return result, []
    for result in documented:
        if (result["variant"], result["seed"]) == (run["variant"], run["seed"]):
            return dict(result), differences(result, run)
    return None, []


def train_and_measure(run: Mapping[str, Any], run_file: str, scenes: Sequence[LabeledScene], output_dir: Path) -> None:
    """Runs or resumes a training, and writes its result as JSON to `output_dir`."""
    name = run_name(run["variant"], run["seed"])
    folder = output_dir / folder_name(run)
    fields = [
        part for field, value in run["fields"].items() for part in (f"--model_config.{field}", json.dumps(value))
    ]
    seeds = [part for setting in run["seed_settings"] for part in (f"--{setting}", str(run["seed"]))]
    start = time.perf_counter()
    train.main([run_file, *fields, *seeds, "--output_dir", str(folder), *run["arguments"]])
    seconds = time.perf_counter() - start
    result = {**run, "seconds": seconds, **measure(run["variant"], folder, scenes)}
    temporary = output_dir / f"{name}.part"
    temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
    temporary.replace(output_dir / f"{name}.json")
    # Only the model is needed; its checkpoints are three times as large.
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def measure(variant: str, folder: Path, scenes: Sequence[LabeledScene]) -> dict[str, Any]:
    """Returns the size of a trained model and its scores."""
    model = JMCELNModel.from_pretrained(folder)
    processor = JMCELNProcessor.from_pretrained(folder)
    # Controls show whether a model uses the words at all; each takes as long as all expressions.
    controls = tuple(CONTROLS) if variant == FULL_MODEL else ()
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "summary": summarize(analyze(model, processor, scenes, controls=controls)),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    settings, training_arguments = parse_settings(arguments)
    plan = load_plan(settings.plan)
    if settings.test_images is not None:
        plan["test"]["size"] = settings.test_images
    output_dir = settings.output_dir or Path(plan["output_dir"])
    output_dir.mkdir(parents=True, exist_ok=True)
    unknown = set(settings.only or ()) - set(plan["variants"])
    if unknown:
        raise ValueError(f"There are no variants {sorted(unknown)}: choose from {list(plan['variants'])}.")
    test = plan["test"]
    scenes = [
        labeled_scene(test["split"], index, image_size=test["image_size"])
        for index in tqdm(range(test["size"]), desc="test scenes", unit="scene", leave=False)
    ]
    documented = json.loads(DOCUMENTED.read_text(encoding="utf-8")) if DOCUMENTED.is_file() else []
    wanted = settings.seeds or plan["seeds"]
    runs = {
        (variant, seed): describe_run(variant, seed, plan, training_arguments)
        for seed in sorted({*wanted, *plan["seeds"]})
        for variant in plan["variants"]
    }
    report = {
        "baseline": plan["baseline"],
        "full_model": FULL_MODEL,
        "variants": [variant for variant in plan["variants"] if variant not in plan["swept"]],
        "swept": plan["swept"],
        "oracles": oracle_scores(scenes),
    }

    def write_report() -> str:
        report["runs"], report["differences"], refused = [], {}, set()
        for run in runs.values():
            result, found = read_finished(run, output_dir, documented)
            # Runs with the same settings and scenes are reported and not repeated. The report lists other differences.
            is_reported = settings.report_only and set(found) <= set(REPORTED_DIFFERENCES)
            if result is not None and (is_reported or not found):
                report["runs"].append(result)
                for name in found:
                    report["differences"][name] = report["differences"].get(name, 0) + 1
            else:
                refused.update(found)
        if not report["runs"]:
            reason = f"; those of {DOCUMENTED} differ in {', '.join(sorted(refused))}" if refused else ""
            raise ValueError(f"No run with these settings is finished in {output_dir}{reason}.")
        text = as_markdown(report)
        (output_dir / "report.md").write_text(text, encoding="utf-8")
        draw(report, output_dir / "report.png")
        if settings.document:
            document(report, DOCUMENTED)
        return text

    if not settings.report_only:
        todo = [(variant, seed) for seed in wanted for variant in settings.only or plan["variants"]]
        for key in tqdm(todo, desc="ablation", unit="run"):
            result, found = read_finished(runs[key], output_dir, documented)
            if result is None or found:
                train_and_measure(runs[key], plan["run"], scenes, output_dir)
                write_report()
    print(write_report())
    return report


if __name__ == "__main__":
    main()
