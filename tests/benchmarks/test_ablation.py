"""The machinery of the ablation: equal sizes, exact figures on outputs that are known, and a short run of it all."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from benchmarks import ablation, stage_pictures, stage_report
from benchmarks.ablation_report import REPORTED_DIFFERENCES, document, gains_table, levels_table, sweeps_table
from benchmarks.stage_analysis import analyze, mean_and_error, merged, summarize
from modeling_jmceln import JMCELNConfig, JMCELNImageFeatures, JMCELNModel, JMCELNOutput
from processing.shapes.oracles import labeled_scene
from processing.shapes.queries import Phrase, Pick, Query, Relation, SameAs, SizeThan, landmarks_of
from processing.training.arguments import load_settings
from tests.processing.training.tiny_run import write_settings
from tests.tiny import tiny_processor


SIZE = 64


@pytest.fixture(scope="module")
def scenes():
    return [labeled_scene("test", index, image_size=SIZE) for index in range(3)]


class KnowingModel:
    """Answers from the truth: its first stage draws another object than the last one, which is always right."""

    device = torch.device("cpu")

    def __init__(self, scenes):
        self.scenes = scenes

    def eval(self):
        return self

    def __call__(self, pixel_values, output_attentions=False, **_):
        shape = (len(self.scenes), max(len(scene.expressions) for scene in self.scenes))
        first, last = -torch.ones(*shape, SIZE, SIZE), -torch.ones(*shape, SIZE, SIZE)
        presence = -torch.ones(shape)
        named = -torch.ones(*shape, SIZE, SIZE)
        attention = torch.zeros(*shape, 2, 1, SIZE * SIZE + 2)
        for row, scene in enumerate(self.scenes):
            for position, expression in enumerate(scene.expressions):
                for target in expression.targets:
                    last[row, position][torch.from_numpy(scene.masks[target])] = 1
                    presence[row, position] = 1
                other = next(index for index in range(len(scene.masks)) if index not in expression.targets)
                first[row, position][torch.from_numpy(scene.masks[other])] = 1
                for landmark in landmarks_of(expression.query, scene.scene):
                    named[row, position][torch.from_numpy(scene.masks[landmark])] = 1
                attention[row, position, ..., 2:] = (last[row, position] > 0).flatten()
        attentions = (attention.clamp(min=1e-9), attention[..., :2]) if output_attentions else None
        features = JMCELNImageFeatures(pixel_features=(torch.zeros(1, SIZE, SIZE, 1),))
        return JMCELNOutput(
            logits=last, presence_logits=presence, stage_logits=(first, last), landmark_logits=(last, named),
            attentions=attentions, image_features=features,
        )  # fmt: skip


def test_every_figure_of_known_outputs(scenes):
    records = analyze(KnowingModel(scenes), tiny_processor(), scenes)
    assert len(records) == sum(len(scene.expressions) for scene in scenes)
    summary = summarize(records)
    first, last = summary["stages"]
    assert (first["mIoU"], first["P@0.5"], first["chosen"]) == (0, 0, 0)
    assert (last["mIoU"], last["P@0.5"], last["chosen"]) == (1, 1, 1)
    # The first stage takes the referent for the landmark, beside objects that are as dense as each other.
    assert first["landmarks"] < 0.5
    assert last["landmarks"] == 1
    assert summary["inconsistency"] == [1]
    right = {"wrong_to_right": 1, "right_to_wrong": 0}
    assert summary["transitions"] == {"P@0.5": right, "chosen": right}
    assert summary["N-acc"] == summary["T-acc"] == 1
    # All of the attention lies on the referent, and the second stage looks at no pixel.
    assert first["attention"]["referent"] > 10
    assert first["attention"]["another object"] == pytest.approx(0, abs=1e-3)
    assert first["attention"]["landmark"] == pytest.approx(0, abs=1e-3)
    assert last["attention"] is None
    way = summary["levels"]["relation"]["by_way_of"]
    assert (way["landmarks"], way["right_with"], way["right_without"]) == (1, 1, None)
    assert (way["wrong_to_right"], way["right_to_wrong"]) == (1, 0)
    assert summary["levels"]["appearance"]["by_way_of"] is None
    for level, scores in summary["levels"].items():
        if level != "no_target":
            assert scores["mIoU"] == 1
            # It does not read at all: it answers the same whatever it is asked.
            assert set(scores["controls"].values()) == {1}


def test_means_over_runs():
    summaries = [{"a": [value], "b": {"c": value}, "d": None} for value in (0.1, 0.2, 0.6)]
    expected = {
        "mean": pytest.approx(0.3),
        "standard_error": pytest.approx(statistics.stdev([0.1, 0.2, 0.6]) / 3**0.5),
        "runs": 3,
    }
    assert merged(summaries) == {"a": [expected], "b": {"c": expected}, "d": None}
    assert mean_and_error([0.5]) == {"mean": 0.5, "standard_error": None, "runs": 1}


def test_variants_have_equal_size():
    plan = yaml.safe_load(Path("benchmarks/ablation.yaml").read_text())
    # The run begins from what shapes_trunk.yaml makes of the shipped model.
    run, trunk = load_settings(plan["run"]), load_settings("configs/shapes_trunk.yaml")
    assert run["model_name_or_path"] == trunk["output_dir"]
    fields = JMCELNConfig.from_pretrained(trunk["model_name_or_path"]).to_dict()
    sizes = {}
    for variant, changes in plan["variants"].items():
        with torch.device("meta"):
            model = JMCELNModel(JMCELNConfig.from_dict({**fields, **run["model_config"], **changes}))
        # The backbone is the same in all, and would hide a difference.
        counted = [weight for name, weight in model.named_parameters() if not name.startswith(("backbone", "text"))]
        sizes[variant] = sum(weight.numel() for weight in counted)
    full = sizes[ablation.FULL_MODEL]
    assert all(abs(size - full) <= 0.03 * full for size in sizes.values()), sizes
    assert plan["baseline"] in sizes


@pytest.fixture
def plan(tmp_path):
    run = write_settings(tmp_path, image_size=SIZE, max_steps=1, eval_strategy="no", eval_data={})
    variants = {"plain cascade": {"use_contextual_embedding": False}, ablation.FULL_MODEL: {}}
    content = {
        "run": str(run),
        "output_dir": str(tmp_path / "ablation"),
        "seeds": [0, 1],
        "seed_settings": ["seed", "data_seed"],
        "test": {"split": "test", "size": 4, "image_size": SIZE},
        "baseline": "plain cascade",
        "variants": variants,
        "sweeps": {"num_context_tokens": [2]},
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_short_form_of_it_all(plan, tmp_path, capsys, monkeypatch):
    arguments = ["--plan", str(plan)]
    report = ablation.main([*arguments, "--only", "plain cascade", ablation.FULL_MODEL])
    assert len(report["runs"]) == 4
    text = (tmp_path / "ablation" / "report.md").read_text()
    assert text in capsys.readouterr().out
    assert "Gain in mIoU over the plain cascade" in text
    assert (tmp_path / "ablation" / "report.png").stat().st_size > 1000
    own, base = (
        [run["summary"]["levels"]["position"]["mIoU"] for run in report["runs"] if run["variant"] == variant]
        for variant in (ablation.FULL_MODEL, "plain cascade")
    )
    assert f"{100 * np.mean(np.subtract(own, base)):+.1f}" in gains_table(report, "mIoU")
    # The settings that take the seed have it, and controls are asked of the full model alone.
    for run in report["runs"]:
        described = {key: value for key, value in run.items() if key not in ("seconds", "parameters", "summary")}
        folder = tmp_path / "ablation" / ablation.folder_name(described)
        trained = json.loads((folder / "settings.json").read_text())["training"]
        assert trained["seed"] == trained["data_seed"] == run["seed"]
        asked = bool(run["summary"]["levels"]["position"]["controls"])
        assert asked == (run["variant"] == ablation.FULL_MODEL)

    # A finished run is read, not repeated; a sweep is one more variant.
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "ablation").glob("*.json")}
    assert len(files) == 4
    swept = ablation.main([*arguments, "--seeds", "0"])
    assert len(swept["runs"]) == 5
    table = sweeps_table(swept).splitlines()
    # What is swept stands beside the full model of the same seed, and not among the variants.
    assert [row.split(" | ")[0].removeprefix("| ") for row in table[2:]] == [
        ablation.FULL_MODEL,
        "num_context_tokens = 2",
    ]
    assert [row.split(" | ")[2] for row in table[2:]] == ["0", "0"]
    assert "num_context_tokens" not in levels_table(swept, "mIoU")
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    with pytest.raises(ValueError, match="made with other arguments: give the same arguments again"):
        ablation.main([*arguments, "--learning_rate", "1e-4"])
    with pytest.raises(ValueError, match="no variants"):
        ablation.main([*arguments, "--only", "nothing"])

    docs = tmp_path / "docs"
    docs.mkdir()
    page = docs / "results.md"
    page.write_text("before\n<!-- ablation: begin -->\nold\n<!-- ablation: end -->\nafter\n")
    document(report, docs / "ablation.json")
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "old" not in written
    assert len(json.loads((docs / "ablation.json").read_text())) == 4

    # On another machine, documented runs are not repeated.
    monkeypatch.setattr(ablation, "DOCUMENTED", docs / "ablation.json")
    monkeypatch.setattr(ablation.train, "main", lambda _: pytest.fail("a documented run was trained again"))
    elsewhere = [*arguments, "--output-dir", str(tmp_path / "elsewhere")]
    again = ablation.main([*elsewhere, "--only", "plain cascade", ablation.FULL_MODEL])
    assert again["runs"] == report["runs"]
    assert ablation.main([*elsewhere, "--report-only"])["runs"] == report["runs"]

    # With other code of the model they are reported, and the report says so; but they do not count as finished.
    monkeypatch.setattr(ablation, "digest_of_files", lambda _: "other code")
    stale = ablation.main([*elsewhere, "--report-only"])
    assert stale["runs"] == report["runs"]
    assert stale["differences"] == {"made_with.model": 4, "made_with.weights": 4}
    text = (tmp_path / "elsewhere" / "report.md").read_text()
    assert "4 of the runs were made with an earlier version of the model's code." in text
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        ablation.main([*elsewhere, "--only", "plain cascade"])
    # With other scenes there is nothing to report, and the error says why.
    monkeypatch.setattr(ablation, "digest_of_scenes", lambda *_: "other scenes")
    with pytest.raises(ValueError, match=r"differ in made_with\.model, made_with\.scenes, made_with\.weights"):
        ablation.main([*elsewhere, "--report-only"])


def test_the_documented_runs_are_found_with_the_settings_and_scenes_of_today():
    plan = ablation.load_plan(Path("benchmarks/ablation.yaml"))
    documented = json.loads(ablation.DOCUMENTED.read_text())
    assert len(documented) == 19
    run = ablation.describe_run(documented[0]["variant"], documented[0]["seed"], plan, [])
    for result in documented:
        described = {**run, **{name: result[name] for name in ("variant", "seed")}}
        described["fields"] = plan["variants"][result["variant"]]
        assert set(ablation.differences(result, described)) <= set(REPORTED_DIFFERENCES), result["variant"]


def test_the_digest_of_scenes_is_that_of_what_is_drawn(monkeypatch):
    data, test = (
        [{"name": "shapes", "split": "train", "image_size": 48}],
        {"split": "test", "size": 9, "image_size": 48},
    )
    digest = ablation.digest_of_scenes(data, test)
    assert digest == ablation.digest_of_scenes([{**data[0], "name": "same"}], {**test, "size": 3})
    assert digest != ablation.digest_of_scenes(data, {**test, "image_size": 64})
    draw = ablation.shapes_row

    def other(**options):
        row = draw(**options)
        return {**row, "expressions": [*row["expressions"][:-1], "the star"]} if options["split"] == "test" else row

    monkeypatch.setattr(ablation, "shapes_row", other)
    assert digest != ablation.digest_of_scenes(data, test)


@pytest.mark.parametrize("part", ["vision_model", "model_name_or_path"])
def test_a_run_from_other_weights_is_another_run(plan, tmp_path, part):
    content = ablation.load_plan(plan)
    content["run"] = str(write_settings(tmp_path, **{part: str(tmp_path)}))
    digests = set()
    for weights in (b"some", b"others"):
        (tmp_path / "model.safetensors").write_bytes(weights)
        digests.add(ablation.describe_run("plain cascade", 0, content, [])["made_with"]["weights"])
    assert len(digests) == 2


def test_pictures_of_the_stages(saved_model, tmp_path):
    stage_pictures.main([*saved_model, "--count", "1", "--output", str(tmp_path / "stages.png")])
    with Image.open(tmp_path / "stages.png") as picture:
        # Two expressions, and the image beside three masks, three looks and two filters.
        assert picture.width > 4 * picture.height / 2


ANCHOR = Query(Phrase(kind="ring"))


@pytest.mark.parametrize(
    ("query", "condition"),
    [
        (Query(Phrase(kind="star"), (Relation("left", ANCHOR),)), "left"),
        (Query(Phrase(kind="star"), (SameAs("color", ANCHOR),)), "same color as"),
        (Query(Phrase(kind="star"), (SizeThan(True, ANCHOR),)), "bigger or smaller than"),
        (Query(Phrase(kind="star"), pick=Pick("nearest", anchor=ANCHOR)), "nearest"),
        (Query(Phrase(kind="star")), None),
        (Query(Phrase(kind="star"), (Relation("left", ANCHOR), SameAs("color", ANCHOR))), None),
        (Query(Phrase(kind="star"), pick=Pick("largest"), also=(ANCHOR,)), None),
    ],
)
def test_condition_that_decides(query, condition):
    assert stage_report.condition_of(query) == condition


def test_conditions_of_known_outputs(scenes):
    expressions = [expression for scene in scenes for expression in scene.expressions]
    table = stage_report.conditions_table(expressions, analyze(KnowingModel(scenes), tiny_processor(), scenes))
    rows = table.splitlines()[2:]
    assert rows
    assert all(row.endswith("| 100.0 |") for row in rows)


def test_report_of_the_stages(saved_model, tmp_path, monkeypatch):
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- stages: begin -->\nold\n<!-- stages: end -->\nafter\n")
    monkeypatch.setattr(stage_report, "PAGE", page)
    text = stage_report.main([*saved_model, "--document"])
    # Three stages twice, two ways to judge what changed, four levels with landmarks.
    assert text.count("| model |") == 12
    assert text in page.read_text()
    assert "old" not in page.read_text()
