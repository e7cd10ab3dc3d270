"""Image processor of JMCELN: pictures and masks in, `pixel_values` and `labels` out, and logits back to masks."""

from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature, get_size_dict
from transformers.image_transforms import normalize, rescale, resize
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ChannelDimension, PILImageResampling
from transformers.utils import logging

from .image_loading_jmceln import ImageSource, describe_source, image_to_array, mask_to_array, split_images


logger = logging.get_logger(__name__)

IGNORED = 255
CHANNELS_PILLOW_RESIZES = (1, 3, 4)
# Written by transformers into every saved configuration of an image processor.
SERVICE_KEYS = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}

Mask = np.ndarray | torch.Tensor | Image.Image


class JMCELNImageProcessorKwargs(TypedDict, total=False):
    """What [`JMCELNImageProcessor`] takes at construction and, to override it for once, at a call."""

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
    input_data_format: str | ChannelDimension | None
    return_tensors: str | None


def _is_service(name: str) -> bool:
    return name in SERVICE_KEYS or name.startswith("_")


class JMCELNImageProcessor(BaseImageProcessor):
    """
    Prepares pictures, and optionally the masks that belong to them, for JMCELN.

    It is deterministic, resizes with Pillow and does not need torchvision. What a picture becomes never depends on the
    other pictures of the batch.

    Args:
        do_resize (`bool`, defaults to `True`):
            Whether to bring every picture to `size`. If not, all pictures of a batch must have one size.
        size (`dict[str, int]`, defaults to `{"height": 480, "width": 480}`):
            Height and width of `pixel_values`, in pixels. An integer means a square.
        resample (`int`, defaults to `PILImageResampling.BILINEAR`):
            Filter for the picture. Masks are always resized by the nearest pixel.
        keep_aspect_ratio (`bool`, defaults to `False`):
            `False` stretches the picture to `size`, as is usual in this field. `True` scales it until it fits and pads
            it on the right or at the bottom with zeros (after normalisation), masks with 255.
        do_rescale (`bool`, defaults to `True`):
            Whether to multiply pixel values by `rescale_factor`. Floats that all lie in [0, 1] are left as they are.
        rescale_factor (`float`, defaults to `1 / 255`):
            See `do_rescale`.
        do_normalize (`bool`, defaults to `True`):
            Whether to subtract `image_mean` and divide by `image_std`.
        image_mean (`float` or `list[float]`, defaults to the mean of ImageNet):
            One value, or one a channel.
        image_std (`float` or `list[float]`, defaults to the standard deviation of ImageNet):
            One value, or one a channel.
        do_convert_rgb (`bool`, defaults to `True`):
            Whether to make three channels of grey, palette and transparent pictures.
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
        unknown = [name for name in kwargs if not _is_service(name)]
        if unknown:
            raise TypeError(
                f"{type(self).__name__} does not know the arguments {unknown}; it takes "
                f"{sorted(JMCELNImageProcessorKwargs.__annotations__)}."
            )
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
        """As in transformers: a field that this class does not know, such as one of a later release, is kept."""
        known = {
            name for name in image_processor_dict if name in cls.valid_kwargs.__annotations__ or _is_service(name)
        }
        result = super().from_dict({name: image_processor_dict[name] for name in known}, **kwargs)
        image_processor = result[0] if isinstance(result, tuple) else result
        for name in image_processor_dict.keys() - known:
            setattr(image_processor, name, image_processor_dict[name])
        return result

    def __call__(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """See [`~JMCELNImageProcessor.preprocess`]."""
        return self.preprocess(images, segmentation_maps, **kwargs)

    def preprocess(
        self,
        images: ImageSource | list[ImageSource],
        segmentation_maps: Mask | list[Mask] | list[list[Mask]] | None = None,
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
        input_data_format: str | ChannelDimension | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """
        Args:
            images:
                One picture or a list of them. A picture is a path, an `http(s)` URL, the bytes of a file, a PIL image
                (both turned upright by their EXIF orientation), or a numpy array or torch tensor of shape
                (height, width), (height, width, channels) or (channels, height, width). Integers are 0 to 255, 16 bits
                are scaled to 8, floats lie in [0, 1] or in [0, 255].
            segmentation_maps:
                For each picture one mask, or a list of masks (one an expression), at the picture's own upright size:
                0 background, 1 the referent, 255 ignored. An array of shape (masks, height, width) is such a list.
                For a single picture: its mask or its list of masks, not wrapped in another list.
            input_data_format:
                `"channels_first"` or `"channels_last"` for arrays; inferred when `None`.
            return_tensors:
                `"pt"`, `"np"` or `None` (lists of numpy arrays).
            do_resize, size, resample, keep_aspect_ratio, do_rescale, rescale_factor, do_normalize, image_mean, \
            image_std, do_convert_rgb:
                As in the constructor, for this call only.

        Returns:
            `pixel_values`, `float32` of shape (batch, channels, height, width); with `segmentation_maps` also
            `labels`, `int64` of shape (batch, height, width), or (batch, masks, height, width) where lists of masks
            were given, the shorter lists padded with masks full of 255. A referent too small to survive the resizing
            keeps the pixel nearest its centre, for an empty mask means that the referent is absent.

        Raises:
            ValueError: unreadable or empty pictures, NaN, pixels out of range, masks of another size or number.
            TypeError: unknown arguments, or inputs that are neither pictures nor masks.
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

        pictures, is_single = split_images(images)
        arrays = [image_to_array(picture, do_convert_rgb, input_data_format) for picture in pictures]
        original_sizes = [array.shape[:2] for array in arrays]
        if not do_resize and len(set(original_sizes)) > 1:
            raise ValueError(
                f"With `do_resize=False` all images of a batch must have one size, got {sorted(set(original_sizes))} "
                "(height, width); resize them, or process them one by one."
            )

        pixel_values = []
        for picture, array in zip(pictures, arrays, strict=True):
            is_floating = array.dtype != np.uint8
            if do_rescale and is_floating and (array.min() < 0 or array.max() > 255):
                raise ValueError(
                    f"The image {describe_source(picture)} holds floats from {array.min():.4g} to {array.max():.4g}, "
                    "expected [0, 1] or [0, 255]. If it is normalised already, pass `do_rescale=False` and "
                    "`do_normalize=False`."
                )
            is_scaled = is_floating and array.max() <= 1
            if do_resize:
                array = _resize_image(array, _content_size(array.shape[:2], size, keep_aspect_ratio), resample)
            if do_rescale and not is_scaled:
                array = rescale(array, rescale_factor, input_data_format=ChannelDimension.LAST)
            if do_normalize:
                array = normalize(array, image_mean, image_std, input_data_format=ChannelDimension.LAST)
            array = array.astype(np.float32).transpose(2, 0, 1)
            pixel_values.append(_pad(array, size, fill=0) if do_resize else np.ascontiguousarray(array))
        channel_counts = {len(values) for values in pixel_values}
        if len(channel_counts) > 1:
            raise ValueError(
                f"The images of one batch have {sorted(channel_counts)} channels; pass `do_convert_rgb=True`."
            )
        data = {"pixel_values": pixel_values}

        if segmentation_maps is not None:
            data["labels"] = [
                self._label(masks, original_size, size, do_resize, keep_aspect_ratio, index)
                for index, (masks, original_size) in enumerate(
                    zip(_split_masks(segmentation_maps, len(pictures), is_single), original_sizes, strict=True)
                )
            ]
            data["labels"] = _pad_mask_lists(data["labels"])
        return BatchFeature(data, tensor_type=return_tensors)

    def mask_probabilities(
        self,
        logits: torch.Tensor,
        target_size: tuple[int, int] | None = None,
        keep_aspect_ratio: bool | None = None,
    ) -> torch.Tensor:
        """
        Brings the mask logits of one picture back to that picture: cuts the padding off, resizes, applies a sigmoid.

        Args:
            logits: any float type, shape (height, width) or (expressions, height, width).
            target_size: (height, width) of the original picture; `None` leaves the size of the logits and, since it is
                then unknown, the padding.
            keep_aspect_ratio: how the picture was resized; by default as this processor is configured.

        Returns:
            Probabilities, `float32`, of the same number of dimensions as `logits`.
        """
        logits = logits.float()
        if target_size is not None:
            keep_aspect_ratio = self.keep_aspect_ratio if keep_aspect_ratio is None else keep_aspect_ratio
            height, width = logits.shape[-2:]
            content = _content_size(target_size, {"height": height, "width": width}, keep_aspect_ratio)
            logits = logits[..., : content[0], : content[1]]
            rows = logits.reshape(1, -1, *logits.shape[-2:])
            rows = torch.nn.functional.interpolate(rows, size=target_size, mode="bilinear", align_corners=False)
            logits = rows.reshape(*logits.shape[:-2], *target_size)
        return logits.sigmoid()

    def post_process_referring_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        presence_threshold: float = 0.5,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        keep_aspect_ratio: bool | None = None,
    ) -> list[torch.Tensor]:
        """
        Turns the outputs of the model into masks.

        Args:
            outputs: what the model returns; `logits` of shape (batch, height, width) or
                (batch, expressions, height, width) and, if there are any, `presence_logits` (batch[, expressions]).
            threshold: a pixel belongs to the mask if its probability is above this number, 0 to 1.
            presence_threshold: the mask is empty if the probability that the referent is in the picture is below this
                number, 0 to 1; 0 never empties a mask.
            target_sizes: (height, width) of each original picture; `None` leaves the masks at the size of the logits.
            keep_aspect_ratio: how the pictures were resized; by default as this processor is configured.

        Returns:
            One boolean tensor a picture: (height, width), or (expressions, height, width) where the logits have
            expressions. Rows of padded expressions are returned as well.

        Raises:
            ValueError: thresholds outside [0, 1], sizes that are not a positive height and width, or as many sizes as
                do not fit the batch.
        """
        check_threshold("threshold", threshold)
        check_threshold("presence_threshold", presence_threshold)
        logits, presence_logits = outputs.logits, getattr(outputs, "presence_logits", None)
        if logits.ndim not in (3, 4):
            raise ValueError(
                "`outputs.logits` must have the shape (batch, height, width) or (batch, expressions, height, width), "
                f"got {tuple(logits.shape)}."
            )
        sizes = [None] * len(logits) if target_sizes is None else [_target_size(entry) for entry in target_sizes]
        if len(sizes) != len(logits):
            raise ValueError(
                f"`target_sizes` has {len(sizes)} entries for a batch of {len(logits)} images: give one (height, "
                "width) an image."
            )

        masks = []
        for index, target_size in enumerate(sizes):
            rows = logits[index] if logits.ndim == 4 else logits[index][None]
            # One row at a time: at the original size the probabilities of many expressions would not fit into memory.
            mask = torch.stack(
                [self.mask_probabilities(row, target_size, keep_aspect_ratio) > threshold for row in rows]
            )
            if presence_logits is not None:
                absent = presence_logits[index].float().sigmoid().reshape(-1) < presence_threshold
                mask[absent] = False
            masks.append(mask if logits.ndim == 4 else mask[0])
        return masks

    def _label(
        self,
        masks: Mask | list[Mask],
        original_size: tuple[int, int],
        size: dict[str, int],
        do_resize: bool,
        keep_aspect_ratio: bool,
        index: int,
    ) -> np.ndarray:
        if isinstance(masks, list):
            if not masks:
                raise ValueError(f"`segmentation_maps[{index}]` is an empty list: give at least one mask an image.")
            return np.stack(
                [self._label(mask, original_size, size, do_resize, keep_aspect_ratio, index) for mask in masks]
            )
        mask = mask_to_array(masks, name=f"segmentation_maps[{index}]")
        if mask.shape != original_size:
            turned = " They are swapped: is the image rotated by its EXIF orientation?" * (
                mask.shape == original_size[::-1]
            )
            raise ValueError(
                f"`segmentation_maps[{index}]` has the size {mask.shape} but its image has {original_size} "
                f"(height, width); a mask must fit the original, upright image.{turned}"
            )
        # A mask of 255 alone is one of which nothing is known; a mistaken one has a background too.
        if (mask == IGNORED).any() and (mask == 0).any() and not (mask == 1).any():
            logger.warning_once(
                "A mask in `segmentation_maps` holds 255 but no 1. 255 means ignored here; if it marks the referent, "
                "divide the mask by 255."
            )
        if do_resize:
            mask = _resize_mask(mask, _content_size(original_size, size, keep_aspect_ratio))
            mask = _pad(mask, size, fill=IGNORED)
        return mask.astype(np.int64)


