"""Measures the memory of a process whose pipeline answers many photos, one after the other.

    python benchmarks/pipeline_memory.py --photos FOLDER                    # 1,000 photos with 5 expressions each
    python benchmarks/pipeline_memory.py --photos FOLDER --model MODEL --calls 5000

The photos of the folder and its subfolders are repeated until there are enough, and resized to 640 x 480. The pipeline
gets them from a generator.
"""

import argparse
import gc
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import psutil
import torch
from PIL import Image

from processing.predict import load_pipeline
from processing.shipped_models import model_or_exit


PHOTO_SIZE = (640, 480)
SUFFIXES = (".jpg", ".jpeg", ".png")
EXPRESSIONS = ["the person on the left", "a dog", "the largest car", "the cup next to the plate", "the red bag"]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--model", help="folder or Hub id of a model; by default the shipped model for photographs")
    parser.add_argument("--calls", type=int, default=1000, help="number of photos to answer")
    parser.add_argument("--every", type=int, default=100, help="measure after this many photos")
    parser.add_argument("--threads", type=int, default=1, help="number of cores to use")
    options = parser.parse_args(arguments)
    options.model = model_or_exit(parser, options.model)
    options.files = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not options.files:
        parser.error(f"--photos {options.photos}: there is no file that ends with {', '.join(SUFFIXES)}")
    return options


def read_photos(files: Sequence[Path], count: int) -> Iterator[Image.Image]:
    for path in itertools.islice(itertools.cycle(files), count):
        with Image.open(path) as photo:
            yield photo.convert("RGB").resize(PHOTO_SIZE)


def resident_mebibytes() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def main(arguments: Sequence[str] | None = None) -> dict[int, float]:
    """Prints and returns the resident memory in MiB by the number of photos that were answered."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    pipe = load_pipeline(options.model, "cpu", "float32")
    memory: dict[int, float] = {}
    for number, answers in enumerate(pipe(read_photos(options.files, options.calls), EXPRESSIONS), start=1):
        if len(answers) != len(EXPRESSIONS):
            raise RuntimeError(f"Photo {number} has {len(answers)} answers to {len(EXPRESSIONS)} expressions.")
        if number % options.every == 0:
            memory[number] = resident_mebibytes()
            print(f"{number} photos: {memory[number]:.1f} MiB", flush=True)
    return memory


if __name__ == "__main__":
    main()
