"""Measures speed and memory of the shipped models, and how much of it belongs to their small encoders."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor

from benchmarks.measuring import peak_memory, time_side_by_side
from benchmarks.speed_models import Encoders, Workload
from modeling_jmceln import JMCELNModel
from processing import ReferringImageSegmentationPipeline


CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
# A typical expression has about six words, and the tokenizer adds two tokens.
TOKENS = 8
FEW, MANY = 8, 32
TRAINING_IMAGES, TRAINING_EXPRESSIONS = 4, 6
PHOTO_SIZE = (640, 480)


def shipped_folders() -> list[Path]:
    """Returns the folders of the shipped models."""
    return sorted(path.parent for path in CHECKPOINTS.glob("*/config.json"))


def measure_model(folder: Path, size: int, threads: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """
    Args:
        folder (`Path`): Folder of a model with its processor, and with images in `examples`.
        size (`int`): Height and width of the input. The pipeline uses the size of the processor.
        threads (`int`): Number of cores to use, at most those of the machine.
        rounds (`int`): Number of times to time each call.
        device (`torch.device`): Device to run on.

    Returns:
        Timings of each call by name, and peak bytes of inference and training.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = JMCELNModel.from_pretrained(folder).to(device)
        calls = {**inference_calls(model, size, device), **pipeline_calls(model, folder, device)}
        timings = time_side_by_side(calls, device, rounds)
        memory = {name: peak_memory(calls[name], device) for name in ("first expression", f"{FEW} expressions")}
        steps = training_calls(model.train(), size, device)
        timings |= time_side_by_side(steps, device, rounds)
        memory["training step"] = peak_memory(steps["training step"], device)
    finally:
        torch.set_num_threads(before)
    return {
        "model": folder.name,
        "size": size,
        "threads": threads,
        "seconds": {name: timing.to_dict() for name, timing in timings.items()},
        "bytes": memory,
    }


def inference_calls(model: JMCELNModel, size: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Returns calls that encode an image, segment a first expression, and segment more in the encoded image."""
    vocabulary = model.config.text_config.vocab_size
    inputs = {count: Workload(size, count, words=TOKENS).inputs(vocabulary, device) for count in (1, FEW, MANY)}
    words = {
        count: {name: value for name, value in batch.items() if name != "pixel_values"}
        for count, batch in inputs.items()
    }
    pixel_values = inputs[1]["pixel_values"]
    with torch.inference_mode():
        image_features = model.get_image_features(pixel_values)

    def inferring(call: Callable[..., Any], **arguments: Any) -> Callable[[], Any]:
        def infer() -> Any:
            with torch.inference_mode():
                return call(**arguments)

        return infer

    return {
        "image": inferring(model.get_image_features, pixel_values=pixel_values),
        "first expression": inferring(model, **inputs[1]),
        **{
            f"{count} expression{'s' * (count > 1)}": inferring(model, image_features=image_features, **words[count])
            for count in (1, FEW, MANY)
        },
        f"text of {FEW} expressions": inferring(model.get_text_features, **words[FEW]),
    }


def pipeline_calls(model: JMCELNModel, folder: Path, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Returns the call from the bytes of a photo to its first mask, and the part of it that is the model."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    pipe = ReferringImageSegmentationPipeline(model=model, processor=processor, device=device)
    example = sorted(path for path in (folder / "examples").iterdir() if path.suffix in (".jpg", ".png"))[0]
    photo = io.BytesIO()
    with Image.open(example) as image:
        image.convert("RGB").resize(PHOTO_SIZE).save(photo, format="JPEG", quality=90)
    expression = "the object on the left"
    inputs = processor(images=photo.getvalue(), text=[expression], return_tensors="pt").to(device)

    def infer() -> Any:
        with torch.inference_mode():
            return model(**inputs)

    return {
        "pipeline": lambda: pipe(photo.getvalue(), expression),
        "model in the pipeline": infer,
    }


def training_calls(model: JMCELNModel, size: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Returns training steps (forward, backward, AdamW) of the encoders alone and of the model."""
    workload = Workload(size, TRAINING_EXPRESSIONS, TRAINING_IMAGES, TOKENS)
    inputs, labels = workload.inputs(model.config.text_config.vocab_size, device), workload.labels(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    encoders = Encoders(model)

    def step(loss: torch.Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def train_encoders() -> None:
        feature_maps, words = encoders(**inputs)
        step(sum((feature_map.mean() for feature_map in feature_maps), words.mean()))

    return {
        "training step of the encoders": train_encoders,
        "training step": lambda: step(model(**inputs, labels=labels, landmark_masks=labels).loss),
    }
