"""What is fuzzed: each target takes one input and either gives a right answer or refuses it in our own words.

A refusal is a documented type of error, raised by a line of this project, with a message.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from modeling_jmceln import JMCELNConfig, JMCELNModel
from processing.data.canonical_rows import check_canonical_row
from processing.data.masks import decode_mask, encode_mask, mask_area, to_rle
from processing.data.referring_datasets import load_referring_dataset
from processing.data.restricted_pickle import load_plain_pickle
from processing.evaluation.journal import EvaluationJournal
from processing.evaluation.referring_segmentation_metric.accumulator import count_pixels
from processing.image_loading_jmceln import image_to_array, mask_to_array
from processing.own_data.folder import OwnFolder
from processing.predict import load_pipeline
from processing.prediction.polygons import mask_to_polygons
from processing.training.arguments import parse_arguments
from processing.training.checkpoints import DamagedCheckpointError, check_files, write_checksums
from tests.fuzz.strategies import altered, arrays, damaged, foreign_values, polygons, run_lengths, texts
from tests.processing.canonical_rows import canonical_row
from tests.processing.own_data.own_folders import write_good_folder
from tests.processing.refer_fixtures import World
from tests.processing.training.tiny_run import write_settings
from tests.tiny import tiny_config, tiny_processor


PACKAGES = tuple(str(Path(__file__).resolve().parents[2] / name) for name in ("processing", "modeling_jmceln"))
HEIGHT, WIDTH = 4, 6


@contextlib.contextmanager
def refusals(*kinds: type[Exception]) -> Iterator[None]:
    """Lets errors pass that this project raises itself, of these types and with a message."""
    try:
        yield
    except kinds as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if not frame.filename.startswith(PACKAGES):
            raise
        if not str(error).strip():
            raise AssertionError("a refusal without words") from error


def image_files() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    files = []
    for form, mode in [("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "1"), ("JPEG", "RGB"), ("JPEG", "CMYK"),
                       ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGBA"), ("PPM", "RGB")]:  # fmt: skip
        buffer = io.BytesIO()
        image = Image.fromarray(pixels)
        (image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)).save(buffer, form)
        files.append(buffer.getvalue())
    return files


def read_image(source: Any) -> None:
    with refusals(ValueError, TypeError):
        array = image_to_array(source)
        assert array.ndim == 3
        assert array.shape[-1] == 3
        assert array.size
        assert array.dtype in (np.uint8, np.float32)


def read_mask(source: np.ndarray) -> None:
    with refusals(ValueError, TypeError):
        array = mask_to_array(source)
        assert array.ndim == 2
        assert set(np.unique(array)) <= {0, 1}
        assert np.array_equal(array.ravel() != 0, np.asarray(source).ravel() != 0)


def encode_any_mask(mask: Any) -> None:
    with refusals(ValueError, TypeError):
        encoded = to_rle(mask, HEIGHT, WIDTH)
        array = decode_mask(encoded)
        assert array.shape == (HEIGHT, WIDTH)
        assert mask_area(encoded) == array.sum()
        assert encode_mask(array) == encoded


def score_masks(pair: tuple[Any, Any]) -> None:
    with refusals(ValueError, TypeError):
        counts = count_pixels(*pair)
        assert 0 <= counts.intersection <= min(counts.prediction_area, counts.target_area)
        assert 0 <= counts.iou <= 1


def trace_polygons(mask: np.ndarray) -> None:
    traced = mask_to_polygons(mask)
    if traced:
        with refusals(ValueError):  # of what could be the pixels of a tiny image as well
            assert np.array_equal(decode_mask(to_rle(traced, *mask.shape)), mask)


def check_row(row: Any) -> None:
    # The callers know these as the errors of data.
    with refusals(ValueError, TypeError, KeyError, AttributeError):
        check_canonical_row(row)
        assert len(row["mask_index"]) == len(row["expressions"])
        assert all(0 <= index < len(row["masks"]) for index in row["mask_index"])


@functools.cache
def world() -> World:
    return World(Path(tempfile.mkdtemp(prefix="fuzz-world-")))


def refer_folders() -> list[dict[str, Any]]:
    made = world()
    instances = {"images": made.images, "annotations": made.annotations}
    return json.loads(json.dumps([{"references": made.references(("train",)), "instances": instances}]))


def read_refer_folder(content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, key in (("refs(unc).json", "references"), ("instances.json", "instances")):
            Path(folder, name).write_text(json.dumps(content.get(key)), encoding="utf-8")
        with refusals(ValueError):
            rows = load_referring_dataset(folder, "train", image_folder=world().folder, streaming=True)
            for row in rows:
                check_canonical_row(row)


def read_refer_file(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "refs(unc).json").write_bytes(content)
        Path(folder, "instances.json").write_text(json.dumps(refer_folders()[0]["instances"]), encoding="utf-8")
        with refusals(ValueError):
            load_referring_dataset(folder, "train", image_folder=world().folder, streaming=True)


def read_pickle(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "refs.p")
        path.write_bytes(content)
        with refusals(ValueError):
            load_plain_pickle(path)


@functools.cache
def own_folder() -> Path:
    return write_good_folder(Path(tempfile.mkdtemp(prefix="fuzz-own-")), 2)


def read_table(content: bytes) -> None:
    folder = own_folder()
    (folder / "pairs.csv").write_bytes(content)
    with refusals(ValueError):
        read = OwnFolder(folder)
        for row in read.rows:
            check_canonical_row({**row, "split": "train"})


def tables() -> list[bytes]:
    return [(own_folder() / "pairs.csv").read_bytes()]


def read_journal(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "process-00000.jsonl").write_bytes(content)
        with refusals(ValueError):
            journal = EvaluationJournal(Path(folder), {"format": 1})
            journal.drop_incomplete_line()
            assert all({"row", "expressions"} <= row.keys() for row in journal.rows())


def journals() -> list[bytes]:
    row = {"row": 0, "image_id": "1", "part": "made val", "sha256": "0" * 64, "expressions": []}
    lines = [{"format": 1}, *({**row, "row": number} for number in range(3))]
    return ["".join(json.dumps(line) + "\n" for line in lines).encode()]


@functools.cache
def checkpoint() -> tuple[Path, bytes]:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-checkpoint-"))
    content = bytes(range(256))
    (folder / "model.safetensors").write_bytes(content)
    write_checksums(folder)
    return folder, content


def find_damage(content: bytes) -> None:
    folder, whole = checkpoint()
    (folder / "model.safetensors").write_bytes(content)
    try:
        check_files(folder)
    except DamagedCheckpointError as error:
        assert content != whole
        assert "model.safetensors" in str(error)  # noqa: PT017
    else:
        assert content == whole


def make_configuration(fields: dict[str, Any]) -> None:
    with refusals(ValueError, TypeError):
        config = JMCELNConfig(**fields)
        assert JMCELNConfig(**config.to_dict()).to_dict() == config.to_dict()


def configurations() -> list[dict[str, Any]]:
    fields = tiny_config().to_dict()
    own = ("hidden_size", "mask_feature_size", "intermediate_size", "num_attention_heads", "max_key_size",
           "num_image_layers", "num_fusion_layers", "num_stages", "num_context_tokens", "use_contextual_embedding",
           "use_alignment", "hidden_act", "dropout", "layer_norm_eps", "dice_weight", "num_categories")  # fmt: skip
    return [{name: fields[name] for name in own}]


@functools.cache
def processor() -> Any:
    return tiny_processor(size={"height": 32, "width": 32})


def process(inputs: tuple[Any, Any]) -> None:
    image, text = inputs
    with refusals(ValueError, TypeError):
        made = processor()(images=image, text=text, return_tensors="pt")
        if image is None or text is None:  # one of the two alone is fine
            return
        assert made["pixel_values"].isfinite().all()
        assert made["input_ids"].shape == made["attention_mask"].shape
        expressions = [text] if isinstance(text, str) else text
        assert made["input_ids"].shape[-2] == len(expressions)


@functools.cache
def settings_file() -> Path:
    return write_settings(Path(tempfile.mkdtemp(prefix="fuzz-settings-")))


def read_settings(content: bytes) -> None:
    path = settings_file().with_name("damaged.yaml")
    path.write_bytes(content)
    said = io.StringIO()
    try:
        with refusals(ValueError, TypeError, FileNotFoundError), contextlib.redirect_stderr(said):
            parse_arguments([str(path)])
    except ValueError as error:  # of the arguments of transformers, which check the choices of their settings
        if "is not a valid" not in str(error):
            raise
    except SystemExit as stopped:  # of the parser, which names the setting on standard error
        assert stopped.code == 2  # noqa: PT017
        assert "error: argument --" in said.getvalue()


@functools.cache
def saved_model() -> tuple[Path, dict[str, bytes]]:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-model-"))
    torch.manual_seed(0)
    JMCELNModel(tiny_config()).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    names = ("config.json", "model.safetensors", "processor_config.json", "tokenizer_config.json")
    return folder, {name: (folder / name).read_bytes() for name in names}


def saved_file(name: str) -> bytes:
    return saved_model()[1][name]


def header_of_weights() -> bytes:
    content = saved_file("model.safetensors")
    return content[: 8 + int.from_bytes(content[:8], "little")]


def load_model(files: dict[str, bytes]) -> None:
    folder, whole = saved_model()
    for name, content in {**whole, **files}.items():
        (folder / name).write_bytes(content)
    with refusals(ValueError, TypeError):
        pipe = load_pipeline(str(folder), "cpu", "float32")
        (answer,) = pipe(Image.fromarray(PICTURE), ["the red circle"])
        assert 0 <= answer["score"] <= 1
        assert answer["mask"].size == PICTURE.shape[1::-1]


def load_damaged_header(header: bytes) -> None:
    load_model({"model.safetensors": header + saved_file("model.safetensors")[len(header_of_weights()) :]})


PICTURE = np.zeros((5, 7, 3), dtype=np.uint8)
MASKS = st.one_of(
    run_lengths,
    polygons,
    arrays(max_dims=3),
    npst.arrays(bool, (HEIGHT, WIDTH)),
    npst.arrays(bool, (HEIGHT, WIDTH)).map(encode_mask),
    damaged(image_files()).map(lambda content: {"bytes": content, "path": None}),
    foreign_values,
)

# The inputs, and what is done with one of them.
TARGETS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
    "image files": (damaged(image_files()), read_image),
    "image arrays": (arrays(), read_image),
    "mask arrays": (arrays(max_dims=3), read_mask),
    "masks": (MASKS, encode_any_mask),
    "metric": (st.tuples(MASKS, MASKS), score_masks),
    "polygons": (npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, max_side=9)), trace_polygons),
    "rows": (
        altered([{key: value for key, value in canonical_row(0, (2, 1)).items() if key != "image"}]),
        check_row,
    ),
    "REFER annotations": (altered(refer_folders()), read_refer_folder),
    "REFER files": (damaged([json.dumps(refer_folders()[0]["references"]).encode()]), read_refer_file),
    "pickles": (
        damaged([pickle.dumps(world().references()[:2], protocol=protocol) for protocol in (0, 2, 4)]),
        read_pickle,
    ),
    "tables": (damaged(tables()), read_table),
    "journals": (damaged(journals()), read_journal),
    "checkpoints": (damaged([checkpoint()[1]]), find_damage),
    "settings files": (damaged([settings_file().read_bytes()]), read_settings),
    "model configurations": (
        damaged([saved_file("config.json")]).map(lambda content: {"config.json": content}),
        load_model,
    ),
    "model weights": (
        damaged([saved_file("model.safetensors")]).map(lambda content: {"model.safetensors": content}),
        load_model,
    ),
    "headers of weights": (damaged([header_of_weights()]), load_damaged_header),
    "processors": (
        st.one_of(
            damaged([saved_file(name)]).map(lambda content, name=name: {name: content})
            for name in ("processor_config.json", "tokenizer_config.json")
        ),
        load_model,
    ),
    "configurations": (altered(configurations()), make_configuration),
    "texts": (st.tuples(st.just(PICTURE), st.one_of(texts, st.lists(texts, max_size=3), foreign_values)), process),
    "images to process": (
        st.tuples(st.one_of(arrays(), damaged(image_files()), foreign_values), st.just("the red circle")),
        process,
    ),
}
