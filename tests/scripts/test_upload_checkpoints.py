from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modeling_jmceln import JMCELNModel, __version__
from processing import JMCELNProcessor
from processing.shipped_models import SHIPPED_MODELS
from scripts import upload_checkpoints


class FakeHub:
    """Keeps what it is sent, in the order in which it is sent."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.files: dict[str, dict[str, bytes]] = {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create_repo", repo_id, private))

    def create_commit(self, repo_id: str, operations: list[Any], *, commit_message: str) -> None:
        self.calls.append(("create_commit", repo_id, commit_message))
        self.files[repo_id] = {}
        for operation in operations:
            with operation.as_file() as file:
                self.files[repo_id][operation.path_in_repo] = file.read()

    def create_tag(self, repo_id: str, *, tag: str) -> None:
        self.calls.append(("create_tag", repo_id, tag))


def test_a_dry_run_lists_all_files_and_sends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    hub = FakeHub()
    upload_checkpoints.main(["someone", "--dry-run"], hub)
    printed = capsys.readouterr().out
    assert hub.calls == []
    assert "Nothing was uploaded." in printed
    for checkpoint in SHIPPED_MODELS:
        assert f"someone/{checkpoint}, tag v{__version__}" in printed
    assert printed.count("model.safetensors") == 2


def test_what_is_uploaded_loads_and_names_the_model_on_the_hub(tmp_path: Path) -> None:
    hub = FakeHub()
    upload_checkpoints.main(["someone"], hub)
    assert [call[:2] for call in hub.calls] == [
        (step, f"someone/{checkpoint}")
        for checkpoint in ("jmceln-photos", "jmceln-shapes")
        for step in ("create_repo", "create_commit", "create_tag")
    ]
    assert hub.calls[2][2] == f"v{__version__}"
    for repository, files in hub.files.items():
        card = files["README.md"].decode()
        assert "checkpoints/" not in card
        assert f'model="{repository}"' in card
        folder = tmp_path / repository
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        JMCELNModel.from_pretrained(folder)
        JMCELNProcessor.from_pretrained(folder)


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints" / "jmceln-photos"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("card", encoding="utf-8")
    monkeypatch.setattr(upload_checkpoints, "CHECKPOINTS", tmp_path / "checkpoints")
    with pytest.raises(FileNotFoundError, match=r"lacks config\.json, model\.safetensors"):
        upload_checkpoints.files_of("jmceln-photos", "someone")
