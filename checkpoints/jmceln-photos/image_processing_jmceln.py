"""Image processor of JMCELN: turns images and masks into `pixel_values` and `labels`, and logits into masks."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import isfinite
from numbers import Real
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature, get_size_dict
from transformers.image_transforms import normalize, rescale
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ChannelDimension, PILImageResampling

from .image_loading_jmceln import (
    MAX_PIXELS,
    ImageSource,
    describe_source,
    image_to_array,
    mask_to_array,
    split_images,
)


IGNORED = 255  # in `labels`: it is not known whether the pixel belongs to the referent
CHANNELS_PILLOW_RESIZES = (1, 3, 4)
# Fields that transformers writes into every saved configuration of an image processor.
SERVICE_KEYS = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}
# Arguments that transformers passes to every processor, and that have no effect here.
UNUSED_ARGUMENTS = {"device", "return_token_type_ids"}

Mask = np.ndarray | torch.Tensor | Image.Image
Masks = Mask | list[Mask | None] | list[list[Mask | None]]


class JMCELNImageProcessorKwargs(TypedDict, total=False):
    """
    Arguments of [`JMCELNImageProcessor`]. `ignore_index` and those after it can only be set per call, all others also
    in the constructor.
    """

    do_resize: bool | None
    size: dict[str, int] | int | tuple[int, int] | list[int] | None
    resample: int | None
    keep_aspect_ratio: bool | None
    do_rescale: bool | None
    rescale_factor: float | None
    do_normalize: bool | None
    image_mean: float | list[float] | tuple[float, ...] | None
    image_std: float | list[float] | tuple[float, ...] | None
    do_convert_rgb: bool | None
    ignore_index: int | None
    input_data_format: str | ChannelDimension | None
    return_tensors: str | None


def _is_service(name: str) -> bool:
    return name in SERVICE_KEYS or name.startswith("_")


def used_arguments(owner: str, arguments: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """
    Checks the names of `arguments` and drops those that have no effect, such as `device`.

    Raises:
        TypeError: If a name is unknown. The message suggests the nearest name in `known`.
    """
    known = sorted(known)
    used = {name: value for name, value in arguments.items() if name not in UNUSED_ARGUMENTS}
    for name in used.keys() - known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"it takes {known}."
        raise TypeError(f"{owner} has no argument {name!r}: {hint}")
    return used


class JMCELNImageProcessor(BaseImageProcessor):
    """
    Prepares images, and optionally their masks, for JMCELN.

    The processor is deterministic, resizes with Pillow and does not need torchvision. The result for an image does not
    depend on the other images of the batch.

    Args:
        do_resize (`bool`, defaults to `True`):
            Whether to resize every image to `size`. If `False`, all images of a batch must have the same size.
        size (`dict[str, int]`, defaults to `{"height": 480, "width": 480}`):
            Height and width of `pixel_values`, in pixels. An integer means a square.
        resample (`int`, defaults to `PILImageResampling.BILINEAR`):
            Filter to resize images with. Masks are always resized with the nearest pixel.
        keep_aspect_ratio (`bool`, defaults to `False`):
            `False` stretches the image to `size`, as most models for this task do. `True` scales the image to fit into
            `size`, pads it on the right or at the bottom with zeros (after normalization) and its masks with 255, and
            returns a `pixel_mask` that is 0 in the padding.
        do_rescale (`bool`, defaults to `True`):
            Whether to multiply integer pixels by `rescale_factor`. Float pixels are never rescaled: they must lie in
            [0, 1], or in any range with `do_rescale=False`.
        rescale_factor (`float`, defaults to `1 / 255`):
            See `do_rescale`.
        do_normalize (`bool`, defaults to `True`):
            Whether to subtract `image_mean` and divide by `image_std`.
        image_mean (`float` or `list[float]`, defaults to the mean of ImageNet):
            One value, or one per channel.
        image_std (`float` or `list[float]`, defaults to the standard deviation of ImageNet):
            One value, or one per channel.
        do_convert_rgb (`bool`, defaults to `True`):
            Whether to convert gray, palette and transparent images to three channels.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - a plain list is what the base class reads
    valid_kwargs = JMCELNImageProcessorKwargs
    _auto_class = "AutoImageProcessor"

    def __init__(
        self,
        do_resize: bool = True,
        size: dict[str, int] | int | tuple[int, int] | None = None,
        resample: int = PILImageResampling.BILINEAR,
        keep_aspect_ratio: bool = False,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | list[float] | None = None,
        image_std: float | list[float] | None = None,
        do_convert_rgb: bool = True,
        **kwargs: Any,
    ):
        own = {name: value for name, value in kwargs.items() if not _is_service(name)}
        used_arguments(type(self).__name__, own, JMCELNImageProcessorKwargs.__annotations__)
        super().__init__(**kwargs)
        self.do_resize = do_resize
        self.size = _height_and_width({"height": 480, "width": 480} if size is None else size)
        self.resample = resample
        self.keep_aspect_ratio = keep_aspect_ratio
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = list(IMAGENET_DEFAULT_MEAN) if image_mean is None else image_mean
        self.image_std = list(IMAGENET_DEFAULT_STD) if image_std is None else image_std
        self.do_convert_rgb = do_convert_rgb

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers: unknown fields, such as those of a later release, are kept as attributes."""
        known = {
            name for name in image_processor_dict if name in cls.valid_kwargs.__annotations__ or _is_service(name)
        }
        result = super().from_dict({name: image_processor_dict[name] for name in known}, **kwargs)
        image_processor = result[0] if isinstance(result, tuple) else result
        for name in image_processor_dict.keys() - known:
            setattr(image_processor, name, image_processor_dict[name])
        return result

    def __call__(
        self, images: Any, segmentation_maps: Any = None, landmark_maps: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """See [`~JMCELNImageProcessor.preprocess`]."""
        used = used_arguments(type(self).__name__, kwargs, JMCELNImageProcessorKwargs.__annotations__)
        return self.preprocess(images, segmentation_maps, landmark_maps, **used)

    def preprocess(
        self,
        images: ImageSource | list[ImageSource],
        segmentation_maps: Masks | None = None,
        landmark_maps: Masks | None = None,
        do_resize: bool | None = None,
        size: dict[str, int] | int | tuple[int, int] | None = None,
        resample: int | None = None,
        keep_aspect_ratio: bool | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: float | list[float] | None = None,
        image_std: float | list[float] | None = None,
        do_convert_rgb: bool | None = None,
        ignore_index: int | None = None,
        input_data_format: str | ChannelDimension | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """
        Args:
            images:
                One image or a list of images. An image is a path, an `http(s)` URL, the bytes of a file or a PIL image
                (all of which are turned upright by their EXIF orientation), or a numpy array or torch tensor of shape
                (height, width), (height, width, channels) or (channels, height, width). The dtype determines the
                range: integers are 0 to 255, 16-bit integers are scaled to 8 bits, and floats must lie in [0, 1].
            segmentation_maps:
                For each image, one mask or a list of masks (one per expression), of the size of the upright image. An
                array of shape (masks, height, width) is such a list. For a single image, pass its mask or its list of
                masks without another list around it. 0 is background, and the one other value in the mask, whether 1,
                255 or `True`, is the referent. Pass `None` for a mask that is not known.
            landmark_maps:
                Masks of the other objects that each expression names, in the format of `segmentation_maps`.
            ignore_index:
                The value of pixels in `segmentation_maps` and `landmark_maps` to ignore. By default, none are ignored.
            input_data_format:
                `"channels_first"` or `"channels_last"` for arrays; inferred if `None`.
            return_tensors:
                `"pt"`, `"np"` or `None` (lists of numpy arrays).
            do_resize, size, resample, keep_aspect_ratio, do_rescale, rescale_factor, do_normalize, image_mean, \
            image_std, do_convert_rgb:
                As in the constructor, for this call only.

        Returns:
            - `pixel_values`, `float32` of shape (batch, channels, height, width).
            - `pixel_mask`, `int64` of shape (batch, height, width): 1 in the image, 0 in its padding. Only with
              `keep_aspect_ratio` in this call or in the configuration.
            - `original_sizes`, `int64` of shape (batch, 2): height and width of each upright image. Pass them as
              `target_sizes` to [`~JMCELNImageProcessor.post_process_referring_segmentation`].
            - `labels` with `segmentation_maps`, and `landmark_masks` with `landmark_maps`: `int64` with the values 0,
              1 and 255 (not known), of shape (batch, height, width), or (batch, masks, height, width) for lists of
              masks. Shorter lists are padded with masks of 255. If a referent is so small that it would vanish in
              resizing, the pixel nearest to its center is kept, since an empty mask means that it is absent.

        Raises:
            ValueError: If an image is unreadable or empty, if pixels are NaN or out of range, or if the size or number
                of masks does not match the images.
            TypeError: If an argument is unknown, or if an input is neither an image nor a mask.
        """
        do_resize = self.do_resize if do_resize is None else do_resize
        size = self.size if size is None else _height_and_width(size)
        resample = self.resample if resample is None else resample
        keep_aspect_ratio = self.keep_aspect_ratio if keep_aspect_ratio is None else keep_aspect_ratio
        do_rescale = self.do_rescale if do_rescale is None else do_rescale
        rescale_factor = self.rescale_factor if rescale_factor is None else rescale_factor
        do_normalize = self.do_normalize if do_normalize is None else do_normalize
        image_mean = self.image_mean if image_mean is None else image_mean
        image_std = self.image_std if image_std is None else image_std
        do_convert_rgb = self.do_convert_rgb if do_convert_rgb is None else do_convert_rgb

        sources, is_single = split_images(images)
        arrays = [image_to_array(source, do_convert_rgb, input_data_format) for source in sources]
        frames = [_frame((array.shape[0], array.shape[1]), size, do_resize, keep_aspect_ratio) for array in arrays]
        canvases = {frame.canvas for frame in frames}
        if len(canvases) > 1:
            raise ValueError(
                f"With `do_resize=False`, all images of a batch must have the same size, got the sizes "
                f"{sorted(canvases)} (height, width); resize them, or process them one by one."
            )

        def rescale_and_normalize(values: np.ndarray, is_floating: bool) -> np.ndarray:
            if do_rescale and not is_floating:
                values = rescale(values, rescale_factor, input_data_format=ChannelDimension.LAST)
            if do_normalize:
                values = normalize(values, image_mean, image_std, input_data_format=ChannelDimension.LAST)
            return values.astype(np.float32)

        pixel_values = []
        for source, array, frame in zip(sources, arrays, frames, strict=True):
            is_floating = array.dtype != np.uint8
            if do_rescale and is_floating and (array.min() < 0 or array.max() > 1):
                raise ValueError(
                    f"The image {describe_source(source)} has floats from {array.min():.4g} to {array.max():.4g}, but "
                    "floats must lie in [0, 1]: divide values of 0 to 255 by 255, or convert the image to uint8. If "
                    "it is already normalized, pass `do_rescale=False` and `do_normalize=False`."
                )
            array = _resize_image(array, frame.content, resample)
            # What was resized as floats keeps the range of its source.
            finish = partial(rescale_and_normalize, is_floating=is_floating)
            pixel_values.append(_pad(_map_values(array, finish).transpose(2, 0, 1), frame, fill=0))
        channel_counts = {len(values) for values in pixel_values}
        if len(channel_counts) > 1:
            raise ValueError(
                f"All images of a batch must have the same number of channels, got {sorted(channel_counts)}; pass "
                "`do_convert_rgb=True`."
            )

        data: dict[str, Any] = {"pixel_values": pixel_values}
        if keep_aspect_ratio or self.keep_aspect_ratio:
            data["pixel_mask"] = [_pad(np.ones(frame.content, dtype=np.int64), frame, fill=0) for frame in frames]
        data["original_sizes"] = [np.array(frame.original) for frame in frames]
        if segmentation_maps is not None:
            data["labels"] = _labels("segmentation_maps", segmentation_maps, frames, is_single, ignore_index)
        if landmark_maps is not None:
            data["landmark_masks"] = _labels("landmark_maps", landmark_maps, frames, is_single, ignore_index)
        if return_tensors is None:
            data = {name: list(values) for name, values in data.items()}
        return BatchFeature(data, tensor_type=return_tensors)

    @torch.no_grad()
    def post_process_referring_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_probabilities: bool = False,
    ) -> list[dict[str, torch.Tensor]]:
        """
        Turns the outputs of the model into masks and scores.

        Args:
            outputs: Outputs of the model, with `logits` of shape (batch, height, width) or
                (batch, expressions, height, width) and, optionally, `presence_logits` (batch[, expressions]).
            threshold: If the score of a result is below this number, 0 to 1, its mask is empty. 0 keeps every mask.
            mask_threshold: A pixel belongs to the mask if its probability is above this number, 0 to 1.
            target_sizes: (height, width) of each original image, such as the `original_sizes` that the processor
                returns. `None` leaves the masks at the size of the logits, including the padding.
            pixel_mask: The `pixel_mask` that the processor returned, to cut off the padding. Defaults to the one in
                `outputs.image_features`. If there is none, the size of each image without its padding follows from the
                settings of this processor.
            attention_mask: The `attention_mask` that the processor returned: expressions without any 1 are padding and
                are dropped. By default, all expressions are returned.
            return_probabilities: Whether to also return the probability of every pixel.

        Returns:
            One dictionary per image. `expressions` is 1 if the logits have no such dimension.

            - `"masks"`: `bool` (expressions, height, width).
            - `"scores"`: `float32` (expressions,), 0 to 1: the probability that the referent is in the image, times
              the mean probability of the pixels in the mask. If no pixel exceeds `mask_threshold`, the highest
              probability of all pixels is used instead of the mean. The score is an estimate of the model itself, and
              only as well calibrated as the model.
            - `"probabilities"`: `float32` (expressions, height, width), with `return_probabilities`.

        Raises:
            ValueError: If a threshold lies outside [0, 1], if a size is not a positive height and width, if an input
                does not match the batch, or if the outputs are NaN.
        """
        check_threshold("threshold", threshold)
        check_threshold("mask_threshold", mask_threshold)
        if not hasattr(outputs, "logits"):
            raise TypeError(
                f"`outputs` must be what the model returns with `return_dict=True`, got a {type(outputs).__name__}."
            )
        logits, presence_logits = outputs.logits, getattr(outputs, "presence_logits", None)
        if logits.ndim not in (3, 4):
            raise ValueError(
                "`outputs.logits` must have the shape (batch, height, width) or (batch, expressions, height, width), "
                f"got {tuple(logits.shape)}."
            )
        if pixel_mask is None:
            pixel_mask = getattr(getattr(outputs, "image_features", None), "pixel_mask", None)
        sizes = [None] * len(logits) if target_sizes is None else [_target_size(entry) for entry in target_sizes]
        for name, entries in (("target_sizes", sizes), ("pixel_mask", pixel_mask)):
            if entries is not None and len(entries) != len(logits):
                raise ValueError(
                    f"`{name}` has {len(entries)} entries for a batch of {len(logits)} images: give one per image."
                )
        if attention_mask is not None and attention_mask.shape[:-1] != logits.shape[:-2]:
            raise ValueError(
                f"`attention_mask` has the shape {tuple(attention_mask.shape)}, but the logits belong to "
                f"{tuple(logits.shape[:-2])} expressions: pass the `attention_mask` that you passed to the model."
            )

        results = []
        for index, target_size in enumerate(sizes):
            rows = logits[index].reshape(-1, *logits.shape[-2:])
            if presence_logits is None:
                presences = rows.new_ones(len(rows), dtype=torch.float32)
            else:
                presences = presence_logits[index].reshape(-1).float().sigmoid()
            if attention_mask is not None:
                is_real = attention_mask[index].reshape(len(rows), -1).any(-1).to(rows.device)
                rows, presences = rows[is_real], presences[is_real]
            if _has_nan(rows) or _has_nan(presences):
                raise ValueError(
                    f"The model returned NaN for image {index} of the batch. Check the weights and `pixel_values`; in "
                    "`torch.float16`, large values overflow: use `torch.bfloat16` or `torch.float32`."
                )
            if target_size is not None:
                content = self._content_of_logits(rows, target_size, None if pixel_mask is None else pixel_mask[index])
                rows = rows[:, : content[0], : content[1]]
            size = tuple(rows.shape[-2:]) if target_size is None else target_size
            masks = rows.new_zeros((len(rows), *size), dtype=torch.bool)
            scores = torch.zeros_like(presences)
            all_probabilities = []
            # One at a time: at the original size, the probabilities of many expressions need too much memory.
            for number, (row, presence) in enumerate(zip(rows, presences, strict=True)):
                probabilities = _resize_logits(row, size).sigmoid_()
                masks[number], scores[number] = masks_and_scores(probabilities, presence, threshold, mask_threshold)
                if return_probabilities:
                    all_probabilities.append(probabilities)
            results.append({"masks": masks, "scores": scores})
            if return_probabilities:
                empty = scores.new_zeros((0, *size))
                results[-1]["probabilities"] = torch.stack(all_probabilities) if all_probabilities else empty
        return results

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        pixel_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[BatchFeature]:
        """
        Turns the outputs of the model into one map per image, with the number of the expression at each pixel.

        Args:
            outputs, target_sizes, threshold, mask_threshold, pixel_mask, attention_mask:
                See [`~JMCELNImageProcessor.post_process_referring_segmentation`].
            return_segmentation_scores: Whether to also return the probability of every pixel.

        Returns:
            One `int64` tensor (height, width) per image: the number of the expression, counted from 1, or 0 if the
            pixel belongs to no mask. If masks overlap, the most probable one wins. With `return_segmentation_scores`,
            one [`BatchFeature`] per image with this map as `segmentation`, and with the probabilities as
            `segmentation_scores`, `float32` (expressions, height, width).
        """
        results = self.post_process_referring_segmentation(
            outputs, threshold, mask_threshold, target_sizes, pixel_mask, attention_mask, return_probabilities=True
        )
        found = []
        for result in results:
            inside = result["probabilities"] * result["masks"]
            background = inside.new_zeros((1, *inside.shape[-2:]))
            segmentation = torch.cat([background, inside]).argmax(dim=0)
            found.append(BatchFeature({"segmentation": segmentation, "segmentation_scores": result["probabilities"]}))
        return found if return_segmentation_scores else [each["segmentation"] for each in found]

    def _content_of_logits(
        self, logits: torch.Tensor, target_size: tuple[int, int], pixel_mask: torch.Tensor | None
    ) -> tuple[int, int]:
        """Height and width of the image of `target_size` in its logits (expressions, height, width), unpadded."""
        height, width = logits.shape[-2:]
        if pixel_mask is None:
            return _content_size(target_size, (height, width), self.keep_aspect_ratio)
        filled = [int(pixel_mask.bool().any(dim).sum()) for dim in (1, 0)]
        canvas = pixel_mask.shape
        return max(1, round(filled[0] * height / canvas[0])), max(1, round(filled[1] * width / canvas[1]))


class _Frame(NamedTuple):
    """Sizes (height, width) of an image: the original, the resized one, and the resized one with its padding."""

    original: tuple[int, int]
    content: tuple[int, int]
    canvas: tuple[int, int]


def _frame(original: tuple[int, int], size: dict[str, int], do_resize: bool, keep_aspect_ratio: bool) -> _Frame:
    if not do_resize:
        return _Frame(original, original, original)
    canvas = (size["height"], size["width"])
    return _Frame(original, _content_size(original, canvas, keep_aspect_ratio), canvas)


def masks_and_scores(
    probabilities: torch.Tensor, presences: torch.Tensor, threshold: float = 0.5, mask_threshold: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Computes masks and scores from probabilities. All post-processing and all metrics use this function.

    Args:
        probabilities: Probabilities of the pixels, `float32` (..., height, width).
        presences: Probabilities that the referent is in the image, `float32` (...).
        threshold, mask_threshold: See [`~JMCELNImageProcessor.post_process_referring_segmentation`].

    Returns:
        Masks, `bool` (..., height, width), and scores, `float32` (...).
    """
    masks = probabilities > mask_threshold
    # Two thirds of the time of an `int64` sum, and of a product with a boolean tensor.
    areas = masks.flatten(-2).sum(-1, dtype=torch.int32)
    inside = torch.nn.functional.threshold(probabilities, mask_threshold, 0.0)
    means = inside.sum((-2, -1)) / areas.clamp(min=1)
    scores = presences * torch.where(areas > 0, means, probabilities.amax((-2, -1)))
    return masks & (scores >= threshold)[..., None, None], scores


