"""The example of a fine-tuning with the plain Trainer: it learns, and what it saves is what was trained."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from tests.conftest import REPOSITORY
from tests.modeling_jmceln.inputs import random_inputs
from tests.processing.own_data.own_folders import write_good_folder
from tests.tiny import tiny_model_with_batch_norm, tiny_processor


peft = pytest.importorskip("peft")

EXAMPLE = REPOSITORY / "examples" / "fine_tune.py"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tiny_model_with_batch_norm().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load_example():
    spec = importlib.util.spec_from_file_location("fine_tune_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_short_and_imports_no_script() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert "scripts" not in text


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_what_is_saved_is_what_was_trained(
    checkpoint: Path, tmp_path: Path, lora_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load_example()
    trained = []

    class KeptTrainer(example.Trainer):
        def save_model(self, *args, **kwargs):
            trained.append(self.model)
            super().save_model(*args, **kwargs)

    monkeypatch.setattr(example, "Trainer", KeptTrainer)
    folder = write_good_folder(tmp_path / "data", count=5)
    output = tmp_path / "out"
    example.fine_tune(
        str(folder), str(output), str(checkpoint), lora_rank, num_train_epochs=2, learning_rate=1e-2, disable_tqdm=True
    )
    reloaded = base = AutoModel.from_pretrained(checkpoint if lora_rank else output)
    if lora_rank:
        reloaded = peft.PeftModel.from_pretrained(base, output)
    inputs = random_inputs()
    with torch.no_grad():
        expected = trained[-1].eval()(**inputs).logits
        start = AutoModel.from_pretrained(checkpoint).eval()(**inputs).logits
        torch.testing.assert_close(reloaded.eval()(**inputs).logits, expected)
    assert (expected - start).abs().max() > 1e-3
    assert (output / "tokenizer.json").is_file()
