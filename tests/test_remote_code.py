"""A saved folder is all that another machine needs: loaded there by code that came with it, on any transformers."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments, pipeline

from modeling_jmceln import JMCELNModel
from processing import JMCELNProcessor
from tests.compat import REPOSITORY, fetch_transformers
from tests.tiny import tiny_config, tiny_processor


INSTALLED = importlib.metadata.version("transformers")
EXPRESSIONS = ["the red circle", "the small square left of the green star"]
SCRIPT = Path(__file__).with_name("load_without_package.py")


def run_isolated(request: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "HF_HOME": str(folder / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-I", "-S", str(SCRIPT), json.dumps(request)]
    return subprocess.run(
        command, cwd=empty, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, size=(50, 70, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def telling_threshold(probabilities: torch.Tensor) -> float:
    """A probability that about half of the pixels exceed and none is near to: rounding changes no mask."""
    ordered = probabilities.flatten().sort().values
    middle = ordered[len(ordered) // 4 : -len(ordered) // 4]
    below = int(middle.diff().argmax())
    return middle[below : below + 2].mean().item()


def train_one_step(model: JMCELNModel, processor: JMCELNProcessor, folder: Path) -> Path:
    """A checkpoint folder as the Trainer leaves it."""
    mask = np.zeros((50, 70), dtype=np.uint8)
    mask[10:30, 20:40] = 1
    inputs = processor(images=picture(), text=EXPRESSIONS, segmentation_maps=[mask, mask], return_tensors="pt")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        save_strategy="steps",
        save_steps=1,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        per_device_train_batch_size=1,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    rows = [{name: tensor[0] for name, tensor in inputs.items()}]
    Trainer(model=model, args=arguments, train_dataset=rows, processing_class=processor).train()
    return folder / "checkpoint-1"


def halve_weights(folder: Path) -> None:
    """Writes the weights of a folder in half precision; `dtype` in its config.json still says float32."""
    weights = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in
               load_file(folder / "model.safetensors").items()}  # fmt: skip
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """
    A folder by `save_pretrained`, one by the Trainer, one whose weights have half precision on disk, and what the
    model of each finds in a picture.
    """
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model, processor = JMCELNModel(tiny_config()).eval(), tiny_processor()
    model.save_pretrained(folder / "pretrained")
    processor.save_pretrained(folder / "pretrained")
    picture().save(folder / "picture.png")
    folders = {"pretrained": folder / "pretrained"}
    folders["checkpoint"] = train_one_step(
        JMCELNModel.from_pretrained(folders["pretrained"]), processor, folder / "runs"
    )

    shutil.copytree(folders["pretrained"], folder / "half")
    halve_weights(folder / "half")
    folders["half"] = folder / "half"

    expected, thresholds = {}, {}
    for name, path in folders.items():
        model, processor = JMCELNModel.from_pretrained(path).eval(), JMCELNProcessor.from_pretrained(path)
        inputs = processor(images=picture(), text=EXPRESSIONS, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        sizes = inputs["original_sizes"]
        (result,) = processor.post_process_referring_segmentation(
            outputs, target_sizes=sizes, return_probabilities=True
        )
        # An untrained model is sure of nothing: by default all its masks are empty, and so are those of a broken one.
        thresholds[name] = {"threshold": 0.0, "mask_threshold": telling_threshold(result["probabilities"])}
        (result,) = processor.post_process_referring_segmentation(outputs, target_sizes=sizes, **thresholds[name])
        found = pipeline("referring-image-segmentation", model=model, processor=processor)(
            picture(), EXPRESSIONS, **thresholds[name]
        )
        expected |= {
            f"{name}.pixel_values": inputs["pixel_values"],
            f"{name}.input_ids": inputs["input_ids"],
            f"{name}.logits": outputs.logits,
            f"{name}.presence_logits": outputs.presence_logits,
            f"{name}.masks": result["masks"],
            f"{name}.scores": result["scores"],
            f"{name}.pipeline_scores": torch.tensor([one["score"] for one in found]),
            f"{name}.pipeline_masks": torch.stack([torch.from_numpy(np.array(one["mask"])) for one in found]),
        }
    return {
        "folder": folder,
        "folders": {name: str(path) for name, path in folders.items()},
        "thresholds": thresholds,
        "expected": expected,
    }


def request_for(saved: dict[str, Any], transformers: str, path: list[str], output: Path) -> dict[str, Any]:
    return {
        "path": [*path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")],
        "transformers": transformers,
        "folders": saved["folders"],
        "image": str(saved["folder"] / "picture.png"),
        "expressions": EXPRESSIONS,
        "thresholds": saved["thresholds"],
        "output": str(output),
    }


@pytest.mark.slow
@pytest.mark.parametrize("version", ["4.57.6", "5.0.0", INSTALLED])
def test_loads_on_a_machine_without_the_package(saved: dict[str, Any], version: str, tmp_path: Path) -> None:
    path = [] if version == INSTALLED else [str(fetch_transformers(version))]
    output = tmp_path / "tensors.safetensors"
    completed = run_isolated(request_for(saved, version, path, output), tmp_path)
    assert completed.returncode == 0, completed.stderr
    tensors = load_file(output)
    assert tensors.keys() == saved["expected"].keys()
    for name, expected in saved["expected"].items():
        exact = not expected.is_floating_point()
        tolerance = {"rtol": 0.0, "atol": 0.0 if exact else 1e-5}
        torch.testing.assert_close(tensors[name], expected.to(tensors[name].dtype), **tolerance, msg=f"{name} differs")


def test_masks_are_neither_empty_nor_full(saved: dict[str, Any]) -> None:
    # Otherwise those of a broken model would be the same.
    masks = [tensor.bool() for name, tensor in saved["expected"].items() if name.endswith("masks")]
    assert len(masks) == 2 * len(saved["folders"])
    assert all(0.2 < mask.float().mean() < 0.8 for mask in masks)


def test_checkpoint_was_trained(saved: dict[str, Any]) -> None:
    # Otherwise the two folders would be one test twice.
    difference = saved["expected"]["checkpoint.logits"] - saved["expected"]["pretrained.logits"]
    assert difference.abs().max() > 1e-3


def test_half_of_the_bytes_are_full_precision_in_memory(saved: dict[str, Any]) -> None:
    whole, half = (Path(saved["folders"][name]) / "model.safetensors" for name in ("pretrained", "half"))
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    model = JMCELNModel.from_pretrained(half.parent)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_package_would_be_noticed(saved: dict[str, Any], tmp_path: Path) -> None:
    request = request_for(saved, INSTALLED, [str(REPOSITORY)], tmp_path / "tensors.safetensors")
    completed = run_isolated(request, tmp_path)
    assert completed.returncode != 0
    assert "modeling_jmceln can be imported" in completed.stderr
