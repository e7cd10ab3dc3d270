"""One codec for every form in which a mask is published: COCO run lengths, polygons, image files and arrays.

Everything becomes *canonical RLE*: `{"size": [height, width], "counts": str}`, the compressed run-length encoding of
COCO (Lin et al. 2014) with its bytes decoded to a string, so that it can be stored in JSON, Parquet and Arrow alike.
Parts are always united. The published REFER API sums them instead, so a pixel that two parts cover gets the value 2,
and evaluation code that then tests `mask == 1` loses it.

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

from ..evaluation.referring_segmentation_metric.run_lengths import check_compressed, check_runs, check_size


RunLengthMask = dict[str, Any]


def encode_mask(mask: np.ndarray) -> RunLengthMask:
    """
    Encode a binary mask.

    Args:
        mask (`np.ndarray` of shape `(height, width)`):
            Boolean, or numeric with every value other than 0 counted as foreground.

    Returns:
        `dict`: canonical RLE.

    Raises:
        ValueError: if `mask` is not two-dimensional or is empty along one side.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(f"a mask must have the shape (height, width) with both above 0, got {mask.shape}")
    return _as_canonical(coco_mask.encode(np.asfortranarray(mask != 0, dtype=np.uint8)))


def decode_mask(rle: Mapping[str, Any]) -> np.ndarray:
    """
    Decode canonical, compressed or uncompressed COCO RLE to a boolean array of shape `(height, width)`.

    Raises:
        ValueError: if `rle` is not RLE, or its runs do not fill its size.
    """
    return coco_mask.decode(_as_bytes(normalize_rle(rle))).astype(bool)


def mask_area(rle: Mapping[str, Any]) -> int:
    """
    Number of foreground pixels of a compressed RLE; 0 means that the expression has no target.

    Raises:
        ValueError: if the RLE is damaged.
    """
    return int(coco_mask.area(check_compressed(rle)))


def empty_rle(height: int, width: int) -> RunLengthMask:
    """Canonical RLE of a mask without foreground: the label of an expression whose referent is absent."""
    return _as_canonical(_from_objects({"size": [height, width], "counts": [height * width]}, height, width))


def normalize_rle(rle: Mapping[str, Any], height: int | None = None, width: int | None = None) -> RunLengthMask:
    """
    Bring COCO RLE of any kind to canonical RLE and check that its runs fill its size.

    Args:
        rle (`Mapping`):
            `counts` is a list of run lengths (the uncompressed form in which COCO publishes crowds), `bytes` or `str`
            (compressed); `size` is `[height, width]`.
        height, width (`int`, *optional*):
            The size of the image, checked against `size`, which it stands in for where `rle` has none.

    Raises:
        ValueError: if a field is missing, the size differs from the image's, or the runs do not fill the size.
    """
    counts = rle.get("counts")
    size = rle.get("size")
    if size is None and height is not None and width is not None:
        size = [height, width]
    if counts is None or size is None:
        raise ValueError(f"RLE needs `size` as [height, width] and `counts`, got the keys {sorted(rle)}")
    size = list(check_size(size))
    if height is not None and width is not None and size != [height, width]:
        raise ValueError(f"RLE of size (height, width) = {tuple(size)} in an image of {(height, width)}")
    if isinstance(counts, str | bytes):
        return _as_canonical(check_compressed({"size": size, "counts": counts}))
    runs = _whole_numbers(counts)
    check_runs(runs, *size)
    return _as_canonical(_from_objects({"size": size, "counts": runs.tolist()}, *size))