def check_threshold(name: str, value: float) -> None:
    """Raises a `ValueError` unless `value` is a probability."""
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` must lie between 0 and 1, got {value}.")


def _target_size(entry: Any) -> tuple[int, int]:
    edges = [int(edge) for edge in entry] if np.ndim(entry) == 1 else []
    if len(edges) != 2 or min(edges) < 1:
        raise ValueError(
            f"`target_sizes` must hold one (height, width) in pixels an image, such as [(480, 640)], got the entry "
            f"{entry!r}."
        )
    return edges[0], edges[1]


def _height_and_width(size: dict[str, int] | int | tuple[int, int]) -> dict[str, int]:
    size = dict(get_size_dict(size))
    if set(size) != {"height", "width"} or not all(isinstance(edge, int) and edge > 0 for edge in size.values()):
        raise ValueError(f'`size` must be {{"height": ..., "width": ...}} with positive integers, got {size}.')
    return size


def _content_size(original_size: tuple[int, int], size: dict[str, int], keep_aspect_ratio: bool) -> tuple[int, int]:
    """Height and width that a picture of `original_size` fills on the canvas of `size`, from the top left corner."""
    height, width = size["height"], size["width"]
    if not keep_aspect_ratio:
        return height, width
    scale = min(height / original_size[0], width / original_size[1])
    return (
        min(height, max(1, round(original_size[0] * scale))),
        min(width, max(1, round(original_size[1] * scale))),
    )


def _resize_image(array: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    if array.shape[:2] == size:
        return array
    if array.dtype == np.uint8 and array.shape[-1] in CHANNELS_PILLOW_RESIZES:
        return resize(array, size, resample, input_data_format=ChannelDimension.LAST)
    # Through 8 bits, as `resize` goes, floats would lose precision; Pillow resizes float pictures of one channel.
    channels = [Image.fromarray(array[..., channel].astype(np.float32)) for channel in range(array.shape[-1])]
    return np.stack([np.asarray(channel.resize(size[::-1], resample)) for channel in channels], axis=-1)


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = np.array(Image.fromarray(mask).resize(size[::-1], PILImageResampling.NEAREST))
    if (mask == 1).any() and not (resized == 1).any():
        rows, columns = np.nonzero(mask == 1)
        nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        row = int((rows[nearest] + 0.5) * size[0] / mask.shape[0])
        column = int((columns[nearest] + 0.5) * size[1] / mask.shape[1])
        resized[row, column] = 1
    return resized


def _pad(array: np.ndarray, size: dict[str, int], fill: int) -> np.ndarray:
    bottom, right = size["height"] - array.shape[-2], size["width"] - array.shape[-1]
    margins = [(0, 0)] * (array.ndim - 2) + [(0, bottom), (0, right)]
    return np.pad(array, margins, constant_values=fill)


def _split_masks(segmentation_maps: Any, image_count: int, is_single: bool) -> list[Mask | list[Mask]]:
    if is_single:
        return [_mask_or_list(segmentation_maps)]
    if not isinstance(segmentation_maps, (list, tuple, np.ndarray, torch.Tensor)):
        raise TypeError(
            "`segmentation_maps` must be a list with one entry an image, since `images` is a list; got "
            f"{describe_source(segmentation_maps)}."
        )
    if len(segmentation_maps) != image_count:
        raise ValueError(
            f"`segmentation_maps` has {len(segmentation_maps)} entries for {image_count} images: give one mask, or "
            "one list of masks, an image."
        )
    return [_mask_or_list(entry) for entry in segmentation_maps]


def _mask_or_list(entry: Any) -> Mask | list[Mask]:
    if isinstance(entry, (np.ndarray, torch.Tensor)) and entry.ndim == 3:
        return list(entry)
    return list(entry) if isinstance(entry, (list, tuple)) else entry


def _pad_mask_lists(labels: list[np.ndarray]) -> list[np.ndarray]:
    if len({label.ndim for label in labels}) > 1:
        raise ValueError(
            "`segmentation_maps` mixes single masks and lists of masks: give one mask an image throughout, or lists "
            "throughout (a list of one is fine)."
        )
    if labels[0].ndim == 2:
        return labels
    longest = max(len(label) for label in labels)
    return [np.pad(label, [(0, longest - len(label)), (0, 0), (0, 0)], constant_values=IGNORED) for label in labels]
