"""The pipeline with a real, tiny model: every form of input, one encoding an image, scores, dtypes and packaging."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageChops
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from modeling_jmceln import JMCELNModel
from processing import JMCELNProcessor, ReferringImageSegmentationPipeline
from processing.visualization import _eroded, color_of, draw_overlay
from tests.tiny import tiny_config, tiny_processor


Answer = dict[str, Any]
FAILS_TO_LOAD = object()
# An untrained model is sure of nothing: with the default thresholds all its masks are empty, and so alike.
FINDS_SOMETHING = {"threshold": 0.0, "mask_threshold": 0.2}


@pytest.fixture(scope="module")
def processor() -> JMCELNProcessor:
    return tiny_processor()


@pytest.fixture(scope="module")
def model() -> JMCELNModel:
    torch.manual_seed(0)
    return JMCELNModel(tiny_config()).eval()


@pytest.fixture
def pipe(model: JMCELNModel, processor: JMCELNProcessor) -> ReferringImageSegmentationPipeline:
    return ReferringImageSegmentationPipeline(model=model, processor=processor, device="cpu", **FINDS_SOMETHING)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    shapes = [(50, 80), (70, 33), (64, 64), (20, 30)]
    return [Image.fromarray(generator.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]


def assert_same(actual: list[Answer], expected: list[Answer]) -> None:
    # Empty or full masks are the same whatever the model does.
    assert any(0 < np.asarray(answer["mask"]).mean() < 255 for answer in expected)
    assert [answer["label"] for answer in actual] == [answer["label"] for answer in expected]
    for one, other in zip(actual, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["mask"].size == other["mask"].size
        # A pixel on the threshold may fall to either side when the sums are made in another order.
        assert (np.asarray(one["mask"]) != np.asarray(other["mask"])).mean() < 0.002


class TestInputs:
    def test_one_image(self, pipe: ReferringImageSegmentationPipeline, images: list[Image.Image]) -> None:
        (answer,) = pipe(images[0], "the red circle")
        assert set(answer) == {"label", "score", "mask"}
        assert answer["label"] == "the red circle"
        assert 0 <= answer["score"] <= 1
        assert answer["mask"].mode == "L"
        assert answer["mask"].size == (80, 50)
        assert set(np.unique(answer["mask"])) <= {0, 255}

    def test_sources(
        self, pipe: ReferringImageSegmentationPipeline, images: list[Image.Image], tmp_path: Path
    ) -> None:
        path = tmp_path / "image.png"
        images[0].save(path)
        expected = pipe(images[0], "star")
        array = np.array(images[0])
        for source in (str(path), path, path.read_bytes(), array, torch.from_numpy(array).permute(2, 0, 1)):
            assert_same(pipe(source, "star"), expected)
        assert_same(pipe({"image": str(path), "text": "star"}), expected)
        (batched,) = pipe(array[None], "star")
        assert_same(batched, expected)

    def test_lists(self, pipe: ReferringImageSegmentationPipeline, images: list[Image.Image]) -> None:
        alone = {text: [pipe(image, text)[0] for image in images[:2]] for text in ("star", "the red circle", "square")}
        one_each = pipe(images[:2], ["star", "square"])
        assert_same(one_each[0], [alone["star"][0]])
        assert_same(one_each[1], [alone["square"][1]])
        several = pipe(images[:2], [["star", "the red circle"], ["square"]])
        assert_same(several[0], [alone["star"][0], alone["the red circle"][0]])
        assert_same(several[1], [alone["square"][1]])
        shared = pipe(tuple(images[:2]), "star")
        assert_same([answers[0] for answers in shared], alone["star"])

    @pytest.mark.parametrize("batch_size", [1, 2, 3])
    def test_batches_of_different_images_and_counts(
        self, pipe: ReferringImageSegmentationPipeline, images: list[Image.Image], batch_size: int
    ) -> None:
        texts = [["star", "the large red circle"], "a", ["square left of the small green star", "b", "c"], ["red"]]
        batched = pipe(images, texts, batch_size=batch_size)
        for image, text, answers in zip(images, texts, batched, strict=True):
            assert_same(answers, pipe(image, text))
            assert all(answer["mask"].size == image.size for answer in answers)

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_streams(
        self, pipe: ReferringImageSegmentationPipeline, images: list[Image.Image], batch_size: int
    ) -> None:
        expected = pipe(images, ["red", "a star", "b", "c"])
        rows = [
            {"image": image, "text": text} for image, text in zip(images, ["red", "a star", "b", "c"], strict=True)
        ]
        seen = []

        def generate() -> Iterator[dict[str, Any]]:
            for row in rows:
                seen.append(row["text"])
                yield row

        stream = pipe(generate(), batch_size=batch_size)
        first = next(iter(stream))
        assert len(seen) < len(rows)  # consumed as it goes
        assert_same(first, expected[0])
        dataset = datasets.Dataset.from_list(
            [{"image": image, "expressions": [text]} for image, text in zip(images, "abcd", strict=True)],
            features=datasets.Features(
                {"image": datasets.Image(), "expressions": datasets.List(datasets.Value("string"))}
            ),
        )
        for source in (iter(rows), rows):
            for actual, wanted in zip(pipe(source, batch_size=batch_size), expected, strict=True):
                assert_same(actual, wanted)
        own = pipe(images, list("abcd"))
        for source in (dataset, dataset.to_iterable_dataset()):
            for actual, wanted in zip(pipe(source, batch_size=batch_size), own, strict=True):
                assert_same(actual, wanted)
        shared = pipe(images, "star")
        for source in (KeyDataset(dataset, "image"), (image for image in images)):
            for actual, wanted in zip(pipe(source, "star", batch_size=batch_size), shared, strict=True):
                assert_same(actual, wanted)

    def test_empty_text_of_a_row_gives_way(
        self, pipe: ReferringImageSegmentationPipeline, images: list[Image.Image]
    ) -> None:
        # A column that some rows leave empty is `None` in a row of `datasets`.
        expected = pipe(images[0], "star")
        assert_same(pipe({"image": images[0], "text": None}, "star"), expected)
        assert_same(pipe({"image": images[0], "text": None, "expressions": ["star"]}), expected)

    def test_exif_orientation(
        self, pipe: ReferringImageSegmentationPipeline, images: list[Image.Image], tmp_path: Path
    ) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        path = tmp_path / "turned.png"
        images[0].save(path, exif=exif)
        (answer,) = pipe(path, "star", return_overlay=True)
        assert answer["mask"].size == answer["overlay"].size == (50, 80)


class TestManyExpressions:
    def test_the_image_is_encoded_once(
        self, pipe: ReferringImageSegmentationPipeline, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoded, asked = [], []
        get_image_features, forward = pipe.model.get_image_features, pipe.model.forward

        def count_images(pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            encoded.append(len(pixel_values))
            return get_image_features(pixel_values, *args, **kwargs)

        def count_expressions(*args: Any, **kwargs: Any) -> Any:
            assert kwargs.get("pixel_values") is None
            asked.append(kwargs["input_ids"].shape[:2])
            return forward(*args, **kwargs)

        monkeypatch.setattr(pipe.model, "get_image_features", count_images)
        monkeypatch.setattr(pipe.model, "forward", count_expressions)
        pipe(images[0], ["star"] * 19)
        assert encoded == [1]
        assert asked == [(1, 8), (1, 8), (1, 3)]
        encoded.clear(), asked.clear()
        pipe(images[:2], [["star"] * 9, ["red"]], batch_size=2, expressions_per_call=8)
        assert encoded == [2]
        assert asked == [(2, 4), (2, 4), (2, 1)]

    def test_chunks_do_not_change_the_answers(
        self, pipe: ReferringImageSegmentationPipeline, images: list[Image.Image]
    ) -> None:
        texts = ["star", "the large red circle left of the square", "a", "b", "green"]
        expected = pipe(images[0], texts, expressions_per_call=100)
        for size in (1, 2, 5):
            assert_same(pipe(images[0], texts, expressions_per_call=size), expected)


class TestAnswers:
    def test_score_and_thresholds(
        self, pipe: ReferringImageSegmentationPipeline, images: list[Image.Image], processor: JMCELNProcessor
    ) -> None:
        inputs = processor(images=images[0], text="star", return_tensors="pt")
        with torch.no_grad():
            outputs = pipe.model(**inputs)
        presence = outputs.presence_logits.sigmoid().item()
        middle = outputs.logits.sigmoid().median().item()
        (expected,) = processor.post_process_referring_segmentation(
            outputs, threshold=0, mask_threshold=middle, target_sizes=[(50, 80)], return_probabilities=True
        )
        probabilities = expected["probabilities"][0]

        (answer,) = pipe(images[0], "star", threshold=0, mask_threshold=middle)
        chosen = probabilities > middle
        assert (np.asarray(answer["mask"]) == 255).mean() == pytest.approx(chosen.float().mean().item(), abs=0.01)
        assert answer["score"] == pytest.approx(presence * probabilities[chosen].mean().item(), abs=1e-3)
        assert ((np.asarray(answer["mask"]) == 255) != expected["masks"][0].numpy()).mean() < 0.002
        assert answer["score"] == pytest.approx(expected["scores"].item(), abs=1e-5)

        for threshold, is_found in ((answer["score"] - 0.01, True), (answer["score"] + 0.01, False)):
            (other,) = pipe(images[0], "star", threshold=threshold, mask_threshold=middle)
            assert np.asarray(other["mask"]).any() == is_found
            assert other["score"] == pytest.approx(answer["score"])

        (nothing,) = pipe(images[0], "star", mask_threshold=1)
        assert not np.asarray(nothing["mask"]).any()
        assert nothing["score"] == pytest.approx(presence * probabilities.max().item(), abs=1e-4)

    def test_defaults_at_construction(
        self, model: JMCELNModel, processor: JMCELNProcessor, images: list[Image.Image]
    ) -> None:
        pipe = ReferringImageSegmentationPipeline(
            model=model, processor=processor, device="cpu", threshold=0.0, mask_threshold=0.0
        )
        (answer,) = pipe(images[0], "star")
        assert np.asarray(answer["mask"]).all()

    def test_overlay(self, pipe: ReferringImageSegmentationPipeline, images: list[Image.Image]) -> None:
        for source in (images[0], np.asarray(images[0]) / 255.0):
            answers = pipe(source, ["star", "red"], return_overlay=True, threshold=0, mask_threshold=0)
            assert [answer["overlay"].mode for answer in answers] == ["RGB", "RGB"]
            expected = draw_overlay(images[0], [answers[1]["mask"]], colors=[color_of(1)])
            assert np.abs(np.asarray(answers[1]["overlay"], int) - np.asarray(expected, int)).max() <= 1

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(
        self, model: JMCELNModel, processor: JMCELNProcessor, images: list[Image.Image], dtype: torch.dtype
    ) -> None:
        reference = ReferringImageSegmentationPipeline(model=model, processor=processor, device="cpu")(
            images[0], "red", **FINDS_SOMETHING
        )
        half = JMCELNModel(model.config).eval()
        half.load_state_dict(model.state_dict())
        pipe = ReferringImageSegmentationPipeline(model=half.to(dtype), processor=processor, device="cpu")
        (answer,) = pipe(images[0], "red", **FINDS_SOMETHING)
        assert answer["score"] == pytest.approx(reference[0]["score"], abs=0.02)
        assert (np.asarray(answer["mask"]) != np.asarray(reference[0]["mask"])).mean() < 0.05

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_padding_is_cut_off(self, model: JMCELNModel, images: list[Image.Image], batch_size: int) -> None:
        processor = tiny_processor(keep_aspect_ratio=True)
        pipe = ReferringImageSegmentationPipeline(model=model, processor=processor, device="cpu", **FINDS_SOMETHING)
        texts = [["star", "a"], ["a"]]
        areas = []
        all_found = pipe(images[:2], texts, batch_size=batch_size)
        for image, text, found in zip(images[:2], texts, all_found, strict=True):
            inputs = processor(images=image, text=text, return_tensors="pt")
            with torch.no_grad():
                outputs = model(**inputs)
            (expected,) = processor.post_process_referring_segmentation(
                outputs, **FINDS_SOMETHING, target_sizes=inputs.original_sizes, pixel_mask=inputs.pixel_mask
            )
            assert [answer["score"] for answer in found] == pytest.approx(expected["scores"].tolist(), abs=1e-5)
            for answer, mask in zip(found, expected["masks"], strict=True):
                areas.append(mask.float().mean().item())
                assert ((np.asarray(answer["mask"]) == 255) != mask.numpy()).mean() < 0.002
        assert any(0 < area < 1 for area in areas)

    def test_nan_is_an_error(self, model: JMCELNModel, processor: JMCELNProcessor, images: list[Image.Image]) -> None:
        broken = JMCELNModel(model.config).eval()
        pipe = ReferringImageSegmentationPipeline(model=broken, processor=processor, device="cpu")
        with torch.no_grad():
            for parameter in broken.presence_head.parameters():
                parameter.fill_(torch.nan)
        with pytest.raises(ValueError, match="returned NaN"):
            pipe(images[0], "star")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite_are_refused(
        self, model: JMCELNModel, processor: JMCELNProcessor, value: float
    ) -> None:
        broken = JMCELNModel(model.config).eval().half()
        with torch.no_grad():
            broken.text_norm.weight[3] = value
        with pytest.raises(ValueError, match=r"NaN or infinite, in 1 of \d+ tensors, such as `text_norm\.weight`"):
            ReferringImageSegmentationPipeline(model=broken, processor=processor, device="cpu")


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((), ValueError, "No image"),
            ((Image.new("RGB", (8, 8)),), ValueError, "No expression"),
            (([], "red"), ValueError, "empty list"),
            (([Image.new("RGB", (8, 8))], None), ValueError, "No expression"),
            (([Image.new("RGB", (8, 8))], ["a", "b"]), ValueError, "2 entries for 1 images.*not in a list"),
            (({"picture": 3, "text": "red"},), ValueError, "key \"image\".*'picture'"),
            ((Image.new("RGB", (8, 8)), " "), ValueError, "blank"),
            ((Image.new("RGB", (8, 8)), "red " * 200), ValueError, "truncation=True"),
            (("nowhere.jpg", "red"), ValueError, "nowhere.jpg"),
            ((3, "red"), TypeError, "must be an image"),
            ((Image.new("RGB", (8, 8)), [["a", "b"]]), TypeError, r"got \['a', 'b'\] in the list"),
            ((Image.new("RGB", (8, 8)), 3), TypeError, "got 3"),
            (([Image.new("RGB", (8, 8))], 3), TypeError, "got 3"),
        ],
    )
    def test_is_refused_by_name(
        self,
        pipe: ReferringImageSegmentationPipeline,
        arguments: tuple[Any, ...],
        error: type[Exception],
        message: str,
    ) -> None:
        with pytest.raises(error, match=message):
            pipe(*arguments)

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"threshold": 2}, ValueError),
            ({"mask_threshold": -1}, ValueError),
            ({"expressions_per_call": 0}, ValueError),
            ({"expressions_per_call": 2.5}, ValueError),
            ({"threshold": "0.5"}, TypeError),
            ({"mask_threshold": [0.5]}, TypeError),
            ({"threshold": float("nan")}, ValueError),
            ({"timeout": "x"}, ValueError),
            ({"timeout": -1}, ValueError),
            ({"return_overlay": "no"}, TypeError),
            ({"truncation": "yes"}, TypeError),
            ({"on_error": "pass"}, ValueError),
            ({"treshold": 0.5}, TypeError),
        ],
    )
    def test_parameters(
        self, pipe: ReferringImageSegmentationPipeline, arguments: dict[str, Any], error: type[Exception]
    ) -> None:
        with pytest.raises(error, match=next(iter(arguments))):
            pipe(Image.new("RGB", (8, 8)), "red", **arguments)

    def test_truncation(self, pipe: ReferringImageSegmentationPipeline) -> None:
        assert len(pipe(Image.new("RGB", (8, 8)), "red " * 200, truncation=True)) == 1

    def test_no_processor(self, model: JMCELNModel) -> None:
        with pytest.raises(ValueError, match="needs a `processor`"):
            ReferringImageSegmentationPipeline(model=model, device="cpu")


class TestBadImagesAmongGoodOnes:
    """One bad image of many: its position is named, or the others get their results all the same."""

    TEXTS = ("star", ["square", "a"], "star", "the red circle")

    @staticmethod
    def sources(kind: str, images: list[Image.Image], bad: Any) -> Any:
        rows = [
            {"image": bad if position == 2 else image, "text": text}
            for position, (image, text) in enumerate(zip(images, TestBadImagesAmongGoodOnes.TEXTS, strict=True))
        ]

        class Rows(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return len(rows)

            def __getitem__(self, index: int) -> Any:
                if index == 2 and bad is FAILS_TO_LOAD:
                    raise OSError("image file is truncated")
                return rows[index]

        return {"list": rows, "generator": (row for row in rows), "dataset": Rows()}[kind]

    @pytest.mark.parametrize("kind", ["list", "generator", "dataset"])
    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_the_position_is_named(
        self, pipe: ReferringImageSegmentationPipeline, images: list[Image.Image], kind: str, batch_size: int
    ) -> None:
        with pytest.raises(ValueError, match=r"images\[2\]: Cannot read the image 'nowhere.jpg'"):
            list(pipe(self.sources(kind, images, "nowhere.jpg"), batch_size=batch_size))

    @pytest.mark.parametrize("kind", ["list", "generator", "dataset"])
    @pytest.mark.parametrize("batch_size", [1, 3])
    @pytest.mark.parametrize("bad", ["nowhere.jpg", b"no image", None, 3])
    def test_the_others_get_their_results(
        self,
        pipe: ReferringImageSegmentationPipeline,
        images: list[Image.Image],
        kind: str,
        batch_size: int,
        bad: Any,
    ) -> None:
        results = list(pipe(self.sources(kind, images, bad), batch_size=batch_size, on_error="skip"))
        assert len(results) == 4
        for position in (0, 1, 3):
            assert_same(results[position], pipe(images[position], self.TEXTS[position]))
        (answer,) = results[2]
        assert answer["error"].startswith("images[2]: ")
        assert (answer["score"], answer["mask"]) == (None, None)
        assert answer["label"] == (None if bad is None else "star")

    def test_a_row_that_a_dataset_cannot_load(
        self, pipe: ReferringImageSegmentationPipeline, images: list[Image.Image]
    ) -> None:
        rows = self.sources("dataset", images, FAILS_TO_LOAD)
        with pytest.raises(ValueError, match=r"images\[2\]: image file is truncated"):
            list(pipe(rows))
        results = list(pipe(rows, on_error="skip"))
        assert [answer["label"] for answers in results for answer in answers] == [
            *("star", "square", "a", None, "the red circle")
        ]

    def test_one_image_and_nothing_but_bad_ones(self, pipe: ReferringImageSegmentationPipeline) -> None:
        (answer,) = pipe("nowhere.jpg", "red", on_error="skip")
        assert answer["label"] == "red"
        assert "there is no such file" in answer["error"]
        assert len(pipe(["nowhere.jpg"] * 3, "red", on_error="skip", batch_size=2)) == 3

    def test_padded_images(self, model: JMCELNModel, images: list[Image.Image]) -> None:
        processor = tiny_processor(keep_aspect_ratio=True)
        pipe = ReferringImageSegmentationPipeline(model=model, processor=processor, device="cpu", **FINDS_SOMETHING)
        results = pipe([images[0], "nowhere.jpg"], "star", batch_size=2, on_error="skip")
        assert_same(results[0], pipe(images[0], "star"))
        assert "nowhere.jpg" in results[1][0]["error"]


class TestPackaging:
    def test_registered(self) -> None:
        assert "referring-image-segmentation" in PIPELINE_REGISTRY.get_supported_tasks()

    def test_pipeline_by_name(
        self, pipe: ReferringImageSegmentationPipeline, images: list[Image.Image], tmp_path: Path
    ) -> None:
        pipe.save_pretrained(tmp_path)
        loaded = pipeline("referring-image-segmentation", model=str(tmp_path), trust_remote_code=True, device="cpu")
        of_objects = pipeline("referring-image-segmentation", model=pipe.model, processor=pipe.processor)
        assert_same(of_objects(images[0], "star", **FINDS_SOMETHING), pipe(images[0], "star"))
        assert_same(loaded(images[0], ["star", "red"], **FINDS_SOMETHING), pipe(images[0], ["star", "red"]))


class TestOverlay:
    def test_fill_outline_and_legend(self) -> None:
        picture = Image.new("RGB", (40, 30), "black")
        mask = Image.new("L", (40, 30))
        mask.paste(255, (10, 5, 30, 25))
        drawn = draw_overlay(picture, [mask], opacity=0.5)
        red, green, blue = color_of(0)
        assert drawn.size == (40, 30)
        assert drawn.getpixel((2, 2)) == (0, 0, 0)
        assert drawn.getpixel((10, 5)) == (red, green, blue)
        assert drawn.getpixel((20, 15)) == pytest.approx((red / 2, green / 2, blue / 2), abs=1)
        captioned = draw_overlay(picture, [mask], captions=["the white box"])
        assert 40 < captioned.width < 200
        assert captioned.height > 30
        assert np.array_equal(np.asarray(captioned)[:2, :2], np.zeros((2, 2, 3)))
        legend = np.asarray(captioned)[30:].reshape(-1, 3)
        assert (legend == (red, green, blue)).all(1).any()

    def test_legend_of_a_small_picture_is_read_whole(self) -> None:
        mask = Image.new("L", (40, 30))
        long, longer = "the small striped red star left of the ring", "the small striped red star left of the rings"
        drawn = [draw_overlay(Image.new("RGB", (40, 30)), [mask], captions=[caption]) for caption in (long, longer)]
        assert drawn[0].width < drawn[1].width
        endless = [draw_overlay(Image.new("RGB", (40, 30)), [mask], captions=["star " * n]) for n in (200, 300)]
        assert [picture.width for picture in endless] == [480, 480]
        wide = draw_overlay(Image.new("RGB", (600, 30)), [Image.new("L", (600, 30))], captions=["star"])
        assert wide.width == 600

    @pytest.mark.parametrize("margin", [0, 1, 3, 12])
    @pytest.mark.parametrize("size", [(40, 30), (7, 5), (1, 1)])
    def test_the_inside_of_an_outline_is_that_of_a_minimum_filter(self, size: tuple[int, int], margin: int) -> None:
        pixels = np.random.default_rng(0).random(size[::-1]) < 0.97
        window = (2 * margin + 1, 2 * margin + 1)
        expected = sliding_window_view(np.pad(pixels, margin, constant_values=True), window).min(axis=(2, 3))
        assert np.array_equal(
            np.asarray(_eroded(Image.fromarray(pixels.astype(np.uint8) * 255), margin)) > 0, expected
        )

    @pytest.mark.parametrize("size", [(50, 40), (900, 700)])
    def test_drawing_around_the_mask_alone_gives_the_same_as_drawing_the_whole_image(
        self, size: tuple[int, int]
    ) -> None:
        generator = np.random.default_rng(0)
        picture = Image.fromarray(generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
        margin = max(1, round(min(size) / 400))
        masks = []
        # In the middle, at each edge, everywhere, nowhere, and in two distant corners.
        for rows, columns in [(0.3, 0.6), (0, 0.2), (0.7, 1), (0, 1), (0.5, 0.5)]:
            mask = np.zeros(size[::-1], dtype=np.uint8)
            mask[int(rows * size[1]) : int(columns * size[1]), int(rows * size[0]) : int(columns * size[0])] = 255
            mask[generator.random(mask.shape) < 0.1] = 0
            masks.append(mask)
        masks.append(np.zeros(size[::-1], dtype=np.uint8))
        masks[-1][0, 0] = masks[-1][-1, -1] = 255
        expected = picture
        for index, mask in enumerate(masks):
            inside, paint = Image.fromarray(mask), Image.new("RGB", size, color_of(index))
            expected = Image.composite(Image.blend(expected, paint, 0.45), expected, inside)
            expected.paste(paint, mask=ImageChops.difference(inside, _eroded(inside, margin)))
        drawn = draw_overlay(picture, [Image.fromarray(mask) for mask in masks])
        assert np.array_equal(np.asarray(drawn), np.asarray(expected))
        assert not np.array_equal(np.asarray(drawn), np.asarray(picture))

    def test_seven_colors_differ_and_repeat(self) -> None:
        colors = [color_of(index) for index in range(7)]
        assert len(set(colors)) == 7
        assert color_of(7) == colors[0]

    def test_bad_input(self) -> None:
        picture = Image.new("RGB", (4, 4))
        with pytest.raises(ValueError, match=r"masks\[0\].*\(3, 4\)"):
            draw_overlay(picture, [Image.new("L", (3, 4))])
        with pytest.raises(ValueError, match="`captions` has 2 entries for 1 masks"):
            draw_overlay(picture, [Image.new("L", (4, 4))], captions=["a", "b"])
