"""Evaluation of any model for referring image segmentation on canonical rows (`processing.data.canonical_rows`).

The model must load with `AutoModel`, and its `forward` must take `pixel_values` (or reusable `image_features`),
`input_ids` and `attention_mask` of shape `(batch, expressions, length)`. Its processor turns the outputs into masks
with `post_process_referring_segmentation`. Each image is encoded once for all its expressions and control expressions.

All results are written to a journal (`processing.evaluation.journal`), and the scores are computed from the journal
alone. An evaluation that was interrupted and resumed, or that ran in several processes, therefore gives the same
scores.
"""

import hashlib
import inspect
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..data.masks import decode_mask, encode_mask
from .controls import CONTROLS, control_expressions
from .journal import EvaluationJournal
from .metrics import ReferringSegmentationMetric, count_pixels


PROTOCOLS = {
    "original": "masks compared at the size of the original image",
    "lavt": "image and ground truth stretched to 480x480 (ground truth by nearest neighbor), compared there",
}
LAVT_SIZE = (480, 480)
_ANNOTATIONS = ("image_id", "expressions", "masks", "mask_index", "ref_ids", "levels")


@dataclass(frozen=True)
class EvaluationSettings:
    """
    All settings that affect the result of an evaluation, apart from the model and the data.

    Args:
        protocol (`str`, *optional*, defaults to `"original"`):
            A name in `PROTOCOLS`.
        threshold (`float`, *optional*):
            If the score of a result is below this number, its mask is empty; 0 keeps every mask. Defaults to 0.5, or
            to 0 with `lavt`, which has no absent referents.
        mask_threshold (`float`, *optional*, defaults to 0.5):
            A pixel belongs to the mask if its probability is above this number.
        image_size (`int`, *optional*):
            Height and width of the model's input in pixels. Defaults to the size in the processor, or to 480 with
            `lavt`.
        inclusive (`bool`, *optional*, defaults to `True`):
            Whether an IoU equal to X counts for P@X.
        batch_size (`int`, *optional*, defaults to 1):
            Images per call of the model.
        max_expressions_per_call (`int`, *optional*, defaults to 16):
            Expressions per image and call. More expressions need more calls, which use the same image features.
        limit (`int`, *optional*):
            Evaluate only this many images from the start of the dataset.
        controls (`tuple[str, ...]`, *optional*):
            Names in `CONTROLS`.
        keep_masks (`bool`, *optional*, defaults to `False`):
            Whether to write every predicted mask to the journal, as RLE.
        seed (`int`, *optional*, defaults to 0):
            Seed for the order of shuffled words.
    """

    protocol: str = "original"
    threshold: float | None = None
    mask_threshold: float = 0.5
    image_size: int | None = None
    inclusive: bool = True
    batch_size: int = 1
    max_expressions_per_call: int = 16
    limit: int | None = None
    controls: tuple[str, ...] = ()
    keep_masks: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"`protocol` must be one of {list(PROTOCOLS)}, got {self.protocol!r}.")
        unknown = [control for control in self.controls if control not in CONTROLS]
        if unknown:
            raise ValueError(f"Unknown controls {unknown}: choose from {list(CONTROLS)}.")
        for name in ("batch_size", "max_expressions_per_call", "limit", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.threshold is None:
            object.__setattr__(self, "threshold", 0.0 if self.protocol == "lavt" else 0.5)
        if self.image_size is None and self.protocol == "lavt":
            object.__setattr__(self, "image_size", LAVT_SIZE[0])
        for name in ("threshold", "mask_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie between 0 and 1, got {getattr(self, name)}.")

    def new_metric(self) -> ReferringSegmentationMetric:
        """Creates an empty metric with the rules of the protocol."""
        no_target = "zero" if self.protocol == "lavt" else "grefcoco"
        return ReferringSegmentationMetric(inclusive=self.inclusive, no_target=no_target)

    def sample_iou(self, counts: Sequence[int]) -> float:
        """Computes the IoU with which one expression counts in the means."""
        intersection, prediction_area, target_area = counts
        if not target_area:
            return float(prediction_area == 0 and self.protocol != "lavt")
        return intersection / (prediction_area + target_area - intersection)


class _Item(NamedTuple):
    index: int
    row: Mapping[str, Any]
    other_expressions: Sequence[str]


def configure_processor(processor: Any, settings: EvaluationSettings) -> None:
    """Changes the processor as the settings require: `image_size`, and stretching instead of padding for `lavt`."""
    if settings.image_size is not None:
        processor.image_processor.size = {"height": settings.image_size, "width": settings.image_size}
    if settings.protocol == "lavt":
        processor.image_processor.keep_aspect_ratio = False


def evaluate_model(
    model: torch.nn.Module,
    processor: Any,
    dataset: Any,
    settings: EvaluationSettings,
    journal: EvaluationJournal,
    process_index: int = 0,
    num_processes: int = 1,
    progress: bool = False,
) -> int:
    """
    Scores every expression of a dataset that is not in the journal yet.

    Args:
        model (`torch.nn.Module`):
            The model, in evaluation mode and on its device.
        processor:
            The processor of the model, see `configure_processor`.
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or a list of rows):
            Canonical rows.
        settings (`EvaluationSettings`):
            Settings of the evaluation.
        journal (`EvaluationJournal`):
            Gets one line per image.
        process_index, num_processes (`int`, *optional*):
            This process evaluates every `num_processes`-th batch, starting with batch number `process_index`.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar with the current mIoU.

    Returns:
        `int`: how many expressions this call has scored.

    Raises:
        ValueError: If an image and one of its masks have different sizes, or if the journal contains rows of other
            data.
    """
    journal.drop_incomplete_line()
    finished = _finished_rows(journal, dataset, settings)
    metric = settings.new_metric()

    # A batch is always evaluated as a whole: logits can differ in the last bit between batches of other images.
    def is_wanted(batch: Sequence[int]) -> bool:
        is_own = batch[0] // settings.batch_size % num_processes == process_index
        return is_own and not finished.issuperset(batch)

    total = number_of_rows(dataset, settings.limit)
    own_total = None if total is None else -(-total // num_processes)
    bar = tqdm(total=own_total, initial=len(finished) // num_processes, unit=" images", disable=not progress)
    for batch in _read_batches(dataset, settings, is_wanted):
        rows = _score_batch(model, processor, batch, settings)
        journal.append([row for row in rows if row["row"] not in finished])
        metric.update_counts(expression["counts"] for row in rows for expression in row["expressions"])
        bar.update(len(rows))
        running = metric.compute()["mIoU"]
        bar.set_postfix_str(f"{len(metric)} expressions" + ("" if running is None else f", mIoU {running:.4f}"))
    bar.close()
    return len(metric)


def collect_results(
    journal: EvaluationJournal, settings: EvaluationSettings, num_images: int | None = None
) -> dict[str, Any]:
    """
    Computes the result of an evaluation from its journal.

    Args:
        journal (`EvaluationJournal`):
            Filled by [`evaluate_model`].
        settings (`EvaluationSettings`):
            The settings of the evaluation.
        num_images (`int`, *optional*):
            The expected number of images, if known.

    Returns:
        `dict`: `images`, `expressions`, `parts` (number of images per dataset and split), `annotations_sha256` (hash
        of all annotations in the order of the rows), `scores` (see [`ReferringSegmentationMetric.compute`]; its
        `groups` are the levels), and `controls`: for each control, its `scores` and the number of expressions that it
        changed.

    Raises:
        ValueError: If images are missing in the journal.
    """
    metrics = {name: settings.new_metric() for name in (None, *settings.controls)}
    changed = dict.fromkeys(settings.controls, 0)
    digests = {}
    parts: Counter[str] = Counter()
    for row in journal.rows():
        digests[row["row"]] = row["sha256"]
        parts[row["part"]] += 1
        levels = [expression["level"] for expression in row["expressions"]]
        for name, metric in metrics.items():
            entries = row["expressions"]
            if name is not None:
                entries = [expression["controls"][name] for expression in row["expressions"]]
                own = [expression["text"] for expression in row["expressions"]]
                changed[name] += sum(entry["text"] != text for entry, text in zip(entries, own, strict=True))
            metric.update_counts([entry["counts"] for entry in entries], groups=levels)
    expected = len(digests) if num_images is None else num_images
    missing = sorted(set(range(expected)) - digests.keys())
    if missing or not digests:
        rows = f"rows {missing[:5]}" if missing else "all rows"
        raise ValueError(
            f"The journal {journal.folder} lacks {rows}: run the same evaluation again, which adds what is missing."
        )
    scores = metrics.pop(None).compute()
    return {
        "images": len(digests),
        "parts": dict(sorted(parts.items())),
        "expressions": scores["expressions"],
        "annotations_sha256": hashlib.sha256("".join(digests[row] for row in sorted(digests)).encode()).hexdigest(),
        "scores": scores,
        "controls": {
            name: {
                "description": CONTROLS[name],
                "changed_expressions": changed[name],
                "scores": metric.compute(),
            }
            for name, metric in metrics.items()
        },
    }


@torch.inference_mode()
def predict_masks(
    model: torch.nn.Module,
    processor: Any,
    images: Sequence[Image.Image],
    texts: Sequence[Sequence[str]],
    target_sizes: Sequence[tuple[int, int]],
    settings: EvaluationSettings,
) -> list[np.ndarray]:
    """Predicts the masks of each image at its target size: booleans of shape `(expressions, height, width)`."""
    inputs = processor(
        images=list(images), text=[list(group) for group in texts], truncation=True, return_tensors="pt"
    ).to(model.device)
    pixel_values = inputs["pixel_values"].to(model.dtype)
    padding = {"pixel_mask": inputs["pixel_mask"]} if "pixel_mask" in inputs else {}
    if "image_features" in inspect.signature(model.forward).parameters:
        vision = {"image_features": model.get_image_features(pixel_values, **padding)}
    else:
        vision = {"pixel_values": pixel_values, **padding}
    masks: list[list[np.ndarray]] = [[] for _ in images]
    step = settings.max_expressions_per_call
    for start in range(0, inputs["input_ids"].shape[1], step):
        part = {name: inputs[name][:, start : start + step] for name in ("input_ids", "attention_mask")}
        processed = processor.post_process_referring_segmentation(
            model(**vision, **part),
            threshold=settings.threshold,
            mask_threshold=settings.mask_threshold,
            target_sizes=list(target_sizes),
            attention_mask=part["attention_mask"],
            **padding,
        )
        for image_masks, result in zip(masks, processed, strict=True):
            image_masks.append(result["masks"].cpu().numpy())
    return [np.concatenate(image_masks) for image_masks in masks]


def rows_at(dataset: Any, indices: Iterable[int]) -> dict[int, Mapping[str, Any]]:
    """Returns the rows with these indices. The dataset may be a stream."""
    wanted = set(indices)
    if _is_map_style(dataset):
        return {index: dataset[index] for index in sorted(wanted)}
    stop = max(wanted, default=-1) + 1
    return {index: row for index, row in enumerate(itertools.islice(dataset, stop)) if index in wanted}


def _score_batch(
    model: torch.nn.Module, processor: Any, batch: Sequence[_Item], settings: EvaluationSettings
) -> list[dict[str, Any]]:
    variants = [_variants(item, settings) for item in batch]
    texts = [list(dict.fromkeys(itertools.chain(*by_name.values()))) for by_name in variants]
    references = [_references(item.row, settings) for item in batch]
    images = [item.row["image"] for item in batch]
    sizes = [masks[0].shape for masks in references]
    predictions = predict_masks(model, processor, images, texts, sizes, settings)
    lines = []
    for item, by_name, image_texts, masks, image_predictions in zip(
        batch, variants, texts, references, predictions, strict=True
    ):
        row = item.row
        mask_of = dict(zip(image_texts, image_predictions, strict=True))
        levels = row.get("levels") or [None] * len(row["expressions"])
        expressions = []
        for number, (text, mask_index) in enumerate(zip(row["expressions"], row["mask_index"], strict=True)):
            expression = {
                "text": text,
                "ref_id": row["ref_ids"][mask_index],
                "level": levels[number] or None,
                "counts": count_pixels(mask_of[text], masks[mask_index]),
            }
            if settings.controls:
                replaced = {name: by_name[name][number] for name in settings.controls}
                expression["controls"] = {
                    name: {"text": other, "counts": count_pixels(mask_of[other], masks[mask_index])}
                    for name, other in replaced.items()
                }
            if settings.keep_masks:
                expression["mask"] = encode_mask(mask_of[text])
            expressions.append(expression)
        lines.append(
            {
                "row": item.index,
                "image_id": row["image_id"],
                "part": f"{row['dataset']}/{row['split']}",
                "sha256": _digest(row),
                "expressions": expressions,
            }
        )
    return lines


def _variants(item: _Item, settings: EvaluationSettings) -> dict[str | None, list[str]]:
    """Returns the expressions of an image under the key `None`, and those of each control under its name."""
    own = item.row["expressions"]
    seed = f"{settings.seed}/{item.row['image_id']}"
    controls = {name: control_expressions(name, own, item.other_expressions, seed) for name in settings.controls}
    return {None: list(own), **controls}


def _references(row: Mapping[str, Any], settings: EvaluationSettings) -> list[np.ndarray]:
    width, height = row["image"].size
    for ref_id, rle in zip(row["ref_ids"], row["masks"], strict=True):
        if tuple(rle["size"]) != (height, width):
            raise ValueError(
                f"Image {row['image_id']} has {height}x{width} pixels, but the mask of {ref_id} has"
                f" {'x'.join(map(str, rle['size']))} (height x width): the annotation belongs to another image."
            )
    masks = [decode_mask(rle) for rle in row["masks"]]
    if settings.protocol == "lavt":
        masks = [np.asarray(Image.fromarray(mask).resize(LAVT_SIZE, Image.Resampling.NEAREST)) for mask in masks]
    return masks


def _finished_rows(journal: EvaluationJournal, dataset: Any, settings: EvaluationSettings) -> set[int]:
    """Returns the indices of the rows in the journal. If the dataset has random access, checks their annotations."""
    if not _is_map_style(dataset):
        return {row["row"] for row in journal.rows()}
    annotations, finished = dataset, set()
    if hasattr(dataset, "select_columns"):
        annotations = dataset.select_columns([name for name in _ANNOTATIONS if name in dataset.column_names])
    total = number_of_rows(dataset, settings.limit)
    for row in journal.rows():
        if row["row"] >= total or _digest(annotations[row["row"]]) != row["sha256"]:
            raise ValueError(
                f"{journal.folder} contains the journal of another evaluation: its row {row['row']} has other"
                " annotations. Choose another output folder, or start over with `--overwrite`."
            )
        finished.add(row["row"])
    return finished


def _digest(row: Mapping[str, Any]) -> str:
    content = json.dumps([row.get(column) for column in _ANNOTATIONS], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _read_batches(
    dataset: Any, settings: EvaluationSettings, is_wanted: Callable[[Sequence[int]], bool]
) -> Iterator[list[_Item]]:
    """
    Yields the wanted batches of consecutive rows, each row with the expressions of the next row. The next row of the
    last one is the first. With random access to the dataset, no image of an unwanted batch is decoded.
    """
    if not _is_map_style(dataset):
        yield from _read_stream(dataset, settings, is_wanted)
        return
    texts = dataset.select_columns(["expressions"]) if hasattr(dataset, "select_columns") else dataset
    total = number_of_rows(dataset, settings.limit)
    for start in range(0, total, settings.batch_size):
        batch = range(start, min(start + settings.batch_size, total))
        if is_wanted(batch):
            yield [_Item(index, _row_at(dataset, index), _others(texts, index, total, settings)) for index in batch]


def _row_at(dataset: Any, index: int) -> Mapping[str, Any]:
    try:
        return dataset[index]
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"Row {index} cannot be read: {error}. Repair its image or remove the row (`load_referring_dataset` skips"
            " truncated images and logs their names). Finished rows are in the journal and will not be repeated."
        ) from error


def _others(texts: Any, index: int, total: int, settings: EvaluationSettings) -> Sequence[str]:
    return texts[(index + 1) % total]["expressions"] if "another image" in settings.controls and total > 1 else ()


def _read_stream(
    dataset: Iterable[Mapping[str, Any]], settings: EvaluationSettings, is_wanted: Callable[[Sequence[int]], bool]
) -> Iterator[list[_Item]]:
    batch: list[_Item] = []
    for item in _with_next_expressions(itertools.islice(dataset, settings.limit)):
        batch.append(item)
        if len(batch) == settings.batch_size:
            if is_wanted([item.index for item in batch]):
                yield batch
            batch = []
    if batch and is_wanted([item.index for item in batch]):
        yield batch


def _with_next_expressions(rows: Iterable[Mapping[str, Any]]) -> Iterator[_Item]:
    first: Sequence[str] = ()
    previous = None
    index = -1
    for index, row in enumerate(rows):
        if previous is None:
            first = row["expressions"]
        else:
            yield _Item(index - 1, previous, row["expressions"])
        previous = row
    if previous is not None:
        yield _Item(index, previous, first if index else ())


def _is_map_style(dataset: Any) -> bool:
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


def number_of_rows(dataset: Any, limit: int | None) -> int | None:
    if not _is_map_style(dataset):
        return limit
    return len(dataset) if limit is None else min(limit, len(dataset))
