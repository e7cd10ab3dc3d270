"""Shows the package in a few minutes on a small machine: a model on photos, and an example of fine-tuning.

    python scripts/demo.py

1. Segments the photos of `examples/photos` with the photographs' model, and draws the masks to `runs/demo/photos.png`.
2. Teaches the model of shapes new words: nouns and colors of the synthetic benchmark in Esperanto ("the small striped
   ruga stelo left of the blua ringo"). It uses only transformers: `add_tokens`, `resize_token_embeddings`, `Trainer`.
   The model is saved to `runs/demo/model`.
3. Scores the model before and after on scenes of the test split (`runs/demo/scores.md`), and draws the masks of random
   expressions (`runs/demo/demo.png`).
"""

import argparse
import json
import logging
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import torch
from PIL import Image, ImageOps
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments, pipeline, set_seed

from processing.evaluation import ReferringSegmentationMetric
from processing.evaluation.answers import GAP, Answer, ask_all, grid, mark, with_caption
from processing.evaluation.report import markdown_table
from processing.evaluation.sheet import MASK_COLORS
from processing.shapes import shapes_row
from processing.shapes.expressions import LEVELS
from processing.training.collator import ReferringCollator
from processing.visualization import draw_overlay


REPOSITORY = Path(__file__).resolve().parents[1]
TASK: Any = "referring-image-segmentation"  # transformers knows it once `processing` is imported
PHOTOS_MODEL = REPOSITORY / "checkpoints" / "jmceln-photos"
PHOTOS = REPOSITORY / "examples" / "photos"
SHAPES_MODEL = REPOSITORY / "checkpoints" / "jmceln-shapes"
SEED = 0
IMAGE_SIZE = 96
IMAGES_PER_STEP = 4
CASES_PER_LEVEL = 3
PICTURE_SIDE = 144

