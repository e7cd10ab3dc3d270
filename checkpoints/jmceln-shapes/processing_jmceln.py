"""Processor of JMCELN: turns images, expressions and masks into inputs of the model."""

from typing import Any, TypedDict

import numpy as np
import torch
import transformers
from packaging import version
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import logging

# This file imports every file that it needs, also indirectly: transformers 4 copies only files that it imports itself.
from .image_loading_jmceln import ImageSource, describe_source, is_image_source, split_images
from .image_processing_jmceln import JMCELNImageProcessorKwargs, Mask, used_arguments
from .pipeline_jmceln import ReferringImageSegmentationPipeline  # noqa: F401
from .visualization import draw_overlay  # noqa: F401


logger = logging.get_logger(__name__)

MAX_TOKENS = 65536  # of an expression, where the tokenizer has no limit of its own


class JMCELNTextKwargs(TypedDict, total=False):
    """Arguments that the processor passes on to its tokenizer."""

    add_special_tokens: bool | None
    padding: bool | str | None
    padding_side: str | None
    truncation: bool | str | None
    max_length: int | None
    pad_to_multiple_of: int | None
    return_tensors: str | None


class JMCELNProcessorKwargs(ProcessingKwargs, total=False):
    """Keyword arguments of [`JMCELNProcessor`], flat or grouped as `text_kwargs` and `images_kwargs`."""

    text_kwargs: JMCELNTextKwargs
    images_kwargs: JMCELNImageProcessorKwargs
    _defaults = {"text_kwargs": {"padding": True}}  # noqa: RUF012  # pyrefly: ignore[bad-class-definition] - read by the base class


