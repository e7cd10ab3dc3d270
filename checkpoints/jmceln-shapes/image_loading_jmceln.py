"""Reads images from any kind of source as upright arrays of shape (height, width, channels)."""

import base64
import http.client
import io
import os
import queue
import threading
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps


ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray | torch.Tensor

SIXTEEN_TO_EIGHT_BIT = 257  # 65535 / 255
CHANNEL_COUNTS = (1, 3, 4)
MAX_PIXELS = 2 * 89478485  # of an image, as in Pillow
MAX_DOWNLOAD = 256 * 2**20  # bytes


def load_pil_image(source: str | os.PathLike | bytes | Image.Image, timeout: float | None = 30.0) -> Image.Image:
    """
    Opens and decodes one image, and turns it upright by its EXIF orientation. Its mode is not changed.

    Args:
        source: A path, an `http(s)` URL, a `data:image/...;base64,` string, the bytes of an image file, or a PIL
            image.
        timeout: Seconds that a URL may take in all; `None` waits forever.

    Raises:
        ValueError: If the source cannot be found, downloaded or decoded, or if it has no pixels.
        TypeError: If the source is none of the above.
    """
    name = describe_source(source)
    try:
        image = _open(source, timeout)
        # Pillow decodes lazily. Without this, a truncated file would fail later, in an error without its name.
        image.load()
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, http.client.HTTPException, Image.DecompressionBombError) as error:
        raise ValueError(f"Cannot read the image {name}: {error}. Is it a complete image file?") from error
    if 0 in image.size:
        raise ValueError(f"The image {name} has no pixels: its size is {image.width}x{image.height}.")
    return image


def describe_source(source: Any) -> str:
    """Returns a short description of an image source for messages: its path or URL, or its kind and size."""
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        return repr(text if len(text) <= 200 else text[:60] + "...")
    if isinstance(source, bytes):
        return f"of {len(source)} bytes"
    if isinstance(source, Image.Image):
        filename = getattr(source, "filename", "")
        return repr(filename) if filename else f"(PIL, mode {source.mode}, {source.width}x{source.height})"
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return f"(array of shape {tuple(source.shape)}, {source.dtype})"
    return f"of type {type(source).__name__}"


