"""Reading pictures: whatever a user hands over becomes one upright array of shape (height, width, channels)."""

import base64
import http.client
import io
import os
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps


ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray | torch.Tensor

SIXTEEN_TO_EIGHT_BIT = 257  # 65535 / 255
CHANNEL_COUNTS = (1, 3, 4)


def load_pil_image(source: str | os.PathLike | bytes | Image.Image, timeout: float | None = 30.0) -> Image.Image:
    """
    Opens, decodes and turns upright (EXIF orientation) one picture. Its mode is left as it is.

    Args:
        source: a path, an `http(s)` URL, a `data:image/...;base64,` string, the bytes of a picture file, or a PIL
            image.
        timeout: seconds to wait for a URL; `None` waits for ever.

    Raises:
        ValueError: the source cannot be found, fetched or decoded, or holds no pixels; the message names it.
        TypeError: the source is none of the above.
    """
    name = describe_source(source)
    try:
        image = _open(source, timeout)
        # Pillow decodes lazily, so that a truncated file would otherwise fail far from here, without its name.
        image.load()
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, http.client.HTTPException, Image.DecompressionBombError) as error:
        raise ValueError(f"Cannot read the image {name}: {error}. Is it a complete picture file?") from error
    if 0 in image.size:
        raise ValueError(f"The image {name} has no pixels: its size is {image.width}x{image.height}.")
    return image


def describe_source(source: Any) -> str:
    """A short name of an image source for messages: its path or URL, or else its kind and size."""
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
    """Whether `value` is one picture: a path, URL, bytes, PIL image, or an array of two or three dimensions."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim in (2, 3)
    return isinstance(value, (str, os.PathLike, bytes, Image.Image))


def split_images(images: Any) -> tuple[list[ImageSource], bool]:
    """
    Lists the pictures of `images` and says whether it was a single one.

    Args:
        images: one picture, a list or tuple of pictures, or an array of four dimensions (a batch).

    Raises:
        ValueError: the list is empty.
        TypeError: something in it is not a picture.
    """
    if is_image_source(images):
        return [images], True
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        images = list(images)
    if not isinstance(images, (list, tuple)):
        raise TypeError(
            f"`images` must be a picture (path, URL, bytes, PIL image, array of 2 or 3 dimensions) or a list of them, "
            f"got {describe_source(images)}."
        )
    if len(images) == 0:
        raise ValueError("`images` is an empty list: give at least one image.")
    for index, image in enumerate(images):
        if not is_image_source(image):
            hint = " Pass one flat list, one image an entry." if isinstance(image, (list, tuple)) else ""
            raise TypeError(f"`images[{index}]` is not a picture but {describe_source(image)}.{hint}")
    return list(images), False


def image_to_array(
    source: ImageSource,
    convert_rgb: bool = True,
    input_data_format: str | None = None,
    timeout: float | None = 30.0,
) -> np.ndarray:
    """
    Reads one picture as an array (height, width, channels): `uint8`, or `float32` if the source holds floats.

    16-bit pictures are scaled to 8 bits. With `convert_rgb`, grey becomes three equal channels, a palette is looked up
    and transparent pixels are laid over white.

    Args:
        source: see [`load_pil_image`]; also a numpy array or torch tensor of shape (height, width),
            (height, width, channels) or (channels, height, width).
        convert_rgb: whether to return three channels whatever the source has.
        input_data_format: `"channels_first"` or `"channels_last"` for arrays; inferred when `None` (a shape that fits
            both is taken as channels first for torch and as channels last for numpy).
        timeout: seconds to wait for a URL.

    Raises:
        ValueError: unreadable or empty picture, NaN or infinite pixels, a number of channels that is not a picture's.
        TypeError: not a picture at all.
    """
    if isinstance(source, (np.ndarray, torch.Tensor)):
        array = _array_to_channels_last(source, convert_rgb, input_data_format)
    elif is_image_source(source):
        array = _pil_to_array(load_pil_image(source, timeout), convert_rgb)
    else:
        raise TypeError(f"Expected a picture (path, URL, bytes, PIL image or array), got {describe_source(source)}.")
    if 0 in array.shape:
        raise ValueError(f"The image {describe_source(source)} has no pixels.")
    array = _to_uint8_or_float(array, source)
    return _to_rgb(array) if convert_rgb else array


def array_to_pil_image(array: np.ndarray) -> Image.Image:
    """The array that [`image_to_array`] makes with `convert_rgb`, as a picture of mode "RGB" to look at."""
    if array.dtype != np.uint8:
        array = np.rint(array * 255).clip(0, 255).astype(np.uint8)
    return Image.fromarray(array)


def mask_to_array(mask: Any, name: str = "segmentation_maps", ignore_index: int | None = None) -> np.ndarray:
    """
    Reads one mask as a `uint8` array (height, width) of 0 (not meant), 1 (meant) and 255 (ignored).

    Args:
        mask: a numpy array or torch tensor of numbers or booleans of shape (height, width), (1, height, width) or
            (height, width, 1), or a PIL image of mode "1", "L", "P" or "I". 0 is background, and the one other value,
            whichever it is, the referent.
        name: how messages call the mask.
        ignore_index: the value of pixels that are ignored; by default none are.

    Raises:
        ValueError: not two dimensions, or more values than background, referent and `ignore_index`.
        TypeError: not an image or array of numbers.
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
        raise TypeError(f"`{name}` must hold numbers or booleans, got the dtype {array.dtype}.")
    ignored = np.zeros(array.shape, dtype=bool) if ignore_index is None else array == ignore_index
    meant = (array != 0) & ~ignored
    values = array[meant]
    if values.size and not (values == values[0]).all():
        strange = np.unique(values)[:5].tolist()
        hint = " If 255 marks pixels to ignore, pass `ignore_index=255`." * (255 in strange and ignore_index is None)
        raise ValueError(
            f"`{name}` may hold only 0 (background) and one other value (the referent), found {strange} beside 0."
            f"{hint} Compare a map of labels with the label that is meant, such as `map == label`, and a soft mask "
            "with a threshold, before passing it."
        )
    result = meant.astype(np.uint8)
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
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return Image.open(io.BytesIO(response.read()))
    if isinstance(source, str) and source.startswith("data:image/"):
        return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2], validate=True)))
    if isinstance(source, (str, os.PathLike)):
        if not Path(source).is_file():
            raise FileNotFoundError("there is no such file, nor is it an http(s) URL")
        return Image.open(source)
    raise TypeError(f"Expected a path, URL, bytes or PIL image, got {describe_source(source)}.")


