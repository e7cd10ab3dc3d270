"""`scripts/check_versions.py`, on the running environment alone: others would have to be downloaded."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from scripts import check_versions
from scripts.check_versions import INSTALLED, MARKERS, Environment, count_tests, lowest_releases, main


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    environment = Environment(INSTALLED, Path(sys.executable))
    monkeypatch.setattr(check_versions, "make_environment", lambda version: environment)
    return environment


@pytest.mark.slow
def test_saved_models_answer_alike_and_the_table_is_written(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "versions.md"
    page.write_text(f"before\n{MARKERS[0]}old\n{MARKERS[1]}\nafter\n")
    monkeypatch.setattr(check_versions, "PAGE", page)
    assert main(["--versions", INSTALLED, "--tests", "--document"]) == 0
    printed = capsys.readouterr().out
    assert f"| {INSTALLED} | {importlib.metadata.version('huggingface_hub')} |" in printed
    assert page.read_text() == f"before\n{MARKERS[0]}{printed.strip()}\n{MARKERS[1]}\nafter\n"


@pytest.mark.parametrize(("second", "code"), [(1.0, 0), (1.000005, 0), (1.1, 1), (float("nan"), 1)])
def test_different_logits_are_a_failure(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, second: float, code: int
) -> None:
    other = Environment("other", environment.python)
    monkeypatch.setattr(check_versions, "make_environment", {INSTALLED: environment, "other": other}.get)
    monkeypatch.setattr(Environment, "require", lambda self, *arguments: self.version)
    answers = {environment.version: [0.5, 1.0], "other": [0.5, second]}
    monkeypatch.setattr(
        check_versions,
        "load_all",
        lambda loaded, folders, cache: {f"{saver}/model": answers[loaded.version] for saver in answers},
    )
    assert main(["--versions", INSTALLED, "other", "--tests"]) == code


def test_tests_are_counted(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_passes(): pass\n"
        "def test_fails(): assert False\n"
        "def test_is_skipped(): pytest.skip('so')\n"
        "@pytest.mark.slow\n"
        "def test_is_slow(): assert False\n"
    )
    counts = count_tests(environment, [str(tmp_path / "test_some.py")], tmp_path)
    assert counts == {"tests": 3, "skipped": 1, "failures": 1, "errors": 0}
    with pytest.raises(RuntimeError, match="file or directory not found"):
        count_tests(environment, [str(tmp_path / "nowhere.py")], tmp_path / "other")


def test_the_lowest_releases_are_those_of_the_package() -> None:
    text = (check_versions.REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    lowest = dict(release.split("==") for release in lowest_releases())
    assert {"transformers", "datasets", "pillow", "peft"} < set(lowest)
    for name, version in lowest.items():
        assert f'"{name}>={version}' in text
