"""Pipeline of the task "referring-image-segmentation": images and expressions in, masks and scores out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline

# All files that the pipeline needs are imported here: transformers 4 copies only files that the entry file imports.
from .image_loading_jmceln import array_to_pil_image, describe_source, image_to_array, is_image_source
from .image_processing_jmceln import check_threshold
from .visualization import color_of, draw_overlay


def check_finite_weights(model: Any, name: str) -> None:
    """
    Refuse a model whose weights are NaN or infinite: what it returned would mean nothing.

    Args:
        model (`nn.Module` or `Mapping[str, torch.Tensor]`): The model, or its weights by name. Of anything else, such
            as exported graphs, nothing is known.
        name (`str`): What to call it in the error.

    Raises:
        ValueError: if a weight is not finite; the message names the first.
    """
    weights = model.state_dict() if isinstance(model, torch.nn.Module) else model
    if not isinstance(weights, Mapping):
        return
    bad = [key for key, weight in weights.items() if weight.is_floating_point() and not bool(weight.isfinite().all())]
    if bad:
        raise ValueError(
            f"{name} has weights that are NaN or infinite, in {len(bad)} of {len(weights)} tensors, such as "
            f"`{bad[0]}`: its training failed, or its file is damaged. Use an earlier checkpoint."
        )


def _given(**parameters: Any) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


class ReferringImageSegmentationPipeline(Pipeline):
    """
    Finds what expressions refer to in images.

    ```python
    >>> from transformers import pipeline

    >>> pipe = pipeline("referring-image-segmentation", model="folder-or-hub-id", trust_remote_code=True)
    >>> pipe("photo.jpg", "the red cup")
    [{"label": "the red cup", "score": 0.93, "mask": <PIL.Image.Image mode=L size=640x480>}]
    >>> pipe("photo.jpg", ["the red cup", "the spoon"])  # encodes the image once
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
                f"{type(self).__name__} needs a `processor`: pass one, or the name of a folder that contains one."
            )
        check_finite_weights(self.model, f"The model {getattr(self.model, 'name_or_path', '')}".rstrip())

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """
        Args:
            images:
                - One image: a path, URL, bytes, PIL image, numpy array or torch tensor.
                - A list of images.
                - A generator or a dataset (a torch dataset or one of `datasets`) of images. A generator is consumed
                  lazily.
                - Instead of any image, a mapping such as a row of a dataset, with the image under "image" and its
                  expression or expressions under "text" (or "expressions").
            text:
                - For one image, a string or a list of strings.
                - For a list of images, a string (used for each image), a list of strings (one per image) or a list of
                  lists of strings.
                - For a generator or dataset, a string or a list of strings, used for each image.

                A mapping that has its own expressions needs no `text`.
            threshold (`float`, defaults to 0.5):
                If the score of a result is below this number, its mask is empty. 0 keeps every mask.
            mask_threshold (`float`, defaults to 0.5):
                A pixel belongs to the mask if its probability is above this number.
            return_overlay (`bool`, defaults to `False`):
                Whether to add an "overlay" to each result: the image with the mask drawn over it, of mode "RGB".
            expressions_per_call (`int`, defaults to 8 on a CPU and to 32 elsewhere):
                How many expressions go through the model at a time. A lower number saves memory and does not change
                the results.
            batch_size (`int`, defaults to 1):
                How many images of a list, generator or dataset are encoded together.
            truncation (`bool`, defaults to `False`):
                Whether to cut expressions that are longer than the limit of the tokenizer. Otherwise they are an
                error.
            timeout (`float`, defaults to 30):
                Seconds that a URL may take.
            on_error (`str`, defaults to `"raise"`):
                What happens if an image or its text is bad. `"raise"` ends with an error that names its position.
                `"skip"` goes on with the others.

        Returns:
            For one image, a list with one dictionary per expression; for a list of images, a list of such lists; for a
            generator or dataset, an iterator over such lists. The keys are

            - `"label"`: the expression.
            - `"mask"`: PIL image of mode "L", 255 on the referent and 0 elsewhere, of the size of the upright image.
            - `"score"`: from 0 to 1, see [`JMCELNImageProcessor.post_process_referring_segmentation`]. `threshold`
              empties masks but does not change scores.
            - `"error"`, only with `on_error="skip"` and only if the image or its text is bad: what is wrong. `"score"`
              and `"mask"` are then `None`, and so is `"label"` if there is no text.

        Raises:
            ValueError: If there is no image or no text, if their numbers do not match, if [`JMCELNProcessor`] rejects
                them, or if the model returns NaN.
            TypeError: If an argument is unknown, or if an input is of the wrong kind.
        """
        if images is None:
            raise ValueError("No image was given: pass an image, a list of images or a dataset as `images`.")
        if is_image_source(images) or isinstance(images, Mapping):
            return super().__call__(_request(None, lambda: images, text), **kwargs)
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
                    f"expressions, per image.{hint * (len(images) == 1)}"
                )
            rows = [
                _request(position, lambda image=image: image, expressions)
                for position, (image, expressions) in enumerate(zip(images, text, strict=True))
            ]
            on_error = kwargs.get("on_error") or self._preprocess_params.get("on_error", "raise")
            for row in rows:
                # Before the model sees any of them.
                if "error" in row and on_error == "raise":
                    _failed(row["error"], row, on_error)
            return super().__call__(rows, **kwargs)
        if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
            return super().__call__(_Rows(images, text), **kwargs)
        if isinstance(images, Iterable):
            return super().__call__(_RowStream(images, text), **kwargs)
        raise TypeError(f"`images` must be an image, or a list, generator or dataset of images, got {images!r}.")

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Saves the model and the processor. The code of this pipeline is saved along with the processor."""
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
        on_error: str | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        thresholds = _given(threshold=threshold, mask_threshold=mask_threshold)
        for name, value in thresholds.items():
            check_threshold(name, value)
        if expressions_per_call is not None and (
            not isinstance(expressions_per_call, int)
            or isinstance(expressions_per_call, bool)
            or expressions_per_call < 1
        ):
            raise ValueError(f"`expressions_per_call` must be an integer of at least 1, got {expressions_per_call!r}.")
        for name, value in _given(return_overlay=return_overlay, truncation=truncation).items():
            if not isinstance(value, bool):
                raise TypeError(f"`{name}` must be `True` or `False`, got {value!r}.")
        if timeout is not None and (not isinstance(timeout, Real) or not timeout > 0):
            raise ValueError(f"`timeout` must be a number of seconds above 0, got {timeout!r}.")
        if on_error not in (None, "raise", "skip"):
            raise ValueError(f'`on_error` must be "raise" or "skip", got {on_error!r}.')
        policy = _given(on_error=on_error)
        return (
            _given(return_overlay=return_overlay, truncation=truncation, timeout=timeout, **policy),
            _given(expressions_per_call=expressions_per_call),
            {**thresholds, **policy},
        )

    def preprocess(
        self,
        row: Mapping[str, Any],
        return_overlay: bool = False,
        truncation: bool = False,
        timeout: float = 30.0,
        on_error: str = "raise",
    ) -> dict[str, Any]:
        try:
            if "error" in row:
                raise row["error"]
            return self._prepare(row, return_overlay, truncation, timeout)
        except Exception as error:
            answers = _failed(error, row, on_error)
        # A blank image takes the place of the bad one in its batch, and no expression is asked of it.
        blank = self.processor.image_processor(Image.new("RGB", (1, 1)), return_tensors="pt")
        request = {
            "position": row["position"],
            "expressions": [],
            "answers": answers,
            "input_ids": torch.zeros(0, 1, dtype=torch.long),
            "attention_mask": torch.zeros(0, 1, dtype=torch.long),
            "pixel_mask": blank["pixel_mask"][0] if "pixel_mask" in blank else None,
        }
        return {"pixel_values": blank["pixel_values"].to(self.dtype), "request": request}

    def _prepare(self, row: Mapping[str, Any], return_overlay: bool, truncation: bool, timeout: float) -> dict:
        image = image_to_array(row["image"], timeout=timeout)
        expressions = row["text"]
        inputs = self.processor(
            images=image,
            text=expressions,
            input_data_format="channels_last",
            truncation=truncation,
            return_tensors="pt",
        )
        # The base class cannot batch tensors of different shapes, but it does batch mappings as they are.
        request = {
            "position": row["position"],
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
            # On a CPU, more expressions at a time are slower: the allocator gets buffers of more than 32 MiB from the
            # system again for every operation, and the system zeroes them.
            expressions_per_call = 8 if self.device.type == "cpu" else 32
        requests = model_inputs["request"]
        requests = [requests] if isinstance(requests, Mapping) else requests
        pixel_masks = [request["pixel_mask"] for request in requests]
        padding = {} if pixel_masks[0] is None else {"pixel_mask": torch.stack(pixel_masks)}
        results = [{"logits": [], "presence_logits": [], "request": request} for request in requests]
        if not any(request["expressions"] for request in requests):
            return {"results": results}
        image_features = self.model.get_image_features(model_inputs["pixel_values"], **padding)
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
        self,
        model_outputs: dict[str, Any],
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        on_error: str = "raise",
    ) -> list[dict[str, Any]]:
        result = model_outputs["results"]
        # The base class splits a batch before it calls this method, but not a single image.
        result = result[0] if isinstance(result, list) else result
        request = result["request"]
        if "answers" in request:
            return request["answers"]
        outputs = SimpleNamespace(
            logits=torch.cat(result["logits"])[None], presence_logits=torch.cat(result["presence_logits"])[None]
        )
        try:
            (found,) = self.processor.post_process_referring_segmentation(
                outputs,
                threshold=threshold,
                mask_threshold=mask_threshold,
                target_sizes=[request["target_size"]],
                pixel_mask=None if request["pixel_mask"] is None else request["pixel_mask"][None],
            )
        except ValueError as error:
            return _failed(error, {"position": request["position"], "text": request["expressions"]}, on_error)
        answers = []
        for index, (expression, score, mask) in enumerate(
            zip(request["expressions"], found["scores"].tolist(), found["masks"], strict=True)
        ):
            mask_image = Image.fromarray(mask.numpy().view(np.uint8) * np.uint8(255))
            answers.append({"label": expression, "score": score, "mask": mask_image})
            if request["image"] is not None:
                answers[-1]["overlay"] = draw_overlay(request["image"], [mask_image], colors=[color_of(index)])
        return answers


class _Rows(torch.utils.data.Dataset):
    """A dataset of images or rows, each with its expressions."""

    def __init__(self, dataset: Any, text: Any):
        self.dataset = dataset
        self.text = text

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _request(index, lambda: self.dataset[index], self.text)


class _RowStream(torch.utils.data.IterableDataset):
    """Like `_Rows`, for a generator or iterable: transformers 5.0 would first turn a plain generator into a list."""

    def __init__(self, images: Iterable[Any], text: Any):
        self.images = images
        self.text = text

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for position, image in enumerate(self.images):
            yield _request(position, lambda image=image: image, self.text)


def _request(position: int | None, read: Callable[[], Any], text: Any) -> dict[str, Any]:
    """The image that `read` returns, its expressions and its position; or the error in place of the first two."""
    try:
        return {"position": position, **_row(read(), text)}
    except Exception as error:
        return {"position": position, "error": error}


def _failed(error: Exception, row: Mapping[str, Any], on_error: str) -> list[dict[str, Any]]:
    """What stands in the place of the results of a bad image; or raises the error with the position of the image."""
    position = row["position"]
    message = str(error) if position is None else f"images[{position}]: {error}"
    if on_error == "skip":
        return [{"label": label, "score": None, "mask": None, "error": message} for label in row.get("text") or [None]]
    if position is None:
        raise error
    raise (TypeError if isinstance(error, TypeError) else ValueError)(message) from error


def _row(image: Any, text: Any) -> dict[str, Any]:
    """Returns the image and its expressions. Those of a mapping take precedence over `text`."""
    if isinstance(image, Mapping):
        brought = [image[key] for key in ("text", "expressions") if image.get(key) is not None]
        text = brought[0] if brought else text
        if image.get("image") is None:
            raise ValueError(f'A row must have its image under the key "image", got the keys {sorted(image)}.')
        image = image["image"]
    if text is None:
        raise ValueError(f"No expression was given for the image {describe_source(image)}: pass it as `text`.")
    if not isinstance(text, (str, list, tuple)):
        raise TypeError(f"The text of one image must be a string or a list of strings, got {text!r}.")
    expressions = [text] if isinstance(text, str) else list(text)
    for expression in expressions:
        # The processor would take a nested list as the expressions of another image.
        if not isinstance(expression, str):
            raise TypeError(
                f"The text of one image must be a string or a list of strings, got {expression!r} in the list."
            )
    return {"image": image, "text": expressions}


def _stack_rows(groups: list[torch.Tensor]) -> torch.Tensor:
    """Stacks integer tensors (expressions, length) to one (batch, expressions, length), padded with zeros."""
    shape = [max(group.shape[dimension] for group in groups) for dimension in (0, 1)]
    stacked = groups[0].new_zeros(len(groups), *shape)
    for row, group in zip(stacked, groups, strict=True):
        row[: group.shape[0], : group.shape[1]] = group
    return stacked
