"""The folder of a Hugging Face Space, and the command that writes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_jmceln import JMCELNModel
from processing import shipped_models
from processing.app import run
from processing.app.examples import read_examples
from tests.tiny import tiny_config, tiny_processor


pytest.importorskip("gradio", reason="the page needs Gradio: pip install jmceln[app]")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    JMCELNModel(tiny_config()).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    (folder / "checkpoint-10").mkdir()
    return folder


@pytest.fixture(scope="module")
def space(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("space") / "new"
    run.main(["--model", str(model), "--write-space", str(folder)])
    return folder


def test_a_space_has_what_the_hub_asks_for(space: Path) -> None:
    header = (space / "README.md").read_text(encoding="utf-8").split("---")[1]
    assert "sdk: gradio" in header
    assert "app_file: app.py" in header
    requirements = (space / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {"torch", "transformers", "pillow", "pycocotools"} <= {
        line.split(">")[0].split("<")[0].split("=")[0] for line in requirements
    }
    assert not [line for line in requirements if "gradio" in line or "pytest" in line]
    assert (space / "model" / "model.safetensors").is_file()
    assert not (space / "model" / "checkpoint-10").exists()
    assert not list(space.rglob("__pycache__"))


@pytest.mark.slow
def test_a_space_builds_its_page_where_the_package_is_not(space: Path) -> None:
    script = (
        "import app, processing, pathlib; assert pathlib.Path(processing.__file__).is_relative_to(pathlib.Path.cwd());"
        "page = app.make_page(str(app.MODEL)); assert 'find' in {block.elem_id for block in page.blocks.values()}"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    completed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=space,
        env=environment | {"PYTHONPATH": str(space), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]


def test_what_cannot_be_written_is_said_in_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").touch()
    for arguments, said in (
        (["--model", str(model), "--write-space", str(tmp_path)], "not empty"),
        (["--model", "no/such-model", "--write-space", str(tmp_path / "new")], "not the folder of a model"),
    ):
        with pytest.raises(SystemExit) as stop:
            run.main(arguments)
        assert stop.value.code == 1
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_without_a_model_it_says_what_to_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shipped_models, "CHECKPOINTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run.main([])
    assert stop.value.code == 2
    assert "--model FOLDER_OR_HUB_ID" in capsys.readouterr().err


def test_the_photographs_model_goes_before_that_of_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped_models, "CHECKPOINTS", tmp_path)
    for name in ("jmceln-shapes", "jmceln-photos"):
        (tmp_path / name).mkdir()
        assert shipped_models.shipped_model() == str(tmp_path / name)


def test_an_installed_package_finds_the_checkpoints_of_a_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped_models, "CHECKPOINTS", tmp_path / "site-packages" / "checkpoints")
    monkeypatch.chdir(tmp_path)
    assert shipped_models.shipped_model() is None
    (tmp_path / "checkpoints" / "jmceln-photos").mkdir(parents=True)
    assert shipped_models.shipped_model() == str(Path("checkpoints", "jmceln-photos"))


def test_examples_name_images_that_are_there(tmp_path: Path) -> None:
    assert read_examples(tmp_path) == []
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "examples.json").write_text('[{"image": "a.png", "expressions": ["x"]}]')
    with pytest.raises(ValueError, match=r"a\.png"):
        read_examples(tmp_path)
