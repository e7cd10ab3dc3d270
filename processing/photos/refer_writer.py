"""Writes a folder in the format of the REFER API from any folder of COCO instance annotations."""

import hashlib
import json
import logging
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from ..data.canonical_rows import find_image
from ..data.masks import mask_area, to_rle
from ..safe_files import replace_text
from .annotated_photo import AnnotatedPhoto, coco_annotations, read_annotated_photo, scene_of_photo
from .augmentation import augment_photo, fit_size, resize_photo
from .expressions import ExpressionWriter, GradedExpression
from .paste_objects import CutoutCollection, paste_objects
from .scene import Scene


logger = logging.getLogger(__name__)

REFERENCES_FILE = "refs(coco).json"
_QUALITY = 92
# Not every photo has a suitable position for pasted objects.
_TRIES_PER_PASTED_IMAGE = 3


@dataclass(frozen=True)
class CocoPhotos:
    """
    A folder of photos with their COCO annotations.

    Args:
        instances_file (`str` or `Path`):
            COCO annotations: `images`, `annotations` with `segmentation` and `bbox`, `categories`.
        image_folder (`str` or `Path`):
            The photos, under their own names or those of COCO 2014 or 2017.
        versions (`int`, *optional*, defaults to 0):
            Number of versions of each training photo to write instead of the photo: the first is the photo itself, the
            others are cropped, mirrored and so on (see [`~processing.photos.augmentation`]). 0 keeps the photos
            unchanged.
        persons_only (`bool`, *optional*, defaults to `False`):
            Whether all persons and nothing else are annotated. Expressions then do not mention other objects, and
            nothing is pasted into these photos.
    """

    instances_file: str | Path
    image_folder: str | Path
    versions: int = 0
    persons_only: bool = False

    def __post_init__(self):
        if self.versions < 0:
            raise ValueError(f"`versions` must be at least 0, got {self.versions}")


@dataclass(frozen=True)
class _Photo:
    """A usable photo."""

    image: Mapping[str, Any]
    annotations: Sequence[Mapping[str, Any]]
    path: Path
    source: CocoPhotos
    split: str

    def read(self) -> AnnotatedPhoto:
        return read_annotated_photo(self.path, self.image, self.annotations)


@dataclass(frozen=True)
class _NewImage:
    """An image of the output folder, with its description for the expression writer."""

    image: Mapping[str, Any]
    annotations: Sequence[Mapping[str, Any]]
    scene: Scene
    split: str


def find_problems(
    image: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]], categories: Mapping[int, str]
) -> list[str]:
    """Lists the unusable annotations of a photo with the reasons."""
    problems = [(annotation["id"], _problem(image, annotation, categories)) for annotation in annotations]
    return [f"annotation {identifier}: {problem}" for identifier, problem in problems if problem]


def _problem(image: Mapping[str, Any], annotation: Mapping[str, Any], categories: Mapping[int, str]) -> str | None:
    for key, known in (("segmentation", None), ("bbox", None), ("category_id", categories)):
        if key not in annotation:
            return f"missing {key!r}"
        if known is not None and annotation[key] not in known:
            return f"unknown {key} {annotation[key]}"
    try:
        area = mask_area(to_rle(annotation["segmentation"], image["height"], image["width"]))
    except (TypeError, ValueError) as error:
        return str(error)
    return None if area else "its mask is empty"


