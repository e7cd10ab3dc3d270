"""What the page draws and lets people download."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from processing.app import pictures
from processing.app.predictions import Result, StageMaps
from processing.data.masks import decode_mask


MASK = np.zeros((20, 30), dtype=bool)
MASK[5:15, 10:20] = True
IMAGE = Image.new("RGB", (30, 20), (10, 20, 30))


def result(mask: np.ndarray = MASK, expression: str = "the dog", unknown_words: tuple[str, ...] = ()) -> Result:
    return Result(expression, mask, mask.astype(np.float32), 0.875, unknown_words)


def test_a_cut_out_is_transparent_around_the_referent() -> None:
    cut = np.asarray(pictures.cut_out(IMAGE, MASK))
    assert cut.shape == (20, 30, 4)
    assert np.array_equal(cut[..., 3] == 255, MASK)
    assert np.array_equal(cut[..., 3] == 0, ~MASK)
    assert (cut[MASK][:, :3] == (10, 20, 30)).all()


def test_an_overlay_colors_the_mask_alone() -> None:
    drawn = np.asarray(pictures.overlay(IMAGE, [result()]))
    assert np.array_equal((drawn != np.asarray(IMAGE)).any(-1), MASK)


def test_run_lengths_are_those_of_the_masks() -> None:
    first, second = pictures.run_lengths([result(), result(np.zeros_like(MASK), "the cat")])
    assert np.array_equal(decode_mask(first["segmentation"]), MASK)
    assert (first["expression"], first["score"], first["area"]) == ("the dog", 0.875, 100)
    assert second["area"] == 0


def test_the_legend_says_what_is_absent_and_what_is_unknown() -> None:
    shown = pictures.legend([result(), result(np.zeros_like(MASK), "the <b>cat</b>", ("<b>cat</b>",))])
    assert shown.count("not in the image") == 1
    assert "16.7% of the image" in shown
    assert "does not know the word" in shown
    assert "<b>" not in shown  # what a visitor types is text


def test_messages_are_sentences() -> None:
    assert "Too long.</p>" in pictures.message("too long")
    assert "Why?</p>" in pictures.message("Why?")
    assert "&lt;script&gt;" in pictures.message("<script>")


def test_a_map_shines_where_its_values_are_high() -> None:
    drawn = np.asarray(pictures.draw_map(Image.new("RGB", (30, 20), "white"), MASK.astype(np.float32), (255, 0, 0)))
    assert (drawn[10, 15] == (255, 0, 0)).all()
    assert drawn[0, 0].max() < 128


def test_the_cascade_has_a_picture_for_each_map_that_is_there() -> None:
    values = MASK.astype(np.float32)
    first = StageMaps(values, values, attention=values, alignment_filter=None)
    second = StageMaps(values, values, attention=None, alignment_filter=values)
    shown = pictures.cascade(IMAGE, [first, second], 0)
    assert shown.count("<img") == 6
    assert "Stage 2 of 2" in shown


@pytest.mark.parametrize(("size", "expected"), [((100, 50), (100, 50)), ((4096, 1024), (1024, 256))])
def test_only_large_photos_are_made_smaller(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert pictures.fit(Image.new("RGB", size)).size == expected
