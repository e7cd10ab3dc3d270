"""A small world of images and annotations, written in every form in which referring datasets are published."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image


TEXT, INTEGER, REAL = datasets.Value("string"), datasets.Value("int64"), datasets.Value("float64")
SENTENCES = [{"raw": TEXT, "sent": TEXT, "sent_id": INTEGER, "tokens": [TEXT]}]


def rectangle(left: int, top: int, right: int, bottom: int) -> list[float]:
    """Flat polygon of a rectangle."""
    return [float(value) for value in (left, top, right, top, right, bottom, left, bottom)]


class World:
    """
    Images of different sizes with two or three annotations each: one part, two overlapping parts, run lengths.

    Every annotation knows its mask as an array made without any codec.
    """

    def __init__(self, folder: Path, num_images: int = 4):
        self.folder = folder
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.masks: dict[int, np.ndarray] = {}
        self.pixels: dict[int, bytes] = {}
        generator = np.random.default_rng(0)
        (folder / "train2014").mkdir(parents=True)
        for number in range(num_images):
            identifier, height, width = 581857 + number, 40 + 2 * number, 60 - 3 * number
            name = f"COCO_train2014_{identifier:012d}.jpg"
            buffer = io.BytesIO()
            Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(buffer, "JPEG")
            self.pixels[identifier] = buffer.getvalue()
            (folder / "train2014" / name).write_bytes(buffer.getvalue())
            self.images.append(
                {
                    "license": 3,
                    "file_name": name,
                    "coco_url": f"http://mscoco.org/images/{identifier}",
                    "height": height,
                    "width": width,
                    "date_captured": "2013-11-17 05:37:38",
                    "flickr_url": "http://farm1.staticflickr.com/0.jpg",
                    "id": identifier,
                }
            )
            one = np.zeros((height, width), dtype=bool)
            one[4:14, 3:13] = True
            self.add_annotation(identifier, one, [rectangle(3, 4, 13, 14)])
            two = np.zeros((height, width), dtype=bool)
            two[15:25, 10:20] = two[20:30, 15:30] = True
            self.add_annotation(identifier, two, [rectangle(10, 15, 20, 25), rectangle(15, 20, 30, 30)])
            if number % 2:
                crowd = generator.random((height, width)) > 0.5
                crowd[0, 0] = False
                flat = crowd.flatten(order="F").astype(int)
                edges = np.flatnonzero(np.diff(flat)) + 1
                runs = np.diff([0, *edges, flat.size]).tolist()
                self.add_annotation(identifier, crowd, {"size": [height, width], "counts": runs}, is_crowd=True)

    def add_annotation(self, image_id: int, mask: np.ndarray, segmentation: Any, is_crowd: bool = False) -> None:
        identifier = 1719310 + len(self.annotations)
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        self.masks[identifier] = mask
        self.annotations.append(
            {
                "segmentation": segmentation,
                "area": float(mask.sum()),
                "iscrowd": int(is_crowd),
                "image_id": image_id,
                "bbox": [float(value) for value in box],
                "category_id": 1,
                "id": identifier,
            }
        )

    def references(self, splits: tuple[str, ...] = ("train", "train", "val", "testA")) -> list[dict[str, Any]]:
        """REFER references: two sentences an annotation; the images take turns in the splits."""
        split_of = {image["id"]: splits[index % len(splits)] for index, image in enumerate(self.images)}
        references = []
        for number, annotation in enumerate(self.annotations):
            texts = [f"the thing {annotation['id']}", f"thing {annotation['id']} here"]
            references.append(
                {
                    "sent_ids": [2 * number, 2 * number + 1],
                    "file_name": f"COCO_train2014_{annotation['image_id']:012d}_{number}.jpg",
                    "ann_id": annotation["id"],
                    "ref_id": number,
                    "image_id": annotation["image_id"],
                    "split": split_of[annotation["image_id"]],
                    "sentences": [
                        {"tokens": text.split(), "raw": text.upper() + "!", "sent_id": 2 * number + turn, "sent": text}
                        for turn, text in enumerate(texts)
                    ],
                    "category_id": 1,
                }
            )
        return references

    def polygon_annotations(self) -> list[dict[str, Any]]:
        return [annotation for annotation in self.annotations if not annotation["iscrowd"]]

    def expected(self, annotation_ids: set[int] | None = None) -> dict[str, dict[str, np.ndarray]]:
        """Image id -> sentence -> mask."""
        rows: dict[str, dict[str, np.ndarray]] = {}
        for annotation in self.annotations:
            if annotation_ids is None or annotation["id"] in annotation_ids:
                row = rows.setdefault(str(annotation["image_id"]), {})
                for text in (f"the thing {annotation['id']}", f"thing {annotation['id']} here"):
                    row[text] = self.masks[annotation["id"]]
        return rows

    def write_refer_folder(self, protocol: int = 2, name: str = "refs(unc).p") -> Path:
        folder = self.folder / "refcoco"
        folder.mkdir(exist_ok=True)
        instances = {"images": self.images, "annotations": self.annotations, "categories": [{"id": 1, "name": "it"}]}
        (folder / "instances.json").write_text(json.dumps(instances), "utf-8")
        (folder / name).write_bytes(pickle.dumps(self.references(), protocol=protocol))
        return folder

    def image_cell(self, image_id: int) -> dict[str, Any]:
        return {"bytes": self.pixels[image_id], "path": f"COCO_train2014_{image_id:012d}.jpg"}

    def by_id(self) -> dict[int, dict[str, Any]]:
        return {image["id"]: image for image in self.images}

    def benchmark_rows(self) -> tuple[list[dict[str, Any]], datasets.Features]:
        """Columns and types of jxu124/refcoco-benchmark."""
        info = {
            "coco_url": TEXT,
            "date_captured": TEXT,
            "file_name": TEXT,
            "flickr_url": TEXT,
            "height": INTEGER,
            "id": INTEGER,
            "license": INTEGER,
            "width": INTEGER,
        }
        annotation = {
            "area": REAL,
            "bbox": [REAL],
            "category_id": INTEGER,
            "id": INTEGER,
            "image_id": INTEGER,
            "iscrowd": INTEGER,
            "segmentation": [[REAL]],
        }
        reference = {
            "ann_id": INTEGER,
            "category_id": INTEGER,
            "file_name": TEXT,
            "image_id": INTEGER,
            "ref_id": INTEGER,
            "sent_ids": [INTEGER],
            "sentences": SENTENCES,
            "split": TEXT,
        }
        features = datasets.Features(
            {
                "ref_list": [{"ann_info": annotation, "ref_info": reference}],
                "image_info": info,
                "image": datasets.Image(),
            }
        )
        references = {reference["ann_id"]: reference for reference in self.references()}
        rows = [
            {
                "ref_list": [
                    {"ann_info": annotation, "ref_info": references[annotation["id"]]}
                    for annotation in self.polygon_annotations()
                    if annotation["image_id"] == image["id"]
                ],
                "image_info": image,
                "image": self.image_cell(image["id"]),
            }
            for image in self.images
        ]
        return rows, features

    def by_path_rows(self) -> tuple[list[dict[str, Any]], datasets.Features]:
        """Columns and types of jxu124/refcoco, refcocoplus and refcocog."""
        features = datasets.Features(
            {
                "sent_ids": [INTEGER],
                "file_name": TEXT,
                "ann_id": INTEGER,
                "ref_id": INTEGER,
                "image_id": INTEGER,
                "split": TEXT,
                "sentences": SENTENCES,
                "category_id": INTEGER,
                "raw_anns": TEXT,
                "raw_image_info": TEXT,
                "raw_sentences": TEXT,
                "image_path": TEXT,
                "bbox": [REAL],
                "captions": [TEXT],
                "global_image_id": TEXT,
                "anns_id": TEXT,
            }
        )
        images, annotations = self.by_id(), {annotation["id"]: annotation for annotation in self.annotations}
        rows = []
        for reference in self.references():
            annotation, image = annotations[reference["ann_id"]], images[reference["image_id"]]
            left, top, width, height = annotation["bbox"]
            rows.append(
                {
                    **reference,
                    "raw_anns": json.dumps(annotation),
                    "raw_image_info": json.dumps(image),
                    "raw_sentences": json.dumps(reference["sentences"]),
                    "image_path": f"coco/train2014/{image['file_name']}",
                    "bbox": [left, top, left + width, top + height],
                    "captions": [sentence["sent"] for sentence in reference["sentences"]],
                    "global_image_id": f"coco.{image['id']}",
                    "anns_id": str(annotation["id"]),
                }
            )
        return rows, features

    def lmms_lab_rows(self) -> tuple[list[dict[str, Any]], datasets.Features]:
        """Columns and types of lmms-lab/RefCOCO, RefCOCOplus and RefCOCOg: the first polygon only."""
        features = datasets.Features(
            {
                "question_id": TEXT,
                "image": datasets.Image(),
                "question": TEXT,
                "answer": [TEXT],
                "segmentation": [datasets.Value("float32")],
                "bbox": [datasets.Value("float32")],
                "iscrowd": datasets.Value("int8"),
                "file_name": TEXT,
            }
        )
        references = {reference["ann_id"]: reference for reference in self.references()}
        rows = [
            {
                "question_id": str(annotation["id"]),
                "image": self.image_cell(annotation["image_id"]),
                "question": "Please carefully observe the area circled in the image.",
                "answer": [sentence["sent"] for sentence in references[annotation["id"]]["sentences"]],
                "segmentation": annotation["segmentation"][0],
                "bbox": annotation["bbox"],
                "iscrowd": 0,
                "file_name": references[annotation["id"]]["file_name"],
            }
            for annotation in self.polygon_annotations()
        ]
        return rows, features

    def refcoco_m_rows(self, encode: Any) -> tuple[list[dict[str, Any]], datasets.Features]:
        """Columns and types of moondream/refcoco-m."""
        sample = {
            "id": INTEGER,
            "image_id": INTEGER,
            "category": TEXT,
            "supercategory": TEXT,
            "label": TEXT,
            "sentences": [TEXT],
            "bbox": [datasets.Value("float32")],
            "mask": {"counts": TEXT, "size": [datasets.Value("int32")]},
        }
        features = datasets.Features(
            {"image": datasets.Image(), "image_id": INTEGER, "file_name": TEXT, "samples": [sample]}
        )
        rows = [
            {
                "image": self.image_cell(image["id"]),
                "image_id": image["id"],
                "file_name": image["file_name"],
                "samples": [
                    {
                        "id": annotation["id"],
                        "image_id": image["id"],
                        "category": "it",
                        "supercategory": "thing",
                        "label": "it",
                        "sentences": [f"the thing {annotation['id']}", f"thing {annotation['id']} here"],
                        "bbox": annotation["bbox"],
                        "mask": encode(self.masks[annotation["id"]]),
                    }
                    for annotation in self.annotations
                    if annotation["image_id"] == image["id"]
                ],
            }
            for image in self.images
        ]
        return rows, features


def write_parquet(
    folder: Path, split: str, rows: list[dict[str, Any]], features: datasets.Features, num_files: int = 1
) -> Path:
    """Write rows as a repository of the hub looks: `data/<split>-*.parquet` and a card that names the split."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(rows, features=features)
    for index in range(num_files):
        part = table.shard(num_files, index, contiguous=True)
        part.to_parquet(str(folder / "data" / f"{split}-{index:05d}-of-{num_files:05d}.parquet"))
    card = folder / "README.md"
    files = f"  - split: {split}\n    path: data/{split}-*\n"
    if card.exists():
        card.write_text(card.read_text("utf-8").replace("---\n\n", files + "---\n\n"), "utf-8")
    else:
        card.write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\n", "utf-8")
    return folder