def split_of_image(image_id: int, validation_share: float, seed: int) -> str:
    """Returns `val` for about this share of all images, which depends only on id and seed, and `train` for others."""
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
    Converts the expressions of one image to references in the format of gRefCOCO. Expressions with the same meaning
    are sentences of one reference.

    `ann_id` and `category_id` are lists, `[-1]` for no target. Each sentence has its `level` and its `landmark_ids`,
    the annotations of the other objects that it names.
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
    sources: CocoPhotos | Sequence[CocoPhotos],
    output_folder: str | Path,
    *,
    seed: int = 0,
    max_per_level: int = 4,
    max_per_image: int | None = None,
    absent_share: float = 0.2,
    levels: Collection[str] | None = None,
    exclude_image_ids: Collection[str | int] = (),
    validation_share: float = 0.0,
    validation_image_ids: Collection[str | int] = (),
    max_images: int | None = None,
    pasted_images: int = 0,
    longest_side: int | None = None,
    images: str = "link",
    show_progress: bool = False,
) -> dict[str, int]:
    """
    Writes `refs(coco).json`, `instances.json` and `images/` from COCO annotations.

    The same arguments give exactly the same files.

    Args:
        sources (`CocoPhotos` or `Sequence[CocoPhotos]`):
            Photos and annotations, with the same categories.
        output_folder (`str` or `Path`):
            Folder to write to. It must not contain references yet.
        seed, max_per_level, max_per_image, absent_share, levels:
            See [`~processing.photos.expressions.ExpressionWriter`].
        exclude_image_ids (`Collection`, *optional*):
            Images to leave out, also as a source of pasted objects: those that a benchmark holds out.
        validation_share (`float`, *optional*, defaults to 0.0):
            Share of the images in the split `val`.
        validation_image_ids (`Collection`, *optional*):
            Images in the split `val`, independent of the share. Photos of this split are not changed, and none of
            their objects are pasted into training images.
        max_images (`int`, *optional*):
            Maximum number of photos of each source, in the order of their ids.
        pasted_images (`int`, *optional*, defaults to 0):
            Number of additional training images with objects pasted from another training photo, for which the noun
            alone is not enough: see [`~processing.photos.paste_objects`].
        longest_side (`int`, *optional*):
            Maximum number of pixels of the longer side of versions and pasted images.
        images (`str`, *optional*, defaults to `"link"`):
            Whether to `"link"` or `"copy"` the photos to `images/`.
        show_progress (`bool`, *optional*, defaults to `False`):
            Whether to show progress bars.

    Returns:
        `dict[str, int]`: numbers of images, references, sentences and sentences per level, and of skipped images with
        unreadable annotations: an unknown object could make an expression wrong ("the dog" if there are two).

    Raises:
        ValueError: If an argument is invalid, if the output folder already contains references, if the path of a photo
            leads out of its folder, if two sources share ids, or if no image is left.
    """
    sources = [sources] if isinstance(sources, CocoPhotos) else list(sources)
    if images not in ("link", "copy"):
        raise ValueError(f"`images` must be 'link' or 'copy', got {images!r}")
    if not 0 <= validation_share < 1:
        raise ValueError(f"`validation_share` must be at least 0 and below 1, got {validation_share}")
    if longest_side is not None and longest_side < 16:
        raise ValueError(f"`longest_side` must be at least 16, got {longest_side}")
    output = Path(output_folder)
    if (output / REFERENCES_FILE).exists():
        raise ValueError(f"{output} already contains references: choose another folder or delete it")
    tables = [json.loads(Path(source.instances_file).read_text("utf-8")) for source in sources]
    categories = tables[0]["categories"]
    _check_tables(tables)
    names = {category["id"]: category["name"] for category in categories}
    options = {} if levels is None else {"levels": tuple(levels)}
    writer = ExpressionWriter(
        vocabulary={category["name"]: category.get("supercategory", "") for category in categories},
        seed=seed,
        max_per_level=max_per_level,
        max_per_image=max_per_image,
        absent_share=absent_share,
        **options,
    )
    excluded = {str(identifier) for identifier in exclude_image_ids}
    held_out = {str(identifier) for identifier in validation_image_ids}
    photos: list[_Photo] = []
    counts: Counter[str] = Counter(images=0, references=0, sentences=0, skipped_images=0)
    for source, table in zip(sources, tables, strict=True):
        of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in sorted(table["annotations"], key=lambda annotation: annotation["id"]):
            of_image[annotation["image_id"]].append(annotation)
        chosen = sorted(
            (image for image in table["images"] if str(image["id"]) not in excluded), key=lambda image: image["id"]
        )
        for image in chosen[:max_images]:
            path = _find_photo(image, Path(source.image_folder))
            problems = find_problems(image, of_image[image["id"]], names)
            if problems:
                logger.warning("Image %s left out: %s", image["id"], "; ".join(problems))
                counts["skipped_images"] += 1
            elif path is not None:
                is_held_out = str(image["id"]) in held_out
                split = "val" if is_held_out else split_of_image(image["id"], validation_share, seed)
                photos.append(_Photo(image, of_image[image["id"]], path, source, split))
    if not photos:
        raise ValueError(
            f"no image of {', '.join(str(source.instances_file) for source in sources)} is left: none was found in the"
            " folder of photos, all are excluded, or none has annotations that can be read"
        )
    (output / "images").mkdir(parents=True, exist_ok=True)
    first_image_id = max(image["id"] for table in tables for image in table["images"]) + 1
    first_annotation_id = max((item["id"] for table in tables for item in table["annotations"]), default=0) + 1
    maker = _ImageMaker(output / "images", names, seed, longest_side, first_image_id, first_annotation_id)
    progress = partial(tqdm, disable=not show_progress)
    made: list[_NewImage] = []
    for photo in progress(photos, desc="photos"):
        if photo.split == "train" and photo.source.versions:
            made.extend(maker.versions(photo))
        else:
            _bring_image(photo.image, photo.path, output / "images", images)
            made.append(maker.original(photo))
    if pasted_images:
        made.extend(progress(maker.pasted(photos, pasted_images), desc="pasted images", total=pasted_images))
    references: list[dict[str, Any]] = []
    for new in progress(made, desc="expressions"):
        expressions = writer.write(new.scene)
        category_of_annotation = {annotation["id"]: annotation["category_id"] for annotation in new.annotations}
        references += references_of_image(
            new.image, expressions, category_of_annotation, new.split, len(references), counts["sentences"]
        )
        counts["images"] += bool(expressions)
        counts["sentences"] += len(expressions)
        counts.update(f"level {expression.level}" for expression in expressions)
    counts["references"] = len(references)
    used = {
        "info": tables[0].get("info", {}),
        "licenses": tables[0].get("licenses", []),
        "images": [new.image for new in made],
        "annotations": [annotation for new in made for annotation in new.annotations],
        "categories": categories,
    }
    replace_text(output / "instances.json", json.dumps(used))
    # Last, since it says that the folder is whole.
    replace_text(output / REFERENCES_FILE, json.dumps(references))
    return dict(counts)