def _pil_to_array(image: Image.Image, convert_rgb: bool) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode == "F":
        return np.asarray(image)[..., None]
    if image.mode == "I":
        array = np.asarray(image)[..., None]
        # Older versions of Pillow open 16-bit greyscale files in this mode of 32 bits.
        return array.astype(np.uint16) if array.max() > 255 and 0 <= array.min() <= array.max() <= 65535 else array
    if convert_rgb or image.mode == "P":
        has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
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
                f"Neither the first nor the last dimension of {describe_source(source)} is a number of channels "
                f"{CHANNEL_COUNTS}; pass `input_data_format` if it is one all the same."
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
            f"Cannot make three channels out of the {array.shape[-1]} of the image {describe_source(source)}; "
            "pass `do_convert_rgb=False` to keep them."
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
                f"The image {describe_source(source)} holds {np.count_nonzero(~finite)} NaN or infinite pixel values; "
                "replace them first, for instance with `numpy.nan_to_num`."
            )
        return array.astype(np.float32)
    if np.issubdtype(array.dtype, np.unsignedinteger) and array.dtype.itemsize == 2:
        return np.rint(array / SIXTEEN_TO_EIGHT_BIT).astype(np.uint8)
    if np.issubdtype(array.dtype, np.integer):
        if array.size and (array.min() < 0 or array.max() > 255):
            raise ValueError(
                f"The image {describe_source(source)} holds integers from {array.min()} to {array.max()}, expected "
                "0 to 255; convert 16-bit pictures to `uint16`."
            )
        return array.astype(np.uint8)
    raise TypeError(f"The image {describe_source(source)} does not hold numbers.")


def _to_rgb(array: np.ndarray) -> np.ndarray:
    channels = array.shape[-1]
    if channels == 3:
        return array
    if channels == 1:
        return np.repeat(array, 3, axis=-1)
    white = 255.0 if array.dtype == np.uint8 else 1.0
    colour, alpha = array[..., :3].astype(np.float32), array[..., 3:].astype(np.float32) / white
    blended = colour * alpha + white * (1 - alpha)
    return np.rint(blended).astype(np.uint8) if array.dtype == np.uint8 else blended
