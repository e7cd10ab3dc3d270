"""The demo, cut short: photos are shown, new words are learned, and nothing else changes."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from modeling_jmceln import JMCELNModel
from processing.shapes import shapes_row
from processing.shapes.expressions import LEVELS
from scripts import demo


def test_rows_are_renamed_word_by_word():
    row = shapes_row("test", 0, image_size=96)
    renamed = demo.renamed(row)
    assert 0 < len(renamed["expressions"]) <= len(row["expressions"])
    known = demo.NEW_WORDS.keys()
    for text, english, mask, level in zip(
        renamed["expressions"], renamed["english"], renamed["mask_index"], renamed["levels"], strict=True
    ):
        assert not known & text.split()
        assert any(word in demo.NEW_WORDS.values() for word in text.split())
        index = row["expressions"].index(english)
        assert (mask, level) == (row["mask_index"][index], row["levels"][index])


def test_new_words_are_new_to_the_shipped_model():
    tokenizer = AutoProcessor.from_pretrained(demo.SHAPES_MODEL).tokenizer
    new = sorted(set(demo.NEW_WORDS.values()))
    assert {tuple(tokenizer.tokenize(word)) for word in new} == {("[UNK]",)}
    assert "[UNK]" not in tokenizer.tokenize(" ".join(demo.NEW_WORDS))
    tokenizer.add_tokens(new)
    text = "all the steloj left of the stelo and orangxa cirkloj"
    assert tokenizer.tokenize(text) == text.split()


def test_photos_are_shown_or_said_to_be_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "PHOTOS_MODEL", demo.REPOSITORY / "checkpoints" / "nothing")
    demo.show_photos(tmp_path / "photos.png")
    assert "checkpoints/nothing" in capsys.readouterr().out
    assert not (tmp_path / "photos.png").exists()

    # It finds nothing in photos; how good the photographs' model is stands elsewhere.
    monkeypatch.setattr(demo, "PHOTOS_MODEL", demo.SHAPES_MODEL)
    demo.show_photos(tmp_path / "photos.png")
    printed = capsys.readouterr().out
    with Image.open(tmp_path / "photos.png") as picture:
        assert min(picture.size) > 500
    assert "horse on the left" in printed
    assert "000000516008.jpg" in printed


def test_sheet_marks_what_was_found_and_what_was_missed():
    row = demo.renamed(shapes_row("test", 0, image_size=96))
    wanted = np.zeros((96, 96), dtype=bool)
    wanted[20:60, 20:60] = True
    answers = {
        name: [[demo.Answer(found, wanted)] * len(row["expressions"])]
        for name, found in (("before", np.zeros_like(wanted)), ("after", wanted))
    }
    cases = demo.draw_lots([row], number=1)
    assert demo.sheet_scores(cases, answers) == {"before": 0.0, "after": 1.0}
    sheet = np.asarray(demo.draw_sheet(cases, [row], answers)).astype(int)
    # The missed pixels are tinted in blue, those found in green.
    tints = [(sheet[..., channel] - sheet[..., 0] > 40).sum() for channel in (1, 2)]
    assert min(tints) > 500
    assert demo.draw_lots([row], number=1) == cases


@pytest.mark.slow
def test_training_gains_new_words_and_keeps_all_else(tmp_path, capsys):
    scores = demo.main(["--output-dir", str(tmp_path), "--max-steps", "40", "--test-scenes", "12"])
    before, after = scores["before"], scores["after"]
    assert after["P@0.5"] > before["P@0.5"] + 0.15
    assert after["mIoU"] > before["mIoU"] + 0.15
    assert scores["the same in English"]["P@0.5"] > 0.7

    table = (tmp_path / "scores.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out + "\n"
    assert [line.split("|")[1].strip() for line in table.splitlines()[2 : 2 + len(LEVELS)]] == list(LEVELS)
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.height > len(LEVELS) * demo.PICTURE_SIDE
        # Not all of it is paper.
        assert (np.asarray(picture.convert("L")) < 200).mean() > 0.2

    # Only the new words learned: nothing that the shipped model knows is lost.
    shipped = JMCELNModel.from_pretrained(demo.SHAPES_MODEL)
    taught = AutoModel.from_pretrained(tmp_path / "model", trust_remote_code=True)
    known = shipped.get_input_embeddings().num_embeddings
    words = taught.get_input_embeddings().weight
    assert len(words) == known + len(set(demo.NEW_WORDS.values()))
    taught.set_input_embeddings(torch.nn.Embedding.from_pretrained(words[:known].detach()))
    for name, weight in shipped.state_dict().items():
        assert torch.equal(weight, taught.state_dict()[name]), name
