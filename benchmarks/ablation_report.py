"""Makes the tables, the plot and the page of the ablation from its JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.stage_analysis import PLACES, mean_and_error, merged
from processing.evaluation.controls import CONTROLS
from processing.evaluation.report import fill_page, markdown_table


Report = Mapping[str, Any]
MARKERS = ("<!-- ablation: begin -->", "<!-- ablation: end -->")
# From easy to hard. `no_target` has no IoU.
LEVELS = ("appearance", "position", "relation", "chain2", "chain3", "comparison", "multiple")
RELATIONAL = ("relation", "chain2", "chain3")
# Allowed differences between a documented run and the current code, and their texts in the report.
REPORTED_DIFFERENCES = {
    "made_with.model": "an earlier version of the model's code",
    "made_with.weights": "initial weights that are not available here for comparison",
}
# Scores of a level, and their names in the report.
SCORES = {"mIoU": "mIoU", "P@0.5": "P@0.5", "chosen": "the share that means the right object"}


def show(value: Mapping[str, Any] | None, digits: int = 1, sign: str = "") -> str:
    """Formats a mean with its standard error, in percent."""
    if value is None:
        return "-"
    text = f"{100 * value['mean']:{sign}.{digits}f}"
    return text if value["standard_error"] is None else f"{text} ± {100 * value['standard_error']:.{digits}f}"


def runs_of(report: Report, variant: str) -> list[Mapping[str, Any]]:
    return [run for run in report["runs"] if run["variant"] == variant]


def measured(report: Report) -> list[str]:
    """Returns the variants with at least one run, in the order of the plan."""
    return [variant for variant in report["variants"] if runs_of(report, variant)]


def levels_table(report: Report, score: str) -> str:
    rows = [["variant", "parameters", "runs", *LEVELS]]
    for variant in measured(report):
        runs = runs_of(report, variant)
        levels = merged([run["summary"] for run in runs])["levels"]
        rows.append(
            [
                variant,
                f"{runs[0]['parameters'] / 1e3:,.0f} k",
                str(len(runs)),
                *[show(levels[level][score]) for level in LEVELS],
            ]
        )
    return markdown_table(rows)


def objects_table(report: Report) -> str:
    levels = levels_with("chosen")
    rows = [["variant", *levels, "N-acc", "T-acc"]]
    for variant in measured(report):
        summary = merged([run["summary"] for run in runs_of(report, variant)])
        chosen = [show(summary["levels"][level]["chosen"]) for level in levels]
        rows.append([variant, *chosen, show(summary["N-acc"]), show(summary["T-acc"])])
    return markdown_table(rows)


def levels_with(score: str) -> tuple[str, ...]:
    """Returns the levels that have a score. `chosen` is only defined for single targets."""
    return tuple(level for level in LEVELS if score != "chosen" or level != "multiple")


def relational(summary: Mapping[str, Any], score: str) -> float:
    """Returns the mean of a score over relations and chains."""
    return sum(summary["levels"][level][score] for level in RELATIONAL) / len(RELATIONAL)


def paired_gains(report: Report, variant: str, score: str) -> dict[str, Mapping[str, Any]]:
    """
    Returns the differences from the baseline by level, paired by seed so that the effect of the seed cancels out. The
    result is empty if no seed was run with both.
    """
    baseline = {run["seed"]: run["summary"] for run in runs_of(report, report["baseline"])}
    pairs = [(run["summary"], baseline[run["seed"]]) for run in runs_of(report, variant) if run["seed"] in baseline]
    if not pairs:
        return {}
    gains: dict[str, Mapping[str, Any]] = {
        level: mean_and_error([own["levels"][level][score] - base["levels"][level][score] for own, base in pairs])
        for level in levels_with(score)
    }
    gains["relations and chains"] = mean_and_error(
        [relational(own, score) - relational(base, score) for own, base in pairs]
    )
    return gains


def gains_table(report: Report, score: str) -> str:
    rows = [["variant", "seeds", *levels_with(score), "relations and chains"]]
    for variant in measured(report):
        gains = paired_gains(report, variant, score)
        if gains and variant != report["baseline"]:
            seeds = next(iter(gains.values()))["runs"]
            rows.append([variant, str(seeds), *[show(gain, sign="+") for gain in gains.values()]])
    return markdown_table(rows) if len(rows) > 1 else ""


def sweeps_table(report: Report) -> str:
    """Compares the full model with variants that differ in one field, on the seeds of these variants."""
    swept = [variant for variant in report["swept"] if runs_of(report, variant)]
    seeds = {run["seed"] for variant in swept for run in runs_of(report, variant)}
    names = ("mIoU", "P@0.5", "right object")
    rows = [["variant", "parameters", "seeds", *names, *[f"{name}, relations and chains" for name in names]]]
    for variant in [report["full_model"], *swept]:
        runs = [run for run in runs_of(report, variant) if run["seed"] in seeds]
        if not runs:
            continue
        scores = [
            [run["summary"]["stages"][-1][score] for score in SCORES]
            + [relational(run["summary"], score) for score in SCORES]
            for run in runs
        ]
        listed = ", ".join(str(run["seed"]) for run in runs)
        means = [show(mean_and_error(column)) for column in zip(*scores, strict=True)]
        rows.append([variant, f"{runs[0]['parameters'] / 1e3:,.0f} k", listed, *means])
    return markdown_table(rows) if len(rows) > 2 else ""


def stages_table(report: Report) -> str:
    scored = ("mIoU", "P@0.5", "means the right object", "finds the landmarks")
    rows = [["variant", "stage", *scored, "1 - IoU with the next"]]
    for variant in measured(report):
        summary = merged([run["summary"] for run in runs_of(report, variant)])
        inconsistency = [*summary["inconsistency"], None]
        for number, stage in enumerate(summary["stages"]):
            scores = [show(stage[name]) for name in ("mIoU", "P@0.5", "chosen", "landmarks")]
            rows.append([variant, str(number + 1), *scores, show(inconsistency[number])])
    return markdown_table(rows)


def transitions_table(report: Report) -> str:
    rows = [["variant", "judged by", "wrong to right", "right to wrong", "ratio"]]
    for variant in measured(report):
        summary = merged([run["summary"] for run in runs_of(report, variant)])
        if len(summary["stages"]) < 2:
            continue
        for judged, name in (("P@0.5", "IoU of 0.5"), ("chosen", "the object meant")):
            shares = summary["transitions"][judged]
            better, worse = shares["wrong_to_right"], shares["right_to_wrong"]
            ratio = f"{better['mean'] / worse['mean']:.1f}" if worse["mean"] else "-"
            rows.append([variant, name, show(better), show(worse), ratio])
    return markdown_table(rows)


def landmarks_table(report: Report) -> str:
    """Formats, for each level with landmarks, whether errors come from the landmarks or from what follows."""
    rows = [["variant", "level", "finds all landmarks", "then the right object", "else the right object",
             "wrong to right", "right to wrong"]]  # fmt: skip
    for variant in measured(report):
        levels = merged([run["summary"] for run in runs_of(report, variant)])["levels"]
        for level, scores in levels.items():
            if way := scores.get("by_way_of"):
                columns = ("landmarks", "right_with", "right_without", "wrong_to_right", "right_to_wrong")
                rows.append([variant, level, *[show(way[column]) for column in columns]])
    return markdown_table(rows)


def attention_table(report: Report) -> str:
    rows = [["variant", "stage", *PLACES]]
    for variant in measured(report):
        stages = merged([run["summary"] for run in runs_of(report, variant)])["stages"]
        for number, stage in enumerate(stages):
            if stage["attention"] is not None:
                densities = [stage["attention"][place] for place in PLACES]
                rows.append([variant, str(number + 1), *[f"{density['mean']:.2f}" for density in densities]])
    return markdown_table(rows) if len(rows) > 1 else ""


def controls_table(report: Report) -> str:
    levels = merged([run["summary"] for run in runs_of(report, report["full_model"])])["levels"]
    rows = [["level", "mIoU", *[f"with {name}" for name in CONTROLS], "head phrase alone", "random object"]]
    for level in LEVELS:
        oracles = report["oracles"][level]
        rows.append(
            [
                level,
                show(levels[level]["mIoU"]),
                *[show(levels[level]["controls"][name]) for name in CONTROLS],
                *[f"{100 * oracles[reader]['mIoU']:.1f}" for reader in ("head phrase", "random object")],
            ]
        )
    return markdown_table(rows)


def as_markdown(report: Report) -> str:
    """Returns the report, without a title."""
    run = report["runs"][0]
    settings, test = run["run"], run["test"]
    arguments = f" with `{' '.join(run['arguments'])}`" if run["arguments"] else ""
    steps = settings["max_steps"]
    seeds = sorted({run["seed"] for run in report["runs"]})
    minutes = sum(run["seconds"] for run in report["runs"]) / 60
    introduction = (
        f"{len(report['runs'])} runs{arguments}, {steps} steps in their configuration, seeds {seeds}, {minutes:.0f}"
        f" minutes of training (of what was stopped, since it was last started); {test['size']} scenes of the split"
        f" `{test['split']}` at {test['image_size']}²."
        " Figures are points of a hundred, means over seeds ± standard error of the mean (nothing where there is one"
        " seed)."
    )
    for name, count in report.get("differences", {}).items():
        introduction += f" {count} of the runs were made with {REPORTED_DIFFERENCES[name]}."
    parts = [
        introduction,
        "### mIoU by level\n\n" + levels_table(report, "mIoU"),
        "### P@0.5 by level\n\n" + levels_table(report, "P@0.5"),
        "### Means the right object, by level, and tells absent from present\n\nShares of the single targets on whose"
        " object the last mask is densest.\n\n" + objects_table(report),
    ]
    parts += [
        f"### Gain in {name} over the {report['baseline']}, paired by seed\n\n{gains}"
        for score, name in SCORES.items()
        if (gains := gains_table(report, score))
    ]
    parts += [
        "### Stage by stage\n\nA coarse stage cannot draw a small object: its IoU is bounded by its grid, the object"
        " that it means is not.\n\n" + stages_table(report),
        "### From the first stage to the last\n\nShares of the expressions.\n\n" + transitions_table(report),
        "### By way of the landmarks\n\nOf single targets whose expression names landmarks: whether the last stage"
        " finds all of them, whether it means the right object then and else, and what changes from the first stage to"
        " the last.\n\n" + landmarks_table(report),
    ]
    if attention := attention_table(report):
        parts.append(
            "### Where the context tokens look\n\nDensity of their attention to the pixels on expressions with a"
            f" landmark; 1 is an even look.\n\n{attention}"
        )
    if sweeps := sweeps_table(report):
        parts.append(f"### Other settings\n\nThe full model but for one field.\n\n{sweeps}")
    if runs_of(report, report["full_model"]):
        parts.append("### Controls, full model\n\nmIoU.\n\n" + controls_table(report))
    return "\n\n".join(parts) + "\n"


def draw(report: Report, path: Path) -> None:
    """Plots mIoU by level, one line per variant, with standard errors, and next to it the gain over the baseline."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    scores_axes, gains_axes = figure.subplots(1, 2)
    for variant in measured(report):
        levels = merged([run["summary"] for run in runs_of(report, variant)])["levels"]
        line = _errorbar(scores_axes, {level: levels[level]["mIoU"] for level in LEVELS}, label=variant)
        if variant != report["baseline"] and (gains := paired_gains(report, variant, "mIoU")):
            _errorbar(gains_axes, gains, label=variant, color=line.get_color())
    floor = [report["oracles"][level]["head phrase"]["mIoU"] for level in LEVELS]
    scores_axes.plot(LEVELS[1:], floor[1:], "k:", label="head phrase alone")
    scores_axes.set_ylabel("mIoU")
    scores_axes.set_ylim(0, 1)
    scores_axes.legend(fontsize="small")
    gains_axes.axhline(0, color="k", linewidth=0.8)
    gains_axes.set_ylabel(f"gain in mIoU over the {report['baseline']}")
    for axes in (scores_axes, gains_axes):
        axes.tick_params(axis="x", rotation=20)
    figure.savefig(path, dpi=150)


def _errorbar(axes: Any, scores: Mapping[str, Mapping[str, Any]], **style: Any) -> Any:
    means = [score["mean"] for score in scores.values()]
    errors = [score["standard_error"] or 0 for score in scores.values()]
    return axes.errorbar(list(scores), means, errors, marker="o", capsize=3, **style).lines[0]


def document(report: Report, numbers: Path) -> None:
    """Writes the runs as JSON to `numbers`, and the report with its plot to `results.md` in the same folder."""
    page, picture = numbers.with_name("results.md"), numbers.with_suffix(".png")
    draw(report, picture)
    numbers.write_text(json.dumps(report["runs"]), encoding="utf-8")
    links = f"![mIoU by level]({picture.name})\n\nAll figures are kept in [{numbers.name}]({numbers.name})."
    fill_page(page, *MARKERS, f"\n\n{as_markdown(report)}\n{links}\n\n")
