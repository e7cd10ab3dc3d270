"""What the package promises about itself: its files, its dependencies, and that its two halves stand alone."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

import modeling_jmceln
import processing
from tests.compat import REPOSITORY, run_pip


PACKAGES = ("modeling_jmceln", "processing")
# The files from which transformers copies the code of a saved folder.
ENTRY_FILES = (
    "modeling_jmceln/configuration_jmceln.py",
    "modeling_jmceln/modeling_jmceln.py",
    "processing/image_processing_jmceln.py",
    "processing/processing_jmceln.py",
)
# With it transformers finds the files that one file needs, also where it is no import at all but a line of text.
RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\S+)\s+import", re.MULTILINE)
BASE = {"torch", "transformers", "datasets", "accelerate", "evaluate", "safetensors", "PIL", "numpy"}
# numpy comes with torch's and transformers' own requirements, packaging and huggingface_hub with transformers'.
OF_BASE = {"packaging", "huggingface_hub", "tokenizers", "filelock", "tqdm"}
OPTIONAL = (
    "pycocotools",
    "matplotlib",
    "tensorboard",
    "peft",
    "av",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "torchvision",
    "cv2",
    "gradio",
)


def source_files(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imported_roots(path: Path, module_level: bool) -> set[str]:
    """First names of the absolute imports of a file: all of them, or only those that run when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes: list[ast.AST] = [tree]
    roots = set()
    while nodes:
        node = nodes.pop()
        if module_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            roots.add(node.module.split(".")[0])
        nodes += ast.iter_child_nodes(node)
    return roots


def traveling_files() -> dict[str, set[str]]:
    """For each entry file the files that come with it, found as transformers finds them."""
    found = {}
    for entry in ENTRY_FILES:
        folder = (REPOSITORY / entry).parent
        names, waiting = set(), [Path(entry).stem]
        while waiting:
            name = waiting.pop()
            if name not in names:
                names.add(name)
                waiting += RELATIVE_IMPORT.findall((folder / f"{name}.py").read_text(encoding="utf-8"))
        found[entry] = names
    return found


def test_the_model_does_not_import_processing() -> None:
    assert source_files("modeling_jmceln")
    offenders = [
        path for path in source_files("modeling_jmceln") if "processing" in imported_roots(path, module_level=False)
    ]
    assert not offenders


def test_processing_is_imported_without_the_model() -> None:
    # What travels with a processor, and all that `import processing` reads; rooms such as training/ may need both.
    script = "import sys, processing; assert 'modeling_jmceln' not in sys.modules"
    completed = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    traveling = traveling_files()
    for entry in ENTRY_FILES[2:]:
        for name in traveling[entry]:
            path = (REPOSITORY / entry).with_name(f"{name}.py")
            assert "modeling_jmceln" not in imported_roots(path, module_level=False), path


@pytest.mark.parametrize("entry", ENTRY_FILES)
def test_traveling_code_is_flat_and_named_by_its_entry_file(entry: str) -> None:
    names = traveling_files()[entry]
    assert not [name for name in names if "." in name], "a folder within a package is not copied"
    direct = set(RELATIVE_IMPORT.findall((REPOSITORY / entry).read_text(encoding="utf-8")))
    # Transformers 4.57 copies from a local folder only what the entry file itself names.
    assert names - {Path(entry).stem} == direct


def test_traveling_files_have_names_of_their_own() -> None:
    # They all land in one folder, so two files of one name would overwrite each other.
    traveling = traveling_files()
    model = traveling[ENTRY_FILES[0]] | traveling[ENTRY_FILES[1]]
    processor = traveling[ENTRY_FILES[2]] | traveling[ENTRY_FILES[3]]
    assert not model & processor
    assert "pipeline_jmceln" in processor


@pytest.mark.parametrize("entry", ENTRY_FILES)
def test_traveling_code_needs_only_the_base_dependencies(entry: str) -> None:
    folder = (REPOSITORY / entry).parent
    for name in traveling_files()[entry]:
        roots = imported_roots(folder / f"{name}.py", module_level=True)
        assert roots - set(sys.stdlib_module_names) <= BASE | OF_BASE, name


def test_packages_import_without_the_extras() -> None:
    blocked = dict.fromkeys(OPTIONAL)
    script = f"import sys; sys.modules.update({blocked!r}); import modeling_jmceln, processing"
    completed = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr


INFERENCE = """
import sys
from importlib.machinery import PathFinder

hidden = ("datasets", "evaluate", "accelerate")
find_spec = PathFinder.find_spec
PathFinder.find_spec = staticmethod(
    lambda name, *rest: None if name.split(".")[0] in hidden else find_spec(name, *rest)
)

import modeling_jmceln, processing
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("checkpoints/jmceln-shapes").eval()
processor = AutoProcessor.from_pretrained("checkpoints/jmceln-shapes")
pipe = processing.ReferringImageSegmentationPipeline(model=model, processor=processor, device="cpu")
assert len(pipe(Image.new("RGB", (60, 50)), ["the red circle", "the star"])) == 2
assert not sys.modules.keys() & set(hidden)
"""


