"""The check of a GPU: one sentence where there is none, and the tests before the measurements where there is one."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest
import torch

from scripts import gpu_check


def test_says_that_there_is_no_gpu_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main() == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_measures_only_what_passed_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    commands = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=3 if "pytest" in command else 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert gpu_check.main() == 3
    assert len(commands) == 1
