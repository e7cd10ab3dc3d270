"""Conversion of masks from every published format: COCO run lengths, polygons, image files and arrays.

All masks are converted to *canonical RLE*: `{"size": [height, width], "counts": str}`, the compressed run-length
encoding of COCO (Lin et al. 2014) with its bytes decoded to a string, so that it can be stored in JSON, Parquet and
Arrow. The parts of a mask are merged to their union. The published REFER API sums them instead: a pixel that two parts
cover gets the value 2, and evaluation code that tests `mask == 1` loses it.

Needs `pycocotools` (the `data` extra).
"""

import io
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ..evaluation.referring_segmentation_metric.run_lengths import (
    check_compressed,
    check_runs,
    check_size,
    compressed_runs,
)


RunLengthMask = dict[str, Any]


def encode_mask(mask: np.ndarray) -> RunLengthMask:
    """
    Encodes a binary mask.

    Args:
        mask (`np.ndarray` of shape `(height, width)`):
            Booleans or numbers. Every value other than 0 is foreground.

    Returns:
        `dict`: canonical RLE.

    Raises:
        ValueError: If `mask` is not two-dimensional or has no pixels.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(f"a mask must have the shape (height, width) and at least one pixel, got {mask.shape}")
    return _as_canonical(coco_mask.encode(np.asfortranarray(mask != 0, dtype=np.uint8)))


def decode_mask(rle: Mapping[str, Any]) -> np.ndarray:
    """
    Decodes canonical, compressed or uncompressed COCO RLE to a boolean array of shape `(height, width)`.

    Raises:
        ValueError: If `rle` is not RLE, or if its runs do not fill its size.
    """
    return coco_mask.decode(_as_bytes(normalize_rle(rle))).astype(bool)


def mask_area(rle: Mapping[str, Any]) -> int:
    """
    Returns the number of foreground pixels of a compressed RLE; 0 means that the expression has no target.

    Raises:
        ValueError: If the RLE is damaged.
    """
    return int(coco_mask.area(check_compressed(rle)))


def empty_rle(height: int, width: int) -> RunLengthMask:
    """Returns canonical RLE of a mask without foreground, for an expression whose referent is absent."""
    return _as_canonical(_from_objects({"size": [height, width], "counts": [height * width]}, height, width))


def normalize_rle(rle: Mapping[str, Any], height: int | None = None, width: int | None = None) -> RunLengthMask:
    """
    Converts any COCO RLE to canonical RLE and checks that its runs fill its size.

    Args:
        rle (`Mapping`):
            `counts` is a list of run lengths (uncompressed, as in the crowd annotations of COCO), or `bytes` or `str`
            (compressed). `size` is `[height, width]`.
        height, width (`int`, *optional*):
            The size of the image, which `size` must match. If `rle` has no `size`, this size is used.

    Raises:
        ValueError: If a field is missing, if the size is not that of the image, or if the runs do not fill the size.
    """
    counts = rle.get("counts")
    size = rle.get("size")
    if size is None and height is not None and width is not None:
        size = [height, width]
    if counts is None or size is None:
        raise ValueError(f"RLE needs `size` as [height, width] and `counts`, got the keys {sorted(rle)}")
    size = list(check_size(size))
    if height is not None and width is not None and size != [height, width]:
        raise ValueError(f"RLE of size (height, width) = {tuple(size)} for an image of size {(height, width)}")
    is_compressed = isinstance(counts, str | bytes)
    runs = compressed_runs(counts) if is_compressed else _whole_numbers(counts)
    check_runs(runs, *size)
    if is_compressed:
        rle = _as_bytes({"size": size, "counts": counts})
    else:
        rle = _from_objects({"size": size, "counts": runs.tolist()}, *size)
    # Only the first run of canonical RLE may be empty.
    return _as_canonical(rle) if runs[1:].all() else encode_mask(coco_mask.decode(rle))


def _whole_numbers(counts: Any) -> np.ndarray:
    message = "the `counts` of an RLE must be compressed or a list of integers"
    try:
        given = np.asarray(counts)
        whole = given.astype(np.int64)
    except (OverflowError, TypeError, ValueError):
        raise ValueError(message) from None
    if given.ndim != 1 or not np.array_equal(whole, given):
        raise ValueError(message)
    return whole


def union_rles(rles: Sequence[Mapping[str, Any]]) -> RunLengthMask:
    """
    Returns the union of masks of the same size.

    Raises:
        ValueError: If `rles` is empty, or if the sizes differ.
    """
    rles = [normalize_rle(rle) for rle in rles]
    if not rles:
        raise ValueError("`rles` is empty: use `empty_rle(height, width)` for no target")
    sizes = {tuple(rle["size"]) for rle in rles}
    if len(sizes) > 1:
        raise ValueError(f"cannot merge masks of different sizes: {sorted(sizes)}")
    return _as_canonical(coco_mask.merge([_as_bytes(rle) for rle in rles], intersect=False))


def polygons_to_rle(polygons: Sequence[Any], height: int, width: int) -> RunLengthMask:
    """
    Rasterizes one or several polygons with `pycocotools` and returns their union.

    Args:
        polygons (`Sequence`):
            A list of flat polygons `[[x1, y1, x2, y2, ...], ...]`, one flat polygon `[x1, y1, ...]`, or polygons of
            points `[[[x1, y1], [x2, y2], ...], ...]`. Coordinates are pixels from the upper left corner.
        height, width (`int`):
            Size of the image.

    Raises:
        ValueError: If there is no polygon, or if a polygon has fewer than three points, an odd number of coordinates,
            or a coordinate that is not finite or far outside the image.
    """
    # pycocotools stores every pixel of an outline, so one wrong coordinate could take gigabytes.
    limit = 10 * max(height, width)
    parts = [_flat_polygon(polygon, limit) for polygon in _split_polygons(polygons)]
    if not parts:
        raise ValueError("there is no polygon: use `empty_rle(height, width)` for no target")
    return _as_canonical(coco_mask.merge(_from_objects(parts, height, width), intersect=False))


def to_rle(mask: Any, height: int, width: int) -> RunLengthMask:
    """
    Converts a mask of any published format to canonical RLE.

    Args:
        mask:
            RLE (`dict` with `counts`, compressed or not, string or bytes), polygons (see [`polygons_to_rle`]), a
            binary array or nested list of shape `(height, width)`, a PIL image, the bytes of an image file (for
            example PNG) or a `datasets` image cell (`{"bytes": ..., "path": ...}`). In images and arrays, every value
            other than 0 is foreground; in color images, every pixel that is not black, whatever its alpha. A list of
            RLEs, images or two-dimensional arrays is merged to their union.
        height, width (`int`):
            Size of the image. A mask of another size is an error, since resizing it would move its boundary.

    Raises:
        ValueError: If the mask is missing, empty, malformed or of another size. Use [`empty_rle`] for an expression
            without a target.
        TypeError: If the format is none of the above.
    """
    if mask is None:
        raise ValueError("the mask is missing")
    if isinstance(mask, Mapping):
        return _mapping_to_rle(mask, height, width)
    if isinstance(mask, bytes | bytearray):
        return _cell_to_rle({"bytes": mask}, height, width)
    if isinstance(mask, Image.Image):
        return _encode_checked(_binary_array(mask), height, width)
    if hasattr(mask, "__array__"):
        array = np.asarray(mask)
        # Polygons are floats in an array, or an array of arrays if they differ in length.
        if array.shape == (height, width) or (array.ndim == 2 and array.dtype.kind in "bui"):
            return _encode_checked(array, height, width)
        mask = array.tolist()
    if not isinstance(mask, Sequence) or isinstance(mask, str):
        raise TypeError(f"cannot read a mask from {type(mask).__name__}")
    if len(mask) == 0:
        raise ValueError("an empty list is not a mask: use `empty_rle(height, width)` for no target")
    if _is_nested_mask(mask, height, width):
        return _encode_checked(np.asarray(mask), height, width)
    if isinstance(mask[0], Mapping | bytes | bytearray | Image.Image) or getattr(mask[0], "ndim", 1) > 1:
        return union_rles([to_rle(part, height, width) for part in mask])
    return polygons_to_rle(mask, height, width)


def _mapping_to_rle(mask: Mapping[str, Any], height: int, width: int) -> RunLengthMask:
    if "counts" in mask:
        return normalize_rle(mask, height, width)
    if mask.get("bytes") is not None or mask.get("path"):
        return _cell_to_rle(mask, height, width)
    raise ValueError(f"a mask given as a mapping needs `counts`, `bytes` or `path`, got {sorted(mask)}")


def open_image_cell(cell: Mapping[str, Any]) -> BinaryIO:
    """
    Opens the file of an undecoded image cell of `datasets`, `{"bytes": ..., "path": ...}`.

    The path of a streamed row can be on the Hub or in an archive (`hf://...`, `zip://a.png::photos.zip`).

    Raises:
        ValueError: If the path is any other URL, since a dataset must not cause requests to arbitrary addresses.
    """
    if cell.get("bytes") is not None:
        return io.BytesIO(cell["bytes"])
    check_address(cell)
    path = str(cell["path"])
    if "://" not in path:
        return Path(path).open("rb")
    from datasets.utils.file_utils import xopen  # slow to import, and needed only for such paths

    return xopen(path, "rb")


def check_address(cell: Mapping[str, Any] | None) -> None:
    """
    Checks that reading an undecoded image cell causes no request to an address that the data choose.

    Raises:
        ValueError: If its path is a URL other than one on the Hub, or if there is no image.
    """
    if cell is None or (cell.get("bytes") is None and not cell.get("path")):
        raise ValueError("the image is missing")
    root = str(cell["path"]).rpartition("::")[2]
    if cell.get("bytes") is None and "://" in root and not root.startswith(("hf://", "file://")):
        raise ValueError(
            f"images are not read from URLs such as {cell['path']!r}: download the image and give its path"
        )


def _cell_to_rle(cell: Mapping[str, Any], height: int, width: int) -> RunLengthMask:
    try:
        with open_image_cell(cell) as file, Image.open(file) as image:
            array = _binary_array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image of a mask cannot be read: {error}") from error
    return _encode_checked(array, height, width)


def _encode_checked(array: np.ndarray, height: int, width: int) -> RunLengthMask:
    if array.shape != (height, width):
        raise ValueError(f"mask of size (height, width) = {array.shape} for an image of size {(height, width)}")
    return encode_mask(array)


def _binary_array(image: Image.Image) -> np.ndarray:
    if image.mode in ("RGBA", "LA", "PA"):
        image = image.convert("L" if image.mode == "LA" else "RGB")
    array = np.asarray(image)
    return np.asarray(array.any(axis=-1) if array.ndim == 3 else array != 0)


def _is_nested_mask(mask: Sequence[Any], height: int, width: int) -> bool:
    """Whether the list contains rows of pixels: of the size of the image, or of another size but black and white."""
    if not all(isinstance(row, Sequence | np.ndarray) and len(row) == len(mask[0]) for row in mask):
        return False
    if not all(isinstance(value, Real | np.bool_) for row in mask for value in row):
        return False
    if (len(mask), len(mask[0])) == (height, width):
        if any(isinstance(value, float) and value > 1 and value != 255 for row in mask for value in row):
            raise ValueError(
                f"a list of {height} lists of {width} floats can be polygons or the pixels of the image: give pixels"
                " as integers or as an array, and polygons as RLE"
            )
        return True
    # Coordinates of polygons are floats, even if all of them are zero.
    is_black_or_white = all(isinstance(value, Integral) and value in (0, 1, 255) for row in mask for value in row)
    return len(mask) > 1 and is_black_or_white


def _split_polygons(polygons: Any) -> list[Any]:
    if hasattr(polygons, "tolist"):
        polygons = polygons.tolist()
    return [polygons] if len(polygons) > 0 and isinstance(polygons[0], Real) else list(polygons)


def _flat_polygon(polygon: Any, limit: float) -> list[float]:
    coordinates = np.asarray(polygon, dtype=np.float64).ravel()
    if coordinates.size < 6 or coordinates.size % 2:
        raise ValueError(f"a polygon needs x and y of at least three points, got {coordinates.size} coordinates")
    if not np.isfinite(coordinates).all():
        raise ValueError("a coordinate of a polygon is not finite")
    if np.abs(coordinates).max() > limit:
        raise ValueError(f"a polygon has the coordinate {np.abs(coordinates).max():.0f}, far outside its image")
    return coordinates.tolist()


def _from_objects(objects: Any, height: int, width: int) -> Any:
    # The type annotations of pycocotools allow neither uncompressed run lengths nor polygons of floats.
    return coco_mask.frPyObjects(objects, height, width)


def _as_bytes(rle: Mapping[str, Any]) -> RunLengthMask:
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def _as_canonical(rle: Mapping[str, Any]) -> RunLengthMask:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
