"""`jmceln train` as it is used: alone, killed and started again, on several processes, and pushed to a hub."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
import transformers
import yaml
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, MobileNetV2ImageProcessor

from processing.data.canonical_rows import canonical_features
from processing.folder_lock import LOCK_FILE
from processing.training import building, referring_trainer
from processing.training import run as train
from processing.training.checkpoints import DamagedCheckpointError, newest_intact_checkpoint
from processing.training.word_tokenizer import build_word_tokenizer
from tests.processing.canonical_rows import canonical_row
from tests.processing.training.tiny_run import write_settings


pytestmark = pytest.mark.usefixtures("one_thread")

REPOSITORY = Path(__file__).resolve().parents[3]

# Sends SIGKILL to itself in the middle of a step, or in the middle of writing a checkpoint.
KILLED_RUN = """
import os, signal, sys
sys.path.insert(0, {repository!r})
import torch
from transformers import Trainer
from processing.training.word_tokenizer import build_word_tokenizer
from processing.training import building
from processing.training import run as train

place, step = {place!r}, {step}
def kill():
    os.kill(os.getpid(), signal.SIGKILL)

training_step, save = Trainer.training_step, Trainer._save_rng_state
def killed_in_step(self, *args, **kwargs):
    loss = training_step(self, *args, **kwargs)
    if place == "step" and self.state.global_step == step:
        kill()
    return loss
def killed_in_save(self, folder):
    if place == "save" and self.state.global_step == step:
        open(os.path.join(folder, "rng_state.pth"), "wb").write(b"PK\\x03\\x04 half")
        kill()
    save(self, folder)
