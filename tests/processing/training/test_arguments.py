"""How YAML files and options make the settings of a run."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from processing.training.arguments import (
    ReferringTrainingArguments,
    load_settings,
    merge_settings,
    parse_arguments,
)


FOLDER = Path(__file__).resolve().parents[3] / "configs"
# `swin_bert.yaml` is the part that others extend.
CONFIGS = [path for path in sorted(FOLDER.glob("*.yaml")) if path.stem not in ("swin_bert", "shapes_backbone")]


@pytest.fixture
def write(tmp_path):
    def write(settings, name="run.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return str(path)

    return write


def minimal(**settings):
    return {"model_name_or_path": "saved", "use_cpu": True, "report_to": "none", **settings}


def scratch(**fields):
    return {"model_config": {"num_stages": 2, **fields}, "tokenizer": "words", "use_cpu": True, "report_to": "none"}


def test_options_override_the_file_and_keep_its_types(write):
    file = write(minimal(learning_rate="1e-4", max_steps=5, train_data=[{"name": "a", "split": "train"}]))
    model, data, training = parse_arguments(
        [
            file,
            "--learning_rate",
            "3e-4",
            "--train_data.0.split",
            "val",
            "--train_data.0.num_proc=4",
            "--bf16",
            "false",
        ]
    )
    assert model.model_name_or_path == "saved"
    assert training.learning_rate == 3e-4
    assert training.max_steps == 5
    assert data.train_data == [{"name": "a", "split": "val", "num_proc": 4}]
    assert parse_arguments([file])[2].learning_rate == 1e-4


def test_nested_fields_and_whole_mappings_come_from_options_too():
    options = ["--tokenizer", "words", "--model_config.backbone_config.depths", "[1, 1, 2, 1]"]
    options += ["--model_config.num_stages=4", "--eval_data", "{a: {name: shapes, size: 3}}", "--use_cpu"]
    model, data, _ = parse_arguments([*options, "--report_to", "none"])
    assert model.model_config == {"backbone_config": {"depths": [1, 1, 2, 1]}, "num_stages": 4}
    assert data.eval_data == {"a": {"name": "shapes", "size": 3}}


def test_files_are_merged_and_extended(write, tmp_path):
    write({"learning_rate": 1.0, "model_config": {"a": 1, "b": 2}}, "base.yaml")
    first = write({"extends": "base.yaml", "model_config": {"b": 3}}, "first.yaml")
    assert load_settings(first) == {"learning_rate": 1.0, "model_config": {"a": 1, "b": 3}}
    second = write(minimal(max_steps=7), "second.yaml")
    third = write({"max_steps": 8}, "third.yaml")
    assert parse_arguments([second, third])[2].max_steps == 8
    assert merge_settings({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="mapping of settings"):
        load_settings(tmp_path / "list.yaml")


def test_a_model_on_the_command_line_takes_the_place_of_the_files(write):
    path = write({"vision_model": "v", "text_model": "t", "model_config": {"num_stages": 4}, "use_cpu": True})
    assert parse_arguments([path, "--report_to", "none"])[0].vision_model == "v"
    for option in (["--model_name_or_path", "m"], ["--model_name_or_path=m"]):
        model = parse_arguments([path, "--report_to", "none", *option])[0]
        assert (model.model_name_or_path, model.vision_model, model.text_model, model.model_config) == (
            "m",
            None,
            None,
            {},
        )
    for option in (["--model_config", "{num_stages: 4}"], ["--model_config.num_stages", "4"]):
        with pytest.raises(ValueError, match="is a complete model"):
            parse_arguments([path, "--report_to", "none", "--model_name_or_path", "m", *option])


def test_another_saved_model_on_the_command_line_gets_the_new_parts_of_the_file(write):
    path = write(minimal(new_parts=["cascade"], model_config={"use_alignment": False}))
    model = parse_arguments([path, "--model_name_or_path", "other"])[0]
    assert (model.model_name_or_path, model.new_parts) == ("other", ["cascade"])
    assert model.model_config == {"use_alignment": False}


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (minimal(learning_rat=1), [], "did you mean `learning_rate`"),
        (minimal(zzzzqqqq=1), [], "--help"),
        (minimal(warmup_steps=None), [], "`warmup_steps` is empty: give it a value, or leave it out"),
        (minimal(), ["--learning_rat", "1"], r"no option `--learning_rat`; did you mean `learning_rate`\?"),
        (minimal(), ["--learning-rat=1"], r"did you mean `learning_rate`\?"),
        (minimal(), ["--use_cpu", "true", "second.yaml"], "put files before all options"),
        (minimal(), ["--modl_config.num_stages", "4"], r"did you mean `model_config`\?"),
        (scratch(), ["--model_config.num_stage", "4"], r"`model_config.num_stage`; did you mean `num_stages`\?"),
        (scratch(hiden_size=8), [], r"`model_config.hiden_size`; did you mean `hidden_size`\?"),
        (
            scratch(text_config={"model_type": "bert", "hiden_size": 8}),
            [],
            r"`model_config.text_config.hiden_size`; did you mean `hidden_size`\?",
        ),
        (minimal(), ["--train_data.0.split", "x"], "no list with a position 0"),
        (minimal(train_data=[{"name": "a"}]), ["--train_data.1.split", "x"], "not a position in a list of 1"),
        (minimal(), ["--model_config.a"], "has no value"),
        (minimal(max_steps=3), ["--max_steps.a", "1"], "has no fields"),
        ({"model_config": {}, "new_parts": ["cascade"], "use_cpu": True}, [], "give it as `model_name_or_path`"),
        (minimal(vision_model="v", model_config={}), [], "either a `text_model`"),
        (minimal(vision_model="v", text_model="t", model_name_or_path="m"), [], "is a complete model"),
        ({"use_cpu": True, "report_to": "none"}, [], "There is no model"),
        ({"use_cpu": True, "report_to": "none", "model_config": {"num_stages": 1}}, [], "needs a `tokenizer`"),
        (minimal(train_data=["refcoco"]), [], "must be a mapping"),
        (minimal(remove_unused_columns=True), [], "must be off"),
        (minimal(average_tokens_across_devices=False), [], "must be on"),
    ],
)
def test_refuses_settings_with_the_way_out(write, settings, options, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([write(settings), *options])


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_configuration_of_the_project_is_read(path, tmp_path):
    options = ["--use_cpu", "--report_to", "none", "--output_dir", str(tmp_path), "--bf16", "false"]
    model, data, training = parse_arguments([str(path), *options])
    assert data.train_data
    assert training.learning_rate_scales.keys() <= {"backbone.", "text_model."}
    assert model.image_size
    if training.load_best_model_at_end:
        assert training.metric_for_best_model.split("_")[1] in {name.split("_")[0] for name in data.eval_data}
        assert training.greater_is_better


def test_the_configurations_of_the_package_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in CONFIGS:
        assert load_settings(path.name) == load_settings(path)
    (tmp_path / "refcoco.yaml").write_text("seed: 5")
    assert load_settings("refcoco.yaml") == {"seed": 5}
    with pytest.raises(FileNotFoundError, match=r"did you mean `refcoco_plus.yaml`\?"):
        load_settings("refcoco_plu.yaml")
    with pytest.raises(FileNotFoundError, match="package contains"):
        load_settings("elsewhere/refcoco_plus.yaml")


def test_no_run_on_photographs_leaves_images_out():
    # Batches of unequal size are no reason to: the loss counts expressions.
    assert "dataloader_drop_last" not in load_settings("swin_bert.yaml")


@pytest.mark.parametrize(("warmup_steps", "of_50"), [(0, 0), (0.1, 5), (7, 7), (7.0, 7)])
def test_warmup_counts_steps_or_is_a_share_of_the_run(tmp_path, warmup_steps, of_50):
    arguments = ReferringTrainingArguments(str(tmp_path), warmup_steps=warmup_steps, use_cpu=True, report_to="none")
    assert arguments.get_warmup_steps(50) == of_50


def test_help_lists_the_fields_of_all_three(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = capsys.readouterr().out
    for field in ("--model_name_or_path", "--train_data", "--ema_decay", "--learning_rate"):
        assert field in text


@pytest.mark.parametrize("path", sorted((FOLDER / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path):
    config = load_config_from_file(str(path))
    assert config.num_processes > 1
    assert config.mixed_precision == "bf16"