def check_threshold(name: str, value: float) -> None:
    """Raises a `TypeError` unless `value` is a number, and a `ValueError` unless it lies in [0, 1]."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` must lie between 0 and 1, got {value}.")


def _target_size(entry: Any) -> tuple[int, int]:
    edges = [int(edge) for edge in entry if isfinite(edge)] if np.ndim(entry) == 1 else []
    if len(edges) != 2 or min(edges) < 1 or edges[0] * edges[1] > MAX_PIXELS:
        raise ValueError(
            "`target_sizes` must contain one (height, width) in pixels per image, such as [(480, 640)], of at most "
            f"{MAX_PIXELS} pixels, got the entry {entry!r}."
        )
    return edges[0], edges[1]


def _height_and_width(size: dict[str, int] | int | tuple[int, int]) -> dict[str, int]:
    size = dict(get_size_dict(size))
    if set(size) != {"height", "width"} or not all(isinstance(edge, int) and edge > 0 for edge in size.values()):
        raise ValueError(f'`size` must be {{"height": ..., "width": ...}} with positive integers, got {size}.')
    if size["height"] * size["width"] > MAX_PIXELS:
        raise ValueError(f"`size` must not exceed {MAX_PIXELS} pixels, height times width, got {size}.")
    return size


def _content_size(original_size: tuple[int, int], canvas: tuple[int, int], keep_aspect_ratio: bool) -> tuple[int, int]:
    if not keep_aspect_ratio:
        return canvas
    scale = min(canvas[0] / original_size[0], canvas[1] / original_size[1])
    return (
        min(canvas[0], max(1, round(original_size[0] * scale))),
        min(canvas[1], max(1, round(original_size[1] * scale))),
    )


def _resize_image(array: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    if array.shape[:2] == size:
        return array
    if array.dtype == np.uint8 and array.shape[-1] in CHANNELS_PILLOW_RESIZES:
        image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        return np.asarray(image.resize(size[::-1], resample)).reshape(*size, array.shape[-1])
    # Pillow resizes float images of one channel only.
    channels = [Image.fromarray(array[..., channel].astype(np.float32)) for channel in range(array.shape[-1])]
    return np.stack([np.asarray(channel.resize(size[::-1], resample)) for channel in channels], axis=-1)


def _map_values(array: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Applies a function of single values, which may differ by channel, to (height, width, channels)."""
    if array.dtype != np.uint8:
        return function(array)
    # Bytes have 256 values: looking them up is many times faster than computing every pixel, and gives the same.
    table = function(np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], array.shape[-1], axis=2))
    planes = np.empty((array.shape[-1], *array.shape[:2]), dtype=table.dtype)
    for channel, plane in enumerate(planes):
        # The mode saves the check of each index, which a byte always passes.
        np.take(table[:, 0, channel], array[..., channel], out=plane, mode="clip")
    return planes.transpose(1, 2, 0)


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = np.array(Image.fromarray(mask).resize(size[::-1], PILImageResampling.NEAREST))
    if (mask == 1).any() and not (resized == 1).any():
        rows, columns = np.nonzero(mask == 1)
        nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        row = int((rows[nearest] + 0.5) * size[0] / mask.shape[0])
        column = int((columns[nearest] + 0.5) * size[1] / mask.shape[1])
        resized[row, column] = 1
    return resized


