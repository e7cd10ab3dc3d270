"""The command `jmceln` and the files in scripts/ that launchers want."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jmceln import COMMANDS, main


REPOSITORY = Path(__file__).resolve().parents[1]


def test_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"{name:{max(map(len, COMMANDS))}}  {command.summary}" in printed


def test_the_list_of_commands_imports_no_slow_package() -> None:
    code = (
        "import sys, jmceln\ntry: jmceln.main(['--help'])\nfinally: print({'torch', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "check-data" in done.stdout
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_its_own_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"jmceln {command}" in capsys.readouterr().out


def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path: Path) -> None:
    code = f"import sys, jmceln\nsys.modules['pycocotools'] = None\njmceln.main(['check-data', {str(tmp_path)!r}])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs the package 'pycocotools', which is not installed: pip install 'jmceln[train]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["trian"]])
def test_other_commands_are_refused_with_the_list(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "jmceln" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["predict", "--image", "a.png", "--text", "a", "--ouput", "b.png"], "--output"),
        (["evaluate", "--model", "a", "--dataset", "shapes", "--split", "val", "--batchsize=2"], "--batch-size"),
        (["export", "--model", "a", "--round", "2"], "--rounds"),
        (["benchmark-data", "shapes", "a.parquet", "--imagesize", "2"], "--image-size"),
    ],
)
def test_mistyped_options_are_answered_with_the_nearest(
    arguments: list[str], nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert f"did you mean `{nearest}`?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_script_runs_the_command_of_its_checkout_from_anywhere(tmp_path: Path) -> None:
    script = REPOSITORY / "scripts" / "train.py"
    done = subprocess.run(
        [sys.executable, str(script), "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "jmceln train" in done.stdout