def _check_tables(tables: Sequence[Mapping[str, Any]]) -> None:
    """Raises a `ValueError` if tables of annotations cannot be combined."""
    names = [{category["id"]: category["name"] for category in table["categories"]} for table in tables]
    if any(other != names[0] for other in names):
        raise ValueError("the sources have different categories")
    for kind in ("images", "annotations"):
        found = Counter(item["id"] for table in tables for item in table[kind])
        twice = [identifier for identifier, number in found.items() if number > 1]
        if twice:
            raise ValueError(f"`{kind}` of the sources share ids: {twice[:5]}")


class _ImageMaker:
    """Makes the images of the output folder, and assigns ids to them and to their annotations."""

    def __init__(
        self,
        folder: Path,
        categories: Mapping[int, str],
        seed: int,
        longest_side: int | None,
        next_image_id: int,
        next_annotation_id: int,
    ):
        self.folder = folder
        self.categories = categories
        self.seed = seed
        self.longest_side = longest_side
        self.next_image_id = next_image_id
        self.next_annotation_id = next_annotation_id

    def original(self, photo: _Photo) -> _NewImage:
        """Returns an unchanged photo."""
        scene = scene_of_photo(
            photo.read(),
            photo.image["id"],
            [annotation["id"] for annotation in photo.annotations],
            self.categories,
            photo.source.persons_only,
        )
        return _NewImage(photo.image, photo.annotations, scene, photo.split)

    def versions(self, photo: _Photo) -> Iterator[_NewImage]:
        """Yields the photo itself and its versions."""
        original = photo.read()
        for number in range(photo.source.versions):
            if number == 0:
                version = resize_photo(original, fit_size(original.pixels.size, self.longest_side))
            else:
                generator = random.Random(f"{self.seed}:{photo.image['id']}:{number}")
                version = augment_photo(original, generator, self.longest_side)
            yield self._new_image(version, "version", [photo.image["id"]], photo.split, photo.source.persons_only)

    def pasted(self, photos: Sequence[_Photo], count: int) -> Iterator[_NewImage]:
        """Yields training photos with pasted objects of others, or fewer if there are not enough suitable objects."""
        by_id = {photo.image["id"]: photo for photo in photos}

        def open_photo(identifier: int) -> Image.Image:
            with Image.open(by_id[identifier].path) as file:
                return file.convert("RGB")

        sources = [photo for photo in photos if photo.split == "train"]
        cutouts = CutoutCollection(
            ((photo.image, photo.annotations) for photo in sources), self.categories, open_photo
        )
        canvases = [photo for photo in sources if not photo.source.persons_only]
        made = 0
        for number in range(count * _TRIES_PER_PASTED_IMAGE if canvases else 0):
            if made == count:
                break
            generator = random.Random(f"{self.seed}:paste:{number}")
            photo = generator.choice(canvases)
            canvas = photo.read()
            if photo.source.versions:
                canvas = augment_photo(canvas, generator, self.longest_side)
            else:
                canvas = resize_photo(canvas, fit_size(canvas.pixels.size, self.longest_side))
            image, pasted_from = paste_objects(canvas, photo.image["id"], cutouts, generator)
            if pasted_from:
                made += 1
                yield self._new_image(image, "pasted", [photo.image["id"], *pasted_from], photo.split)

    def _new_image(
        self, photo: AnnotatedPhoto, kind: str, sources: Sequence[int], split: str, persons_only: bool = False
    ) -> _NewImage:
        # The name has no twelve digits, which would look like a COCO photo.
        name = f"{kind}_{self.next_image_id}.jpg"
        photo.pixels.save(self.folder / name, quality=_QUALITY)
        width, height = photo.pixels.size
        entry = {
            "id": self.next_image_id,
            "file_name": name,
            "height": height,
            "width": width,
            "source_image_ids": sorted(set(sources)),
        }
        annotations = coco_annotations(photo, self.next_image_id, self.next_annotation_id)
        identifiers = [annotation["id"] for annotation in annotations]
        scene = scene_of_photo(photo, self.next_image_id, identifiers, self.categories, persons_only)
        self.next_image_id += 1
        self.next_annotation_id += len(annotations)
        return _NewImage(entry, annotations, scene, split)


def _find_photo(image: Mapping[str, Any], folder: Path) -> Path | None:
    name = Path(image["file_name"])
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"image {image['id']} is named {image['file_name']!r}, which leads out of its folder")
    try:
        return find_image(folder, image["file_name"], str(image["id"])).resolve()
    except ValueError as error:
        logger.warning("Image %s left out: %s", image["id"], error)
        return None


def _bring_image(image: Mapping[str, Any], path: Path, target: Path, how: str) -> None:
    destination = target / image["file_name"]
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.is_symlink():
        destination.unlink()
    elif destination.exists():
        if destination.samefile(path):
            return  # the photos are already in the output folder
        destination.unlink()
    if how == "copy":
        shutil.copyfile(path, destination)
    else:
        destination.symlink_to(path)