Trainer.training_step, Trainer._save_rng_state = killed_in_step, killed_in_save
train.main(sys.argv[1:])
"""


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}


def run_killed(place, step, *arguments):
    program = KILLED_RUN.format(repository=str(REPOSITORY), place=place, step=step)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


def history(folder, key="loss"):
    state = json.loads((Path(folder) / "trainer_state.json").read_text())
    return [(entry["step"], entry[key]) for entry in state["log_history"] if key in entry]


def same_weights(one, other):
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_trains_scores_and_saves_what_loads(tmp_path):
    settings = write_settings(tmp_path, report_to="tensorboard", num_pictures=2, max_steps=3)
    scores = train.main([str(settings), "--learning_rate", "2e-3"])
    assert scores["eval_made_expressions"] == 23
    assert scores["eval_made_no_targets"] == 1
    assert 0 <= scores["eval_made_mIoU"] <= 1
    run = tmp_path / "run"
    recorded = json.loads((run / "settings.json").read_text())
    assert recorded["training"]["learning_rate"] == 2e-3
    assert recorded["data"]["max_expressions_per_image"] == 3
    processor = AutoProcessor.from_pretrained(run, trust_remote_code=True)
    model = AutoModel.from_pretrained(run, trust_remote_code=True)
    assert "square" in processor.tokenizer.get_vocab()
    inputs = processor(images=torch.zeros(3, 20, 30, dtype=torch.uint8), text="the red square", return_tensors="pt")
    assert model(**inputs).logits.shape == (1, 32, 32)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((run / "runs").iterdir()))).Reload().Tags()
    assert {"predictions/0", "predictions/1"} <= set(events["images"])
    assert "train/loss" in events["scalars"]


@pytest.mark.slow
def test_a_run_killed_at_any_step_goes_on_to_the_same_result(tmp_path):
    options = ["--gradient_accumulation_steps", "2", "--dataloader_num_workers", "2", "--ema_decay", "0.9"]
    options += ["--image_mask_ratio", "0.5", "--image_patch_size", "8", "--text_mask_ratio", "0.3"]
    settings = str(write_settings(tmp_path))
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    command = [settings, *options, "--output_dir", str(broken)]
    # In the middle of a step after the first checkpoint, and while the second is written.
    for place, step in (("step", 3), ("save", 4)):
        run_killed(place, step, *command)
    assert newest_intact_checkpoint(broken) == str(broken / "checkpoint-2")
    assert not (broken / "model.safetensors").exists()
    train.main(command)
    train.main([settings, *options, "--output_dir", str(whole)])
    assert history(broken) == history(whole)
    assert [step for step, _ in history(broken)] == [1, 2, 3, 4, 5, 6]
    assert history(broken, "eval_made_mIoU") == history(whole, "eval_made_mIoU")
    assert same_weights(broken / "model.safetensors", whole / "model.safetensors")
    last = "checkpoint-6"
    for name in ("model.safetensors", "weight_average.safetensors"):
        assert same_weights(broken / last / name, whole / last / name)
    # The average is what was saved at the end.
    assert not same_weights(whole / "model.safetensors", whole / last / "model.safetensors")


def run_on_two_processes(*arguments, script=REPOSITORY / "scripts" / "train.py"):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "localhost:0", str(script), *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]


def write_settings_without_chance(folder, **overrides):
    """Without dropout, whose draws differ between processes; with SGD, since Adam hides the scale of gradients."""
    model = {
        "dropout": 0.0,
        "text_config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "backbone_config": {"drop_path_rate": 0.0},
    }
    settings = {"optim": "sgd", "max_grad_norm": 0.0, "max_steps": 3, "save_strategy": "no", **overrides}
    return str(write_settings(folder, model_config=model, **settings))


def assert_same_run(one, two):
    for key in ("loss", "grad_norm", "eval_made_loss", "eval_made_oIoU", "eval_made_mIoU", "eval_made_expressions"):
        first, second = history(one, key), history(two, key)
        assert [value for _, value in second] == pytest.approx([value for _, value in first], rel=1e-4), key
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-5)


BATCHES_OF_ONE = ["--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "4"]
BATCHES_OF_TWO = ["--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "2"]


@pytest.mark.slow
def test_two_processes_train_and_score_as_one(tmp_path):
    settings = write_settings_without_chance(tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    train.main([settings, "--output_dir", str(one), *BATCHES_OF_ONE])
    run_on_two_processes(settings, "--output_dir", str(two), *BATCHES_OF_TWO)
    assert_same_run(one, two)


@pytest.mark.slow
def test_sharded_processes_train_save_and_go_on_as_one_process(tmp_path):
    # Adam with an epsilon that keeps rounding from being amplified, for the sake of a state that is sharded too.
    settings = write_settings_without_chance(
        tmp_path, optim="adamw_torch", adam_epsilon=1e-2, save_strategy="steps", save_steps=2
    )
    one, two, again = tmp_path / "one", tmp_path / "two", tmp_path / "again"
    train.main([settings, "--output_dir", str(one), *BATCHES_OF_ONE])
    layers = yaml.safe_load((REPOSITORY / "configs" / "accelerate" / "sharded.yaml").read_text())["fsdp_config"][
        "fsdp_transformer_layer_cls_to_wrap"
    ]
    sharding = ["--fsdp", "--fsdp_config", json.dumps({"transformer_layer_cls_to_wrap": layers.split(",")})]
    script = Path(__file__).with_name("train_sharded_on_cpus.py")
    run_on_two_processes(settings, "--output_dir", str(two), *BATCHES_OF_TWO, *sharding, script=script)
    assert_same_run(one, two)
    # What is saved carries the model's own code, not that of the class that FSDP puts in its place.
    config = json.loads((two / "checkpoint-2" / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_jmceln.JMCELNModel"
    assert (two / "checkpoint-2" / "modeling_jmceln.py").is_file()
    shutil.copytree(two / "checkpoint-2", again / "checkpoint-2")
    run_on_two_processes(settings, "--output_dir", str(again), *BATCHES_OF_TWO, *sharding, script=script)
    assert history(again) == history(two)
    assert same_weights(again / "model.safetensors", two / "model.safetensors")


@pytest.fixture
def pushed(monkeypatch, tmp_path):
    """Copies of the folders that would have gone to the hub, in order."""
    copies = []

    def create_repo(self, repo_id, **kwargs):
        return SimpleNamespace(repo_id=f"someone/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns=(), **kwargs):
        copies.append(tmp_path / f"pushed-{len(copies)}")
        shutil.copytree(folder_path, copies[-1], ignore=shutil.ignore_patterns(*ignore_patterns))
        done = Future()
        done.set_result(None)
        return done

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return copies


@pytest.mark.slow
def test_what_is_pushed_loads_with_its_own_code(tmp_path, pushed):
    settings = write_settings(tmp_path, max_steps=2, save_steps=1, push_to_hub=True, ema_decay=0.5, eval_strategy="no")
    train.main([str(settings)])
    assert len(pushed) == 3
    assert not [path for folder in pushed for path in folder.glob("checkpoint-*")]
    # Pushed with the first checkpoint, and at the end: both load where this package is not installed.
    picture = tmp_path / "picture.png"
    canonical_row(0)["image"].save(picture)
    request = {
        "path": [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")],
        "transformers": transformers.__version__,
        "folders": {"first": str(pushed[0]), "last": str(pushed[-1])},
        "image": str(picture),
        "expressions": ["the red square"],
        "thresholds": {name: {"threshold": 0.0} for name in ("first", "last")},
        "output": str(tmp_path / "found.safetensors"),
    }
    script = REPOSITORY / "tests" / "load_without_package.py"
    command = [sys.executable, "-I", "-S", str(script), json.dumps(request)]
    done = subprocess.run(
        command, env={**environment(), "HF_HOME": str(tmp_path / "home")}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(tmp_path / "found.safetensors")
    assert found["last.logits"].shape == (1, 1, 32, 32)
    assert not torch.equal(found["first.logits"], found["last.logits"])
    assert same_weights(pushed[-1] / "model.safetensors", tmp_path / "run" / "model.safetensors")
    card = ModelCard.load(pushed[-1] / "README.md").data
    assert card.library_name == "transformers"
    assert card.pipeline_tag == "image-segmentation"
    assert {"referring-image-segmentation", "custom_code"} <= set(card.tags)


def test_a_stream_is_taken_up_again_where_it_was(tmp_path):
    settings = str(write_settings(tmp_path))
    options = [
        "--train_data.0.streaming",
        "true",
        "--tokenizer",
        str(saved_words(tmp_path)),
        "--save_strategy",
        "steps",
    ]
    options += ["--max_steps", "8", "--save_steps", "5", "--eval_strategy", "no"]
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    train.main([settings, *options, "--output_dir", str(whole)])
    shutil.copytree(whole / "checkpoint-5", broken / "checkpoint-5")
    train.main([settings, *options, "--output_dir", str(broken)])
    assert history(broken) == history(whole)
    assert same_weights(broken / "model.safetensors", whole / "model.safetensors")


def saved_words(folder):
    tokenizer = build_word_tokenizer(["the red green blue square left right above below"])
    tokenizer.save_pretrained(folder / "words")
    return folder / "words"


def test_new_parts_of_a_saved_model(tmp_path):
    first = write_settings(tmp_path, max_steps=1, eval_strategy="no", eval_data={})
    train.main([str(first)])
    saved = ["--model_name_or_path", str(tmp_path / "run")]
    renew = ["--new_parts", "cascade", "--model_config.use_alignment", "false"]
    options = [str(first), *saved, *renew, "--output_dir", str(tmp_path / "renewed"), "--learning_rate", "0"]
    train.main(options)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "renewed"))
    assert not any("alignment" in name for name in after)
    assert any("alignment" in name for name in before)
    for name, weight in after.items():
        is_new = name.startswith("cascade.")
        # Biases and norms start as they always do.
        if not is_new or weight.std(correction=0) > 0.01:
            assert torch.equal(weight, before[name]) != is_new, name

    # Layers that the saved model does not have are new as well.
    train.main([*options, "--output_dir", str(tmp_path / "deeper"), "--model_config.num_fusion_layers", "2"])
    deeper = load_file(tmp_path / "deeper" / "model.safetensors")
    assert any(name.startswith("fusion_layers.1.") for name in deeper)

    with pytest.raises(ValueError, match=r"the weights of \['fusion_layers'\] do not fit"):
        train.main([*options, "--model_config.num_fusion_layers", "0", "--output_dir", str(tmp_path / "shallower")])
    with pytest.raises(ValueError, match=r"no parts \['cascades'\]"):
        train.main([*options, "--new_parts", "cascades", "--output_dir", str(tmp_path / "misnamed")])


def test_a_run_with_other_settings_is_not_gone_on_with(tmp_path):
    settings = str(write_settings(tmp_path, eval_strategy="no", eval_data={}, max_steps=4))
    run = tmp_path / "run"
    train.main([settings])
    (run / "all_results.json").unlink()  # as if killed before its end
    shutil.rmtree(run / "checkpoint-4")
    before = (run / "settings.json").read_bytes()
    other = ["--learning_rate", "2e-3", "--model_config.num_stages", "1", "--max_expressions_per_image", "2"]
    with pytest.raises(ValueError, match="is from a run with other settings") as refused:
        train.main([settings, *other])
    for text in (
        "data.max_expressions_per_image was 3 and is 2",
        "model.model_config.num_stages was 2 and is 1",
        "training.learning_rate was 0.001 and is 0.002",
    ):
        assert text in str(refused.value)
    assert "save_steps" not in str(refused.value)
    assert (run / "settings.json").read_bytes() == before
    # What changes nothing about the result may change.
    train.main([settings, "--eval_steps", "2", "--num_pictures", "1"])
    assert [step for step, _ in history(run)] == [1, 2, 3, 4]
    # Whoever names the checkpoint wants its weights with the new settings.
    train.main([settings, "--learning_rate", "2e-3", "--resume_from_checkpoint", str(run / "checkpoint-2")])
    assert json.loads((run / "settings.json").read_text())["training"]["learning_rate"] == 2e-3


def test_checkpoints_that_an_earlier_run_left_are_not_taken_for_those_of_a_new_one(tmp_path):
    settings = str(write_settings(tmp_path, eval_strategy="no", eval_data={}, max_steps=4))
    train.main([settings])
    # Of the new run only the first checkpoint is there, and it lies behind the last one of the earlier run.
    train.main([settings, "--seed", "1", "--resume_from_checkpoint", "never", "--max_steps", "1", "--save_steps", "1"])
    (tmp_path / "run" / "all_results.json").unlink()
    with pytest.raises(ValueError, match=r"training\.seed was 0 and is 1"):
        train.main([settings, "--seed", "1", "--max_steps", "1"])


def test_a_clock_that_is_set_back_costs_no_new_checkpoint(tmp_path, monkeypatch):
    write_checksums = referring_trainer.write_checksums

    def write_in_the_future(folder):
        write_checksums(folder)
        os.utime(folder, (2e9, 2e9))

    monkeypatch.setattr(referring_trainer, "write_checksums", write_in_the_future)
    settings = write_settings(tmp_path, eval_strategy="no", eval_data={}, max_steps=4, save_steps=1)
    train.main([str(settings), "--save_total_limit", "2"])
    left = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert left == ["checkpoint-3", "checkpoint-4"]
    assert newest_intact_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-4")


def test_a_finished_run_keeps_its_results(tmp_path, monkeypatch):
    settings = str(write_settings(tmp_path, max_steps=3, ema_decay=0.5))
    scores = train.main([settings])

    def files():
        paths = (path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != LOCK_FILE)
        return {path: path.stat().st_mtime_ns for path in paths}

    before = files()
    again = train.main([settings])
    assert again == pytest.approx(scores)
    assert files() == before
    with pytest.raises(ValueError, match=r"training\.max_steps was 3 and is 5"):
        train.main([settings, "--max_steps", "5"])


def test_a_run_killed_after_its_last_step_takes_no_other(tmp_path):
    settings = str(write_settings(tmp_path, max_steps=3, ema_decay=0.5))
    run = tmp_path / "run"
    scores = train.main([settings])
    weights = {name: load_file(run / name / "model.safetensors") for name in (".", "checkpoint-3")}
    (run / "all_results.json").unlink()
    (run / "model.safetensors").unlink()
    again = train.main([settings])
    assert {name: value for name, value in again.items() if name.startswith("eval_made_m")} == {
        name: value for name, value in scores.items() if name.startswith("eval_made_m")
    }
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 3
    # The average was saved, not the weights of the last step.
    for name, value in load_file(run / "model.safetensors").items():
        assert torch.equal(value, weights["."][name])
    assert any(not torch.equal(value, weights["."][name]) for name, value in weights["checkpoint-3"].items())


def test_a_run_falls_back_from_a_damaged_checkpoint_to_the_same_result(tmp_path, caplog):
    settings = str(write_settings(tmp_path, eval_strategy="no", eval_data={}, max_steps=4))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train.main([settings, "--output_dir", str(whole)])
    for step in (2, 4):
        shutil.copytree(whole / f"checkpoint-{step}", broken / f"checkpoint-{step}")
    weights = broken / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for name in ("checkpoint-4", "checkpoint-8"):
        with pytest.raises(DamagedCheckpointError, match=name):
            train.main([settings, "--output_dir", str(broken), "--resume_from_checkpoint", str(broken / name)])
    train.main([settings, "--output_dir", str(broken)])
    assert "checkpoint-4' is damaged: `model.safetensors` has" in caplog.text
    assert history(broken) == history(whole)
    assert same_weights(broken / "model.safetensors", whole / "model.safetensors")


def test_a_checkpoint_is_not_gone_on_with_under_other_words(tmp_path):
    settings = str(write_settings(tmp_path, eval_strategy="no", max_steps=2))
    train.main([settings])
    (tmp_path / "run" / "all_results.json").unlink()
    # Other data at the same place, with as many words.
    rows = datasets.load_from_disk(str(tmp_path / "rows"))
    columns = rows.features
    changed = [[text.replace("square", "ball") for text in row] for row in rows["expressions"]]
    rows = rows.remove_columns("expressions").add_column("expressions", changed, feature=columns["expressions"])
    rows.save_to_disk(tmp_path / "other")
    shutil.rmtree(tmp_path / "rows")
    (tmp_path / "other").rename(tmp_path / "rows")
    with pytest.raises(ValueError, match=r"other ids for \d+ tokens, such as \['ball', 'below', 'blue'\]"):
        train.main([settings])


def test_a_run_of_weights_alone_is_not_begun_anew_in_silence(tmp_path):
    options = {"eval_strategy": "no", "eval_data": {}, "max_steps": 2, "save_only_model": True}
    settings = str(write_settings(tmp_path, **options))
    train.main([settings])
    (tmp_path / "run" / "all_results.json").unlink()
    with pytest.raises(DamagedCheckpointError, match="no state of the optimizer, as with `save_only_model`"):
        train.main([settings])


@pytest.mark.parametrize("save_strategy", ["steps", "epoch"])
def test_a_stream_without_a_usable_row_saves_no_model(tmp_path, save_strategy):
    rows = [{**canonical_row(number), "mask_index": [7]} for number in range(3)]
    bad = datasets.Dataset.from_list(rows, features=canonical_features())
    bad.save_to_disk(tmp_path / "bad")
    settings = write_settings(tmp_path, eval_strategy="no")
    options = ["--train_data.0.name", str(tmp_path / "bad"), "--train_data.0.streaming", "true"]
    options += ["--tokenizer", str(saved_words(tmp_path))]
    with pytest.raises(ValueError, match="has no usable row"):
        train.main([str(settings), *options, "--save_strategy", save_strategy])
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_model_with_weights_that_are_not_finite_is_not_trained_on(tmp_path):
    settings = str(write_settings(tmp_path, eval_strategy="no", eval_data={}, max_steps=1))
    train.main([settings])
    path = tmp_path / "run" / "model.safetensors"
    weights = load_file(path)
    weights["text_norm.bias"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights that are NaN or infinite.*`text_norm\.bias`"):
        train.main([settings, "--model_name_or_path", str(tmp_path / "run"), "--output_dir", str(tmp_path / "next")])


def test_frozen_encoders_stay_as_they_are(tmp_path):
    backbone = {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    settings = str(write_settings(tmp_path, max_steps=2, eval_strategy="no", eval_data={}, save_steps=1))
    options = [settings, "--model_config.backbone_config", json.dumps(backbone), "--weight_decay", "0.1"]

    def changed(name, *more):
        train.main([*options, *more, "--output_dir", str(tmp_path / name)])
        first, last = (load_file(tmp_path / name / f"checkpoint-{step}" / "model.safetensors") for step in (1, 2))
        return {key for key, value in last.items() if not torch.equal(value, first[key])}

    for name, more, still in (
        ("vision", ["--freeze_vision"], ("backbone.",)),
        ("both", ["--freeze_vision", "--freeze_text"], ("backbone.", "text_model.")),
        (
            "modules",
            ["--freeze_modules", "text_model.embeddings", "fusion_layers"],
            ("text_model.emb", "fusion_layers."),
        ),
        ("statistics", ["--freeze_batch_norm"], ()),
    ):
        moved = changed(name, *more)
        assert any(key.startswith("cascade.") for key in moved), name
        assert not [key for key in moved if key.startswith(still)] if still else True, name
    # Weights of the backbone learn where its statistics alone stand still.
    assert any(key.startswith("backbone.") and key.endswith("weight") for key in moved)
    assert not [key for key in moved if "running_" in key]
    assert [key for key in changed("free") if "running_mean" in key]


def test_an_unknown_module_is_not_frozen_in_silence(tmp_path):
    settings = str(write_settings(tmp_path, max_steps=1, eval_strategy="no", eval_data={}))
    with pytest.raises(
        ValueError, match=r"no module `text_model\.embedings`; did you mean `text_model\.embeddings`\?"
    ):
        train.main([settings, "--freeze_modules", "text_model.embedings"])


def test_images_are_normalized_as_the_vision_model_expects(tmp_path):
    assert building.image_statistics(None) == {}
    assert building.image_statistics(str(tmp_path)) == {}
    MobileNetV2ImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path)
    assert building.image_statistics(str(tmp_path)) == {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}


def test_a_saved_model_is_trained_without_its_own_code(tmp_path):
    settings = str(write_settings(tmp_path, max_steps=1, eval_strategy="no", eval_data={}))
    train.main([settings])
    run = tmp_path / "run"
    for path in run.glob("*.py"):
        path.write_text("raise RuntimeError('the code of a folder was run')")
    more = ["--model_name_or_path", str(run), "--output_dir", str(tmp_path / "second")]
    assert "train_loss" in train.main([settings, *more])
    # Of a model that is not installed the code is run, but only by who asks for it.
    config = json.loads((run / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "configuration_jmceln.ForeignConfig"}}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        train.main([settings, *more, "--output_dir", str(tmp_path / "third")])
    with pytest.raises(RuntimeError, match="the code of a folder was run"):
        train.main([settings, *more, "--output_dir", str(tmp_path / "third"), "--trust_remote_code"])


def test_a_run_stops_when_it_gets_no_better(tmp_path):
    settings = write_settings(tmp_path, max_steps=20, eval_steps=1, save_steps=1, learning_rate=0.0)
    better = ["--load_best_model_at_end", "true", "--metric_for_best_model", "eval_made_gIoU"]
    train.main([str(settings), *better, "--early_stopping_patience", "2"])
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 3
    with pytest.raises(ValueError, match="`early_stopping_patience` needs `load_best_model_at_end"):
        train.main([str(settings), "--early_stopping_patience", "2"])


def test_words_that_the_model_does_not_know_are_said_at_the_start(tmp_path, caplog):
    train.main([str(write_settings(tmp_path / "first", max_steps=1))])
    rows = datasets.load_from_disk(str(tmp_path / "first" / "rows"))
    features = rows.features
    expressions = [["the zebra", *row["expressions"][1:]] for row in rows.remove_columns("image")]
    renamed = rows.remove_columns("expressions").add_column("expressions", expressions).cast(features)
    renamed.save_to_disk(tmp_path / "rows")
    caplog.clear()
    settings = str(write_settings(tmp_path, max_steps=1))
    train.main([settings, "--model_name_or_path", str(tmp_path / "first" / "run"), "--image_size", "32"])
    (message,) = [record.getMessage() for record in caplog.records if "does not know 7" in record.getMessage()]
    assert ": zebra." in message
