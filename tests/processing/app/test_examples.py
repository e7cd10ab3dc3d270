"""The examples that the shipped model brings along work."""

from __future__ import annotations

from modeling_jmceln import JMCELNModel
from processing import JMCELNProcessor
from processing.app.examples import read_examples
from processing.app.predictions import Segmenter
from processing.shipped_models import CHECKPOINTS


def test_examples_of_the_model_of_shapes_find_what_they_name() -> None:
    folder = CHECKPOINTS / "jmceln-shapes"
    segmenter = Segmenter(JMCELNModel.from_pretrained(folder).eval(), JMCELNProcessor.from_pretrained(folder))
    absent, unknown = set(), set()
    examples = read_examples(folder)
    assert len(examples) == 3
    for example in examples:
        photo = segmenter.encode(example.image)
        answers = segmenter.ask(photo, example.expressions)
        for result in segmenter.results(answers, (photo.image.height, photo.image.width)):
            absent |= {result.expression} if result.is_absent else set()
            unknown |= set(result.unknown_words)
            assert result.is_absent or 0.005 < result.mask.mean() < 0.5
    assert absent - {"the purple bicycle"} == {"the stripy heart"}
    assert unknown == {"bicycle"}
