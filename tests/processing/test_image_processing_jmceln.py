"""The image processor and its reading of pictures: every kind of input, bad input, masks, and the way back."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_transforms import normalize, rescale, resize
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from processing import JMCELNImageProcessor
from processing.image_loading_jmceln import image_to_array, load_pil_image
from processing.image_processing_jmceln import masks_and_scores


HEIGHT, WIDTH = 40, 60
ORIENTATION_TAG = 0x0112


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels)


@pytest.fixture
def processor() -> JMCELNImageProcessor:
    return JMCELNImageProcessor(size={"height": 32, "width": 48})


@pytest.fixture
def exact() -> JMCELNImageProcessor:
    """Gives the pixels back as they were read."""
    return JMCELNImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()
        thread.join()


@pytest.fixture
def endless_server() -> Iterator[str]:
    """Serves bytes without an end: `fast` ones, `slow` ones, one in a tenth of a second, and `headers` as slow."""

    class Endless(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            if self.path.startswith("/headers"):
                self.flush_headers()
                self.wfile.write(b"X-Endless: ")
            else:
                self.end_headers()
            is_slow = not self.path.startswith("/fast")
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"x" if is_slow else bytes(4096))
                    time.sleep(0.1 if is_slow else 0)

    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()
        thread.join()


def png_bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


class TestSources:
    def test_every_form_of_one_picture_gives_the_same_pixels(
        self, processor: JMCELNImageProcessor, pixels: np.ndarray, picture: Image.Image, tmp_path: Path, server: str
    ) -> None:
        path = tmp_path / "picture.png"
        picture.save(path)
        expected = processor(picture, return_tensors="pt").pixel_values
        sources = {
            "path": path,
            "string": str(path),
            "url": f"{server}/picture.png",
            "bytes": path.read_bytes(),
            "data": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
            "lazy": Image.open(path),
            "numpy channels last": pixels,
            "numpy channels first": pixels.transpose(2, 0, 1),
            "int64": pixels.astype(np.int64),
            "torch channels first": torch.from_numpy(pixels).permute(2, 0, 1),
            "torch channels last": torch.from_numpy(pixels),
        }
        for name, source in sources.items():
            actual = processor(source, return_tensors="pt").pixel_values
            assert actual.shape == (1, 3, 32, 48), name
            torch.testing.assert_close(actual, expected, rtol=0, atol=0, msg=name)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_floats_match_integers(
        self, processor: JMCELNImageProcessor, pixels: np.ndarray, dtype: torch.dtype
    ) -> None:
        floats = torch.from_numpy(pixels).to(dtype) / 255
        expected = processor(pixels, return_tensors="pt").pixel_values
        # Pillow rounds integers to 8 bits after each direction of the resizing: half a step twice, over the deviation.
        tolerance = 1 / 255 / 0.224 + 2e-3
        torch.testing.assert_close(
            processor(floats, return_tensors="pt").pixel_values, expected, rtol=0, atol=tolerance
        )

    def test_a_scaled_picture_is_not_scaled_again(self, pixels: np.ndarray) -> None:
        processor = JMCELNImageProcessor(do_resize=False, do_normalize=False)
        values = processor(pixels / 255, return_tensors="np").pixel_values[0]
        np.testing.assert_allclose(values, pixels.transpose(2, 0, 1) / 255, atol=1e-6)

    def test_the_range_is_told_by_the_dtype_not_by_the_values(self) -> None:
        # A frame of 0 to 255 that is nearly black looked like one of 0 to 1.
        processor = JMCELNImageProcessor(do_resize=False, do_normalize=False)
        dark = np.ones((4, 4, 3), dtype=np.uint8)
        np.testing.assert_allclose(processor(dark, return_tensors="np").pixel_values, 1 / 255)
        np.testing.assert_allclose(processor(dark.astype(float), return_tensors="np").pixel_values, 1.0)
        with pytest.raises(ValueError, match=r"floats from 2 to 2, but floats must lie in \[0, 1\]: divide"):
            processor(dark * 2.0)
        raw = processor(dark * 2.0, do_rescale=False, return_tensors="np").pixel_values
        np.testing.assert_allclose(raw, 2.0)

    def test_gray_is_repeated(self, exact: JMCELNImageProcessor, pixels: np.ndarray) -> None:
        gray = pixels[..., 0]
        for source in (Image.fromarray(gray), gray, gray[..., None], gray[None], torch.from_numpy(gray)):
            values = exact(source, return_tensors="np").pixel_values[0]
            np.testing.assert_array_equal(values, np.stack([gray] * 3))

    def test_sixteen_bits_are_scaled_not_clipped(self, exact: JMCELNImageProcessor, tmp_path: Path) -> None:
        ramp = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
        expected = np.rint(ramp / 257)
        path = tmp_path / "ramp.png"
        Image.fromarray(ramp).save(path)
        sources = (Image.fromarray(ramp), path, ramp, torch.from_numpy(ramp), Image.fromarray(ramp.astype(np.int32)))
        for source in sources:
            values = exact(source, return_tensors="np").pixel_values[0]
            np.testing.assert_array_equal(values[0], expected)

    def test_eight_bits_in_a_mode_of_32_are_left_alone(self, exact: JMCELNImageProcessor) -> None:
        gray = np.arange(256, dtype=np.int32).reshape(16, 16)
        np.testing.assert_array_equal(exact(Image.fromarray(gray), return_tensors="np").pixel_values[0, 0], gray)

    def test_transparency_is_laid_over_white(self, exact: JMCELNImageProcessor) -> None:
        rgba = np.zeros((2, 3, 4), dtype=np.uint8)
        rgba[..., 0] = 200
        rgba[0, :, 3] = 255
        rgba[1, :, 3] = (0, 51, 255)
        for source, scale in ((Image.fromarray(rgba), 1), (rgba, 1), (torch.from_numpy(rgba), 1), (rgba / 255.0, 255)):
            values = exact(source, return_tensors="np").pixel_values[0] * scale
            np.testing.assert_allclose(values[:, 0, 0], (200, 0, 0), atol=0.01)
            np.testing.assert_allclose(values[:, 1, 0], (255, 255, 255), atol=0.01)
            np.testing.assert_allclose(values[:, 1, 1], (244, 204, 204), atol=0.5)

    def test_palettes_are_looked_up(self, exact: JMCELNImageProcessor) -> None:
        palette = Image.new("P", (2, 1))
        palette.putpalette([10, 20, 30, 40, 50, 60])
        palette.putdata([0, 1])
        np.testing.assert_array_equal(
            exact(palette, return_tensors="np").pixel_values[0, :, 0], [[10, 40], [20, 50], [30, 60]]
        )
        palette.info["transparency"] = 1
        np.testing.assert_array_equal(exact(palette, return_tensors="np").pixel_values[0, :, 0, 1], [255, 255, 255])

    @pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "RGBX", "F", "I;16B"])
    def test_rarer_modes_are_read(self, processor: JMCELNImageProcessor, mode: str) -> None:
        assert processor(Image.new(mode, (9, 7)), return_tensors="pt").pixel_values.shape == (1, 3, 32, 48)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_applied(self, exact: JMCELNImageProcessor, tmp_path: Path, orientation: int) -> None:
        upright = np.zeros((16, 32, 3), dtype=np.uint8)
        upright[:8, :8] = 255  # top left
        stored = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.transpose(1, 0, 2),
            6: np.rot90(upright),
            7: upright[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(upright, -1),
        }[orientation]
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = orientation
        path = tmp_path / "turned.png"
        Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
        for source in (path, Image.open(path)):
            values = exact(source, return_tensors="np").pixel_values[0]
            np.testing.assert_array_equal(values, upright.transpose(2, 0, 1))

    def test_an_ambiguous_array_follows_the_custom_of_its_library(self, exact: JMCELNImageProcessor) -> None:
        array = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
        assert exact(array, return_tensors="np").pixel_values.shape == (1, 3, 3, 5)
        assert exact(torch.from_numpy(array), return_tensors="np").pixel_values.shape == (1, 3, 5, 3)
        chosen = exact(array, input_data_format="channels_first", return_tensors="np").pixel_values
        assert chosen.shape == (1, 3, 5, 3)

    def test_any_number_of_channels_without_conversion(self) -> None:
        processor = JMCELNImageProcessor(size=8, do_convert_rgb=False, image_mean=0.0, image_std=1.0)
        array = np.full((10, 12, 5), 51, dtype=np.uint8)
        values = processor(array, input_data_format="channels_last", return_tensors="pt").pixel_values
        torch.testing.assert_close(values, torch.full((1, 5, 8, 8), 0.2))

    def test_a_batch_array_is_a_list(self, processor: JMCELNImageProcessor, pixels: np.ndarray) -> None:
        batch = np.stack([pixels, 255 - pixels])
        expected = processor([pixels, 255 - pixels], return_tensors="pt").pixel_values
        torch.testing.assert_close(processor(batch, return_tensors="pt").pixel_values, expected)

    def test_tensors_that_need_gradients_and_noncontiguous_arrays(
        self, processor: JMCELNImageProcessor, pixels: np.ndarray
    ) -> None:
        tensor = (torch.from_numpy(pixels).float() / 255).requires_grad_()
        expected = processor(np.ascontiguousarray(pixels[:, ::-1]), return_tensors="pt").pixel_values
        torch.testing.assert_close(processor(pixels[:, ::-1], return_tensors="pt").pixel_values, expected)
        assert not processor(tensor, return_tensors="pt").pixel_values.requires_grad


class TestGeometry:
    def test_normalization(self) -> None:
        processor = JMCELNImageProcessor(size=4, image_mean=[0.5, 0.25, 0.0], image_std=[0.5, 0.25, 1.0])
        values = processor(np.full((4, 4, 3), 255, dtype=np.uint8), return_tensors="pt").pixel_values
        torch.testing.assert_close(values[0, :, 0, 0], torch.tensor([1.0, 3.0, 1.0]))

    def test_default_size(self, picture: Image.Image) -> None:
        assert JMCELNImageProcessor()(picture, return_tensors="pt").pixel_values.shape == (1, 3, 480, 480)

    @pytest.mark.parametrize(("shape", "content"), [((40, 80), (32, 64)), ((80, 40), (64, 32)), ((30, 30), (64, 64))])
    def test_aspect_ratio_is_kept_and_padded(self, shape: tuple[int, int], content: tuple[int, int]) -> None:
        processor = JMCELNImageProcessor(size=64, keep_aspect_ratio=True)
        mask = np.ones(shape, dtype=bool)
        inputs = processor(np.full((*shape, 3), 255, dtype=np.uint8), mask, return_tensors="pt")
        filled = torch.zeros(64, 64, dtype=torch.bool)
        filled[: content[0], : content[1]] = True
        assert inputs.pixel_values.shape == (1, 3, 64, 64)
        assert torch.equal(inputs.pixel_values[0, 0] != 0, filled)
        assert torch.equal(inputs.labels[0] == 1, filled)
        assert torch.equal(inputs.labels[0] == 255, ~filled)
        assert torch.equal(inputs.pixel_mask[0], filled.long())
        assert inputs.original_sizes.tolist() == [list(shape)]

    @pytest.mark.parametrize("keep_aspect_ratio", [False, True])
    def test_a_picture_does_not_depend_on_its_batch(self, picture: Image.Image, keep_aspect_ratio: bool) -> None:
        processor = JMCELNImageProcessor(size=32, keep_aspect_ratio=keep_aspect_ratio)
        alone = processor(picture, return_tensors="pt").pixel_values[0]
        among = processor([picture.resize((200, 90)), picture], return_tensors="pt").pixel_values[1]
        assert torch.equal(alone, among)

    def test_extreme_shapes_keep_at_least_a_pixel(self) -> None:
        processor = JMCELNImageProcessor(size=32, keep_aspect_ratio=True)
        for shape in ((1, 1), (1, 5000), (5000, 1)):
            inputs = processor(np.zeros((*shape, 3), np.uint8), np.ones(shape, np.uint8), return_tensors="pt")
            assert (inputs.labels == 1).any()

    def test_settings_can_be_overridden_for_one_call(self, picture: Image.Image) -> None:
        processor = JMCELNImageProcessor(size=16)
        values = processor(
            picture, size=(8, 24), do_rescale=False, do_normalize=False, resample=0, return_tensors="np"
        ).pixel_values
        expected = np.asarray(picture.resize((24, 8), Image.Resampling.NEAREST)).transpose(2, 0, 1)
        np.testing.assert_array_equal(values[0], expected)
        assert processor.size == {"height": 16, "width": 16}


class TestMasks:
    def test_nesting(self, processor: JMCELNImageProcessor, picture: Image.Image) -> None:
        mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        mask[10:20, 10:30] = 1
        one = processor(picture, mask, return_tensors="pt").labels
        assert one.shape == (1, 32, 48)
        assert one.dtype == torch.long
        assert set(one.unique().tolist()) == {0, 1}
        several = processor(picture, [mask, 1 - mask], return_tensors="pt").labels
        assert several.shape == (1, 2, 32, 48)
        assert torch.equal(several[0, 0], one[0])
        assert torch.equal(several[0, 1], 1 - one[0])
        assert torch.equal(processor(picture, np.stack([mask, 1 - mask]), return_tensors="pt").labels, several)
        batch = processor([picture, picture], [mask, 1 - mask], return_tensors="pt").labels
        assert torch.equal(batch, several[0])
        ragged = processor([picture, picture], [[mask], [mask, 1 - mask]], return_tensors="pt").labels
        assert ragged.shape == (2, 2, 32, 48)
        assert torch.equal(ragged[1], several[0])
        assert (ragged[0, 1] == 255).all()

    def test_kinds_of_mask(self, processor: JMCELNImageProcessor, picture: Image.Image) -> None:
        mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        mask[10:20, 10:30] = 1
        expected = processor(picture, mask, return_tensors="pt").labels
        kinds = (
            mask.astype(bool),
            mask.astype(np.float64),
            torch.from_numpy(mask),
            torch.from_numpy(mask).bool(),
            Image.fromarray(mask),
            Image.fromarray(mask * 255).convert("1"),
        )
        for kind in kinds:
            assert torch.equal(processor(picture, kind, return_tensors="pt").labels, expected), kind

    def test_pixels_are_ignored_on_demand(self, processor: JMCELNImageProcessor, picture: Image.Image) -> None:
        mask = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
        mask[:, :30] = 1
        labels = processor(picture, mask, ignore_index=255, return_tensors="pt").labels
        assert set(labels.unique().tolist()) == {1, 255}
        signed = np.where(mask == 255, -100, 1)
        assert torch.equal(processor(picture, signed, ignore_index=-100, return_tensors="pt").labels, labels)
        mask[:5] = 0
        with pytest.raises(ValueError, match=r"found \[1, 255\] besides 0.*pass `ignore_index=255`"):
            processor(picture, mask)

    @pytest.mark.parametrize("value", [1, 2, 128, 255])
    def test_the_value_beside_zero_is_the_referent(
        self, processor: JMCELNImageProcessor, picture: Image.Image, value: int
    ) -> None:
        # White on black was read as "ignored", so that training on such masks learned nothing.
        mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        mask[10:20, 10:30] = 1
        expected = processor(picture, mask, return_tensors="pt").labels
        for kind in (Image.fromarray(mask * value), mask * value, torch.from_numpy(mask * value)):
            assert torch.equal(processor(picture, kind, return_tensors="pt").labels, expected)
        everywhere = processor(picture, np.full((HEIGHT, WIDTH), value, np.uint8), return_tensors="pt").labels
        assert (everywhere == 1).all()

    def test_nothing_is_known_of_a_mask_that_is_none(
        self, processor: JMCELNImageProcessor, picture: Image.Image
    ) -> None:
        mask = np.ones((HEIGHT, WIDTH), dtype=bool)
        labels = processor([picture, picture], [[mask, None], [None]], return_tensors="pt").labels
        assert [[int(label.unique()) for label in masks] for masks in labels] == [[1, 255], [255, 255]]

    def test_landmarks_are_read_as_masks_are(self, processor: JMCELNImageProcessor, picture: Image.Image) -> None:
        mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        mask[10:20, 10:30] = 255
        inputs = processor(picture, [mask, mask], landmark_maps=[255 - mask, None], return_tensors="pt")
        assert torch.equal(inputs.landmark_masks[0, 0], 1 - inputs.labels[0, 0])
        assert (inputs.landmark_masks[0, 1] == 255).all()
        with pytest.raises(ValueError, match=r"`landmark_maps\[0\]` has the size \(4, 5\)"):
            processor(picture, landmark_maps=zeros(4, 5))

    @settings(max_examples=60)
    @given(
        height=st.integers(1, 300),
        width=st.integers(1, 300),
        row=st.floats(0, 1, exclude_max=True),
        column=st.floats(0, 1, exclude_max=True),
        keep_aspect_ratio=st.booleans(),
    )
    def test_a_tiny_referent_never_vanishes(
        self, height: int, width: int, row: float, column: float, keep_aspect_ratio: bool
    ) -> None:
        processor = JMCELNImageProcessor(size=16, keep_aspect_ratio=keep_aspect_ratio)
        mask = np.zeros((height, width), dtype=np.uint8)
        row, column = int(row * height), int(column * width)
        mask[row, column] = 1
        labels = processor(np.zeros((height, width, 3), np.uint8), mask, return_tensors="np").labels[0]
        rows, columns = np.nonzero(labels == 1)
        assert len(rows) >= 1
        content_rows, content_columns = (np.count_nonzero((labels != 255).any(axis=axis)) for axis in (1, 0))
        # Where it was: within one pixel of the resized picture.
        assert np.abs(rows + 0.5 - (row + 0.5) * content_rows / height).min() <= max(1, content_rows / height)
        assert np.abs(columns + 0.5 - (column + 0.5) * content_columns / width).min() <= max(
            1, content_columns / width
        )

    def test_an_empty_mask_stays_empty(self, processor: JMCELNImageProcessor, picture: Image.Image) -> None:
        assert not processor(picture, np.zeros((HEIGHT, WIDTH)), return_tensors="np").labels.any()


def outputs(logits: torch.Tensor, presence: torch.Tensor | None = None) -> SimpleNamespace:
    return SimpleNamespace(logits=logits, presence_logits=presence)


class TestPostProcessing:
    @settings(max_examples=40)
    @given(
        shape=st.tuples(st.integers(20, 200), st.integers(20, 200)),
        keep_aspect_ratio=st.booleans(),
        corners=st.tuples(*[st.floats(0, 0.5)] * 2),
    )
    def test_masks_come_back_to_where_they_were(
        self, shape: tuple[int, int], keep_aspect_ratio: bool, corners: tuple[float, float]
    ) -> None:
        processor = JMCELNImageProcessor(size=128, keep_aspect_ratio=keep_aspect_ratio)
        mask = np.zeros(shape, dtype=bool)
        top, left = int(corners[0] * shape[0]), int(corners[1] * shape[1])
        mask[top : top + shape[0] // 2, left : left + shape[1] // 2] = True
        labels = processor(np.zeros((*shape, 3), np.uint8), mask, return_tensors="pt").labels
        logits = torch.where(labels == 1, 5.0, -5.0)  # the padding too says no: a wrong cut would show
        (result,) = processor.post_process_referring_segmentation(outputs(logits), target_sizes=[shape])
        restored = result["masks"][0]
        assert restored.dtype == torch.bool
        assert restored.shape == shape
        intersection = (restored.numpy() & mask).sum()
        # The border may move by a pixel of the coarser of the two grids.
        border = 2 * sum(shape) * max(1.0, max(shape) / 128)
        assert (restored.numpy() ^ mask).sum() <= border
        assert intersection > 0

    def test_padding_is_cut_off(self) -> None:
        processor = JMCELNImageProcessor(size=64, keep_aspect_ratio=True)
        logits = torch.full((1, 64, 64), -9.0)
        logits[:, 32:] = 9.0  # only the padding of a picture twice as wide as high
        (result,) = processor.post_process_referring_segmentation(outputs(logits), target_sizes=[(40, 80)])
        assert not result["masks"].any()

    @pytest.mark.parametrize("scale", [1, 4])
    @pytest.mark.parametrize("configured", [False, True])
    @pytest.mark.parametrize("asked", [False, True])
    def test_an_aspect_ratio_kept_in_a_call_is_known_from_the_pixel_mask(
        self, configured: bool, asked: bool, scale: int
    ) -> None:
        processor = JMCELNImageProcessor(size=64, keep_aspect_ratio=configured)
        mask = np.zeros((40, 80), dtype=bool)
        mask[20:, 40:] = True
        inputs = processor(zeros(40, 80, 3), mask, keep_aspect_ratio=asked, return_tensors="pt")
        assert ("pixel_mask" in inputs) == (configured or asked)
        labels = inputs.labels[:, ::scale, ::scale]  # logits may be coarser than the inputs
        found = outputs(torch.where(labels == 1, 9.0, -9.0))
        pixel_mask = inputs.get("pixel_mask")
        (result,) = processor.post_process_referring_segmentation(
            found, target_sizes=inputs.original_sizes, pixel_mask=pixel_mask
        )
        assert (result["masks"][0].numpy() ^ mask).sum() < 200
        # The model keeps it beside the features, where it is found without being passed.
        found.image_features = SimpleNamespace(pixel_mask=pixel_mask)
        (again,) = processor.post_process_referring_segmentation(found, target_sizes=inputs.original_sizes)
        assert torch.equal(again["masks"], result["masks"])

    def test_shapes_thresholds_and_scores(self) -> None:
        processor = JMCELNImageProcessor(size=16)
        logits = torch.tensor([-3.0, 0.0, 3.0]).view(1, 3, 1, 1).expand(2, 3, 16, 16).contiguous()
        presence = torch.tensor([[9.0, 9.0, 9.0], [9.0, 9.0, -9.0]])
        results = processor.post_process_referring_segmentation(
            outputs(logits, presence), threshold=0.3, mask_threshold=0.4, target_sizes=[(5, 7), (30, 20)]
        )
        assert [set(result) for result in results] == [{"masks", "scores"}] * 2
        masks = [result["masks"] for result in results]
        assert [mask.shape for mask in masks] == [(3, 5, 7), (3, 30, 20)]
        assert [mask.flatten(1).any(1).tolist() for mask in masks] == [[False, True, True], [False, True, False]]
        # Presence times the mean of the mask's pixels; of an empty mask, the highest of all pixels.
        expected = presence.sigmoid() * torch.tensor([-3.0, 0.0, 3.0]).sigmoid()
        torch.testing.assert_close(torch.stack([result["scores"] for result in results]), expected)

        kept = processor.post_process_referring_segmentation(outputs(logits, presence), threshold=0)
        assert [result["masks"].shape for result in kept] == [(3, 16, 16)] * 2
        assert kept[1]["masks"][2].all()
        # The score decides, not the presence alone: 0.9999 times 0.5 is below 0.6.
        strict = processor.post_process_referring_segmentation(
            outputs(logits, presence), threshold=0.6, mask_threshold=0.4
        )
        assert [result["masks"].flatten(1).any(1).tolist() for result in strict] == [[False, False, True], [False] * 3]

    def test_probabilities_on_demand(self) -> None:
        logits = torch.randn(2, 3, 8, 8, requires_grad=True)
        results = JMCELNImageProcessor().post_process_referring_segmentation(
            outputs(logits), target_sizes=[(8, 8), (4, 5)], return_probabilities=True
        )
        torch.testing.assert_close(results[0]["probabilities"], logits[0].sigmoid())
        assert not results[0]["scores"].requires_grad
        assert results[1]["probabilities"].shape == (3, 4, 5)

    @pytest.mark.parametrize("return_probabilities", [False, True])
    def test_padded_expressions_are_dropped(self, return_probabilities: bool) -> None:
        logits = torch.arange(3.0).view(1, 3, 1, 1).expand(3, 3, 8, 8) + 1
        attention_mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])[..., None].expand(3, 3, 5)
        results = JMCELNImageProcessor().post_process_referring_segmentation(
            outputs(logits), attention_mask=attention_mask, return_probabilities=return_probabilities
        )
        assert [len(result["scores"]) for result in results] == [3, 1, 0]
        assert [result["masks"].shape for result in results] == [(3, 8, 8), (1, 8, 8), (0, 8, 8)]
        torch.testing.assert_close(results[1]["scores"], torch.tensor([1.0]).sigmoid())
        if return_probabilities:
            assert [result["probabilities"].shape[0] for result in results] == [3, 1, 0]

    def test_one_map_of_all_expressions(self) -> None:
        logits = torch.full((1, 3, 8, 8), -9.0)
        logits[0, 0, :4] = 2.0
        logits[0, 1, 2:6] = 3.0  # wins over the first where both are
        logits[0, 2] = 5.0
        presence = torch.tensor([[9.0, 9.0, -9.0]])
        (segmentation,) = JMCELNImageProcessor().post_process_semantic_segmentation(outputs(logits, presence))
        assert segmentation.dtype == torch.int64
        assert segmentation[:, 0].tolist() == [1, 1, 2, 2, 2, 2, 0, 0]
        (large,) = JMCELNImageProcessor().post_process_semantic_segmentation(
            outputs(logits, presence), threshold=0, target_sizes=[(16, 20)]
        )
        assert large.shape == (16, 20)
        assert (large == 3).all()
        (empty,) = JMCELNImageProcessor().post_process_semantic_segmentation(
            outputs(logits), attention_mask=torch.zeros(1, 3, 2)
        )
        assert not empty.any()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_any_float_type(self, dtype: torch.dtype) -> None:
        logits = torch.randn(1, 2, 16, 16).to(dtype)
        (result,) = JMCELNImageProcessor(size=16).post_process_referring_segmentation(
            outputs(logits, torch.ones(1, 2, dtype=dtype)), target_sizes=torch.tensor([[8, 8]])
        )
        assert result["masks"].shape == (2, 8, 8)
        assert result["scores"].dtype == torch.float32

    def test_nan_is_an_error(self) -> None:
        logits, presence = torch.zeros(2, 2, 4, 4), torch.zeros(2, 2)
        logits[1, 1, 2, 3] = torch.nan
        processor = JMCELNImageProcessor()
        with pytest.raises(ValueError, match=r"returned NaN for image 1 .*bfloat16"):
            processor.post_process_referring_segmentation(outputs(logits, presence))
        # That of padding is nobody's.
        attention_mask = torch.tensor([[1, 1], [1, 0]])[..., None]
        assert len(processor.post_process_referring_segmentation(outputs(logits), attention_mask=attention_mask)) == 2
        presence[0] = torch.nan
        with pytest.raises(ValueError, match="returned NaN for image 0"):
            processor.post_process_referring_segmentation(outputs(torch.zeros(2, 2, 4, 4), presence))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"threshold": 1.5}, "`threshold` must lie between 0 and 1, got 1.5"),
            ({"mask_threshold": -1}, "`mask_threshold`"),
            ({"target_sizes": [(4, 4), (4, 4)]}, "`target_sizes` has 2 entries for a batch of 1"),
            ({"pixel_mask": torch.ones(2, 4, 4)}, "`pixel_mask` has 2 entries for a batch of 1"),
            ({"attention_mask": torch.ones(1, 2, 4)}, r"\(1, 2, 4\), but the logits belong to \(1,\)"),
        ],
    )
    def test_bad_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            JMCELNImageProcessor().post_process_referring_segmentation(outputs(torch.zeros(1, 4, 4)), **arguments)

    def test_logits_of_other_dimensions(self) -> None:
        with pytest.raises(ValueError, match="must have the shape"):
            JMCELNImageProcessor().post_process_referring_segmentation(outputs(torch.zeros(4, 4)))


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=np.uint8)


NOT_A_NUMBER = np.full((4, 4, 3), np.nan)
INFINITE = np.full((4, 4, 3), np.inf)


@pytest.mark.parametrize("mask_threshold", [0, 0.25, 0.35, 0.5, 1])
def test_masks_and_scores_are_those_of_the_formula(mask_threshold: float) -> None:
    probabilities = torch.rand(3, 4, 37, 41, generator=torch.Generator().manual_seed(0))
    probabilities[0, 0] = 0.25  # exactly at a threshold
    probabilities[0, 1] = 0.35
    probabilities[0, 2] = 0
    presences = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    inside = probabilities > mask_threshold
    areas = inside.sum((-2, -1))
    means = (probabilities * inside).sum((-2, -1)) / areas.clamp(min=1)
    expected = presences * torch.where(areas > 0, means, probabilities.amax((-2, -1)))
    masks, scores = masks_and_scores(probabilities, presences, threshold=0.3, mask_threshold=mask_threshold)
    assert torch.equal(scores, expected)
    assert torch.equal(masks, inside & (expected >= 0.3)[..., None, None])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bytes_are_resized_and_normalized_as_by_transformers(channels: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (47, 61, channels), dtype=np.uint8)
    mean, std = [0.485, 0.456, 0.406, 0.3][:channels], [0.229, 0.224, 0.225, 0.4][:channels]
    processor = JMCELNImageProcessor(size=(24, 40), image_mean=mean, image_std=std, do_convert_rgb=False)
    expected = resize(array, (24, 40), Image.Resampling.BILINEAR, input_data_format="channels_last")
    expected = normalize(rescale(expected, 1 / 255), mean, std, input_data_format="channels_last")
    found = processor(array, input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
    assert found.dtype == np.float32
    assert np.array_equal(found, expected.astype(np.float32).transpose(2, 0, 1))


class TestBadInput:
    @pytest.mark.parametrize(
        ("images", "error", "message"),
        [
            (None, TypeError, "must be an image"),
            (3, TypeError, "must be an image"),
            ([], ValueError, "empty list"),
            ([None], TypeError, r"images\[0\]"),
            ([[zeros(4, 4, 3)]], TypeError, "one flat list"),
            ("nowhere.png", ValueError, "nowhere.png"),
            (b"not a picture", ValueError, "13 bytes"),
            ("data:image/png;base64,????", ValueError, "data:image"),
            ("data:image/png;base64,\u00e9", ValueError, "data:image"),
            ("http://127.0.0.1:9/x.png", ValueError, "127.0.0.1:9/x.png"),
            ("http://127.0.0.1:9/a picture.png", ValueError, "a picture.png"),
            (Image.new("RGB", (0, 5)), ValueError, "no pixels"),
            (zeros(0, 5, 3), ValueError, "no pixels"),
            (NOT_A_NUMBER, ValueError, "48 NaN or infinite"),
            (torch.from_numpy(INFINITE), ValueError, "48 NaN or infinite"),
            (np.full((4, 4, 3), -0.5), ValueError, "already normalized"),
            (np.full((4, 4, 3), 300.0), ValueError, "300"),
            (np.full((4, 4, 3), 300), ValueError, "uint16"),
            (np.full((4, 4, 3), -1), ValueError, "expected 0 to 255"),
            (zeros(5, 6, 7), ValueError, r"\(5, 6, 7\)"),
            (np.full((4, 4, 3), "a"), TypeError, "numbers"),
            (zeros(2, 2, 2, 2, 3), TypeError, "2 or 3 dimensions"),
        ],
    )
    def test_images(self, images: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            JMCELNImageProcessor(size=8)(images)

    @pytest.mark.parametrize(
        "mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "La", "RGBa"]
    )
    def test_every_mode_of_pillow_is_read(self, mode: str) -> None:
        image = Image.new("LA", (4, 4)).convert("La") if mode == "La" else Image.new(mode, (4, 4))
        assert image_to_array(image).shape == (4, 4, 3)

    def test_sizes_beyond_any_memory_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"`size` must not exceed 178956970 pixels.*1000000"):
            JMCELNImageProcessor(size=10**6)
        with pytest.raises(ValueError, match="`size` must not exceed"):
            JMCELNImageProcessor()(Image.new("RGB", (4, 4)), size={"height": 1, "width": 10**9})
        with pytest.raises(ValueError, match=r"`target_sizes`.*at most 178956970 pixels.*\(1000000, 1000000\)"):
            JMCELNImageProcessor().post_process_referring_segmentation(
                SimpleNamespace(logits=torch.zeros(1, 4, 4)), target_sizes=[(10**6, 10**6)]
            )

    @pytest.mark.parametrize("outputs", [(torch.zeros(1, 4, 4),), [1], {"logits": torch.zeros(1, 4, 4)}])
    def test_outputs_of_another_kind_are_named(self, outputs: Any) -> None:
        for post_process in ("post_process_referring_segmentation", "post_process_semantic_segmentation"):
            with pytest.raises(TypeError, match=r"`outputs` must be what the model returns.*got a (tuple|list|dict)"):
                getattr(JMCELNImageProcessor(), post_process)(outputs)

    @pytest.mark.parametrize("suffix", [".jpg", ".png"])
    def test_a_truncated_file_is_named(self, picture: Image.Image, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"broken{suffix}"
        picture.save(path)
        path.write_bytes(path.read_bytes()[:-400])
        for source in (path, Image.open(path)):
            with pytest.raises(ValueError, match=f"broken{suffix}.*complete image file"):
                JMCELNImageProcessor(size=8)(source)

    @pytest.mark.parametrize(
        ("name", "timeout", "reason"),
        [
            ("slow", 0.5, "longer than `timeout`, 0.5 seconds"),
            ("headers", 0.5, "longer than `timeout`, 0.5 seconds"),
            ("fast", 20, "more than 65536 bytes"),
        ],
    )
    def test_a_download_without_an_end_is_given_up(
        self, endless_server: str, name: str, timeout: float, reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("processing.image_loading_jmceln.MAX_DOWNLOAD", 2**16)
        start = time.monotonic()
        with pytest.raises(ValueError, match=f"{name}.png.*{reason}"):
            load_pil_image(f"{endless_server}/{name}.png", timeout=timeout)
        assert time.monotonic() - start < 5

    def test_a_missing_page_is_named(self, server: str) -> None:
        with pytest.raises(ValueError, match=r"missing\.png.*404"):
            load_pil_image(f"{server}/missing.png")

    @pytest.mark.parametrize(
        ("masks", "error", "message"),
        [
            (zeros(4, 5), ValueError, r"\(4, 5\).*\(40, 60\)"),
            (zeros(60, 40), ValueError, "EXIF"),
            (np.tile([0, 2, 3], (40, 20)), ValueError, r"found \[2, 3\] besides 0.*`map == label`"),
            (np.tile([0.5, 1.0], (40, 30)), ValueError, r"found \[0.5, 1.0\]"),
            (np.full((40, 60), np.nan), ValueError, "nan"),
            (np.full((40, 60), "a"), TypeError, "dtype"),
            ([], ValueError, "empty list"),
            ("mask.png", TypeError, "must be a PIL image"),
            (zeros(40), ValueError, r"\(height, width\)"),
            (zeros(40, 60, 3), ValueError, r"\(60, 3\)"),
            (Image.new("RGB", (60, 40)), ValueError, r"\(40, 60, 3\)"),
        ],
    )
    def test_masks(self, masks: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            JMCELNImageProcessor(size=8)(zeros(40, 60, 3), masks)

    @pytest.mark.parametrize(
        ("masks", "error", "message"),
        [
            ([zeros(4, 4)], ValueError, "1 entries for 2 images"),
            (Image.new("L", (4, 4)), TypeError, "one entry per image"),
            ([zeros(4, 4), [zeros(4, 4)]], ValueError, "mixes"),
        ],
    )
    def test_lists_of_masks(self, masks: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            JMCELNImageProcessor(size=8)([zeros(4, 4, 3)] * 2, masks)

    def test_different_sizes_need_resizing(self) -> None:
        with pytest.raises(ValueError, match=r"same size.*\(4, 4\), \(5, 4\)"):
            JMCELNImageProcessor(do_resize=False)([zeros(4, 4, 3), zeros(5, 4, 3)])

    @pytest.mark.parametrize("size", [{"height": 0, "width": 3}, {"shortest_edge": 3}, {"height": 3}, -1, (3.5, 2)])
    def test_sizes(self, size: Any) -> None:
        with pytest.raises(ValueError, match="size"):
            JMCELNImageProcessor(size=size)

    def test_unknown_arguments(self) -> None:
        message = "no argument 'keep_ratio': did you mean 'keep_aspect_ratio'"
        with pytest.raises(TypeError, match=message):
            JMCELNImageProcessor(keep_ratio=True)
        with pytest.raises(TypeError, match=message):
            JMCELNImageProcessor()(zeros(4, 4, 3), keep_ratio=True)
        with pytest.raises(TypeError, match=r"no argument 'xyz': it takes \["):
            JMCELNImageProcessor()(zeros(4, 4, 3), xyz=True)
        assert "pixel_values" in JMCELNImageProcessor(size=8)(zeros(4, 4, 3), device="cpu")

    def test_data_format(self) -> None:
        with pytest.raises(ValueError, match="got 'channel_last'"):
            JMCELNImageProcessor(size=8)(zeros(4, 4, 3), input_data_format="channel_last")

    @pytest.mark.parametrize("target_sizes", [(4, 4), [(0, 4)], [(4, 4, 3)], torch.tensor([4, 4])])
    def test_target_sizes(self, target_sizes: Any) -> None:
        outputs = SimpleNamespace(logits=torch.zeros(1, 8, 8))
        with pytest.raises(ValueError, match=r"one \(height, width\)"):
            JMCELNImageProcessor().post_process_referring_segmentation(outputs, target_sizes=target_sizes)

    def test_image_to_array_refuses_what_is_no_picture(self) -> None:
        with pytest.raises(TypeError, match="int"):
            image_to_array(3)


class TestSaving:
    def test_round_trip(self, tmp_path: Path, picture: Image.Image) -> None:
        first = JMCELNImageProcessor(size=(16, 24), keep_aspect_ratio=True, image_mean=[0.1, 0.2, 0.3])
        first.save_pretrained(tmp_path)
        for second in (JMCELNImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
            assert isinstance(second, JMCELNImageProcessor)
            assert second.to_dict() == first.to_dict()
            assert torch.equal(
                second(picture, return_tensors="pt").pixel_values, first(picture, return_tensors="pt").pixel_values
            )

    def test_overrides_on_loading(self, tmp_path: Path) -> None:
        JMCELNImageProcessor().save_pretrained(tmp_path)
        loaded = JMCELNImageProcessor.from_pretrained(tmp_path, keep_aspect_ratio=True, size={"height": 8, "width": 8})
        assert loaded.keep_aspect_ratio
        assert loaded.size == {"height": 8, "width": 8}


def test_real_photographs(coco_mini: Path) -> None:
    paths = sorted((coco_mini / "images").glob("*.jpg"))[:4]
    processor = JMCELNImageProcessor(size=96, keep_aspect_ratio=True)
    values = processor(paths, return_tensors="pt").pixel_values
    assert values.shape == (len(paths), 3, 96, 96)
    assert values.std() > 0.5
