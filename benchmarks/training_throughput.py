"""Training throughput in expressions per second, for several numbers of expressions per image.

    python benchmarks/training_throughput.py --output runs/training_throughput.json

All counts are measured in one run and take turns step by step, so that other work on the machine affects all of them
equally. A second part measures reading alone, from images on disk to the batch that the model gets. The script prints
tables and writes all settings and figures as JSON.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_jmceln import JMCELNConfig, JMCELNModel
from processing import JMCELNImageProcessor, JMCELNProcessor
from processing.data.masks import encode_mask
from processing.evaluation.report import markdown_table
from processing.training.collator import ReferringCollator
from processing.training.image_sampler import DrawnImages
from processing.training.parameter_groups import parameter_groups
from processing.training.word_tokenizer import build_word_tokenizer


# Swin-T with a BERT of four layers: the shape of the usual encoders at a size that a processor can train.
BACKBONE = {
    "model_type": "swin",
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
TEXT = {"model_type": "bert", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
WORDS = "the left right red woman man in blue shirt behind small wooden table with a dog".split()  # noqa: SIM905
EXPRESSION_WORDS = 6


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--expressions", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of expressions per image"
    )
    parser.add_argument("--images", type=int, default=2, help="images per step")
    parser.add_argument("--image_size", type=int, default=224, help="side of the input in pixels")
    parser.add_argument("--repetitions", type=int, default=5, help="measured steps per count")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to train")
    parser.add_argument("--photo_size", type=int, nargs=2, default=[480, 640], help="height and width on disk")
    parser.add_argument("--rows", type=int, default=48, help="number of images to load in the second part")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args(arguments)


def build_processor(image_size: int) -> JMCELNProcessor:
    return JMCELNProcessor(JMCELNImageProcessor(size=image_size), build_word_tokenizer(WORDS))


def random_row(number: int, num_expressions: int, size: Sequence[int]) -> dict[str, Any]:
    generator = np.random.default_rng(number)
    height, width = size
    # Smooth noise compresses about as well as a photograph.
    pixels = Image.fromarray(generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    return {
        "image": pixels.resize((width, height), Image.Resampling.BICUBIC),
        "image_id": str(number),
        "expressions": [" ".join(generator.choice(WORDS, EXPRESSION_WORDS)) for _ in range(num_expressions)],
        "masks": [encode_mask(np.roll(mask, 7 * shift, axis=1)) for shift in range(num_expressions)],
        "mask_index": list(range(num_expressions)),
        "ref_ids": [str(shift) for shift in range(num_expressions)],
    }


def measure_training(options: argparse.Namespace) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    processor = build_processor(options.image_size)
    text_config = {**TEXT, "vocab_size": len(processor.tokenizer)}
    model = JMCELNModel(JMCELNConfig(backbone_config=BACKBONE, text_config=text_config)).to(options.device).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=1e-5, weight_decay=0.01))
    collate = ReferringCollator(processor)
    batches = {}
    for count in options.expressions:
        rows = [
            random_row(number, count, (options.image_size, options.image_size)) for number in range(options.images)
        ]
        batches[count] = {name: tensor.to(options.device) for name, tensor in collate(rows).items()}
    seconds: dict[int, list[float]] = {count: [] for count in options.expressions}
    for repetition in tqdm(range(options.repetitions + 1), desc="training"):
        for count, batch in batches.items():
            start = time.perf_counter()
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()
            # The first round is a warm-up.
            if repetition > 0:
                seconds[count].append(time.perf_counter() - start)
    return [
        {
            "expressions_per_image": count,
            "seconds_per_step": statistics.median(values),
            "images_per_second": options.images / statistics.median(values),
            "expressions_per_second": options.images * count / statistics.median(values),
        }
        for count, values in seconds.items()
    ]


def measure_loading(options: argparse.Namespace) -> list[dict[str, Any]]:
    import datasets

    from processing.data.canonical_rows import canonical_features

    datasets.disable_progress_bars()
    collate = ReferringCollator(build_processor(480), training=True, max_expressions_per_image=8)
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number in range(options.rows):
            row = {"dataset": "noise", "split": "train", **random_row(number, 8, options.photo_size)}
            path = Path(folder) / f"{number}.jpg"
            row["image"].save(path, quality=90)
            rows.append({**row, "image": {"bytes": None, "path": str(path)}})
        dataset = DrawnImages(datasets.Dataset.from_list(rows, features=canonical_features()))
        for num_workers in (0, 2):
            loader = DataLoader(
                dataset,
                batch_size=8,
                num_workers=num_workers,
                collate_fn=collate,
                drop_last=True,
                persistent_workers=num_workers > 0,
            )
            sum(1 for _ in loader)  # starts the workers, which are not timed
            start = time.perf_counter()
            read = sum(len(batch["pixel_values"]) for batch in loader)
            elapsed = time.perf_counter() - start
            measured.append(
                {
                    "workers": num_workers,
                    "rows_per_second": read / elapsed,
                    "expressions_per_second": 8 * read / elapsed,
                }
            )
    return measured


def as_table(rows: list[dict[str, Any]]) -> str:
    header = [name.replace("_", " ") for name in rows[0]]
    cells = [[str(value) if isinstance(value, int) else f"{value:.3g}" for value in row.values()] for row in rows]
    return markdown_table([header, *cells])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes the results, and returns them."""
    options = parse_arguments(arguments)
    results = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "training": measure_training(options),
        "loading": measure_loading(options),
    }
    print(as_table(results["training"]))
    print(as_table(results["loading"]))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2), encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
