"""The model behind the page, which encodes a photo once and runs for many expressions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..image_loading_jmceln import ImageSource, array_to_pil_image, image_to_array
from ..training.unknown_words import find_unknown_words


@dataclass(frozen=True)
class Photo:
    """An upright photo in RGB, and its image features."""

    image: Image.Image
    features: Any  # from `model.get_image_features`
    content: tuple[int, int]  # height and width of the photo in the input of the model, without padding
    pixel_mask: torch.Tensor | None


@dataclass(frozen=True)
class StageMaps:
    """Maps of one stage of the cascade, with values from 0 to 1, (height, width) at the size of the input."""

    mask: np.ndarray
    landmarks: np.ndarray
    attention: np.ndarray | None
    alignment_filter: np.ndarray | None


@dataclass(frozen=True)
class Answers:
    """Outputs of one run of the model, from which masks for any threshold can be computed."""

    photo: Photo
    expressions: tuple[str, ...]
    unknown_words: tuple[tuple[str, ...], ...]
    logits: torch.Tensor  # (expressions, height, width)
    presence_logits: torch.Tensor  # (expressions,)
    stages: tuple[dict[str, torch.Tensor], ...]  # one per stage, maps (expressions, h, w) by the names of `StageMaps`


@dataclass(frozen=True)
class Result:
    """The result of one expression for given thresholds. `mask` is empty if the referent is not in the image."""

    expression: str
    mask: np.ndarray  # bool, (height, width)
    probabilities: np.ndarray  # float32, (height, width)
    score: float
    unknown_words: tuple[str, ...]

    @property
    def is_absent(self) -> bool:
        return not self.mask.any()


class Segmenter:
    """
    A model with its processor.

    Args:
        model ([`JMCELNModel`]): The model, in evaluation mode.
        processor ([`JMCELNProcessor`]): The processor of the model.
    """

    def __init__(self, model: Any, processor: Any):
        self.model = model
        self.processor = processor
        # The same expressions are often used for many photos.
        self._text_features = lru_cache(maxsize=64)(self._encode_text)

    @torch.inference_mode()
    def encode(self, source: ImageSource) -> Photo:
        """
        Reads and encodes a photo.

        Raises:
            ValueError: If the photo cannot be read.
        """
        image = array_to_pil_image(image_to_array(source))
        inputs = self.processor(images=image, return_tensors="pt").to(self.model.device)
        pixel_mask = inputs.get("pixel_mask")
        given = {} if pixel_mask is None else {"pixel_mask": pixel_mask}
        features = self.model.get_image_features(inputs["pixel_values"].to(self.model.dtype), **given)
        if pixel_mask is None:
            height, width = inputs["pixel_values"].shape[-2:]
        else:
            height, width = (int(pixel_mask[0].any(dim).sum()) for dim in (1, 0))
        return Photo(image, features, (height, width), pixel_mask)

    @torch.inference_mode()
    def ask(self, photo: Photo, expressions: Sequence[str], look_inside: bool = True) -> Answers:
        """
        Runs the model on a photo.

        Args:
            photo ([`Photo`]): From [`~Segmenter.encode`].
            expressions (`Sequence` of `str`): Expressions for the photo.
            look_inside (`bool`): Whether to return the maps of the stages. Otherwise, `stages` is empty.

        Raises:
            ValueError: If an expression is blank, or longer than the limit of the tokenizer.
        """
        outputs = self.model(
            image_features=photo.features,
            text_features=self._text_features(tuple(expressions)),
            output_attentions=look_inside,
        )
        return Answers(
            photo=photo,
            expressions=tuple(expressions),
            unknown_words=tuple(self.unknown_words(expression) for expression in expressions),
            logits=outputs.logits[0].float().cpu(),
            presence_logits=outputs.presence_logits[0].float().cpu(),
            stages=tuple(
                _stage_maps(outputs, index) for index in range(len(outputs.stage_logits) if look_inside else 0)
            ),
        )

    def _encode_text(self, expressions: tuple[str, ...]) -> Any:
        inputs = self.processor(text=[list(expressions)], return_tensors="pt").to(self.model.device)
        return self.model.get_text_features(inputs["input_ids"], inputs["attention_mask"])

    def unknown_words(self, expression: str) -> tuple[str, ...]:
        """Returns the words that the tokenizer does not know. The model treats all of them as the same word."""
        return tuple(find_unknown_words(self.processor.tokenizer, [expression]).counts)

    def results(
        self, answers: Answers, size: tuple[int, int], threshold: float = 0.5, mask_threshold: float = 0.5
    ) -> list[Result]:
        """Computes one result per expression, with masks of `size` (height, width), without running the model."""
        (found,) = self.processor.post_process_referring_segmentation(
            SimpleNamespace(logits=answers.logits[None], presence_logits=answers.presence_logits[None]),
            threshold=threshold,
            mask_threshold=mask_threshold,
            target_sizes=[size],
            pixel_mask=None if answers.photo.pixel_mask is None else answers.photo.pixel_mask.cpu(),
            return_probabilities=True,
        )
        return [
            Result(expression, mask.numpy(), probabilities.numpy(), float(score), unknown_words)
            for expression, mask, probabilities, score, unknown_words in zip(
                answers.expressions,
                found["masks"],
                found["probabilities"],
                found["scores"],
                answers.unknown_words,
                strict=True,
            )
        ]

    def cascade(self, answers: Answers, index: int) -> list[StageMaps]:
        """Returns the maps of the stages, coarse to fine, for expression number `index`."""
        input_size = answers.logits.shape[-2:]
        stride = self.model.config.feature_strides[-1]
        padded = [side + -side % stride for side in input_size]
        height, width = answers.photo.content

        def spread(maps: torch.Tensor) -> np.ndarray:
            resized = torch.nn.functional.interpolate(maps[index][None, None], size=padded, mode="bilinear")
            return resized[0, 0, :height, :width].numpy()

        stages = []
        for maps in answers.stages:
            drawn = {name: spread(values) for name, values in maps.items()}
            stages.append(
                StageMaps(drawn["mask"], drawn["landmarks"], drawn.get("attention"), drawn.get("alignment_filter"))
            )
        return stages


def _stage_maps(outputs: Any, index: int) -> dict[str, torch.Tensor]:
    maps = {
        "mask": outputs.stage_logits[index][0].float().sigmoid().cpu(),
        "landmarks": outputs.landmark_logits[index][0].float().sigmoid().cpu(),
    }
    height, width = outputs.image_features.pixel_features[-1].shape[1:3]
    weights = outputs.attentions[index][0].float()
    # The keys are the words, the context tokens and, only with a contextual embedding, the pixels.
    if weights.shape[-1] > height * width:
        attention = weights[..., -height * width :].mean((1, 2))
        attention = attention / attention.amax(-1, keepdim=True).clamp(min=1e-12)
        maps["attention"] = attention.unflatten(-1, (height, width)).cpu()
    if index > 0 and outputs.alignment_filters is not None:
        maps["alignment_filter"] = outputs.alignment_filters[index - 1][0].float().cpu()
    return maps
