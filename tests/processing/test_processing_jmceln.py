"""The processor: expressions of one or many images, their masks, bad input, and saving."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoProcessor, PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from modeling_jmceln import JMCELNModel
from processing import JMCELNImageProcessor, JMCELNProcessor, processing_jmceln
from tests.tiny import tiny_config, tiny_processor


@pytest.fixture(scope="module")
def processor() -> JMCELNProcessor:
    return tiny_processor(size={"height": 16, "width": 24})


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[5:15, 5:20] = 1
    return mask


@pytest.fixture(scope="module")
def model() -> JMCELNModel:
    torch.manual_seed(0)
    return JMCELNModel(tiny_config()).eval()


def word_level_tokenizer(**arguments: Any) -> PreTrainedTokenizerFast:
    """Adds no special tokens and splits at white space."""
    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "red": 2, "cup": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", **arguments)


class TestExpressions:
    def test_one_image_one_expression(self, processor: JMCELNProcessor, image: Image.Image) -> None:
        inputs = processor(images=image, text="the red circle", return_tensors="pt")
        assert list(inputs) == ["pixel_values", "original_sizes", "input_ids", "attention_mask"]
        assert inputs.original_sizes.tolist() == [[20, 30]]
        assert inputs.pixel_values.shape == (1, 3, 16, 24)
        expected = processor.tokenizer("the red circle", return_tensors="pt")
        assert torch.equal(inputs.input_ids, expected.input_ids)
        assert torch.equal(inputs.attention_mask, expected.attention_mask)

    def test_one_image_several_expressions(self, processor: JMCELNProcessor, image: Image.Image) -> None:
        inputs = processor(images=image, text=["red", "the large star"], return_tensors="pt")
        expected = processor.tokenizer(["red", "the large star"], padding=True, return_tensors="pt")
        assert torch.equal(inputs.input_ids, expected.input_ids[None])
        assert torch.equal(inputs.attention_mask, expected.attention_mask[None])

    def test_one_expression_an_image(self, processor: JMCELNProcessor, image: Image.Image) -> None:
        inputs = processor(images=[image, image], text=["red", "the large star"], return_tensors="pt")
        assert inputs.pixel_values.shape[0] == 2
        expected = processor.tokenizer(["red", "the large star"], padding=True, return_tensors="pt")
        assert torch.equal(inputs.input_ids, expected.input_ids)

    def test_several_expressions_an_image(self, processor: JMCELNProcessor, image: Image.Image) -> None:
        groups = [["red", "the large star", "a"], ["blue circle"]]
        inputs = processor(images=[image, image], text=groups, return_tensors="pt")
        assert inputs.input_ids.shape == inputs.attention_mask.shape == (2, 3, 5)
        for row, group in enumerate(groups):
            for column, expression in enumerate(group):
                expected = processor.tokenizer(expression)["input_ids"]
                used = inputs.attention_mask[row, column].bool()
                assert inputs.input_ids[row, column][used].tolist() == expected
        assert not inputs.attention_mask[1, 1:].any()
        assert (inputs.input_ids[1, 1:] == processor.tokenizer.pad_token_id).all()

    def test_one_image_in_a_list_takes_a_string(self, processor: JMCELNProcessor, image: Image.Image) -> None:
        assert processor(images=[image], text="red", return_tensors="pt").input_ids.ndim == 2

    def test_either_alone(self, processor: JMCELNProcessor, image: Image.Image) -> None:
        assert list(processor(images=image)) == ["pixel_values", "original_sizes"]
        assert processor(text="red", return_tensors="pt").input_ids.shape == (1, 3)
        # As beside their image, so that they go with its features.
        assert processor(text=["red", "a star"], return_tensors="pt").input_ids.shape == (1, 2, 4)
        assert processor(text=[["red"], ["a star", "b"]], return_tensors="pt").input_ids.shape == (2, 2, 4)

    def test_padding_has_a_mask(self, image: Image.Image) -> None:
        processor = tiny_processor(size={"height": 16, "width": 16}, keep_aspect_ratio=True)
        inputs = processor(images=image, text="red", return_tensors="pt")
        assert list(inputs) == processor.model_input_names
        assert inputs.pixel_mask.sum() == 11 * 16

    def test_without_tensors(self, processor: JMCELNProcessor, image: Image.Image, mask: np.ndarray) -> None:
        inputs = processor(images=image, text="red", segmentation_maps=mask)
        assert isinstance(inputs["input_ids"], list)
        assert isinstance(inputs["pixel_values"][0], np.ndarray)
        assert processor(images=image, text="red", return_tensors="np").input_ids.shape == (1, 3)

    def test_padding_to_a_length(self, processor: JMCELNProcessor, image: Image.Image) -> None:
        inputs = processor(images=image, text="red", padding="max_length", max_length=12, return_tensors="pt")
        assert inputs.input_ids.shape == (1, 12)
        assert inputs.attention_mask.sum() == 3
        grouped = processor(
            images=image,
            text="red",
            text_kwargs={"padding": "max_length", "max_length": 12},
            images_kwargs={"size": {"height": 8, "width": 8}},
            common_kwargs={"return_tensors": "pt"},
        )
        assert torch.equal(grouped.input_ids, inputs.input_ids)
        assert grouped.pixel_values.shape == (1, 3, 8, 8)

    def test_what_the_image_processor_takes_is_passed_on(self, processor: JMCELNProcessor) -> None:
        array = np.zeros((3, 5, 3), dtype=np.uint8)
        inputs = processor(images=array, text="red", do_resize=False, input_data_format="channels_first")
        assert inputs["pixel_values"][0].shape == (3, 5, 3)

    def test_truncation_only_on_demand(self, image: Image.Image) -> None:
        processor = JMCELNProcessor(JMCELNImageProcessor(size=8), word_level_tokenizer(model_max_length=4))
        assert processor(images=image, text="red cup red cup", return_tensors="pt").input_ids.shape == (1, 4)
        with pytest.raises(ValueError, match=r"5 tokens, more than the limit of 4.*truncation=True"):
            processor(images=image, text=["red", "red cup red cup red"])
        cut = processor(images=image, text=["red", "red cup red cup red"], truncation=True, return_tensors="pt")
        assert cut.input_ids.tolist() == [[[2, 0, 0, 0], [2, 3, 2, 3]]]
        with pytest.raises(ValueError, match="more than the limit of 2"):
            processor(images=image, text="red cup red", max_length=2)

    def test_a_tokenizer_without_limit(self, image: Image.Image) -> None:
        processor = JMCELNProcessor(JMCELNImageProcessor(size=8), word_level_tokenizer())
        assert processor(images=image, text="red " * 3000, return_tensors="pt").input_ids.shape == (1, 3000)


class TestMasks:
    def test_labels_are_nested_as_the_expressions(
        self, processor: JMCELNProcessor, image: Image.Image, mask: np.ndarray
    ) -> None:
        other = 1 - mask
        one = processor(images=image, text="red", segmentation_maps=mask, return_tensors="pt").labels
        assert one.shape == (1, 16, 24)
        wrapped = processor(images=[image], text=["red"], segmentation_maps=[mask], return_tensors="pt").labels
        assert torch.equal(wrapped, one)
        several = processor(images=image, text=["red", "a"], segmentation_maps=[mask, other], return_tensors="pt")
        assert several.labels.shape == (1, 2, 16, 24)
        assert torch.equal(several.labels[:, 0], one)
        ragged = processor(
            images=[image, image],
            text=[["red"], ["a", "b"]],
            segmentation_maps=[mask, np.stack([mask, other])],
            return_tensors="pt",
        )
        assert ragged.labels.shape == (2, 2, 16, 24)
        assert torch.equal(ragged.labels[1], several.labels[0])
        # The padded expression has a mask of ignored pixels, and no attention.
        assert (ragged.labels[0, 1] == 255).all()
        assert not ragged.attention_mask[0, 1].any()

    def test_landmarks_have_a_way_of_their_own(
        self, processor: JMCELNProcessor, image: Image.Image, mask: np.ndarray
    ) -> None:
        inputs = processor(
            images=[image, image],
            text=[["red", "a"], ["b"]],
            segmentation_maps=[[mask, mask], [mask]],
            landmark_maps=[[1 - mask, None], None],
            return_tensors="pt",
        )
        assert inputs.landmark_masks.shape == inputs.labels.shape == (2, 2, 16, 24)
        assert torch.equal(inputs.landmark_masks[0, 0], 1 - inputs.labels[0, 0])
        assert (inputs.landmark_masks[0, 1] == 255).all()
        assert (inputs.landmark_masks[1] == 255).all()
        alone = processor(images=image, text="red", landmark_maps=mask, return_tensors="pt")
        assert "labels" not in alone
        assert torch.equal(alone.landmark_masks[0], inputs.labels[0, 0])

    def test_masks_without_text(self, processor: JMCELNProcessor, image: Image.Image, mask: np.ndarray) -> None:
        inputs = processor(images=image, segmentation_maps=mask, return_tensors="pt")
        assert inputs.labels.shape == (1, 16, 24)

    def test_labels_come_back_as_masks(self, processor: JMCELNProcessor, image: Image.Image, mask: np.ndarray) -> None:
        labels = processor(images=image, text="red", segmentation_maps=mask, return_tensors="pt").labels
        outputs = SimpleNamespace(logits=labels * 20.0 - 10.0, presence_logits=torch.tensor([3.0]))
        (result,) = processor.post_process_referring_segmentation(outputs, target_sizes=[(20, 30)])
        (restored,) = result["masks"]
        assert restored.shape == (20, 30)
        assert (restored.numpy() & (mask == 1)).sum() / (restored.numpy() | (mask == 1)).sum() > 0.85


class TestWithTheModel:
    """What the README does, one step after the other."""

    def test_masks_that_were_found_are_labels(
        self, model: JMCELNModel, processor: JMCELNProcessor, image: Image.Image
    ) -> None:
        text = [["red", "the large star", "a"], ["blue circle"]]
        inputs = processor(images=[image, image], text=text, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
            results = processor.post_process_referring_segmentation(
                outputs,
                threshold=0,
                mask_threshold=outputs.logits.sigmoid().median().item(),
                target_sizes=inputs["original_sizes"],
                attention_mask=inputs["attention_mask"],
            )
            assert [result["masks"].shape for result in results] == [(3, 20, 30), (1, 20, 30)]
            masks = [result["masks"] for result in results]
            assert 0 < torch.cat([mask.flatten() for mask in masks]).float().mean() < 1
            labeled = processor(images=[image, image], text=text, segmentation_maps=masks, return_tensors="pt")
            loss = model(**labeled).loss
            opposite = processor(
                images=[image, image], text=text, segmentation_maps=[~mask for mask in masks], return_tensors="pt"
            )
            assert loss < model(**opposite).loss

    def test_expressions_alone_go_with_the_features_of_their_image(
        self, model: JMCELNModel, processor: JMCELNProcessor, image: Image.Image
    ) -> None:
        text = ["red", "the large star"]
        features = model.get_image_features(processor(images=image, return_tensors="pt")["pixel_values"])
        outputs = model(image_features=features, **processor(text=text, return_tensors="pt"))
        expected = model(**processor(images=image, text=text, return_tensors="pt"))
        torch.testing.assert_close(outputs.logits, expected.logits)


IMAGE = np.zeros((20, 30, 3), dtype=np.uint8)
MASK = np.zeros((20, 30), dtype=np.uint8)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({}, ValueError, "Neither `images` nor `text`"),
            ({"text": "red", "segmentation_maps": MASK}, ValueError, "`segmentation_maps` was given without"),
            ({"text": "red", "landmark_maps": MASK}, ValueError, "`landmark_maps` was given without"),
            ({"images": IMAGE, "text": ""}, ValueError, "blank expression ''"),
            ({"images": IMAGE, "text": " \t\n"}, ValueError, "blank expression"),
            ({"images": IMAGE, "text": ["red", ""]}, ValueError, "blank expression"),
            ({"images": IMAGE, "text": []}, ValueError, "`text` is an empty list"),
            ({"images": [IMAGE, IMAGE], "text": [["red"], []]}, ValueError, r"`text\[1\]` is an empty list"),
            ({"images": IMAGE, "text": 3}, TypeError, "must be a string"),
            ({"images": IMAGE, "text": ["red", None]}, TypeError, "None"),
            ({"images": [IMAGE, IMAGE], "text": ["red", ["a"]]}, TypeError, r"\['a'\]"),
            ({"images": [], "text": []}, ValueError, "empty list"),
            ({"images": 3, "text": "red"}, TypeError, "must be an image"),
            ({"images": "nowhere.jpg", "text": "red"}, ValueError, "nowhere.jpg"),
            ({"images": [IMAGE, IMAGE], "text": ["red"]}, ValueError, "1 entries for 2 images"),
            ({"images": [IMAGE, IMAGE], "text": "red"}, ValueError, "1 entries for 2 images"),
            ({"images": [IMAGE], "text": ["red", "a"]}, ValueError, "not in a list"),
            ({"images": IMAGE, "text": [["red"], ["a"]]}, ValueError, "2 entries for 1 images"),
            ({"images": IMAGE, "text": "\u200b"}, ValueError, "no token"),
            ({"images": IMAGE, "text": "red " * 200}, ValueError, r"202 tokens.*limit of 128"),
            ({"images": IMAGE, "text": "red \ud800"}, ValueError, "not valid Unicode text"),
            *(
                (
                    {"text": "red", "truncation": True, "max_length": length},
                    ValueError,
                    f"from 3 to 128, got {length!r}",
                )
                for length in (1, 2, 0, -1, 129, 1000, 2.5, "5", True)
            ),
            ({"text": "red", "padding": "max_length", "max_length": 10**9}, ValueError, "`max_length` must be"),
            ({"text": "red", "pad_to_multiple_of": -3}, ValueError, "`pad_to_multiple_of` must be .*from 1 to 128"),
            ({"images": IMAGE, "text": "red", "segmentation_maps": MASK[1:]}, ValueError, r"\(19, 30\)"),
            (
                {"images": IMAGE, "text": "red", "segmentation_maps": np.eye(20, 30) + 7},
                ValueError,
                r"found \[7.0, 8.0\]",
            ),
            ({"images": IMAGE, "text": "red", "segmentation_maps": [MASK, MASK]}, ValueError, "2 masks for the 1"),
            ({"images": IMAGE, "text": ["red", "a"], "segmentation_maps": MASK}, ValueError, "1 masks for the 2"),
            (
                {"images": [IMAGE], "text": ["red"], "segmentation_maps": [MASK] * 2},
                ValueError,
                "each of the 1 images",
            ),
            ({"images": [IMAGE], "text": ["red"], "segmentation_maps": 3}, ValueError, "of type int"),
            ({"images": IMAGE * np.nan, "text": "red"}, ValueError, "NaN"),
            (
                {"images": IMAGE, "text": "red", "return_tensor": "pt"},
                TypeError,
                "'return_tensor': .* 'return_tensors'",
            ),
            ({"images": IMAGE, "text": "red", "segmentation_map": MASK}, TypeError, "mean 'segmentation_maps'"),
            ({"images": IMAGE, "text": "red", "text_kwargs": {"pad": 3}}, TypeError, "`text_kwargs` of .*'pad'"),
            ({"images": IMAGE, "text": "red", "images_kwargs": {"crop": 3}}, TypeError, "`images_kwargs` of .*'crop'"),
        ],
    )
    def test_is_refused_by_name(
        self, processor: JMCELNProcessor, arguments: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            processor(**arguments)

    def test_what_transformers_passes_to_every_processor_is_accepted(self, processor: JMCELNProcessor) -> None:
        arguments = {"images": IMAGE, "text": "red", "return_tensors": "pt"}
        expected = processor(**arguments)
        flat = processor(**arguments, device="cpu", return_token_type_ids=True)
        grouped = processor(
            **arguments, text_kwargs={"return_token_type_ids": True}, images_kwargs={"device": torch.device("cpu")}
        )
        for inputs in (flat, grouped):
            assert list(inputs) == list(expected)
            assert torch.equal(inputs.pixel_values, expected.pixel_values)

    def test_a_truncated_file(self, processor: JMCELNProcessor, image: Image.Image, tmp_path: Path) -> None:
        path = tmp_path / "half.png"
        image.save(path)
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(ValueError, match=r"half\.png"):
            processor(images=path, text="red")

    def test_words_that_the_tokenizer_does_not_know_are_named(
        self, processor: JMCELNProcessor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        messages: list[str] = []
        monkeypatch.setattr(processing_jmceln.logger, "warning_once", messages.append)
        processor(images=IMAGE, text=["the red circle", "the LARGE star"])
        assert not messages
        processor(images=IMAGE, text=["the man on the left", "a man"])
        assert [message.split("'")[1] for message in messages] == ["man", "on"]

    def test_a_word_is_warned_of_once(self, processor: JMCELNProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
        messages: list[str] = []
        monkeypatch.setattr(processing_jmceln.logger, "warning", messages.append)
        for _ in range(3):
            processor(text="a zebra")
        assert len(messages) == 1

    def test_a_word_level_tokenizer_that_finds_nothing(self) -> None:
        backend = Tokenizer(models.WordLevel({"[PAD]": 0, "red": 1}))
        backend.normalizer = normalizers.Replace(Regex("[0-9]"), "")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
        with pytest.raises(ValueError, match="no token in the expression '123'"):
            JMCELNProcessor(JMCELNImageProcessor(size=8), tokenizer)(images=IMAGE, text="123")


OUTSIDER = """
import json, sys
sys.modules["torchvision"] = None  # importing it fails
from transformers import AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor
folder, image = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=image, text=["the red star", "a"], return_tensors="np")
print(json.dumps({
    "classes": [type(each).__name__ for each in (processor, processor.image_processor, image_processor)],
    "modules": [type(each).__module__.split(".")[0] for each in (processor, image_processor)],
    "sum": float(inputs["pixel_values"].sum()),
    "sum_alone": float(image_processor(image, return_tensors="np")["pixel_values"].sum()),
    "input_ids": inputs["input_ids"].tolist(),
}))
"""


class TestSaving:
    @pytest.mark.slow
    def test_a_folder_with_only_the_processor_works_without_this_package(
        self, processor: JMCELNProcessor, image: Image.Image, tmp_path: Path
    ) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        processor.save_pretrained(tmp_path / "saved")
        image.save(tmp_path / "image.png")
        run = subprocess.run(
            [sys.executable, "-c", OUTSIDER, str(tmp_path / "saved"), str(tmp_path / "image.png")],
            cwd=empty,
            env={**os.environ, "PYTHONPATH": "", "HF_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        told = json.loads(run.stdout.splitlines()[-1])
        expected = processor(images=image, text=["the red star", "a"], return_tensors="np")
        assert told["classes"] == ["JMCELNProcessor", "JMCELNImageProcessor", "JMCELNImageProcessor"]
        assert set(told["modules"]) == {"transformers_modules"}
        assert told["sum"] == pytest.approx(float(expected["pixel_values"].sum()), rel=1e-6)
        assert told["sum_alone"] == told["sum"]
        assert told["input_ids"] == expected["input_ids"].tolist()

    def test_auto_classes_know_the_processors_without_trust(
        self, processor: JMCELNProcessor, image: Image.Image, tmp_path: Path
    ) -> None:
        processor.save_pretrained(tmp_path)
        loaded = AutoProcessor.from_pretrained(tmp_path)
        assert type(loaded) is JMCELNProcessor
        assert type(loaded.image_processor) is JMCELNImageProcessor
        assert type(AutoImageProcessor.from_pretrained(tmp_path)) is JMCELNImageProcessor
        expected, actual = (
            each(images=image, text="the red star", return_tensors="pt") for each in (processor, loaded)
        )
        for name in expected:
            assert torch.equal(actual[name], expected[name])
        assert loaded.to_dict() == processor.to_dict()

    def test_the_code_travels(self, processor: JMCELNProcessor, tmp_path: Path) -> None:
        processor.save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.glob("*.py")} == {
            "image_loading_jmceln.py",
            "image_processing_jmceln.py",
            "pipeline_jmceln.py",
            "processing_jmceln.py",
            "visualization.py",
        }

    def test_registration_leaves_the_configurations_alone(self) -> None:
        with pytest.raises(ValueError, match="Unrecognized model"):
            AutoConfig.for_model("")
