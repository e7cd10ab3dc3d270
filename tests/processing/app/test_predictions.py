"""What the page asks of a model: the same as the pipeline, from one encoding of the photo."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_jmceln import JMCELNModel
from processing import ReferringImageSegmentationPipeline
from processing.app.predictions import Segmenter
from tests.tiny import tiny_config, tiny_processor


EXPRESSIONS = ["the red circle", "the small square left of the star"]


@pytest.fixture(scope="module", params=[False, True], ids=["stretched", "padded"])
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(JMCELNModel(tiny_config()).eval(), tiny_processor(keep_aspect_ratio=request.param))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))


def test_answers_are_those_of_the_pipeline(segmenter: Segmenter, image: Image.Image) -> None:
    answers = segmenter.ask(segmenter.encode(image), EXPRESSIONS)
    pipe = ReferringImageSegmentationPipeline(model=segmenter.model, processor=segmenter.processor, device="cpu")
    for thresholds in ({}, {"threshold": 0.0, "mask_threshold": 0.1}, {"threshold": 0.9}):
        for mine, theirs in zip(
            segmenter.results(answers, (50, 90), **thresholds), pipe(image, EXPRESSIONS, **thresholds), strict=True
        ):
            assert mine.expression == theirs["label"]
            assert mine.score == pytest.approx(theirs["score"], abs=1e-5)
            assert np.array_equal(mine.mask, np.asarray(theirs["mask"]) > 0)


def test_other_thresholds_and_views_do_not_run_the_model(
    segmenter: Segmenter, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: Counter[str] = Counter()
    for part in (segmenter.model.backbone, segmenter.model.text_model, segmenter.model.cascade):
        part.register_forward_hook(lambda module, *_: runs.update([type(module).__name__]))
    segmenter = Segmenter(segmenter.model, segmenter.processor)  # which keeps no text of other tests
    photo = segmenter.encode(image)
    answers = segmenter.ask(photo, EXPRESSIONS)
    first = dict(runs)
    assert sum(first.values()) == 3
    low, high = (
        segmenter.results(answers, (50, 90), threshold=0.0, mask_threshold=value)[0].mask for value in (0.01, 0.99)
    )
    assert low.sum() > high.sum()
    segmenter.cascade(answers, 1)
    assert dict(runs) == first
    segmenter.ask(photo, ["the star"])
    assert runs[type(segmenter.model.backbone).__name__] == 1  # the photo is encoded once


def test_the_cascade_covers_the_photo(segmenter: Segmenter, image: Image.Image) -> None:
    photo = segmenter.encode(image)
    answers = segmenter.ask(photo, EXPRESSIONS)
    stages = segmenter.cascade(answers, 1)
    assert len(stages) == segmenter.model.config.num_stages
    assert stages[0].alignment_filter is None
    assert stages[1].alignment_filter is not None
    content = (round(64 * 50 / 90), 64) if segmenter.processor.image_processor.keep_aspect_ratio else (64, 64)
    for stage in stages:
        for values in (stage.mask, stage.landmarks, stage.attention):
            assert values is not None
            assert values.shape == content
            assert 0 <= values.min() <= values.max() <= 1
    # Before the learned upsampling, the last stage says what the logits say.
    logits = answers.logits[1].sigmoid().numpy()[: content[0], : content[1]]
    assert np.corrcoef(stages[-1].mask.ravel(), logits.ravel())[0, 1] > 0.5


def test_names_the_words_that_the_tokenizer_does_not_know(segmenter: Segmenter, image: Image.Image) -> None:
    answers = segmenter.ask(segmenter.encode(image), ["the purple bicycle", "the red circle"])
    first, second = segmenter.results(answers, (50, 90))
    assert first.unknown_words == ("purple", "bicycle")
    assert second.unknown_words == ()
