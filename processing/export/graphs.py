"""Writes the two graphs of a model, as programs of torch.export and as ONNX."""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from modeling_jmceln import JMCELNImageFeatures, JMCELNModel
from modeling_jmceln.upsampling import cell_weights, upsample_cells

from ..safe_files import replacing
from .onnx_inference import DECODER, ENCODER, graph_path


class ImageEncoder(nn.Module):
    """
    Maps `pixel_values` to the tensors of [`JMCELNImageFeatures`], with the weights of [`cell_weights`], so that these
    are grouped once per image.
    """

    def __init__(self, model: JMCELNModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.model.get_image_features(pixel_values, return_dict=True)
        rows, columns = features.pixel_features[0].shape[1:3]
        weights = cell_weights(features.upsampling_weights, self.model.upsampler.stride, rows, columns)
        return (features.last_hidden_state, *features.pixel_features, weights)


class ExpressionDecoder(nn.Module):
    """
    Maps the tensors of [`ImageEncoder`] and expressions to mask logits and presence logits.

    Args:
        model ([`JMCELNModel`])
        size (`tuple[int, int]`): Height and width of the images.
    """

    def __init__(self, model: JMCELNModel, size: tuple[int, int]):
        super().__init__()
        self.model = model
        self.size = size

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        tokens: torch.Tensor,
        pixel_features: Sequence[torch.Tensor],
        upsampling_weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        features = JMCELNImageFeatures(
            last_hidden_state=tokens,
            pixel_features=tuple(pixel_features),
            # Only its shape counts: what the model upsamples with it is not used, and not part of the graph.
            upsampling_weights=tokens.new_zeros(tokens.shape[0], 9, *self.size),
        )
        outputs = self.model(
            image_features=features, input_ids=input_ids, attention_mask=attention_mask, return_dict=True
        )
        return upsample_cells(outputs.stage_logits[-1], upsampling_weights, self.size), outputs.presence_logits


def example_inputs(model: JMCELNModel, size: tuple[int, int], shape: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """Random inputs of shape `(batch, expressions, length)`, with one shorter expression and one padded one."""
    generator = torch.Generator().manual_seed(sum(shape))
    input_ids = torch.randint(1, model.config.text_config.vocab_size, shape, generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, 0, shape[2] // 2 + 1 :] = 0
    if shape[1] > 1:
        attention_mask[-1, -1] = 0
    pixel_values = torch.randn(shape[0], 3, *size, generator=generator)
    return {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hides messages of the exporters about missing torchvision operators, names of axes and deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


def trace(model: JMCELNModel, size: tuple[int, int]) -> dict[str, ExportedProgram]:
    """Traces both graphs as programs of torch.export."""
    inputs = example_inputs(model, size, (2, 3, 7))
    batch = Dim("batch")
    encoder, decoder = ImageEncoder(model), ExpressionDecoder(model, size)
    tokens, *pixel_features, upsampling_weights = encoder(inputs["pixel_values"])
    # The tracer finds the limits: the number of expressions has none, but its sizes are compared in a way that a named
    # dimension does not allow. The text encoder determines the maximum length of an expression.
    words = {0: batch, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    return {
        ENCODER: torch.export.export(
            encoder, (inputs["pixel_values"],), dynamic_shapes={"pixel_values": {0: batch}}, strict=False
        ),
        DECODER: torch.export.export(
            decoder,
            (inputs["input_ids"], inputs["attention_mask"], tokens, pixel_features, upsampling_weights),
            dynamic_shapes={
                "input_ids": words,
                "attention_mask": words,
                "tokens": {0: batch},
                "pixel_features": [{0: batch} for _ in pixel_features],
                "upsampling_weights": {0: batch},
            },
            strict=False,
        ),
    }


def write_graphs(programs: dict[str, ExportedProgram], folder: Path, num_levels: int) -> None:
    """Writes the programs as `.pt2` and as `.onnx`. Outputs of the first graph are named like inputs of the second."""
    from onnxscript.rewriter import rewrite

    from .runtime_operators import ROTATION_RULE, TRANSLATIONS

    features = ["tokens", *(f"pixel_features_{level}" for level in range(num_levels)), "upsampling_weights"]
    names = {
        ENCODER: (["pixel_values"], features),
        DECODER: (["input_ids", "attention_mask", *features], ["logits", "presence_logits"]),
    }
    for name, program in programs.items():
        # By way of memory: the file writer of torch ends the process if the disk gets full.
        archive = io.BytesIO()
        torch.export.save(program, archive)
        with replacing(folder / f"{name}.pt2") as unfinished:
            unfinished.write_bytes(archive.getbuffer())
        input_names, output_names = names[name]
        graph = torch.onnx.export(
            program,
            (),
            dynamo=True,
            input_names=input_names,
            output_names=output_names,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
        graph.model = rewrite(graph.model, [ROTATION_RULE])
        with replacing(graph_path(folder, name, quantized=False)) as unfinished:
            graph.save(unfinished, external_data=False)


def quantize(folder: Path) -> None:
    """
    Writes both graphs with matrix products in 8 bits. Activations are quantized dynamically. Convolutions stay in
    float32, which is as fast and more accurate.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for name in (ENCODER, DECODER):
        with replacing(graph_path(folder, name, quantized=True)) as unfinished:
            quantize_dynamic(
                graph_path(folder, name, quantized=False),
                unfinished,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                # Only signed weights use VNNI and AMX. On CPUs without these, products of 7 bits do not saturate.
                weight_type=QuantType.QInt8,
                reduce_range=True,
            )
