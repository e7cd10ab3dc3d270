"""Pipeline of the task "referring-image-segmentation": images and expressions in, masks and scores out."""

from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline

# Named in full because on transformers 4 only the files that this one names travel with it.
from .image_loading_jmceln import array_to_pil_image, describe_source, image_to_array, is_image_source
from .image_processing_jmceln import check_threshold
from .visualization import colour_of, draw_overlay


def _given(**parameters: Any) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


class ReferringImageSegmentationPipeline(Pipeline):
    """
    Finds what expressions refer to in pictures.

    ```python
    >>> from transformers import pipeline

    >>> pipe = pipeline("referring-image-segmentation", model="folder-or-hub-id", trust_remote_code=True)
    >>> pipe("photo.jpg", "the red cup")
    [{"label": "the red cup", "score": 0.93, "mask": <PIL.Image.Image mode=L size=640x480>}]
    >>> pipe("photo.jpg", ["the red cup", "the spoon"])  # the picture is encoded once
    ```
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                f"{type(self).__name__} needs a `processor`: pass one, or the name of a folder that holds one."
            )

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """
        Args:
            images:
                - One picture: a path, URL, bytes, PIL image, numpy array or torch tensor.
                - A list of pictures.
                - A generator or a dataset (of torch or of `datasets`) of pictures, consumed as it goes.
                - Instead of a picture, anywhere, a mapping such as a row of a dataset, with the picture under "image"
                  and its expression or expressions under "text" (or "expressions").
            text:
                For one picture a string or a list of strings. For a list of pictures a string (asked of each), a list
                of strings (one an image) or a list of lists of strings. For a generator or dataset of pictures a
                string or a list of strings, asked of each. Not needed where the rows bring their own.
            threshold (`float`, defaults to 0.5):
                A result whose score is below this number counts as absent: its mask is empty. 0 never empties a mask.
            mask_threshold (`float`, defaults to 0.5):
                A pixel belongs to the mask if its probability is above this number.
            return_overlay (`bool`, defaults to `False`):
                Whether to add to each result an "overlay": the picture with the mask drawn in, of mode "RGB".
            expressions_per_call (`int`, defaults to 8 on a CPU and to 32 elsewhere):
                How many expressions go through the model at a time; bounds the memory, not the results.
            batch_size (`int`, defaults to 1):
                How many pictures of a list, generator or dataset are encoded together.
            truncation (`bool`, defaults to `False`):
                Whether to cut expressions that exceed the limit of the tokenizer; they are refused otherwise.
            timeout (`float`, defaults to 30):
                Seconds to wait for a URL.

        Returns:
            For one picture a list with one dictionary an expression; for a list of pictures a list of such lists; for
            a generator or dataset an iterator over such lists. The keys are

            - `"label"`: the expression.
            - `"mask"`: PIL image of mode "L", 255 on the referent and 0 elsewhere, of the size of the upright picture.
            - `"score"`: from 0 to 1, see [`JMCELNImageProcessor.post_process_referring_segmentation`]. `threshold`
              empties masks but does not change scores.

        Raises:
            ValueError: no image, no text, counts that do not match, what [`JMCELNProcessor`] refuses, and a model that
                returns NaN.
            TypeError: unknown arguments, or inputs of the wrong kind.
        """
        if images is None:
            raise ValueError("No image was given: pass a picture, a list of pictures or a dataset as `images`.")
        if is_image_source(images) or isinstance(images, Mapping):
            return super().__call__(_row(images, text), **kwargs)
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
            images = list(images)
        if isinstance(images, (list, tuple)):
            if len(images) == 0:
                raise ValueError("`images` is an empty list: give at least one image.")
            if text is None or isinstance(text, str):
                text = [text] * len(images)
            if not isinstance(text, (list, tuple)):
                raise TypeError(f"`text` must be a string or a list, got {text!r}.")
            if len(text) != len(images):
                hint = " For several expressions of one image, pass the image itself, not in a list."
                raise ValueError(
                    f"`text` has {len(text)} entries for {len(images)} images: give one expression, or one list of "
                    f"expressions, an image.{hint * (len(images) == 1)}"
                )
            rows = [_row(image, expressions) for image, expressions in zip(images, text, strict=True)]
            return super().__call__(rows, **kwargs)
        if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
            return super().__call__(_Rows(images, text), **kwargs)
        if isinstance(images, Iterable):
            return super().__call__(_RowStream(images, text), **kwargs)
        raise TypeError(f"`images` must be a picture, a list, generator or dataset of them, got {images!r}.")

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Saves the model and the processor, with which the code of this pipeline travels."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(
        self,
        threshold: float | None = None,
        mask_threshold: float | None = None,
        return_overlay: bool | None = None,
        expressions_per_call: int | None = None,
        truncation: bool | None = None,
        timeout: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        thresholds = _given(threshold=threshold, mask_threshold=mask_threshold)
        for name, value in thresholds.items():
            check_threshold(name, value)
        if expressions_per_call is not None and expressions_per_call < 1:
            raise ValueError(f"`expressions_per_call` must be at least 1, got {expressions_per_call}.")
        return (
            _given(return_overlay=return_overlay, truncation=truncation, timeout=timeout),
            _given(expressions_per_call=expressions_per_call),
            thresholds,
        )

    def preprocess(
        self,
        row: Mapping[str, Any],
        return_overlay: bool = False,
        truncation: bool = False,
        timeout: float = 30.0,
    ) -> dict[str, Any]:
        image = image_to_array(row["image"], timeout=timeout)
        expressions = row["text"]
        inputs = self.processor(
            images=image,
            text=expressions,
            input_data_format="channels_last",
            truncation=truncation,
            return_tensors="pt",
        )
        # One mapping for all that differs in shape from image to image: the base class batches it as it is.
        request = {
            "expressions": expressions,
            "target_size": image.shape[:2],
            "input_ids": inputs["input_ids"][0],
            "attention_mask": inputs["attention_mask"][0],
            "pixel_mask": inputs["pixel_mask"][0] if "pixel_mask" in inputs else None,
            "image": array_to_pil_image(image) if return_overlay else None,
        }
        return {"pixel_values": inputs["pixel_values"].to(self.dtype), "request": request}

    def _forward(self, model_inputs: dict[str, Any], expressions_per_call: int | None = None) -> dict[str, Any]:
        if expressions_per_call is None:
            # On a CPU more at a time are slower: the system zeroes buffers beyond 32 MiB anew at every operation.
            expressions_per_call = 8 if self.device.type == "cpu" else 32
        requests = model_inputs["request"]
        requests = [requests] if isinstance(requests, Mapping) else requests
        pixel_masks = [request["pixel_mask"] for request in requests]
        padding = {} if pixel_masks[0] is None else {"pixel_mask": torch.stack(pixel_masks)}
        image_features = self.model.get_image_features(model_inputs["pixel_values"], **padding)
        results = [{"logits": [], "presence_logits": [], "request": request} for request in requests]
        counts = [len(request["expressions"]) for request in requests]
        step = max(1, expressions_per_call // len(requests))
        for start in range(0, max(counts), step):
            outputs = self.model(
                image_features=image_features,
                input_ids=_stack_rows([request["input_ids"][start : start + step] for request in requests]),
                attention_mask=_stack_rows([request["attention_mask"][start : start + step] for request in requests]),
            )
            for index, (result, count) in enumerate(zip(results, counts, strict=True)):
                real = max(0, min(step, count - start))
                result["logits"].append(outputs.logits[index, :real].cpu())
                result["presence_logits"].append(outputs.presence_logits[index, :real].cpu())
        return {"results": results}

    def postprocess(
        self, model_outputs: dict[str, Any], threshold: float = 0.5, mask_threshold: float = 0.5
    ) -> list[dict[str, Any]]:
        result = model_outputs["results"]
        # A batch has been taken apart by the base class before it comes here; a single image has not.
        result = result[0] if isinstance(result, list) else result
        request = result["request"]
        outputs = SimpleNamespace(
            logits=torch.cat(result["logits"])[None], presence_logits=torch.cat(result["presence_logits"])[None]
        )
        (found,) = self.processor.post_process_referring_segmentation(
            outputs,
            threshold=threshold,
            mask_threshold=mask_threshold,
            target_sizes=[request["target_size"]],
            pixel_mask=None if request["pixel_mask"] is None else request["pixel_mask"][None],
        )
        answers = []
        for index, (expression, score, mask) in enumerate(
            zip(request["expressions"], found["scores"].tolist(), found["masks"], strict=True)
        ):
            picture = Image.fromarray(mask.numpy().astype(np.uint8) * 255)
            answers.append({"label": expression, "score": score, "mask": picture})
            if request["image"] is not None:
                answers[-1]["overlay"] = draw_overlay(request["image"], [picture], colours=[colour_of(index)])
        return answers


class _Rows(torch.utils.data.Dataset):
    """A dataset of pictures or rows, each with the expressions to look for."""

    def __init__(self, dataset: Any, text: Any):
        self.dataset = dataset
        self.text = text

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _row(self.dataset[index], self.text)


class _RowStream(torch.utils.data.IterableDataset):
    """The same of a generator or iterable: as a dataset, for transformers 5.0 first makes a list of a generator."""

    def __init__(self, images: Iterable[Any], text: Any):
        self.images = images
        self.text = text

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (_row(image, self.text) for image in self.images)


def _row(image: Any, text: Any) -> dict[str, Any]:
    """The picture and its expressions; a mapping that brings its own goes before `text`."""
    if isinstance(image, Mapping):
        brought = [image[key] for key in ("text", "expressions") if image.get(key) is not None]
        text = brought[0] if brought else text
        if image.get("image") is None:
            raise ValueError(f'A row must hold its picture under "image", got the keys {sorted(image)}.')
        image = image["image"]
    if text is None:
        raise ValueError(f"No expression was given for the image {describe_source(image)}: pass it as `text`.")
    if not isinstance(text, (str, list, tuple)):
        raise TypeError(f"The text of one image must be a string or a list of strings, got {text!r}.")
    expressions = [text] if isinstance(text, str) else list(text)
    for expression in expressions:
        # A list in a list would be read as a group of expressions, of which only the first were asked.
        if not isinstance(expression, str):
            raise TypeError(f"The text of one image must be a string or a list of strings, got {expression!r} in it.")
    return {"image": image, "text": expressions}


def _stack_rows(groups: list[torch.Tensor]) -> torch.Tensor:
    """Tensors (expressions, length) of integers as one (batch, expressions, length), padded with zeros."""
    shape = [max(group.shape[dimension] for group in groups) for dimension in (0, 1)]
    stacked = groups[0].new_zeros(len(groups), *shape)
    for row, group in zip(stacked, groups, strict=True):
        row[: group.shape[0], : group.shape[1]] = group
    return stacked
