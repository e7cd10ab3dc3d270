"""The pipeline on ONNX graphs from `jmceln export`, with onnxruntime and without the code of the model."""

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
    """Returns the path of the graph `name` in a folder of exported graphs."""
    return Path(folder) / f"{name}{'.int8' * quantized}.onnx"


class ONNXReferringModel(nn.Module):
    """
    Runs two sessions of onnxruntime with the interface of the model that the pipeline uses, with as many threads as
    `torch.get_num_threads()` gives.

    Args:
        folder (`str` or `Path`): Folder written by `jmceln export`.
        quantized (`bool`): Whether to use the graphs with 8-bit weights.
        providers (`list[str]`, *optional*): Execution providers of onnxruntime. Defaults to the CPU.

    Raises:
        FileNotFoundError: If the folder does not contain these graphs.
    """

    def __init__(self, folder: str | Path, quantized: bool = False, providers: list[str] | None = None):
        super().__init__()
        from onnxruntime import InferenceSession, SessionOptions

        paths = [graph_path(folder, name, quantized) for name in (ENCODER, DECODER)]
        for path in paths:
            if not path.is_file():
                hint = " and `--int8`" * quantized
                raise FileNotFoundError(f"There is no {path}: export a model with `jmceln export`{hint} first.")
        self.config = PretrainedConfig.from_dict(json.loads((Path(folder) / "config.json").read_text("utf-8")))
        providers = ["CPUExecutionProvider"] if providers is None else providers
        session_options = SessionOptions()
        # As many as torch uses: more threads than free cores wait for each other.
        session_options.intra_op_num_threads = torch.get_num_threads()
        self.encoder, self.decoder = (
            InferenceSession(str(path), session_options, providers=providers) for path in paths
        )
        self.device, self.dtype = torch.device("cpu"), torch.float32

    input_modalities = ("image", "text")

    @staticmethod
    def can_generate() -> bool:
        """Every pipeline calls this."""
        return False

    def get_image_features(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None) -> dict[str, Any]:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch, 3, height, width)`): Images of the size of the export.
            pixel_mask (`torch.Tensor` of shape `(batch, height, width)`, *optional*): Must be 1 everywhere.

        Returns:
            `dict`: The image features by the names of the inputs of the decoder.

        Raises:
            ValueError: If the size is not that of the export, or if images are padded.
        """
        if pixel_mask is not None and not pixel_mask.all():
            raise ValueError(
                "The graphs cannot ignore the padding of images: set `keep_aspect_ratio=False` in the image processor."
            )
        (image,) = self.encoder.get_inputs()
        if list(pixel_values.shape[1:]) != list(image.shape[1:]):
            raise ValueError(
                f"The graphs need images of shape {tuple(image.shape[1:])}, got {tuple(pixel_values.shape[1:])}:"
                " change the size in the processor, or export the model at this size."
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
    Loads the pipeline "referring-image-segmentation" with exported graphs. It is called in the same way and returns
    the same results.

    ```python
    >>> pipe = load_onnx_pipeline("runs/export")
    >>> pipe("photo.jpg", ["the red cup", "the spoon"])
    ```

    Args:
        folder, quantized, providers: As in [`ONNXReferringModel`].
        kwargs: Other arguments of the pipeline, such as `batch_size`.
    """
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    model = ONNXReferringModel(folder, quantized, providers)
    return ReferringImageSegmentationPipeline(model=model, processor=processor, device="cpu", **kwargs)


__all__ = ["ONNXReferringModel", "load_onnx_pipeline"]
