"""The pipeline on ONNX graphs: what `jmceln export` writes, run by onnxruntime without the model's code."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import AutoProcessor, PretrainedConfig

from .. import ReferringImageSegmentationPipeline


ENCODER, DECODER = "image_encoder", "expression_decoder"


def graph_path(folder: str | Path, name: str, quantized: bool) -> Path:
    """Where a folder of exported graphs keeps the graph `name`."""
    return Path(folder) / f"{name}{'.int8' * quantized}.onnx"


class ONNXReferringModel(nn.Module):
    """
    Two sessions of onnxruntime behind the calls of the model that the pipeline makes.

    Args:
        folder (`str` or `Path`): Written by `jmceln export`.
        quantized (`bool`): Whether to take the graphs with weights of 8 bits.
        providers (`list[str]`, *optional*): Execution providers of onnxruntime, the processor by default.

    Raises:
        FileNotFoundError: If the folder holds no such graphs.
    """

    def __init__(self, folder: str | Path, quantized: bool = False, providers: list[str] | None = None):
        super().__init__()
        from onnxruntime import InferenceSession

        paths = [graph_path(folder, name, quantized) for name in (ENCODER, DECODER)]
        for path in paths:
            if not path.is_file():
                hint = " and `--int8`" * quantized
                raise FileNotFoundError(f"There is no {path}: export a model with `jmceln export`{hint} first.")
        self.config = PretrainedConfig.from_dict(json.loads((Path(folder) / "config.json").read_text("utf-8")))
        providers = ["CPUExecutionProvider"] if providers is None else providers
        self.encoder, self.decoder = (InferenceSession(str(path), providers=providers) for path in paths)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    input_modalities = ("image", "text")

    @staticmethod
    def can_generate() -> bool:
        """Asked by every pipeline."""
        return False

    def get_image_features(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None) -> dict[str, Any]:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): At the size of the export.
            pixel_mask (`torch.Tensor` of shape `(batch, height, width)`, *optional*): All 1.

        Returns:
            What the decoder takes of the image, by the names of its inputs.

        Raises:
            ValueError: If the size differs from that of the export, or images are padded.
        """
        if pixel_mask is not None and not pixel_mask.all():
            raise ValueError(
                "The graphs would read the padding of an image as a part of it: set `keep_aspect_ratio=False` in the"
                " image processor."
            )
        (image,) = self.encoder.get_inputs()
        if list(pixel_values.shape[1:]) != list(image.shape[1:]):
            raise ValueError(
                f"The graphs take images of shape {tuple(image.shape[1:])}, got {tuple(pixel_values.shape[1:])}:"
                " give the processor that size, or export the model at the other one."
            )
        names = [output.name for output in self.encoder.get_outputs()]
        values = self.encoder.run(None, {image.name: pixel_values.float().numpy(force=True)})
        return dict(zip(names, values, strict=True))

    def forward(
        self, image_features: dict[str, Any], input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> SimpleNamespace:
        """
        Args:
            image_features (`dict`): From [`~ONNXReferringModel.get_image_features`].
            input_ids, attention_mask (`torch.Tensor` of shape `(batch, expressions, length)`)

        Returns:
            `logits` of shape `(batch, expressions, height, width)` and `presence_logits` of `(batch, expressions)`.
        """
        inputs = {"input_ids": input_ids.numpy(force=True), "attention_mask": attention_mask.numpy(force=True)}
        logits, presence_logits = self.decoder.run(["logits", "presence_logits"], {**image_features, **inputs})
        return SimpleNamespace(logits=torch.from_numpy(logits), presence_logits=torch.from_numpy(presence_logits))


def load_onnx_pipeline(
    folder: str | Path, quantized: bool = False, providers: list[str] | None = None, **kwargs: Any
) -> ReferringImageSegmentationPipeline:
    """
    The pipeline "referring-image-segmentation" on exported graphs: same call, same answers.

    ```python
    >>> pipe = load_onnx_pipeline("runs/export")
    >>> pipe("photo.jpg", ["the red cup", "the spoon"])
    ```

    Args:
        folder, quantized, providers: As in [`ONNXReferringModel`].
        kwargs: Further arguments of the pipeline, such as `batch_size`.
    """
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    model = ONNXReferringModel(folder, quantized, providers)
    return ReferringImageSegmentationPipeline(model=model, processor=processor, device="cpu", **kwargs)


__all__ = ["ONNXReferringModel", "load_onnx_pipeline"]
