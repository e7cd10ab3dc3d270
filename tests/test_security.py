"""The claims of SECURITY.md that no other test holds: what runs code, and what does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from modeling_jmceln import JMCELNModel
from processing.app.run import build_parser as build_app_parser
from processing.evaluation.run import parse_arguments as parse_evaluation_arguments
from processing.training.arguments import ModelArguments
from tests.tiny import tiny_config, tiny_processor


REPOSITORY = Path(__file__).resolve().parents[1]


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple:
        return Path.mkdir, (self.folder,)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    JMCELNModel(tiny_config()).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def test_models_are_saved_without_pickles(saved: Path) -> None:
    assert {path.suffix for path in saved.iterdir()} <= {".json", ".py", ".safetensors", ".txt"}


def test_pickled_weights_run_no_code(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (saved / "model.safetensors").unlink()
    torch.save({"weight": Hostile(marker)}, saved / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?s)[Ww]eights.only"):
        JMCELNModel.from_pretrained(saved)
    assert not marker.exists()
    torch.load(saved / "pytorch_model.bin", weights_only=False)  # the same file does run where nothing holds it back
    assert marker.exists()


def test_code_in_a_folder_does_not_run_unless_asked_for(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for path in saved.glob("*.py"):
        code = path.read_text("utf-8")
        path.write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n{code}", "utf-8")
    assert isinstance(AutoModel.from_pretrained(saved), JMCELNModel)
    AutoProcessor.from_pretrained(saved)
    assert not marker.exists()
    AutoModel.from_pretrained(saved, trust_remote_code=True)
    assert not marker.exists()  # this package is installed, and its own code is preferred


def test_commands_do_not_run_code_of_models_by_default() -> None:
    assert ModelArguments(model_name_or_path="m").trust_remote_code is False
    assert parse_evaluation_arguments(["--model", "m", "--dataset", "d", "--split", "val"]).trust_remote_code is False


def test_the_web_page_is_for_this_machine_by_default() -> None:
    assert build_app_parser().parse_args([]).host == "127.0.0.1"


def test_every_claim_names_a_test_that_exists() -> None:
    text = (REPOSITORY / "SECURITY.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) >= 10
    for path, name in named:
        assert f"def {name or 'test_'}" in (REPOSITORY / path).read_text("utf-8"), f"{path} has no {name}"