class JMCELNProcessor(ProcessorMixin):
    """
    Combines a [`JMCELNImageProcessor`] and a tokenizer.

    Args:
        image_processor ([`JMCELNImageProcessor`]):
            Prepares images and masks.
        tokenizer ([`PreTrainedTokenizerFast`] or [`PreTrainedTokenizer`]):
            The tokenizer of the text encoder. It must have a padding token.
    """

    valid_processor_kwargs = JMCELNProcessorKwargs
    _auto_class = "AutoProcessor"
    # transformers 4 needs these names. transformers 5 uses the arguments of `__init__`, and warns about these names.
    if version.parse(transformers.__version__).major < 5:
        attributes = ["image_processor", "tokenizer"]
        image_processor_class = "AutoImageProcessor"
        tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor: Any = None, tokenizer: Any = None):
        super().__init__(image_processor, tokenizer)
        # `save_pretrained` writes this field. With it set here, a processor is equal to its saved and loaded copy.
        self.auto_map = {"AutoProcessor": "processing_jmceln.JMCELNProcessor"}

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs that are made from images and expressions, without `labels`."""
        padding = ["pixel_mask"] if self.image_processor.keep_aspect_ratio else []
        return ["pixel_values", *padding, "original_sizes", "input_ids", "attention_mask"]

    def __call__(
        self,
        images: ImageSource | list[ImageSource] | None = None,
        text: str | list[str] | list[list[str]] | None = None,
        segmentation_maps: Mask | list[Mask | None] | list[list[Mask | None]] | None = None,
        landmark_maps: Mask | list[Mask | None] | list[list[Mask | None] | None] | None = None,
        **kwargs: Unpack[JMCELNProcessorKwargs],
    ) -> BatchFeature:
        """
        Args:
            images:
                One image or a list of images, see [`JMCELNImageProcessor.preprocess`].
            text:
                Expressions. For one image, a string or a list of strings (several expressions for this image). For a
                list of images, a list of strings (one per image) or a list of lists of strings (several per image).
                Without `images`, a list of strings counts as several expressions for one image.
            segmentation_maps:
                One mask per expression, nested like `text`, for example the "masks" of one image from
                [`~JMCELNProcessor.post_process_referring_segmentation`]. Pass `None` for a mask that is not known. See
                [`JMCELNImageProcessor.preprocess`].
            landmark_maps:
                The same for the landmarks, that is, the other objects that an expression names ("the ring" in "the
                star left of the ring"). `None` is also possible for all masks of an image.
            kwargs:
                `return_tensors`, the arguments of [`JMCELNImageProcessor`], and `padding`, `padding_side`,
                `truncation`, `max_length`, `pad_to_multiple_of` and `add_special_tokens` for the tokenizer.
                Expressions that are longer than the limit of the tokenizer are cut only with `truncation=True`.
                `device` and
                `return_token_type_ids` are accepted and have no effect.

        Returns:
            - `pixel_values` (batch, 3, height, width), `original_sizes` (batch, 2) and, with `keep_aspect_ratio`,
              `pixel_mask` (batch, height, width).
            - `input_ids` and `attention_mask` (batch, length), or (batch, expressions, length) for lists of
              expressions. Shorter lists are padded with rows whose `attention_mask` is zero.
            - With `segmentation_maps`, `labels` (batch[, expressions], height, width), with 255 at ignored pixels and
              for padded expressions; with `landmark_maps`, `landmark_masks` of the same shape.

            Without `text`, the result can be passed to `model.get_image_features`; without `images`, to
            `model.get_text_features`.

        Raises:
            ValueError: If neither images nor text are given, if an expression is blank or too long, if numbers do not
                match, or if [`JMCELNImageProcessor.preprocess`] rejects an image or a mask.
            TypeError: If an argument is unknown, or if an input is of the wrong kind.
        """
        arguments = self._used_arguments(kwargs)
        if images is None and text is None:
            raise ValueError("Neither `images` nor `text` was given: pass an image and an expression.")
        maps = {"segmentation_maps": segmentation_maps, "landmark_maps": landmark_maps}
        maps = {name: masks for name, masks in maps.items() if masks is not None}
        if images is None and maps:
            raise ValueError(f"`{next(iter(maps))}` was given without the `images` that the masks belong to.")
        merged = self._merge_kwargs(
            JMCELNProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **arguments
        )
        text_kwargs, images_kwargs = dict(merged["text_kwargs"]), dict(merged["images_kwargs"])
        found = [each.pop("return_tensors", None) for each in (text_kwargs, images_kwargs)]
        # Transformers 5.0 loses it in the merge if other arguments are grouped.
        return_tensors = arguments.get("return_tensors") or found[0] or found[1]

        data: dict[str, Any] = {}
        groups, is_nested = None, False
        if text is not None:
            groups, is_nested = _group_expressions(text, images)
        if images is not None:
            if maps and groups is not None:
                images, is_single = split_images(images)
                maps = {
                    name: _masks_of_expressions(name, [masks] if is_single else masks, groups, is_nested)
                    for name, masks in maps.items()
                }
            data.update(self.image_processor(images, **maps, **images_kwargs, return_tensors=return_tensors))
        if groups is not None:
            data.update(self._tokenize(groups, is_nested, **text_kwargs))
        return BatchFeature(data, tensor_type=return_tensors)

    def post_process_referring_segmentation(self, outputs: Any, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """See [`JMCELNImageProcessor.post_process_referring_segmentation`]."""
        return self.image_processor.post_process_referring_segmentation(outputs, *args, **kwargs)

    def post_process_semantic_segmentation(
        self, outputs: Any, *args: Any, **kwargs: Any
    ) -> list[torch.Tensor] | list[BatchFeature]:
        """See [`JMCELNImageProcessor.post_process_semantic_segmentation`]."""
        return self.image_processor.post_process_semantic_segmentation(outputs, *args, **kwargs)

    def _used_arguments(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        known = {
            "text_kwargs": set(JMCELNTextKwargs.__annotations__),
            "images_kwargs": set(JMCELNImageProcessorKwargs.__annotations__),
            "common_kwargs": {"return_tensors"},
        }
        own = {"images", "text", "segmentation_maps", "landmark_maps"}
        name = type(self).__name__
        used = used_arguments(name, kwargs, own.union(known, *known.values()))
        for group in known.keys() & used.keys():
            used[group] = used_arguments(f"`{group}` of {name}", used[group], known[group])
        return used

    def _tokenize(
        self,
        groups: list[list[str]],
        is_nested: bool,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        **text_kwargs: Any,
    ) -> dict[str, list]:
        expressions = [expression for group in groups for expression in group]
        adds_special_tokens = text_kwargs.get("add_special_tokens") is not False
        special_tokens = self.tokenizer.num_special_tokens_to_add() if adds_special_tokens else 0
        longest = min(self.tokenizer.model_max_length, MAX_TOKENS)
        _check_token_count("max_length", max_length, special_tokens + 1, longest)
        _check_token_count("pad_to_multiple_of", text_kwargs.get("pad_to_multiple_of"), 1, longest)
        encoding = self.tokenizer(
            expressions,
            truncation=truncation,
            # The tokenizer warns about a `max_length` that it neither cuts nor pads to.
            max_length=max_length if truncation or text_kwargs.get("padding") == "max_length" else None,
            return_token_type_ids=False,
            return_attention_mask=True,
            **text_kwargs,
        )
        limit = self.tokenizer.model_max_length if max_length is None else max_length
        for expression, mask in zip(expressions, encoding["attention_mask"], strict=True):
            if sum(mask) <= special_tokens:
                raise ValueError(
                    f"The tokenizer finds no token in the expression {expression!r}: describe the object in words."
                )
            if not truncation and sum(mask) > limit:
                raise ValueError(
                    f"The expression {expression[:80]!r}... has {sum(mask)} tokens, more than the limit of {limit}: "
                    "shorten it, or pass `truncation=True` to cut off its end."
                )
        self._warn_about_unknown_words(expressions, encoding["input_ids"])
        inputs = {"input_ids": encoding["input_ids"], "attention_mask": encoding["attention_mask"]}
        if not is_nested:
            return inputs
        fills = {"input_ids": self.tokenizer.pad_token_id or 0, "attention_mask": 0}
        return {name: _nest(rows, [len(group) for group in groups], fills[name]) for name, rows in inputs.items()}

    def _warn_about_unknown_words(self, expressions: list[str], input_ids: list[list[int]]) -> None:
        unknown_id = self.tokenizer.unk_token_id
        if unknown_id is None:
            return
        words = [
            word
            for expression, ids in zip(expressions, input_ids, strict=True)
            if unknown_id in ids
            for word in expression.split()
            if unknown_id in self.tokenizer(word, add_special_tokens=False)["input_ids"]
        ]
        for word in dict.fromkeys(words):
            logger.warning_once(
                f"The tokenizer does not know the word {word!r}. The model treats all unknown words alike, so it may "
                "find the wrong object."
            )


def _check_token_count(name: str, value: Any, smallest: int, largest: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
        raise ValueError(f"`{name}` must be a number of tokens from {smallest} to {largest}, got {value!r}.")


def _group_expressions(text: Any, images: Any) -> tuple[list[list[str]], bool]:
    """Returns the expressions of each image, and whether they form a dimension of their own."""
    single_image = images is not None and is_image_source(images)
    image_count = None if images is None else 1 if single_image else len(split_images(images)[0])
    if isinstance(text, str):
        groups, is_nested = [[text]], False
    elif not isinstance(text, (list, tuple)):
        raise TypeError(f"`text` must be a string, a list of strings or a list of lists of strings, got {text!r}.")
    elif len(text) == 0:
        raise ValueError("`text` is an empty list: give at least one expression.")
    elif all(isinstance(entry, (list, tuple)) for entry in text):
        groups, is_nested = [list(entry) for entry in text], True
    elif single_image or images is None:
        groups, is_nested = [list(text)], True
    else:
        groups, is_nested = [[entry] for entry in text], False

    for index, group in enumerate(groups):
        if not group:
            raise ValueError(f"`text[{index}]` is an empty list: give at least one expression per image.")
        for expression in group:
            if not isinstance(expression, str):
                raise TypeError(f"An expression must be a string, got {expression!r} in `text`.")
            if any("\ud800" <= character <= "\udfff" for character in expression):
                raise ValueError(f"`text` contains the expression {expression!r}, which is not valid Unicode text.")
            if not expression.strip():
                raise ValueError(f"`text` contains the blank expression {expression!r}: describe what to find.")
    if image_count is not None and len(groups) != image_count:
        hint = " For several expressions of one image, pass the image itself, not in a list." * (image_count == 1)
        raise ValueError(
            f"`text` has {len(groups)} entries for {image_count} images: give one expression, or one list of "
            f"expressions, per image.{hint}"
        )
    return groups, is_nested


def _masks_of_expressions(name: str, maps: Any, groups: list[list[str]], is_nested: bool) -> list[Any]:
    """Returns the masks as a list with one entry per image, nested like the expressions."""
    if not isinstance(maps, (list, tuple, np.ndarray, torch.Tensor)) or len(maps) != len(groups):
        raise ValueError(
            f"`{name}` must have one entry for each of the {len(groups)} images, got "
            f"{len(maps) if hasattr(maps, '__len__') else describe_source(maps)}."
        )
    nested = []
    for index, (entry, group) in enumerate(zip(maps, groups, strict=True)):
        is_stack = isinstance(entry, (np.ndarray, torch.Tensor)) and entry.ndim == 3
        masks = list(entry) if is_stack or isinstance(entry, (list, tuple)) else [entry]
        if entry is None:
            masks *= len(group)
        if len(masks) != len(group):
            raise ValueError(
                f"`{name}[{index}]` has {len(masks)} masks for the {len(group)} expressions {group[:3]}: give one "
                "mask per expression."
            )
        nested.append(masks if is_nested else masks[0])
    return nested


def _nest(rows: list[list[int]], counts: list[int], fill: int) -> list[list[list[int]]]:
    """Groups rows (all expressions, length) to (images, expressions, length), and pads shorter lists."""
    most, length = max(counts), max(len(row) for row in rows)
    nested, start = [], 0
    for count in counts:
        nested.append(rows[start : start + count] + [[fill] * length] * (most - count))
        start += count
    return nested
