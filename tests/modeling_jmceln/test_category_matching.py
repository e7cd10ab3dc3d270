"""Categories that the detector behind a vision encoder knows, found in words and in images."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, MobileNetV2Config

from modeling_jmceln import JMCELNConfig, JMCELNModel
from modeling_jmceln.category_matching import JMCELNCategoryMatcher, JMCELNCategoryReader, category_evidence
from tests.tiny import tiny_tokenizer


NAMES = ["red", "circle", "star"]
SMALL = {"hidden_size": 32, "mask_feature_size": 16, "intermediate_size": 64, "num_attention_heads": 4}


@pytest.fixture
def model(tmp_path: Path) -> JMCELNModel:
    """A tiny model on folders as `make_photo_encoders` writes them."""
    torch.manual_seed(0)
    vision = AutoModel.from_config(MobileNetV2Config(depth_multiplier=0.35, finegrained_output=True))
    vision.save_pretrained(tmp_path / "vision")
    expanded = vision.layer[12].expand_1x1.convolution.out_channels
    last = vision.conv_1x1.convolution.out_channels
    heads = {}
    for index, channels in enumerate((expanded, last)):
        heads[f"heads.{index}.weight"] = torch.randn(len(NAMES), channels, 3, 3)
        heads[f"heads.{index}.bias"] = torch.full((len(NAMES),), -3.0)
    save_file(heads, tmp_path / "vision" / "category_heads.safetensors")
    (tmp_path / "vision" / "category_names.json").write_text(json.dumps(NAMES))
    tokenizer = tiny_tokenizer()
    text = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=37,
            initializer_range=0.5,
        ),
        add_pooling_layer=False,
    )
    text.save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    return JMCELNModel.from_vision_text_pretrained(tmp_path / "vision", tmp_path / "text", **SMALL)


def test_a_name_means_its_category(model: JMCELNModel) -> None:
    tokenizer = tiny_tokenizer()
    for index, name in enumerate(NAMES):
        inputs = tokenizer(f"the {name}", return_tensors="pt")
        is_name = inputs["input_ids"] == tokenizer.convert_tokens_to_ids(name)
        with torch.no_grad():
            words = model.text_model(input_ids=inputs["input_ids"]).last_hidden_state
            categories = model.category_matcher.reader(words, is_name)
        assert categories.sum(-1) == pytest.approx(1, abs=1e-5)
        assert (categories.argmax(-1) == index).all(), f"{name} is read as another category"


def test_padding_names_no_category(model: JMCELNModel) -> None:
    words = torch.randn(1, 5, 32)
    is_visible = torch.tensor([[True, True, False, False, False]])
    changed = words.clone()
    changed[:, 2:] = 100 * torch.randn(1, 3, 32)
    reader = model.category_matcher.reader
    assert torch.equal(reader(words, is_visible), reader(changed, is_visible))


def test_evidence_and_match_by_hand() -> None:
    fine, coarse = torch.zeros(1, 5, 4, 4), torch.zeros(1, 5, 2, 2)
    fine[0, 3, 1, 2], coarse[0, 4, 0, 0] = 2.0, 3.0
    evidence = category_evidence([fine, coarse], 2)
    assert evidence.shape == (1, 16 + 4, 2)
    assert evidence[0, 1 * 4 + 2, 0] == 2
    assert evidence[0, 0, 1] == 3, "a fine pixel has what the coarse one says"
    assert evidence[0, 16].tolist() == [0, 3]

    config = JMCELNConfig(num_categories=2, feature_indices=[0, 1, 2], feature_channels=[1, 1, 1], **SMALL)
    matcher = JMCELNCategoryMatcher(config)
    categories = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]).flatten(1)
    added = matcher(categories, evidence)
    expected = matcher.projection(torch.tensor([2.0, 0.0]))
    # The fine cell also has what the coarse one says of the second category, a little of it.
    share = evidence[0, 6, 1].item()
    expected = matcher.projection(torch.tensor([2.0, share]))
    assert torch.allclose(added[0, 6], expected, atol=1e-6)
    assert torch.allclose(added[1], matcher.projection.bias.expand(20, -1)), "no category, no match"


def test_every_part_learns_and_the_saved_model_is_the_same(model: JMCELNModel, tmp_path: Path) -> None:
    inputs = {"pixel_values": torch.randn(2, 3, 64, 96), "input_ids": torch.randint(5, 9, (2, 3, 4))}
    outputs = model(**inputs, labels=torch.randint(0, 2, (2, 3, 64, 96)))
    outputs.loss.backward()
    for name, parameter in model.category_matcher.named_parameters():
        assert parameter.grad is not None, name
    model.save_pretrained(tmp_path / "saved")
    loaded = JMCELNModel.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)


def test_missing_weights_of_the_matcher_are_numbers(model: JMCELNModel, tmp_path: Path) -> None:
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("category_matcher")}
    model.save_pretrained(tmp_path / "saved", state_dict=weights)
    loaded = JMCELNModel.from_pretrained(tmp_path / "saved")
    assert all(torch.isfinite(weight).all() for weight in loaded.state_dict().values())


def test_images_padded_to_a_batch_keep_their_categories(model: JMCELNModel) -> None:
    image = torch.randn(1, 3, 64, 64)
    padded = torch.nn.functional.pad(image, (0, 32, 0, 64))
    pixel_mask = torch.zeros(1, 128, 96, dtype=torch.bool)
    pixel_mask[:, :64, :64] = True
    ids = torch.randint(5, 9, (1, 2, 4))
    with torch.no_grad():
        alone = model(pixel_values=image, input_ids=ids).logits
        in_batch = model(pixel_values=padded, pixel_mask=pixel_mask, input_ids=ids).logits[..., :64, :64]
    assert torch.allclose(alone, in_batch, atol=1e-4)


def test_reader_of_a_config() -> None:
    config = JMCELNConfig(
        text_config=AutoConfig.for_model("bert", hidden_size=24, num_attention_heads=2),
        num_categories=7,
        feature_indices=[0, 1, 2],
        feature_channels=[1, 1, 1],
        **SMALL,
    )
    reader = JMCELNCategoryReader(config)
    assert reader(torch.randn(3, 4, 24), torch.ones(3, 4, dtype=torch.bool)).shape == (3, 2, 7)
