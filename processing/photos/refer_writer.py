"""Build a folder in the format of the REFER API from any folder of COCO instance annotations."""

import hashlib
import json
import logging
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..data.canonical_rows import find_image
from ..data.masks import mask_area, to_rle
from .expressions import ExpressionWriter, GradedExpression, Scene, SceneObject
from .paste_objects import paste_objects


logger = logging.getLogger(__name__)

REFERENCES_FILE = "refs(coco).json"


def build_scene(
    image: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]], categories: Mapping[int, str]
) -> tuple[Scene, list[str]]:
    """
    A photo's objects as the writer of expressions wants them, and what could not be used with the reason.

    Areas are those of the masks: the `area` field of COCO crowds does not agree with their run lengths.
    """
    objects, problems = [], []
    for annotation in sorted(annotations, key=lambda annotation: annotation["id"]):
        try:
            mask = to_rle(annotation["segmentation"], image["height"], image["width"])
            area = mask_area(mask)
            if area == 0:
                raise ValueError("its mask covers no pixel")
            left, top, width, height = annotation["bbox"]
            category = categories[annotation["category_id"]]
        except (KeyError, TypeError, ValueError) as error:
            reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
            problems.append(f"annotation {annotation['id']}: {reason}")
            continue
        objects.append(
            SceneObject(
                annotation_id=annotation["id"],
                category=category,
                left=left,
                top=top,
                right=left + width,
                bottom=top + height,
                area=area,
                is_crowd=bool(annotation.get("iscrowd")),
            )
        )
    return Scene(image["id"], image["width"], image["height"], tuple(objects)), problems


def split_of_image(image_id: int, validation_share: float, seed: int) -> str:
    """`val` for about this share of all images, chosen by id and seed alone; `train` for the others."""
    digest = hashlib.sha256(f"{seed}:{image_id}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") / 2**64 < validation_share else "train"


def references_of_image(
    image: Mapping[str, Any],
    expressions: Iterable[GradedExpression],
    category_of_annotation: Mapping[int, int],
    split: str,
    first_ref_id: int,
    first_sentence_id: int,
) -> list[dict[str, Any]]:
    """
    Expressions of one image as references like those of gRefCOCO, sentences of one meaning together.

    `ann_id` and `category_id` are lists, `[-1]` for no target; each sentence carries its `level` and
    its `landmark_ids`, the annotations of the other objects that it names.
    """
    by_meaning: dict[tuple[int, ...], list[GradedExpression]] = defaultdict(list)
    for expression in expressions:
        by_meaning[expression.annotation_ids].append(expression)
    references = []
    for number, (meaning, sentences) in enumerate(by_meaning.items()):
        ids = range(first_sentence_id, first_sentence_id + len(sentences))
        first_sentence_id = ids.stop
        references.append(
            {
                "ref_id": first_ref_id + number,
                "ann_id": list(meaning) or [-1],
                "category_id": [category_of_annotation[identifier] for identifier in meaning] or [-1],
                "no_target": not meaning,
                "image_id": image["id"],
                "file_name": image["file_name"],
                "split": split,
                "sent_ids": list(ids),
                "sentences": [
                    {
                        "tokens": sentence.text.split(),
                        "raw": sentence.text,
                        "sent": sentence.text,
                        "sent_id": identifier,
                        "level": sentence.level,
                        "landmark_ids": list(sentence.landmark_ids),
                    }
                    for identifier, sentence in zip(ids, sentences, strict=True)
                ],
            }
        )
    return references


