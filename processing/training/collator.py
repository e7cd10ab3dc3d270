"""From canonical rows, one an image, to the inputs of the model."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..data.masks import decode_mask
from .augmentation import MaskingAugmentation
from .image_sampler import check_expression_cap


_REQUIRED_COLUMNS = ("image", "expressions", "masks", "mask_index")


def select_expressions(
    mask_index: Sequence[int], max_expressions: int | None, generator: np.random.Generator
) -> list[int]:
    """
    Draw expressions of an image: one of every referent before a second of any, in random order within each turn.

    With a cap below the number of referents, some referents are left out, each with the same chance. The sentences of
    a referent are equally likely, as where one of them is drawn at random.

    Args:
        mask_index (`Sequence[int]`):
            The referent of each expression.
        max_expressions (`int`, *optional*):
            The most expressions to take; `None` takes all.
        generator (`np.random.Generator`):
            Where the chance comes from.

    Returns:
        `list[int]`: positions in `mask_index`, each at most once.
    """
    turns: dict[int, int] = {}
    ranked = []
    for position in generator.permutation(len(mask_index)):
        turn = turns.get(mask_index[position], 0)
        turns[mask_index[position]] = turn + 1
        ranked.append((turn, int(position)))
    ranked.sort(key=lambda pair: pair[0])
    return [position for _, position in ranked[:max_expressions]]


class ReferringCollator:
    """
    Turns a list of canonical rows into one batch: `pixel_values`, `input_ids`, `attention_mask`, `labels`, and in
    training `landmark_masks` where any row of the batch has `landmarks`; they are 255 where nothing is known of them.
    A processor that keeps the aspect ratio adds `pixel_mask`.

    Each row is an image with expressions, and `masks` (COCO RLE) with the `mask_index` of each expression. The batch
    has the shape `(batch, expressions, ...)`, with as many expressions as the row with most of them; missing ones have
    an all-zero `attention_mask` and count for nothing. Expressions longer than the tokenizer's limit are cut off.

    Rows that a stream passes over on its way to where a run was (`{"skipped": True}`) make an empty batch.

    What is drawn at random depends on `seed`, the row's `dataset` and `image_id`, and its `visit` (see
    [`~processing.training.image_sampler.DrawnImages`]), never on the worker or on what came before.

    Args:
        processor (`JMCELNProcessor`):
            Prepares images, expressions and masks.
        training (`bool`, *optional*, defaults to `False`):
            Whether to draw expressions and to augment. Otherwise all expressions come in their order.
        max_expressions_per_image (`int`, *optional*):
            The most expressions that are drawn of an image in training. `None` takes all.
        augmentation (`MaskingAugmentation`, *optional*):
            What to mask in training.
        seed (`int`, *optional*, defaults to 0):
            Seed of what is drawn.

    Raises:
        ValueError: if a row lacks a column, an expression points to a mask that is not there, or there are not as many
            landmarks as expressions.
    """

    def __init__(
        self,
        processor: Any,
        *,
        training: bool = False,
        max_expressions_per_image: int | None = None,
        augmentation: MaskingAugmentation | None = None,
        seed: int = 0,
    ):
        check_expression_cap(max_expressions_per_image)
        self.processor = processor
        self.training = training
        self.max_expressions_per_image = max_expressions_per_image
        self.augmentation = augmentation if augmentation is not None and augmentation.is_active else None
        self.seed = seed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if all("skipped" in row for row in rows):
            return {}
        stand_in = next((expression for row in rows for expression in row.get("expressions", ())), "nothing")
        images, texts, masks, landmarks, generators, counts = [], [], [], [], [], []
        for row in rows:
            self._check(row)
            generator = self._generator(row)
            is_augmented = (
                self.training and self.augmentation is not None and generator.random() < self.augmentation.probability
            )
            generators.append(generator if is_augmented else None)
            chosen: Sequence[int] = range(len(row["expressions"]))
            if self.training:
                chosen = select_expressions(row["mask_index"], self.max_expressions_per_image, generator)
            decoded = {index: decode_mask(row["masks"][index]) for index in {row["mask_index"][i] for i in chosen}}
            expressions = [row["expressions"][i] for i in chosen]
            if is_augmented:
                expressions = [self.augmentation.drop_words(expression, generator) for expression in expressions]
            images.append(row["image"])
            counts.append(len(expressions))
            # A row without an expression still is an image of the batch: another's stands in and is blanked below.
            texts.append(expressions or [stand_in])
            masks.append([decoded[row["mask_index"][i]] for i in chosen] or None)
            is_supervised = self.training and row.get("landmarks") is not None
            landmarks.append([decode_mask(row["landmarks"][i]) for i in chosen] or None if is_supervised else None)
        batch = dict(
            self.processor(
                images=images,
                text=texts,
                segmentation_maps=masks,
                landmark_maps=landmarks if any(landmarks) else None,
                truncation=True,
                return_tensors="pt",
            )
        )
        del batch["original_sizes"]  # scores at the size of the labels need none
        for name in {"labels", "landmark_masks"} & batch.keys():
            # Eight times less to hand over to the training process and to the accelerator than 64-bit integers.
            batch[name] = batch[name].to(torch.uint8)
        for item, count in enumerate(counts):
            if count == 0:
                batch["attention_mask"][item] = 0
        for item, generator in enumerate(generators):
            if generator is not None:
                batch["pixel_values"][item] = self.augmentation.mask_image(batch["pixel_values"][item], generator)
                batch["input_ids"][item] = self.augmentation.mask_tokens(
                    batch["input_ids"][item], self.processor.tokenizer, generator
                )
        return batch

    def _generator(self, row: Mapping[str, Any]) -> np.random.Generator:
        identity = zlib.crc32(f"{row.get('dataset', '')}/{row.get('image_id', '')}".encode())
        return np.random.default_rng([self.seed, int(row.get("visit", 0)), identity])

    @staticmethod
    def _check(row: Mapping[str, Any]) -> None:
        missing = [column for column in _REQUIRED_COLUMNS if column not in row]
        if missing:
            raise ValueError(
                f"A row has no column {missing}; it has {sorted(row)}. Load the dataset with"
                " `load_referring_dataset`, and keep `remove_unused_columns=False` in the training arguments."
            )
        if len(row["expressions"]) != len(row["mask_index"]):
            raise ValueError(
                f"The row of image {row.get('image_id')!r} has {len(row['expressions'])} expressions but"
                f" {len(row['mask_index'])} entries in `mask_index`."
            )
        landmarks = row.get("landmarks")
        if landmarks is not None and len(landmarks) != len(row["expressions"]):
            raise ValueError(
                f"The row of image {row.get('image_id')!r} has {len(row['expressions'])} expressions but"
                f" {len(landmarks)} masks of `landmarks`."
            )
        bad = [index for index in row["mask_index"] if not 0 <= index < len(row["masks"])]
        if bad:
            raise ValueError(
                f"The row of image {row.get('image_id')!r} points to the masks {bad}, but has {len(row['masks'])}."
            )
        # Before they are decoded: a few characters of run lengths can stand for any number of pixels.
        size = (row["image"].height, row["image"].width)
        wrong = {tuple(mask["size"]) for mask in (*row["masks"], *(landmarks or ()))} - {size}
        if wrong:
            raise ValueError(
                f"The row of image {row.get('image_id')!r} has masks of (height, width) = {sorted(wrong)} for an image"
                f" of {size}."
            )
