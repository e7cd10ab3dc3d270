import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from processing.training import run as train
from processing.training.arguments import load_settings
from scripts import pretrain_shapes_backbone
from tests.processing.training.tiny_run import write_settings


CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def options(folder, steps):
    return [
        *(str(CONFIGS / "shapes_backbone.yaml"), "--output_dir", str(folder), "--use_cpu", "--disable_tqdm", "true"),
        *("--backbone_config.embedding_size", "8", "--backbone_config.hidden_sizes", "[8, 8, 8]"),
        *("--backbone_config.depths", "[1, 1, 1]", "--image_size", "64", "--num_validation_images", "4"),
        *("--per_device_train_batch_size", "2", "--max_steps", str(steps), "--save_steps", "2"),
        *("--dataloader_num_workers", "0"),
    ]


def test_a_model_begins_from_the_pretrained_backbone(tmp_path, capsys):
    folder = tmp_path / "backbone"
    scores = pretrain_shapes_backbone.main(options(folder, 2))
    assert json.loads((folder / "scores.json").read_text()) == scores
    assert "stage1: kind " in capsys.readouterr().out

    settings = write_settings(tmp_path)
    # A text encoder from scratch beside a pretrained backbone; the tiny model's own backbone gives way.
    text_config = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    fields = {"text_config": text_config, "hidden_size": 32, "mask_feature_size": 16, "num_attention_heads": 4}
    arguments = [str(settings), "--vision_model", str(folder), "--model_config", json.dumps(fields)]
    model_arguments, data_arguments, _ = train.parse_arguments(arguments)
    rows = train.load_training_rows(data_arguments)
    model = train.build_model(model_arguments, train.build_processor(model_arguments, rows))
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.equal(model.backbone.state_dict()[name], weight)
    assert model.config.feature_strides == [4, 8, 16]
    assert train.main([*arguments, "--max_steps", "1", "--eval_strategy", "no"])["train_loss"] > 0


def test_stopped_and_started_again_it_goes_on(tmp_path, monkeypatch):
    whole = pretrain_shapes_backbone.main(options(tmp_path / "whole", 4))
    training_step = Trainer.training_step

    def stopped_at_the_last_step(trainer, *arguments, **keywords):
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt
        return training_step(trainer, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", stopped_at_the_last_step)
        with pytest.raises(KeyboardInterrupt):
            pretrain_shapes_backbone.main(options(tmp_path / "halves", 4))
    assert pretrain_shapes_backbone.main(options(tmp_path / "halves", 4)) == whole
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_the_configuration_of_the_project_is_read():
    settings = load_settings(CONFIGS / "shapes_backbone.yaml")
    classes = (pretrain_shapes_backbone.BackboneArguments, pretrain_shapes_backbone.TrainingArguments)
    arguments = [str(CONFIGS / "shapes_backbone.yaml"), "--use_cpu"]
    backbone, training = train.parse_arguments(arguments, argument_classes=classes)
    assert backbone.backbone_config == settings["backbone_config"]
    assert training.max_steps == settings["max_steps"]


def test_says_what_is_missing(tmp_path):
    for arguments in (options(tmp_path, -1), ["--max_steps", "2", "--use_cpu"]):
        with pytest.raises(ValueError, match="`backbone_config` or `max_steps` is missing"):
            pretrain_shapes_backbone.main(arguments)