def write_coco_refer_folder(
    instances_file: str | Path,
    image_folder: str | Path,
    output_folder: str | Path,
    *,
    seed: int = 0,
    max_per_level: int = 4,
    absent_share: float = 0.2,
    levels: Collection[str] | None = None,
    exclude_image_ids: Collection[str | int] = (),
    validation_share: float = 0.0,
    max_images: int | None = None,
    pasted_images: int = 0,
    images: str = "link",
) -> dict[str, int]:
    """
    Write `refs(coco).json`, `instances.json` and `images/` from COCO annotations.

    The same arguments give the same files, byte for byte.

    Args:
        instances_file (`str` or `Path`):
            COCO annotations: `images`, `annotations` with `segmentation` and `bbox`, `categories`.
        image_folder (`str` or `Path`):
            The photos, under their own names or those of the 2014 or the 2017 edition.
        output_folder (`str` or `Path`):
            Folder to write; must not hold references yet.
        seed, max_per_level, absent_share, levels:
            See [`~processing.photos.expressions.ExpressionWriter`].
        exclude_image_ids (`Collection`, *optional*):
            Images neither described nor used as a source of objects: those that a benchmark holds out.
        validation_share (`float`, *optional*, defaults to 0.0):
            Share of the images for the split `val`.
        max_images (`int`, *optional*):
            Use no more than this many photos, those of lowest id.
        pasted_images (`int`, *optional*, defaults to 0):
            Additional images to make by pasting objects of one photo into another of the same split, so that nouns
            alone no longer decide: see [`~processing.photos.paste_objects`].
        images (`str`, *optional*, defaults to `"link"`):
            `"link"` or `"copy"` the photos into `images/`.

    Returns:
        `dict[str, int]`: how many images, references, sentences and sentences of each level; and how many images were
        skipped, since some of their annotations cannot be read: what is not known of a photo could make any
        expression wrong ("the dog", of two).

    Raises:
        ValueError: if an argument makes no sense, the output holds references already, a photo is named by a path
            that leads out of its folder, or no image is left.
    """
    if images not in ("link", "copy"):
        raise ValueError(f"`images` must be 'link' or 'copy', got {images!r}")
    if not 0 <= validation_share < 1:
        raise ValueError(f"`validation_share` must be at least 0 and below 1, got {validation_share}")
    output = Path(output_folder)
    if (output / REFERENCES_FILE).exists():
        raise ValueError(f"{output} holds references already: choose another folder or delete it")
    instances = json.loads(Path(instances_file).read_text("utf-8"))
    excluded = {str(identifier) for identifier in exclude_image_ids}
    photos = sorted(
        (image for image in instances["images"] if str(image["id"]) not in excluded), key=lambda image: image["id"]
    )[:max_images]
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in instances["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    (output / "images").mkdir(parents=True, exist_ok=True)
    names = {category["id"]: category["name"] for category in instances["categories"]}
    counts: Counter[str] = Counter(images=0, references=0, sentences=0, skipped_images=0)
    scenes: dict[int, Scene] = {}
    kept = []
    for image in photos:
        scene, problems = build_scene(image, annotations[image["id"]], names)
        if problems:
            logger.warning("Image %s left out: %s", image["id"], "; ".join(problems))
            counts["skipped_images"] += 1
        elif _bring_image(image, Path(image_folder), output / "images", images):
            scenes[image["id"]] = scene
            kept.append(image)
    if not kept:
        raise ValueError(
            f"no image of {instances_file} is left: none was found in {image_folder}, all are excluded, or none has"
            " annotations that can be read"
        )
    splits = {image["id"]: split_of_image(image["id"], validation_share, seed) for image in kept}
    if pasted_images:
        generator = random.Random(f"{seed}:paste")
        first_id = max(image["id"] for image in instances["images"]) + 1
        made = paste_objects(kept, annotations, splits, names, output / "images", pasted_images, first_id, generator)
        for image, parts, split in made:
            kept.append(image)
            annotations[image["id"]] = parts
            scenes[image["id"]] = build_scene(image, parts, names)[0]
            splits[image["id"]] = split

    options = {} if levels is None else {"levels": tuple(levels)}
    writer = ExpressionWriter(
        vocabulary={category["name"]: category.get("supercategory", "") for category in instances["categories"]},
        seed=seed,
        max_per_level=max_per_level,
        absent_share=absent_share,
        **options,
    )
    references: list[dict[str, Any]] = []
    for image in kept:
        expressions = writer.write(scenes[image["id"]])
        category_of_annotation = {
            annotation["id"]: annotation["category_id"] for annotation in annotations[image["id"]]
        }
        references += references_of_image(
            image, expressions, category_of_annotation, splits[image["id"]], len(references), counts["sentences"]
        )
        counts["images"] += bool(expressions)
        counts["sentences"] += len(expressions)
        counts.update(f"level {expression.level}" for expression in expressions)
    counts["references"] = len(references)
    chosen = {image["id"] for image in kept}
    used = {
        "info": instances.get("info", {}),
        "licenses": instances.get("licenses", []),
        "images": kept,
        "annotations": [
            annotation for image_id in annotations if image_id in chosen for annotation in annotations[image_id]
        ],
        "categories": instances["categories"],
    }
    (output / "instances.json").write_text(json.dumps(used), "utf-8")
    (output / REFERENCES_FILE).write_text(json.dumps(references), "utf-8")
    return dict(counts)


def _bring_image(image: Mapping[str, Any], source: Path, target: Path, how: str) -> bool:
    name = Path(image["file_name"])
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"image {image['id']} is named {image['file_name']!r}, which leads out of its folder")
    try:
        path = find_image(source, image["file_name"], str(image["id"])).resolve()
    except ValueError as error:
        logger.warning("Image %s left out: %s", image["id"], error)
        return False
    destination = target / image["file_name"]
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.is_symlink():
        destination.unlink()
    elif destination.exists():
        if destination.samefile(path):
            return True  # the photos lie in the folder that is written
        destination.unlink()
    if how == "copy":
        shutil.copyfile(path, destination)
    else:
        destination.symlink_to(path)
    return True