# English synonyms of the benchmark become the same word.
NEW_WORDS = {
    **dict.fromkeys(("circle", "disc"), "cirklo"),
    **dict.fromkeys(("square", "box"), "kvadrato"),
    "triangle": "triangulo",
    "star": "stelo",
    **dict.fromkeys(("cross", "plus"), "kruco"),
    "heart": "koro",
    **dict.fromkeys(("ring", "hoop"), "ringo"),
    **dict.fromkeys(("diamond", "rhombus"), "rombo"),
    **dict.fromkeys(("circles", "discs"), "cirkloj"),
    **dict.fromkeys(("squares", "boxes"), "kvadratoj"),
    "triangles": "trianguloj",
    "stars": "steloj",
    **dict.fromkeys(("crosses", "pluses"), "krucoj"),
    "hearts": "koroj",
    **dict.fromkeys(("rings", "hoops"), "ringoj"),
    **dict.fromkeys(("diamonds", "rhombuses"), "romboj"),
    "red": "ruga",
    "orange": "orangxa",
    "yellow": "flava",
    "green": "verda",
    "cyan": "cejana",
    "blue": "blua",
    "purple": "purpura",
    "pink": "roza",
    "white": "blanka",
    "black": "nigra",
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/demo"), help="default: %(default)s")
    parser.add_argument("--max-steps", type=int, default=240, help="steps of the fine-tuning (default: %(default)s)")
    parser.add_argument(
        "--test-scenes", type=int, default=60, help="scenes to score and to draw (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def show_photos(picture_path: Path) -> None:
    """Segments the expressions of `expressions.json` with the photographs' model, prints scores and draws masks."""
    if not PHOTOS_MODEL.is_dir():
        print(f"There is no {PHOTOS_MODEL.relative_to(REPOSITORY)} here: skipped the photos.")
        return
    ask = pipeline(TASK, model=str(PHOTOS_MODEL), trust_remote_code=True)
    expressions = json.loads((PHOTOS / "expressions.json").read_text(encoding="utf-8"))
    overlays = []
    for name, texts in expressions.items():
        photo = Image.open(PHOTOS / name).convert("RGB")
        answers = ask(photo, texts)
        print(name)
        for answer in answers:
            print(f"  {answer['score']:.2f}  {answer['label']}{'' if answer['mask'].getbbox() else ': not found'}")
        captions = [f"{answer['score']:.2f}  {answer['label']}" for answer in answers]
        overlays.append(draw_overlay(photo, [answer["mask"] for answer in answers], captions))
    grid(overlays, 3).save(picture_path)
    print(f"Pictures: {picture_path}")


def renamed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row of the benchmark with the new words. Expressions without any of them are left out."""
    chosen = [index for index, text in enumerate(row["expressions"]) if NEW_WORDS.keys() & text.split()]
    columns = {name: [row[name][index] for index in chosen] for name in ("mask_index", "levels", "landmarks")}
    english = [row["expressions"][index] for index in chosen]
    new = [" ".join(NEW_WORDS.get(word, word) for word in text.split()) for text in english]
    return {**row, **columns, "expressions": new, "english": english}


class WordTrainer(Trainer):
    """A [`Trainer`] that keeps the statistics of batch normalization fixed, since only the new words are trained."""

    def compute_loss(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """As in [`Trainer`], in evaluation mode."""
        return super().compute_loss(model.eval(), *args, **kwargs)


def fine_tune(model: Any, processor: Any, rows: Sequence[Mapping[str, Any]], max_steps: int, output_dir: Path) -> None:
    """Trains the model on the new words in `rows`, and saves it. Copy this code for your own words and data."""
    set_seed(SEED)
    known = len(processor.tokenizer)
    processor.tokenizer.add_tokens(sorted(set(NEW_WORDS.values())))
    model.resize_token_embeddings(len(processor.tokenizer))
    # Only the embeddings of the new words are trained: the model knows what they name, and forgets nothing. To teach
    # new things, leave out these lines and `WordTrainer`, and lower the learning rate.
    model.requires_grad_(False)
    words = model.get_input_embeddings().weight.requires_grad_(True)
    words.register_hook(lambda gradient: gradient.index_fill(0, torch.arange(known, device=gradient.device), 0))
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=max_steps,
        per_device_train_batch_size=IMAGES_PER_STEP,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.0,  # it would change the known words
        seed=SEED,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,  # the collator needs them
        dataloader_pin_memory=False,
    )
    trainer = WordTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=ReferringCollator(processor, training=True),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()


def score(rows: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """Returns the scores over all expressions, and over those of each level as `groups`."""
    metric = ReferringSegmentationMetric()
    for row, of_row in zip(rows, answers, strict=True):
        metric.update_counts([answer.counts() for answer in of_row], groups=row["levels"])
    return metric.compute()


def scores_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a Markdown table with a column per entry of `scores`, a row per level, and rows of all targets."""
    first = next(iter(scores.values()))
    table = [["level", "score", "expressions", *scores]]
    for level in [level for level in LEVELS if level in first["groups"]]:
        name = "N-acc" if level == "no_target" else "P@0.5"
        values = [f"{entry['groups'][level][name]:.2f}" for entry in scores.values()]
        table.append([level, name, str(first["groups"][level]["expressions"]), *values])
    for name in ("P@0.5", "mIoU"):
        values = [f"{entry[name]:.2f}" for entry in scores.values()]
        table.append(["all with a target", name, str(first["targets"]), *values])
    return markdown_table(table)


class Case(NamedTuple):
    """An expression on the sheet: the index of its row, and its index in the row."""

    row: int
    expression: int


def draw_lots(rows: Sequence[Mapping[str, Any]], number: int) -> dict[str, list[Case]]:
    """Chooses up to `number` random expressions of each level."""
    of_level: dict[str, list[Case]] = {level: [] for level in LEVELS}
    for index, row in enumerate(rows):
        for expression, level in enumerate(row["levels"]):
            of_level[level].append(Case(index, expression))
    lots = random.Random(SEED)
    return {level: lots.sample(cases, min(number, len(cases))) for level, cases in of_level.items() if cases}


def draw_sheet(
    cases: Mapping[str, Sequence[Case]],
    rows: Sequence[Mapping[str, Any]],
    answers: Mapping[str, Sequence[Sequence[Answer]]],
) -> Image.Image:
    """Draws each case as its scene next to the masks of each entry of `answers`, with one line per level."""
    parts = []
    for level, of_level in cases.items():
        tiles = []
        for case in of_level:
            row = rows[case.row]
            found = {name: of_rows[case.row][case.expression] for name, of_rows in answers.items()}
            pictures = [row["image"], *(mark(row["image"], answer) for answer in found.values())]
            caption = [
                ("IoU " + ", ".join(f"{name} {answer.iou():.2f}" for name, answer in found.items()), "black"),
                (row["expressions"][case.expression], "black"),
                (f"({row['english'][case.expression]})", "dimgray"),
            ]
            pictures = [picture.resize((PICTURE_SIDE, PICTURE_SIDE)) for picture in pictures]
            tiles.append(with_caption(grid(pictures, len(pictures)), caption))
        line = grid(tiles, len(tiles))
        heading = with_caption(Image.new("RGB", (line.width, 0)), [(level.replace("_", " ").upper(), "black")])
        parts += [heading, line]
    scores = ", ".join(f"{value:.2f} {name}" for name, value in sheet_scores(cases, answers).items())
    title = (
        f"Expressions drawn at random. Each: the scene, {', '.join(answers)}. P@0.5 of all with a target: {scores}."
    )
    legend = [(title, "black"), *MASK_COLORS.items()]
    sheet = grid([with_caption(Image.new("RGB", (parts[1].width, 0)), legend), *parts], 1)
    return ImageOps.expand(sheet, border=2 * GAP, fill="white")


def sheet_scores(
    cases: Mapping[str, Sequence[Case]], answers: Mapping[str, Sequence[Sequence[Answer]]]
) -> dict[str, float]:
    """Returns P@0.5 over the cases that have a target."""
    metrics = {name: ReferringSegmentationMetric() for name in answers}
    for name, metric in metrics.items():
        drawn = [answers[name][case.row][case.expression] for of_level in cases.values() for case in of_level]
        metric.update_counts(answer.counts() for answer in drawn)
    return {name: metric.compute()["P@0.5"] for name, metric in metrics.items()}


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Runs the demo. Returns the scores of the table and, as `"sheet"`, P@0.5 over the expressions on the sheet."""
    start = time.perf_counter()
    settings = parse_arguments(arguments)
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    show_photos(settings.output_dir / "photos.png")

    # The shipped model was trained on this split with seeds 0 and 1, and never on the split "test".
    train_rows = [
        renamed(shapes_row("train", index, seed=2, image_size=IMAGE_SIZE))
        for index in range(IMAGES_PER_STEP * settings.max_steps)
    ]
    test_rows = [renamed(shapes_row("test", index, image_size=IMAGE_SIZE)) for index in range(settings.test_scenes)]
    model = AutoModel.from_pretrained(SHAPES_MODEL, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(SHAPES_MODEL, trust_remote_code=True)

    print(f"Teaching {SHAPES_MODEL.name} {len(set(NEW_WORDS.values()))} new words, for example in:")
    print("\n".join(f"  {text}" for text in test_rows[0]["expressions"][:3]))
    # Hides the warnings about words that the model does not know yet.
    logging.getLogger("transformers_modules").setLevel(logging.ERROR)
    before, english = ask_all(model, processor, test_rows), ask_all(model, processor, test_rows, "english")
    training = time.perf_counter()
    fine_tune(model, processor, train_rows, settings.max_steps, settings.output_dir / "model")
    trained = time.perf_counter()
    after = ask_all(model, processor, test_rows)
    scores = {
        "before": score(test_rows, before),
        "after": score(test_rows, after),
        "the same in English": score(test_rows, english),
    }
    table = scores_table(scores)
    (settings.output_dir / "scores.md").write_text(table + "\n", encoding="utf-8")
    sheet = {"before": before, "after": after}
    cases = draw_lots(test_rows, CASES_PER_LEVEL)
    picture_path = settings.output_dir / "demo.png"
    # 256 colors are enough for flat shapes, and the file has a third of the size.
    draw_sheet(cases, test_rows, sheet).quantize(256).save(picture_path, optimize=True)
    on_sheet = sheet_scores(cases, sheet)
    print(f"\n{table}\n")
    print(f"P@0.5 over the expressions on the sheet: {on_sheet['before']:.2f} before, {on_sheet['after']:.2f} after.")
    print(f"The training took {trained - training:.0f} s, the whole demo {time.perf_counter() - start:.0f} s.")
    print(f"Pictures: {picture_path}   model: {settings.output_dir / 'model'}")
    return {**scores, "sheet": on_sheet}


if __name__ == "__main__":
    main()
