"""Converts canonical rows, one per image, to inputs of the model."""

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
    Samples expressions of an image: first one expression of every referent, then a second one, and so on, in random
    order within each round.

    If `max_expressions` is below the number of referents, each referent has the same probability of being left out.
    Each expression of a referent has the same probability of being sampled.

    Args:
        mask_index (`Sequence[int]`):
            The referent of each expression.
        max_expressions (`int`, *optional*):
            Maximum number of expressions; `None` returns all.
        generator (`np.random.Generator`):
            Source of randomness.

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
    Converts a list of canonical rows to one batch with `pixel_values`, `input_ids`, `attention_mask` and `labels`. In
    training, the batch also has `landmark_masks` if any row has `landmarks`; they are 255 where they are not known.
    If the processor keeps the aspect ratio, the batch also has a `pixel_mask`.

    Each row is an image with expressions, `masks` (COCO RLE) and the `mask_index` of each expression. The batch has
    the shape `(batch, expressions, ...)`, padded to the largest number of expressions. A padded expression has an
    all-zero
    `attention_mask` and does not count. Expressions longer than the limit of the tokenizer are cut.

    Rows that a resumed stream skips (`{"skipped": True}`) make an empty batch.

    Random choices depend only on `seed`, on the `dataset` and `image_id` of the row, and on its `visit` (see
    [`~processing.training.image_sampler.DrawnImages`]), not on the worker or on earlier batches.

    Args:
        processor (`JMCELNProcessor`):
            Prepares images, expressions and masks.
        training (`bool`, *optional*, defaults to `False`):
            Whether to sample expressions and to augment. Otherwise, all expressions are returned in order.
        max_expressions_per_image (`int`, *optional*):
            Maximum number of expressions to sample per image in training. `None` uses all.
        augmentation (`MaskingAugmentation`, *optional*):
            Masking of images and expressions in training.
        seed (`int`, *optional*, defaults to 0):
            Random seed.

    Raises:
        ValueError: If a row lacks a column, if an expression refers to a mask that does not exist, or if the number of
            landmarks is not that of the expressions.
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
            # A row without expressions still needs one in the batch: it gets another one, which is masked out below.
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
        del batch["original_sizes"]  # not needed, since scores are computed at the size of the labels
        for name in {"labels", "landmark_masks"} & batch.keys():
            # An eighth of the size of 64-bit integers to copy to the training process and to the accelerator.
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
                f"A row has no columns {missing}, only {sorted(row)}. Load the dataset with"
                " `load_referring_dataset`, and set `remove_unused_columns=False` in the training arguments."
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
                f"`mask_index` in the row of image {row.get('image_id')!r} contains {bad}, but there are"
                f" {len(row['masks'])} masks."
            )
        # Before decoding, since a few characters of RLE can stand for any number of pixels.
        size = (row["image"].height, row["image"].width)
        wrong = {tuple(mask["size"]) for mask in (*row["masks"], *(landmarks or ()))} - {size}
        if wrong:
            raise ValueError(
                f"The row of image {row.get('image_id')!r} has masks of (height, width) = {sorted(wrong)} for an image"
                f" of {size}."
            )
