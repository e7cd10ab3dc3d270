"""Figures of predictions in TensorBoard during training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.integrations import TensorBoardCallback

from ..data.masks import decode_mask
from ..visualization import draw_overlay
from .image_sampler import cut_expressions


TARGET_COLOR = (0, 200, 80)
PREDICTION_COLOR = (230, 30, 90)
_CAPTION_HEIGHT = 14


def picture_of_prediction(
    image: Image.Image, target: np.ndarray, prediction: np.ndarray, expression: str, longest_side: int = 320
) -> Image.Image:
    """
    Draws the image with the target (green, left) and with the prediction (red, right), and the expression above them.

    Args:
        image (`PIL.Image.Image`): The image.
        target, prediction (`np.ndarray` of shape `(height, width)`): Boolean masks at the size of the image.
        expression (`str`): The expression.
        longest_side (`int`, *optional*, defaults to 320): Longest side of each half in pixels.

    Raises:
        ValueError: If a mask does not have the size of the image.
    """
    image = image.convert("RGB")
    scale = longest_side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    picture = Image.new("RGB", (2 * size[0] + 2, size[1] + _CAPTION_HEIGHT), "white")
    for column, (mask, color) in enumerate(((target, TARGET_COLOR), (prediction, PREDICTION_COLOR))):
        if mask.shape != (image.height, image.width):
            raise ValueError(f"A mask of shape {mask.shape} does not fit an image of {image.height} x {image.width}.")
        half = draw_overlay(image, [Image.fromarray(mask)], opacity=0.55, colors=[color])
        picture.paste(half.resize(size, Image.Resampling.BILINEAR), (column * (size[0] + 2), _CAPTION_HEIGHT))
    # The built-in font of Pillow has Latin letters only.
    caption = expression.encode("latin-1", "replace").decode("latin-1")
    ImageDraw.Draw(picture).text((2, 1), caption, fill="black")
    return picture


class PredictionPictures(TrainerCallback):
    """
    Writes the predictions for a few fixed rows to TensorBoard after each evaluation.

    Args:
        trainer ([`~processing.training.referring_trainer.ReferringTrainer`]):
            The trainer, whose evaluation collator and TensorBoard writer are used.
        rows (`Sequence[Mapping]`):
            Canonical rows. The first expression of each is shown.
        processor (`JMCELNProcessor`):
            Turns outputs of the model into masks at the size of the images.
    """

    def __init__(self, trainer: Trainer, rows: Sequence[Mapping[str, Any]], processor: Any):
        self.trainer = trainer
        self.rows = [cut_expressions(row, 0, 1) for row in rows if row["expressions"]]
        self.processor = processor
        self.last_step = -1

    def on_evaluate(self, _: Any, state: TrainerState, *__: Any, model: torch.nn.Module, **___: Any) -> None:
        """Predicts on all processes and writes on the first, once per step even with several datasets."""
        if state.global_step == self.last_step:
            return
        self.last_step = state.global_step
        writer = next(
            (
                callback.tb_writer
                for callback in self.trainer.callback_handler.callbacks
                if isinstance(callback, TensorBoardCallback)
            ),
            None,
        )
        # All processes predict, since the weights may be sharded. Only the first one has a writer.
        predictions = self._predict(model)
        if writer is None:
            return
        for number, (row, prediction) in enumerate(zip(self.rows, predictions, strict=True)):
            picture = picture_of_prediction(
                row["image"], decode_mask(row["masks"][row["mask_index"][0]]), prediction, row["expressions"][0]
            )
            writer.add_image(f"predictions/{number}", np.asarray(picture), state.global_step, dataformats="HWC")

    def _predict(self, model: torch.nn.Module) -> list[np.ndarray]:
        was_training = model.training
        model.eval()
        predictions = []
        with torch.no_grad(), self.trainer.averaged_weights():
            for row in self.rows:
                batch = self.trainer.data_collator([row])
                batch.pop("labels")
                outputs = model(**{name: tensor.to(self.trainer.args.device) for name, tensor in batch.items()})
                size = (row["image"].height, row["image"].width)
                (result,) = self.processor.post_process_referring_segmentation(
                    outputs, target_sizes=[size], pixel_mask=batch.get("pixel_mask")
                )
                predictions.append(result["masks"][0].cpu().numpy())
        model.train(was_training)
        return predictions
