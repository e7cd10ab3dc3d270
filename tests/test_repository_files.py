"""Files that only services read: whether they would accept them, and whether they agree with the rest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.check_versions import VERSIONS
from tests.compat import REPOSITORY


GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
SCHEMAS = {
    "vendor.citation-file-format": [REPOSITORY / "CITATION.cff"],
    "vendor.dependabot": [GITHUB / "dependabot.yml"],
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "vendor.github-issue-forms": [GITHUB / "ISSUE_TEMPLATE" / name for name in ("bug.yml", "proposal.yml")],
    "vendor.github-workflows": WORKFLOWS,
    "custom.github-workflows-require-timeout": WORKFLOWS,
}


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps_of(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in read_yaml(workflow)["jobs"].values() for step in job["steps"]]


def pin_of(name: str) -> str:
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{name}==([^; ]+)", pins, re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("schema", sorted(SCHEMAS))
def test_files_follow_their_schemas(schema: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, SCHEMAS[schema])]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_a_workflow_with_a_mistake_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text(encoding="utf-8").replace("runs-on:", "runs_on:"), encoding="utf-8")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(broken)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_every_change_runs_what_developers_run() -> None:
    assert ".ci/run" in [step.get("run") for step in steps_of(GITHUB / "workflows" / "ci.yml")]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_scripts_of_workflows_are_valid(workflow: Path) -> None:
    for step in steps_of(workflow):
        # What GitHub fills in before the shell sees it.
        script = re.sub(r"\$\{\{.*?\}\}", "value", step.get("run", ""))
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0, script
        for path in re.findall(r"(?:tests|examples|checkpoints)/[\w./-]+", script):
            assert (REPOSITORY / path).exists(), path


def test_the_nightly_matrix_has_all_supported_versions() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    jobs = read_yaml(GITHUB / "workflows" / "nightly.yml")["jobs"]["versions"]["strategy"]["matrix"]["include"]
    assert [job["python"] for job in jobs] == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    releases = {release for job in jobs for release in job["versions"].split()}
    # .ci/run tests the pinned one.
    assert releases == set(VERSIONS) - {pin_of("transformers")}


def test_pre_commit_formats_as_the_pinned_ruff_does() -> None:
    repositories = read_yaml(REPOSITORY / ".pre-commit-config.yaml")["repos"]
    (ruff,) = (each for each in repositories if each["repo"].endswith("ruff-pre-commit"))
    assert ruff["rev"] == f"v{pin_of('ruff')}"


def test_the_citation_says_who_wrote_what() -> None:
    citation = read_yaml(REPOSITORY / "CITATION.cff")
    assert "independent implementation" in citation["message"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Huang", "Satoh"]
    card = " ".join((REPOSITORY / "model_card.md").read_text(encoding="utf-8").replace(">", "").split())
    assert paper["title"].strip() in card
