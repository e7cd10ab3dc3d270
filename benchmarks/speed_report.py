"""Makes the tables and the figure of the speed benchmark from its JSON."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.measuring import fit_line
from processing.evaluation.report import fill_between, markdown_table


GIGA = 1e9
ENCODERS = ("backbone", "text_model")


def table(rows: Iterable[dict[str, str]]) -> str:
    rows = list(rows)
    return markdown_table([list(rows[0]), *(list(row.values()) for row in rows)])


def select(records: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [record for record in records if all(record.get(name) == value for name, value in wanted.items())]


def main_variant(results: dict[str, Any]) -> dict[str, str]:
    dtype, attention, mode = results["settings"]["variants"][0].split(":")
    return {"dtype": dtype, "attention": attention, "compile": mode}


def flops_beyond_encoders(record: dict[str, int]) -> int:
    return record["total"] - sum(record[name] for name in ENCODERS)


def cost_of_expressions(results: dict[str, Any], size: int) -> dict[str, float] | None:
    """Fits the time, divided by that of the encoders, as a line over the number of expressions at one size."""
    records = select(results.get("inference", []), model="jmceln", size=size, **main_variant(results))
    if len(records) < 2:
        return None
    return fit_line([record["expressions"] for record in records], [record["ratio"] for record in records])


def targets(results: dict[str, Any]) -> list[dict[str, str]]:
    """Returns each target with the measured value and whether it is met. Lists only what the run measured."""
    size = results["settings"]["sizes"][0]
    rows = []

    def add(target: str, value: float, bound: float, at_most: bool, unit: str = "") -> None:
        met = value <= bound if at_most else value >= bound
        wanted = f"{'≤' if at_most else '≥'} {bound:g}{unit}"
        rows.append(
            {"target": target, "wanted": wanted, "measured": f"{value:.3g}{unit}", "": "met" if met else "missed"}
        )

    single = select(results.get("inference", []), model="jmceln", size=size, expressions=1, **main_variant(results))
    if single:
        add("one expression, over the encoders alone", single[0]["ratio"], 1.20, True)
    line = cost_of_expressions(results, size)
    if line:
        add("each further expression, over the encoders alone", line["slope"], 0.12, True)
    training = select(results.get("training", []), model="jmceln", gradient_checkpointing=False)
    by_count = {record["expressions"]: record for record in training if record["images"] == training[0]["images"]}
    if {1, 8} <= by_count.keys():
        gain = by_count[8]["expressions_per_second"] / by_count[1]["expressions_per_second"]
        add("training: expressions per second with 8 per image, over 1 per image", gain, 5, False)
    training = select(results.get("memory", []), mode="training")
    most = max((record["expressions"] for record in training), default=0)
    for images in sorted({record["images"] for record in training}):
        same = select(training, images=images, expressions=most)
        without, with_checkpointing = (select(same, gradient_checkpointing=value)[0] for value in (False, True))
        workload = f"{images} x {most} expressions"
        ratio = with_checkpointing["bytes"] / without["bytes"]
        add(f"activations' peak with gradient checkpointing, over without ({workload})", ratio, 0.5, True)
        ratio = sum(with_checkpointing[name] for name in ("bytes", "fixed_bytes"))
        ratio /= sum(without[name] for name in ("bytes", "fixed_bytes"))
        add(f"the same with weights, gradients and AdamW's moments ({workload})", ratio, 0.5, True)
    flops = {record["expressions"]: record for record in select(results.get("flops", []), size=size)}
    if flops:
        add("operations beyond the encoders, one expression", flops_beyond_encoders(flops[1]) / GIGA, 25, True, " G")
        further = flops_beyond_encoders(flops[2]) - flops_beyond_encoders(flops[1])
        add("operations beyond the encoders, each further expression", further / GIGA, 25, True, " G")
    for record in select(results.get("shipped", []), threads=1):
        for name, value, bound, unit in shipped_targets(record):
            add(f"{record['model']}, one core: {name}", value, bound, True, unit)
    if "imports" in results:
        add("importing the packages, over importing what they need", results["imports"]["ratio"], 1.10, True)
    return rows


def milliseconds(record: dict[str, Any]) -> str:
    spread = f"{1000 * record['lower']:.0f} to {1000 * record['upper']:.0f}"
    return f"{1000 * record['seconds']:.4g} ({spread}){' *' * record['noisy']}"


def utilization(results: dict[str, Any], record: dict[str, Any]) -> str:
    if "flops_per_second" not in record:
        return ""
    return f"{record['flops_per_second'] / results['machine']['matmul_flops_per_second'][record['dtype']]:.0%}"


def flops_section(results: dict[str, Any]) -> str:
    rows = []
    for record in results["flops"]:
        parts = {name: value for name, value in record.items() if name not in ("size", "expressions")}
        row = {"size": f"{record['size']}²", "expressions": str(record["expressions"])}
        row |= {name.replace("_", " "): f"{value / GIGA:.2f}" for name, value in parts.items()}
        rows.append(row | {"beyond encoders": f"{flops_beyond_encoders(record) / GIGA:.2f}"})
    return f"### Operations (GFLOP, by part)\n\n{table(rows)}"


def inference_section(results: dict[str, Any]) -> str:
    rows = [
        {
            "model": record["model"],
            "input": f"{record['size']}²",
            "expressions": str(record["expressions"]),
            "variant": f"{record['dtype']}, {record['attention']}"
            + f", compile={record['compile']}" * (record["compile"] != "none"),
            "ms (quartiles)": milliseconds(record),
            "over encoders": f"{record['ratio']:.3f}",
            "of matrix product": utilization(results, record),
        }
        for record in results["inference"]
    ]
    text = f"### Inference, one image\n\n{table(rows)}"
    if fits := fit_rows(results):
        text += f"\n\n### Is the cost linear?\n\n{table(fits)}"
    return text


def fit_rows(results: dict[str, Any]) -> list[dict[str, str]]:
    """Fits times and operations as lines: over expressions at each size, and over pixels at each count."""
    rows = []

    def add(what: str, xs: list[float], ys: list[float], unit: str, scale: float) -> None:
        if len(xs) < 2:
            return
        line = fit_line(xs, ys)
        rows.append(
            {
                "cost": what,
                "fixed": f"{line['intercept'] * scale:.4g} {unit}",
                "slope": f"{line['slope'] * scale:.4g} {unit}",
                "largest deviation": f"{line['largest_deviation']:.1%}",
                "exponent": f"{line['exponent']:.2f}",
            }
        )

    times = select(results.get("inference", []), model="jmceln", **main_variant(results))
    floors = select(results.get("inference", []), model="encoders", **main_variant(results))
    for size in results["settings"]["sizes"]:
        records = select(times, size=size)
        add(f"time, an expression, {size}²", *points(records, "expressions", "seconds"), "ms", 1000)
    for count in sorted({record["expressions"] for record in times}):
        records = select(times, expressions=count)
        name = f"time, a megapixel, {count} expression{'s' * (count > 1)}"
        add(name, *points(records, "megapixels", "seconds"), "ms", 1000)
    add("time, a megapixel, encoders alone", *points(floors, "megapixels", "seconds"), "ms", 1000)
    flops = [{**record, "beyond": flops_beyond_encoders(record)} for record in results.get("flops", [])]
    for count in sorted({record["expressions"] for record in flops}):
        records = select(flops, expressions=count)
        name = f"operations beyond the encoders, a megapixel, {count} expression{'s' * (count > 1)}"
        add(name, *points(records, "megapixels", "beyond"), "G", 1 / GIGA)
    return rows


def points(records: list[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    records = [{**record, "megapixels": record["size"] ** 2 / 1e6} for record in records]
    return [record[x] for record in records], [record[y] for record in records]


def batches_section(results: dict[str, Any]) -> str:
    rows = [
        {
            "images": str(record["images"]),
            "expressions per image": str(record["expressions"]),
            "ms (quartiles)": "out of memory" if record.get("out_of_memory") else milliseconds(record),
            "images/s": "" if record.get("out_of_memory") else f"{record['images_per_second']:.3g}",
            "expressions/s": "" if record.get("out_of_memory") else f"{record['expressions_per_second']:.3g}",
            "peak beyond weights (MB)": "" if record.get("out_of_memory") else f"{record['bytes'] / 1e6:.0f}",
        }
        for record in results["batches"]
    ]
    return f"### Inference, batches\n\n{table(rows)}"


def training_section(results: dict[str, Any]) -> str:
    rows = [
        {
            "model": record["model"],
            "images": str(record["images"]),
            "expressions per image": str(record["expressions"]),
            "gradient checkpointing": "yes" if record["gradient_checkpointing"] else "no",
            "ms per step (quartiles)": milliseconds(record),
            "expressions/s": f"{record['expressions_per_second']:.3g}",
            "of matrix product": utilization(results, record),
        }
        for record in results["training"]
    ]
    note = (
        "A step is forward, backward and AdamW. Its operations are counted as three forward passes, without what"
        " gradient checkpointing computes again."
    )
    return f"### Training, {results['training'][0]['size']}²\n\n{note}\n\n{table(rows)}"


def memory_section(results: dict[str, Any]) -> str:
    rows = []
    for record in results["memory"]:
        mode = record["mode"] + f" of {record.get('chunk')}" * ("chunk" in record)
        if record["mode"] == "training":
            mode += ", gradient checkpointing" * record["gradient_checkpointing"]
        rows.append(
            {
                "mode": mode,
                "images": str(record["images"]),
                "expressions per image": str(record["expressions"]),
                "activations' peak (MB)": f"{record['bytes'] / 1e6:.0f}",
                "fixed (MB)": f"{record['fixed_bytes'] / 1e6:.0f}",
                "sum (MB)": f"{(record['bytes'] + record['fixed_bytes']) / 1e6:.0f}",
            }
        )
    note = (
        "The peak of the allocated memory. The fixed part is the weights; in training, the weights, gradients and the"
        " two moments of AdamW."
    )
    return f"### Memory, {results['memory'][0]['size']}²\n\n{note}\n\n{table(rows)}"


def profile_section(results: dict[str, Any]) -> str:
    rows = [
        {"operator": f"`{row['operator']}`", "calls": str(row["calls"]), "share of time": f"{row['share']:.1%}"}
        for row in results["profile"]
    ]
    return f"### Where the time beyond the image goes (8 expressions, text encoder included)\n\n{table(rows)}"


def imports_section(results: dict[str, Any]) -> str:
    row = results["imports"]
    return (
        "### Import\n\n"
        f"`import modeling_jmceln, processing` takes {row['packages_seconds']:.2f} s of processor time, importing what"
        f" they need {row['required_seconds']:.2f} s: a ratio of {row['ratio']:.3f}."
    )


def seconds_of(record: dict[str, Any], name: str) -> float:
    return record["seconds"][name]["seconds"]


def seconds_of_further_expression(record: dict[str, Any]) -> float:
    """Returns the seconds per further expression in an encoded image, text encoder included."""
    return (seconds_of(record, "8 expressions") - seconds_of(record, "1 expression")) / 7


def shipped_targets(record: dict[str, Any]) -> Iterable[tuple[str, float, float, str]]:
    """Yields the targets for a shipped model on one core: name, measured value, upper bound and unit."""
    training = seconds_of(record, "training step") - seconds_of(record, "training step of the encoders")
    overhead = seconds_of(record, "pipeline") / seconds_of(record, "model in the pipeline") - 1
    of_many, of_few = (seconds_of(record, f"{count} expressions") / count for count in (32, 8))
    yield "JMCELN's part of a training step", training, 0.9, " s"
    yield "each further expression", 1000 * seconds_of_further_expression(record), 8, " ms"
    yield "time per expression with 32, over that with 8", of_many / of_few, 1.02, ""
    yield "first mask through the pipeline", 1000 * seconds_of(record, "pipeline"), 150, " ms"
    yield "the pipeline beyond the model", 100 * overhead, 10, " %"


def shipped_section(results: dict[str, Any]) -> str:
    records = results["shipped"]
    rows = []
    for name in records[0]["seconds"]:
        row = {"ms (quartiles)": name}
        for record in records:
            cores = f"{record['threads']} core{'s' * (record['threads'] > 1)}"
            row[f"{record['model']}, {cores}"] = milliseconds(record["seconds"][name])
        rows.append(row)
    memory = [
        {"peak beyond weights (MB)": name}
        | {record["model"]: f"{record['bytes'][name] / 1e6:.0f}" for record in select(records, threads=1)}
        for name in records[0]["bytes"]
    ]
    note = (
        f'Input of {records[0]["size"]}², expressions of 8 tokens. "1 expression" to "32 expressions" include the text'
        " encoder, but not the image, which is already encoded. A training step is forward, backward and AdamW for 4"
        " images with 6 expressions each. The pipeline reads a JPEG of 640 x 480 and resizes it to the size of the"
        " model's processor."
    )
    return f"### Shipped models\n\n{note}\n\n{table(rows)}\n\n{table(memory)}"


REPORTS = {
    "flops": flops_section,
    "inference": inference_section,
    "batches": batches_section,
    "training": training_section,
    "memory": memory_section,
    "profile": profile_section,
    "imports": imports_section,
    "shipped": shipped_section,
}


def as_markdown(results: dict[str, Any]) -> str:
    """Returns the whole report, without a title."""
    machine, settings = results["machine"], results["settings"]
    rates = ", ".join(
        f"{rate / GIGA:.0f} GFLOP/s in {dtype}" for dtype, rate in machine["matmul_flops_per_second"].items()
    )
    encoders = "tiny encoders, whose times mean nothing" if settings["tiny"] else "Swin-B (window 12) and BERT-base"
    models = (
        f"{encoders}, 20 words per expression" if set(settings["sections"]) != {"shipped"} else "the shipped models"
    )
    introduction = (
        f"{machine['name']} ({machine['device']}), {machine['threads']} of {machine['cores']} cores,"
        f" torch {machine['torch']}, transformers {machine['transformers']}; {models}."
        f" A large matrix product reaches {rates}. Times are medians of {settings['rounds']} rounds. A star marks"
        " a rough time: other load on the machine disturbed too many of its rounds."
    )
    if skipped := machine["skipped_variants"]:
        introduction += f" Left out because this processor has no instructions for bfloat16: {', '.join(skipped)}."
    parts = [introduction]
    if rows := targets(results):
        parts.append(table(rows))
    parts += [report(results) for name, report in REPORTS.items() if results.get(name)]
    return "\n\n".join(parts) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """Plots times by expressions, relative to the encoders, and by pixels. Without times, draws nothing."""
    records = select(results.get("inference", []), **main_variant(results))
    ours = select(records, model="jmceln")
    if not ours:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    by_count, by_size = figure.subplots(1, 2)
    for size in sorted({record["size"] for record in ours}):
        xs, ys = points(
            sorted(select(ours, size=size), key=lambda record: record["expressions"]), "expressions", "ratio"
        )
        by_count.plot(xs, ys, marker="o", label=f"{size}²")
    by_count.axhline(1, color="gray", linestyle="--", linewidth=1)
    by_count.set(xlabel="expressions on one image", ylabel="time / time of the encoders", ylim=(0, None))
    by_count.legend(title="input")
    for count in sorted({record["expressions"] for record in ours}):
        selected = sorted(select(ours, expressions=count), key=lambda record: record["size"])
        by_size.plot(*points(selected, "megapixels", "seconds"), marker="o", label=f"{count} expressions")
    floors = sorted(select(records, model="encoders"), key=lambda record: record["size"])
    by_size.plot(*points(floors, "megapixels", "seconds"), marker="o", color="gray", linestyle="--", label="encoders")
    by_size.set(xlabel="megapixels", ylabel="seconds", ylim=(0, None))
    by_size.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def document(results: dict[str, Any], docs: Path) -> None:
    """
    Replaces the part of `performance.md` on this kind of device, or on the shipped models, and writes its JSON and
    figure to the folder `performance`.
    """
    device = "small" if results["settings"]["preset"] == "small" else results["machine"]["device"]
    page = docs / "performance.md"
    begin, end = f"<!-- speed:{device}:begin -->", f"<!-- speed:{device}:end -->"
    figure = f"![Time over expressions and pixels](performance/{device}.png)\n\n" * bool(results.get("inference"))
    text = fill_between(page.read_text(encoding="utf-8"), begin, end, f"\n{figure}{as_markdown(results)}")
    folder = docs / "performance"
    folder.mkdir(exist_ok=True)
    (folder / f"{device}.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draw(results, folder / f"{device}.png")
    page.write_text(text, encoding="utf-8")