def _whole_numbers(counts: Any) -> np.ndarray:
    message = "RLE whose `counts` are neither compressed nor a list of whole numbers"
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
    Unite masks of one size; a pixel that several of them cover counts once.

    Raises:
        ValueError: if `rles` is empty or the sizes differ.
    """
    rles = [normalize_rle(rle) for rle in rles]
    if not rles:
        raise ValueError("a union needs at least one mask; use `empty_rle(height, width)` for no target")
    sizes = {tuple(rle["size"]) for rle in rles}
    if len(sizes) > 1:
        raise ValueError(f"masks of different sizes cannot be united: {sorted(sizes)}")
    return _as_canonical(coco_mask.merge([_as_bytes(rle) for rle in rles], intersect=False))


def polygons_to_rle(polygons: Sequence[Any], height: int, width: int) -> RunLengthMask:
    """
    Rasterise one or several polygons as `pycocotools` does and unite them.

    Args:
        polygons (`Sequence`):
            A list of flat polygons `[[x1, y1, x2, y2, ...], ...]`, one flat polygon `[x1, y1, ...]`, or polygons of
            points `[[[x1, y1], [x2, y2], ...], ...]`. Coordinates are pixels from the upper left corner.
        height, width (`int`):
            Size of the image.

    Raises:
        ValueError: if there is no polygon, or one has fewer than three points, an odd number of coordinates or a
            coordinate that is not finite or is far outside the image.
    """
    # pycocotools walks every pixel of an outline, so a stray coordinate would cost gigabytes.
    limit = 10 * max(height, width)
    parts = [_flat_polygon(polygon, limit) for polygon in _split_polygons(polygons)]
    if not parts:
        raise ValueError("no polygon; use `empty_rle(height, width)` for no target")
    return _as_canonical(coco_mask.merge(_from_objects(parts, height, width), intersect=False))


def to_rle(mask: Any, height: int, width: int) -> RunLengthMask:
    """
    Turn a mask of any published form into canonical RLE.

    Args:
        mask:
            RLE (`dict` with `counts`, compressed or not, string or bytes), polygons (see [`polygons_to_rle`]), a
            binary array or nested list of shape `(height, width)`, a PIL image, the bytes of an image file (PNG for
            example) or a `datasets` image cell (`{"bytes": ..., "path": ...}`). In images and arrays every value
            other than 0 is foreground, in images with colours every pixel that is not black, whatever its alpha. A
            list of RLEs, images or two-dimensional arrays is their union.
        height, width (`int`):
            Size of the image. A mask of another size is an error: resizing it silently would move its boundary.

    Raises:
        ValueError: if the mask is missing or empty, does not fit the image or is malformed. "No target" is said
            with [`empty_rle`], never by leaving the mask out.
        TypeError: if the form is not one of the above.
    """
    if mask is None:
        raise ValueError("no mask")
    if isinstance(mask, Mapping):
        return _mapping_to_rle(mask, height, width)
    if isinstance(mask, bytes | bytearray):
        return _cell_to_rle({"bytes": mask}, height, width)
    if isinstance(mask, Image.Image):
        return _encode_checked(_binary_array(mask), height, width)
    if hasattr(mask, "__array__"):
        array = np.asarray(mask)
        # Polygons come as floats in an array, or as an array of arrays where they differ in length.
        if array.shape == (height, width) or (array.ndim == 2 and array.dtype.kind in "bui"):
            return _encode_checked(array, height, width)
        mask = array.tolist()
    if not isinstance(mask, Sequence) or isinstance(mask, str):
        raise TypeError(f"cannot read a mask from {type(mask).__name__}")
    if len(mask) == 0:
        raise ValueError("an empty list is not a mask")
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
    The file of an undecoded image cell of `datasets`, `{"bytes": ..., "path": ...}`.

    The paths of streamed rows may lie on the hub or in an archive (`hf://...`, `zip://a.png::photos.zip`).

    Raises:
        ValueError: for an address on the internet, which data must not make this machine ask for.
    """
    if cell.get("bytes") is not None:
        return io.BytesIO(cell["bytes"])
    path = str(cell["path"])
    if "://" not in path:
        return Path(path).open("rb")
    root = path.rpartition("::")[2]
    if "://" in root and not root.startswith(("hf://", "file://")):
        raise ValueError(f"an image is not read from the address {path!r}: download it, and give its path")
    from datasets.utils.file_utils import xopen  # heavy, and what has no such paths does not need it

    return xopen(path, "rb")


def _cell_to_rle(cell: Mapping[str, Any], height: int, width: int) -> RunLengthMask:
    try:
        with open_image_cell(cell) as file, Image.open(file) as image:
            array = _binary_array(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image of a mask cannot be read: {error}") from error
    return _encode_checked(array, height, width)


def _encode_checked(array: np.ndarray, height: int, width: int) -> RunLengthMask:
    if array.shape != (height, width):
        raise ValueError(f"mask of (height, width) = {array.shape} in an image of {(height, width)}")
    return encode_mask(array)


def _binary_array(image: Image.Image) -> np.ndarray:
    if image.mode in ("RGBA", "LA", "PA"):
        image = image.convert("L" if image.mode == "LA" else "RGB")
    array = np.asarray(image)
    return np.asarray(array.any(axis=-1) if array.ndim == 3 else array != 0)


def _is_nested_mask(mask: Sequence[Any], height: int, width: int) -> bool:
    """Whether these are rows of pixels: as many as the image has, or of another number but all black and white."""
    if not all(isinstance(row, Sequence | np.ndarray) and len(row) == len(mask[0]) for row in mask):
        return False
    if not all(isinstance(value, Real | np.bool_) for row in mask for value in row):
        return False
    if (len(mask), len(mask[0])) == (height, width):
        return True
    # Coordinates of polygons are real numbers, also where all of them are zero.
    is_black_or_white = all(isinstance(value, Integral) and value in (0, 1, 255) for row in mask for value in row)
    return len(mask) > 1 and is_black_or_white


def _split_polygons(polygons: Any) -> list[Any]:
    if hasattr(polygons, "tolist"):
        polygons = polygons.tolist()
    return [polygons] if len(polygons) > 0 and isinstance(polygons[0], Real) else list(polygons)


def _flat_polygon(polygon: Any, limit: float) -> list[float]:
    coordinates = np.asarray(polygon, dtype=np.float64).ravel()
    if coordinates.size < 6 or coordinates.size % 2:
        raise ValueError(
            f"a polygon needs at least three points and x and y for each, got {coordinates.size} coordinates"
        )
    if not np.isfinite(coordinates).all():
        raise ValueError("a polygon with a coordinate that is not finite")
    if np.abs(coordinates).max() > limit:
        raise ValueError(f"a polygon that reaches to {np.abs(coordinates).max():.0f}, far outside its image")
    return coordinates.tolist()


def _from_objects(objects: Any, height: int, width: int) -> Any:
    # The annotations that pycocotools ships admit neither uncompressed run lengths nor polygons of floats.
    return coco_mask.frPyObjects(objects, height, width)


def _as_bytes(rle: Mapping[str, Any]) -> RunLengthMask:
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def _as_canonical(rle: Mapping[str, Any]) -> RunLengthMask:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