def test_inference_needs_nothing_of_training() -> None:
    # They are hidden rather than looked for: transformers itself imports accelerate wherever it is installed.
    completed = subprocess.run(
        [sys.executable, "-c", INFERENCE], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr


def test_what_training_needs_is_imported_when_it_is_used() -> None:
    for name in processing.__all__:
        assert getattr(processing, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'TrainerMetric'"):
        _ = processing.TrainerMetric


def test_both_packages_tell_their_version_and_that_they_are_typed() -> None:
    places = [
        path
        for path in (REPOSITORY / "pyproject.toml", *source_files("modeling_jmceln"), *source_files("processing"))
        if re.search(r'^(__)?version(__)? = "', path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert places == [REPOSITORY / "modeling_jmceln" / "__init__.py"]
    for package in (modeling_jmceln, processing):
        assert package.__version__ == modeling_jmceln.__version__
        assert (Path(package.__file__).parent / "py.typed").is_file()


def test_every_import_is_declared() -> None:
    requirements = [Requirement(line) for line in importlib.metadata.requires("jmceln") or []]
    declared = {requirement.name.lower() for requirement in requirements} | {"pil", "yaml", "cv2"}
    for package in PACKAGES:
        for path in source_files(package):
            roots = imported_roots(path, module_level=False) - set(sys.stdlib_module_names) - BASE - OF_BASE
            undeclared = {root for root in roots if root.lower() not in declared and root not in PACKAGES}
            assert not undeclared, path


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the pins name releases that Python 3.10 does not have")
def test_environment_is_the_pinned_one() -> None:
    pins = [
        Requirement(line)
        for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert len(pins) > 50
    installed = {pin.name: importlib.metadata.version(pin.name) for pin in pins}
    differing = {pin.name: installed[pin.name] for pin in pins if not pin.specifier.contains(installed[pin.name])}
    assert not differing


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Built from a copy: setuptools leaves a `build` folder where it works, and takes into the wheel what is in there.
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, sources / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("jmceln.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, sources)
    run_pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(sources))
    return next(folder.glob("jmceln-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and what it depends on, the latter shared with the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    run_pip(
        "--python",
        str(folder / "bin" / "python"),
        "install",
        "--ignore-installed",
        "--no-deps",
        "--no-index",
        str(wheel),
    )
    # The folder's own .pth files, such as that of an editable install, are not read through this one.
    (purelib / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "bin"


@pytest.mark.slow
def test_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    roots = {name.split("/")[0] for name in files}
    assert roots == {"jmceln.py", *PACKAGES, next(root for root in roots if root.endswith(".dist-info"))}
    expected = {path.relative_to(REPOSITORY).as_posix() for package in PACKAGES for path in source_files(package)}
    assert expected <= files
    configs = {f"processing/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert len(configs) > 10
    assert configs <= files


@pytest.mark.slow
def test_commands_of_the_wheel_work_away_from_the_repository(installed: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(*command: str) -> str:
        completed = subprocess.run(
            [installed / command[0], *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert completed.returncode == 0, completed.stderr[-3000:]
        return completed.stdout

    where = run("python", "-c", "import modeling_jmceln, processing; print(modeling_jmceln.__file__)")
    assert Path(where).is_relative_to(installed.parent)
    assert "--learning_rate" in run("jmceln", "train", "--help")
    run(
        *("jmceln", "train", "coco_mini.yaml", "--output_dir", "model", "--max_steps", "2", "--report_to", "none"),
        # A model from scratch on scenes in the place of photos, which the wheel does not have.
        *("--train_data.0.name", "shapes", "--train_data.0.size", "8", "--train_data.0.image_size", "96"),
        *("--eval_data.train.name", "shapes", "--eval_data.train.size", "2", "--eval_data.train.image_size", "96"),
        *("--image_size", "96", "--per_device_train_batch_size", "2", "--eval_steps", "2"),
    )
    state = json.loads((tmp_path / "model" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 2
    assert any("eval_train_mIoU" in entry for entry in state["log_history"])
    shapes = ("--dataset", "shapes", "--split", "test", "--shapes-images", "2", "--shapes-image-size", "96")
    run("jmceln", "evaluate", "--model", "model", *shapes, "--output-dir", "scores", "--no-progress")
    scores = json.loads((tmp_path / "scores" / "results.json").read_text(encoding="utf-8"))["scores"]
    assert scores["expressions"] > 2
    run("jmceln", "benchmark-data", "shapes", "rows.parquet", "--images", "1")
    assert (tmp_path / "rows.parquet").is_file()
    Image.new("RGB", (96, 96), "red").save(tmp_path / "image.png")
    table = run("jmceln", "predict", "--model", "model", "--image", "image.png", "--text", "the red square")
    assert "the red square" in table
    assert (tmp_path / "overlay.png").is_file()
    without_model = subprocess.run(
        [installed / "jmceln", "predict", "--image", "image.png", "--text", "the red square"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert without_model.returncode == 2
    assert "no shipped checkpoints: pass --model" in without_model.stderr
    # An export takes a minute; tests/processing/export has it.
    assert "--int8" in run("jmceln", "export", "--help")
