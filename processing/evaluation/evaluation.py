"""Evaluation of any model of referring image segmentation on canonical rows (`processing.data.canonical_rows`).

A model is anything that `AutoModel` loads and whose forward takes `pixel_values` (or the reusable `image_features`),
`input_ids` and `attention_mask` of shape `(batch, expressions, length)`; its processor turns the outputs into masks
with `post_process_referring_segmentation`. An image is encoded once for all its expressions, the controls' included.

Results go through a journal (`processing.evaluation.journal`) and are computed from it alone, so an evaluation that
was killed and resumed, or spread over processes, gives what an unbroken one gives.
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
    "lavt": "image and ground truth stretched to 480x480 (ground truth by nearest neighbour), compared there",
}
LAVT_SIZE = (480, 480)
_ANNOTATIONS = ("image_id", "expressions", "masks", "mask_index", "ref_ids", "levels")


@dataclass(frozen=True)
class EvaluationSettings:
    """
    All that decides over the result of an evaluation, apart from model and data.

    Args:
        protocol (`str`, *optional*, defaults to `"original"`):
            A name in `PROTOCOLS`.
        threshold (`float`, *optional*):
            Score below which a result counts as absent, so that its mask is empty; 0 never empties one. By default
            0.5, and 0 under `lavt`, which knows no absent referents.
        mask_threshold (`float`, *optional*, defaults to 0.5):
            Probability above which a pixel belongs to the mask.
        image_size (`int`, *optional*):
            Side of the model's square input; by default what the processor was saved with, and 480 under `lavt`.
        inclusive (`bool`, *optional*, defaults to `True`):
            Whether an IoU equal to X counts for P@X.
        batch_size (`int`, *optional*, defaults to 1):
            Images a call.
        max_expressions_per_call (`int`, *optional*, defaults to 16):
            Expressions of an image a call; further ones take further calls, with the same image features.
        limit (`int`, *optional*):
            Only the first images.
        controls (`tuple[str, ...]`, *optional*):
            Names in `CONTROLS`.
        keep_masks (`bool`, *optional*, defaults to `False`):
            Whether the journal keeps every predicted mask as RLE.
        seed (`int`, *optional*, defaults to 0):
            For the order of shuffled words.
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
        """An empty accumulator with the rules of the protocol."""
        no_target = "zero" if self.protocol == "lavt" else "grefcoco"
        return ReferringSegmentationMetric(inclusive=self.inclusive, no_target=no_target)

    def sample_iou(self, counts: Sequence[int]) -> float:
        """The IoU that one expression enters the means with."""
        intersection, prediction_area, target_area = counts
        if not target_area:
            return float(prediction_area == 0 and self.protocol != "lavt")
        return intersection / (prediction_area + target_area - intersection)


class _Item(NamedTuple):
    index: int
    row: Mapping[str, Any]
    other_expressions: Sequence[str]


def configure_processor(processor: Any, settings: EvaluationSettings) -> None:
    """Sets the size of the model's input, and stretching instead of padding, where the settings ask for them."""
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
    Scores every expression of a dataset that the journal does not hold yet.

    Args:
        model (`torch.nn.Module`):
            In evaluation mode, on its device and in its dtype.
        processor:
            The model's, see `configure_processor`.
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or a list of rows):
            Canonical rows.
        settings (`EvaluationSettings`):
            See there.
        journal (`EvaluationJournal`):
            Receives a line an image.
        process_index, num_processes (`int`, *optional*):
            This process takes every `num_processes`-th batch. No batch goes to two processes.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a bar, with the mIoU so far.

    Returns:
        `int`: how many expressions this call has scored.

    Raises:
        ValueError: If a row does not fit itself (an image and a mask of different sizes), or the journal holds rows
            of other data.
    """
    journal.drop_incomplete_line()
    finished = _finished_rows(journal, dataset, settings)
    metric = settings.new_metric()

    # A batch is done as a whole or not at all: which images share a batch can change the last bit of a logit.
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
            Those of the evaluation.
        num_images (`int`, *optional*):
            How many images there must be, where that is known.

    Returns:
        `dict`: `images`, `expressions`, `parts` (images of each data set and split), `annotations_sha256` (of all that
        was compared with, in the order of the rows), `scores` (see [`ReferringSegmentationMetric.compute`]; `groups`
        are the levels), and `controls`: for each the `scores` and in how many expressions it changed anything.

    Raises:
        ValueError: If images are missing, since another process has not finished.
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
        raise ValueError(f"The journal {journal.folder} lacks the images {missing[:5] or 'of every row'}.")
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
    """Predicts, for each image, boolean masks `(expressions, height, width)` of its target size."""
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
    """The rows with these numbers, from a dataset that may be a stream."""
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
    """The expressions of an image, and what each control puts in their place."""
    own = item.row["expressions"]
    seed = f"{settings.seed}/{item.row['image_id']}"
    controls = {name: control_expressions(name, own, item.other_expressions, seed) for name in settings.controls}
    return {None: list(own), **controls}


def _references(row: Mapping[str, Any], settings: EvaluationSettings) -> list[np.ndarray]:
    width, height = row["image"].size
    for ref_id, rle in zip(row["ref_ids"], row["masks"], strict=True):
        if tuple(rle["size"]) != (height, width):
            raise ValueError(
                f"Image {row['image_id']} is {height}x{width} but the mask of {ref_id} is"
                f" {'x'.join(map(str, rle['size']))} (height x width): image and annotation do not belong together."
            )
    masks = [decode_mask(rle) for rle in row["masks"]]
    if settings.protocol == "lavt":
        masks = [np.asarray(Image.fromarray(mask).resize(LAVT_SIZE, Image.Resampling.NEAREST)) for mask in masks]
    return masks


def _finished_rows(journal: EvaluationJournal, dataset: Any, settings: EvaluationSettings) -> set[int]:
    """Numbers of the rows in the journal; with random access to the dataset, their annotations are compared."""
    if not _is_map_style(dataset):
        return {row["row"] for row in journal.rows()}
    annotations, finished = dataset, set()
    if hasattr(dataset, "select_columns"):
        annotations = dataset.select_columns([name for name in _ANNOTATIONS if name in dataset.column_names])
    total = number_of_rows(dataset, settings.limit)
    for row in journal.rows():
        if row["row"] >= total or _digest(annotations[row["row"]]) != row["sha256"]:
            raise ValueError(
                f"{journal.folder} holds the journal of another evaluation: its row {row['row']} has other"
                " annotations. Choose another output folder, or start over with `overwrite`."
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
    Consecutive rows in batches, each with the expressions of the row after it (after the last comes the first). A
    dataset with random access decodes no image of a batch that is not wanted.
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
            f"Row {index} cannot be read: {error}. What is finished is in the journal. Leave the row out"
            " (`load_referring_dataset` names and skips images that are cut off) or repair its image."
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