def is_image_source(value: Any) -> bool:
    """Whether `value` is one image: a path, URL, bytes, PIL image, or an array of two or three dimensions."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim in (2, 3)
    return isinstance(value, (str, os.PathLike, bytes, Image.Image))


def split_images(images: Any) -> tuple[list[ImageSource], bool]:
    """
    Returns `images` as a list, and whether it was a single image.

    Args:
        images: One image, a list or tuple of images, or an array of four dimensions (a batch).

    Raises:
        ValueError: If the list is empty.
        TypeError: If an entry is not an image.
    """
    if is_image_source(images):
        return [images], True
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        images = list(images)
    if not isinstance(images, (list, tuple)):
        raise TypeError(
            "`images` must be an image (path, URL, bytes, PIL image, array of 2 or 3 dimensions) or a list of images, "
            f"got {describe_source(images)}."
        )
    if len(images) == 0:
        raise ValueError("`images` is an empty list: give at least one image.")
    for index, image in enumerate(images):
        if not is_image_source(image):
            hint = " Pass one flat list of images." if isinstance(image, (list, tuple)) else ""
            raise TypeError(f"`images[{index}]` is not an image but {describe_source(image)}.{hint}")
    return list(images), False


def image_to_array(
    source: ImageSource,
    convert_rgb: bool = True,
    input_data_format: str | None = None,
    timeout: float | None = 30.0,
) -> np.ndarray:
    """
    Reads one image as an array (height, width, channels): `uint8`, or `float32` if the source has float pixels.

    16-bit images are scaled to 8 bits. With `convert_rgb`, gray images get three equal channels, palettes are resolved
    and transparent pixels are blended with white.

    Args:
        source: See [`load_pil_image`]; also a numpy array or torch tensor of shape (height, width),
            (height, width, channels) or (channels, height, width).
        convert_rgb: Whether to return three channels for any source.
        input_data_format: `"channels_first"` or `"channels_last"` for arrays; inferred if `None` (a shape that fits
            both means channels first for torch and channels last for numpy).
        timeout: Seconds to wait for a URL.

    Raises:
        ValueError: If the image is unreadable or empty, if pixels are NaN or infinite, or if the number of channels is
            not that of an image.
        TypeError: If the source is not an image.
    """
    if isinstance(source, (np.ndarray, torch.Tensor)):
        array = _array_to_channels_last(source, convert_rgb, input_data_format)
    elif is_image_source(source):
        array = _pil_to_array(load_pil_image(source, timeout), convert_rgb)
    else:
        raise TypeError(f"Expected an image (path, URL, bytes, PIL image or array), got {describe_source(source)}.")
    if 0 in array.shape:
        raise ValueError(f"The image {describe_source(source)} has no pixels.")
    array = _to_uint8_or_float(array, source)
    return _to_rgb(array) if convert_rgb else array


def array_to_pil_image(array: np.ndarray) -> Image.Image:
    """Converts an array that [`image_to_array`] returned with `convert_rgb` to a PIL image of mode "RGB"."""
    if array.dtype != np.uint8:
        array = np.rint(array * 255).clip(0, 255).astype(np.uint8)
    return Image.fromarray(array)


def mask_to_array(mask: Any, name: str = "segmentation_maps", ignore_index: int | None = None) -> np.ndarray:
    """
    Reads one mask as a `uint8` array (height, width) of 0 (background), 1 (referent) and 255 (ignored).

    Args:
        mask: A numpy array or torch tensor of numbers or booleans of shape (height, width), (1, height, width) or
            (height, width, 1), or a PIL image of mode "1", "L", "P" or "I". 0 is background, and the one other value,
            whatever it is, is the referent.
        name: Name of the mask in error messages.
        ignore_index: The value of pixels to ignore. By default, none are ignored.

    Raises:
        ValueError: If the mask does not have two dimensions, or has more values than background, referent and
            `ignore_index`.
        TypeError: If the mask is not an image or an array of numbers.
    """
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu().numpy()
    if not isinstance(mask, (np.ndarray, Image.Image)):
        raise TypeError(f"`{name}` must be a PIL image, numpy array or torch tensor, got {describe_source(mask)}.")
    array = np.asarray(mask)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2:
        raise ValueError(f"`{name}` must have the shape (height, width), got {array.shape}.")
    if array.dtype == bool:
        return array.astype(np.uint8)
    if not np.issubdtype(array.dtype, np.number):
        raise TypeError(f"`{name}` must contain numbers or booleans, got the dtype {array.dtype}.")
    ignored = np.zeros(array.shape, dtype=bool) if ignore_index is None else array == ignore_index
    is_referent = (array != 0) & ~ignored
    values = array[is_referent]
    if values.size and not (values == values[0]).all():
        strange = np.unique(values)[:5].tolist()
        hint = " If 255 marks pixels to ignore, pass `ignore_index=255`." * (255 in strange and ignore_index is None)
        raise ValueError(
            f"`{name}` may contain only 0 (background) and one other value (the referent), found {strange} besides 0."
            f"{hint} Turn a map of labels into a mask with `map == label`, and a soft mask with `mask > threshold`, "
            "before you pass it."
        )
    result = is_referent.astype(np.uint8)
    result[ignored] = 255
    return result


def _open(source: str | os.PathLike | bytes | Image.Image, timeout: float | None) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source))
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        # Some servers refuse the default agent of urllib.
        request = urllib.request.Request(source, headers={"User-Agent": "Mozilla/5.0 (compatible; jmceln)"})
        return Image.open(io.BytesIO(_download(request, timeout)))
    if isinstance(source, str) and source.startswith("data:image/"):
        return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2], validate=True)))
    if isinstance(source, (str, os.PathLike)):
        if not Path(source).is_file():
            raise FileNotFoundError("there is no such file, and it is not an http(s) URL")
        return Image.open(source)
    raise TypeError(f"Expected a path, URL, bytes or PIL image, got {describe_source(source)}.")


def _download(request: urllib.request.Request, timeout: float | None) -> bytes:
    # The timeout of urllib holds for each read alone: a server that sends a byte now and then, of its headers even,
    # would never end. So the download is waited for, and left to itself when the time is over.
    outcomes: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    stopped = threading.Event()

    def read() -> None:
        content = bytearray()
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                while not stopped.is_set() and (block := response.read1(65536)):
                    content += block
                    if len(content) > MAX_DOWNLOAD:
                        raise ValueError(f"the download has more than {MAX_DOWNLOAD} bytes")
            outcomes.put(bytes(content))
        except Exception as error:
            outcomes.put(error)

    threading.Thread(target=read, daemon=True).start()
    try:
        outcome = outcomes.get(timeout=timeout)
    except queue.Empty:
        stopped.set()
        raise TimeoutError(f"the download took longer than `timeout`, {timeout} seconds") from None
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _pil_to_array(image: Image.Image, convert_rgb: bool) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode == "F":
        return np.asarray(image)[..., None]
    if image.mode == "I":
        array = np.asarray(image)[..., None]
        # Older versions of Pillow open 16-bit grayscale files in this 32-bit mode.
        return array.astype(np.uint16) if array.max() > 255 and 0 <= array.min() <= array.max() <= 65535 else array
    if image.mode == "La":  # Pillow converts it to no other mode
        image = image.convert("LA")
    if convert_rgb or image.mode == "P":
        has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info
        image = image.convert("RGBA" if has_alpha else "RGB")
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def _array_to_channels_last(
    source: np.ndarray | torch.Tensor, convert_rgb: bool, input_data_format: str | None
) -> np.ndarray:
    channels_first_is_usual = isinstance(source, torch.Tensor)
    array = source
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3:
        raise ValueError(f"An image array must have 2 or 3 dimensions, got {describe_source(source)}.")
    if input_data_format is None:
        first, last = array.shape[0] in CHANNEL_COUNTS, array.shape[-1] in CHANNEL_COUNTS
        if not (first or last):
            raise ValueError(
                f"Neither the first nor the last dimension of the image {describe_source(source)} is a usual number "
                f"of channels {CHANNEL_COUNTS}; pass `input_data_format` to say which one it is."
            )
        channels_first = first and (channels_first_is_usual or not last)
    else:
        name = str(getattr(input_data_format, "value", input_data_format))
        if name not in ("channels_first", "channels_last"):
            raise ValueError(
                f'`input_data_format` must be "channels_first" or "channels_last", got {input_data_format!r}.'
            )
        channels_first = name == "channels_first"
    if channels_first:
        array = array.transpose(1, 2, 0)
    if convert_rgb and array.shape[-1] not in CHANNEL_COUNTS:
        raise ValueError(
            f"Cannot convert the {array.shape[-1]} channels of the image {describe_source(source)} to three; pass "
            "`do_convert_rgb=False` to keep them."
        )
    return array


def _to_uint8_or_float(array: np.ndarray, source: ImageSource) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating):
        finite = np.isfinite(array)
        if not finite.all():
            raise ValueError(
                f"The image {describe_source(source)} has {np.count_nonzero(~finite)} NaN or infinite pixel values; "
                "replace them first, for example with `numpy.nan_to_num`."
            )
        return array.astype(np.float32)
    if np.issubdtype(array.dtype, np.unsignedinteger) and array.dtype.itemsize == 2:
        return np.rint(array / SIXTEEN_TO_EIGHT_BIT).astype(np.uint8)
    if np.issubdtype(array.dtype, np.integer):
        if array.size and (array.min() < 0 or array.max() > 255):
            raise ValueError(
                f"The image {describe_source(source)} has integers from {array.min()} to {array.max()}, expected "
                "0 to 255; convert 16-bit images to `uint16`."
            )
        return array.astype(np.uint8)
    raise TypeError(f"The image {describe_source(source)} has the dtype {array.dtype}, expected numbers or booleans.")


def _to_rgb(array: np.ndarray) -> np.ndarray:
    channels = array.shape[-1]
    if channels == 3:
        return array
    if channels == 1:
        return np.repeat(array, 3, axis=-1)
    white = 255.0 if array.dtype == np.uint8 else 1.0
    color, alpha = array[..., :3].astype(np.float32), array[..., 3:].astype(np.float32) / white
    blended = color * alpha + white * (1 - alpha)
    return np.rint(blended).astype(np.uint8) if array.dtype == np.uint8 else blended