def _has_nan(values: torch.Tensor) -> bool:
    # The largest of several values is NaN if one of them is. It needs no tensor of booleans.
    return values.numel() > 0 and bool(values.amax().isnan())


def _resize_logits(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resizes logits (height, width) bilinearly, as `float32`."""
    batch = logits.float()[None, None]
    return torch.nn.functional.interpolate(batch, size=size, mode="bilinear", align_corners=False)[0, 0]


def _pad(array: np.ndarray, frame: _Frame, fill: int) -> np.ndarray:
    """Pads an array (..., height, width) of the resized image to the size of the canvas."""
    if frame.content == frame.canvas:
        return array
    margins = [(0, canvas - edge) for canvas, edge in zip(frame.canvas, frame.content, strict=True)]
    return np.pad(array, [(0, 0)] * (array.ndim - 2) + margins, constant_values=fill)


def _labels(name: str, maps: Any, frames: list[_Frame], is_single: bool, ignore_index: int | None) -> np.ndarray:
    """Returns the masks as the model takes them, `int64` (batch, height, width) or (batch, masks, height, width)."""
    labels = []
    for index, (entry, frame) in enumerate(zip(_split_masks(name, maps, len(frames), is_single), frames, strict=True)):
        place = f"{name}[{index}]"
        if not isinstance(entry, list):
            labels.append(_label(place, entry, frame, ignore_index))
        elif entry:
            labels.append(np.stack([_label(place, mask, frame, ignore_index) for mask in entry]))
        else:
            raise ValueError(f"`{place}` is an empty list: give at least one mask per image.")
    if len({label.ndim for label in labels}) > 1:
        raise ValueError(
            f"`{name}` mixes single masks and lists of masks: give either one mask for every image, or a list for "
            "every image (a list of one is fine)."
        )
    if labels[0].ndim == 3:
        longest = max(len(label) for label in labels)
        labels = [
            np.pad(label, [(0, longest - len(label)), (0, 0), (0, 0)], constant_values=IGNORED) for label in labels
        ]
    # Wide integers last: until here the masks are an eighth of their size.
    return np.stack(labels).astype(np.int64)


def _label(place: str, mask: Mask | None, frame: _Frame, ignore_index: int | None) -> np.ndarray:
    if mask is None:
        return np.full(frame.canvas, IGNORED, dtype=np.uint8)
    array = mask_to_array(mask, name=place, ignore_index=ignore_index)
    if array.shape != frame.original:
        turned = " Height and width are swapped: does the EXIF orientation rotate the image?" * (
            array.shape == frame.original[::-1]
        )
        raise ValueError(
            f"`{place}` has the size {array.shape}, but its image has {frame.original} (height, width); a mask must "
            f"have the size of the original, upright image.{turned}"
        )
    return _pad(_resize_mask(array, frame.content), frame, fill=IGNORED)


def _split_masks(name: str, maps: Any, image_count: int, is_single: bool) -> list[Mask | list[Mask | None] | None]:
    if is_single:
        return [_mask_or_list(maps)]
    if not isinstance(maps, (list, tuple, np.ndarray, torch.Tensor)):
        raise TypeError(
            f"`{name}` must be a list with one entry per image, because `images` is a list; got "
            f"{describe_source(maps)}."
        )
    if len(maps) != image_count:
        raise ValueError(
            f"`{name}` has {len(maps)} entries for {image_count} images: give one mask, or one list of masks, per "
            "image."
        )
    return [_mask_or_list(entry) for entry in maps]


def _mask_or_list(entry: Any) -> Mask | list[Mask | None] | None:
    if isinstance(entry, (np.ndarray, torch.Tensor)) and entry.ndim == 3:
        return list(entry)
    return list(entry) if isinstance(entry, (list, tuple)) else entry
