"""What the answer to an expression may not depend on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.modeling_jmceln.inputs import random_inputs, random_labels, random_model


TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}
MODEL = random_model()


@torch.no_grad()
def answers(inputs: dict[str, torch.Tensor], model=MODEL) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = model(**inputs)
    return outputs.logits, outputs.presence_logits


@settings(max_examples=8)
@given(height=st.integers(1, 150), width=st.integers(1, 150), expressions=st.integers(1, 3), seed=st.integers(0, 1000))
def test_any_size_and_number_of_expressions(height, width, expressions, seed):
    inputs = random_inputs(2, expressions, height=height, width=width, seed=seed)
    outputs = MODEL(**inputs)
    assert outputs.logits.shape == (2, expressions, height, width)
    assert outputs.presence_logits.shape == (2, expressions)
    assert len(outputs.stage_logits) == MODEL.config.num_stages
    assert outputs.logits.isfinite().all()


def test_very_wide_image():
    inputs = random_inputs(1, 1, height=123, width=457)
    assert MODEL(**inputs).logits.shape == (1, 1, 123, 457)


def test_logits_do_not_depend_on_other_images_and_expressions():
    inputs = random_inputs(3, 4, height=70, width=90)
    logits, presence = answers(inputs)
    for image in range(3):
        for expression in range(4):
            alone = {
                "pixel_values": inputs["pixel_values"][image : image + 1],
                "input_ids": inputs["input_ids"][image : image + 1, expression],
                "attention_mask": inputs["attention_mask"][image : image + 1, expression],
            }
            logits_alone, presence_alone = answers(alone)
            torch.testing.assert_close(logits_alone[0], logits[image, expression], **TOLERANCE)
            torch.testing.assert_close(presence_alone[0], presence[image, expression], **TOLERANCE)


@pytest.mark.parametrize("padding_id", [0, 7])
def test_logits_do_not_depend_on_padding(padding_id):
    inputs = random_inputs(2, 2)
    logits, presence = answers(inputs)
    padding = torch.full((2, 2, 5), padding_id)
    padded = {
        "pixel_values": inputs["pixel_values"],
        "input_ids": torch.cat([inputs["input_ids"], padding], dim=-1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.zeros_like(padding)], dim=-1),
    }
    # and a third expression of padding alone
    padded = {
        name: value if name == "pixel_values" else torch.cat([value, torch.zeros_like(value[:, :1])], dim=1)
        for name, value in padded.items()
    }
    logits_padded, presence_padded = answers(padded)
    torch.testing.assert_close(logits_padded[:, :2], logits, **TOLERANCE)
    torch.testing.assert_close(presence_padded[:, :2], presence, **TOLERANCE)
    assert logits_padded.isfinite().all()


def test_padded_expression_counts_for_nothing_in_the_loss():
    inputs = random_inputs(2, 2)
    labels = random_labels(inputs)
    loss = MODEL(**inputs, labels=labels).loss
    padded = {
        name: value if name == "pixel_values" else torch.cat([value, torch.zeros_like(value[:, :1])], dim=1)
        for name, value in inputs.items()
    }
    padded_labels = torch.cat([labels, torch.full_like(labels[:, :1], 255)], dim=1)
    torch.testing.assert_close(MODEL(**padded, labels=padded_labels).loss, loss)
    wrong_labels = torch.cat([labels, torch.ones_like(labels[:, :1])], dim=1)
    torch.testing.assert_close(MODEL(**padded, labels=wrong_labels).loss, loss)


def test_order_of_expressions_permutes_the_outputs():
    inputs = random_inputs(2, 4)
    logits, presence = answers(inputs)
    order = torch.tensor([2, 0, 3, 1])
    permuted = {
        "pixel_values": inputs["pixel_values"],
        "input_ids": inputs["input_ids"][:, order],
        "attention_mask": inputs["attention_mask"][:, order],
    }
    logits_permuted, presence_permuted = answers(permuted)
    torch.testing.assert_close(logits_permuted, logits[:, order], **TOLERANCE)
    torch.testing.assert_close(presence_permuted, presence[:, order], **TOLERANCE)


@torch.no_grad()
def test_image_features_give_the_logits_of_the_one_call_form():
    inputs = random_inputs(2, 3, height=50, width=99)
    outputs = MODEL(**inputs)
    features = MODEL.get_image_features(inputs.pop("pixel_values"))
    reused = MODEL(image_features=features, **inputs)
    assert torch.equal(reused.logits, outputs.logits)
    assert torch.equal(MODEL(image_features=outputs.image_features, **inputs).logits, outputs.logits)


def test_expression_matters_and_image_matters():
    inputs = random_inputs(2, 2)
    logits, _ = answers(inputs)
    assert not torch.allclose(logits[:, 0], logits[:, 1], atol=1e-2)
    assert not torch.allclose(logits[0], logits[1], atol=1e-2)


@torch.no_grad()
def test_eager_and_sdpa_agree():
    inputs = random_inputs(2, 3, height=80, width=60)
    model = random_model()
    model.set_attn_implementation("sdpa")
    sdpa = model(**inputs).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**inputs).logits, sdpa, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_asking_for_attentions_changes_nothing():
    inputs = random_inputs(2, 3)
    outputs = MODEL(**inputs, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(outputs.logits, MODEL(**inputs).logits, **TOLERANCE)
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert len(outputs.hidden_states) == MODEL.config.num_stages + 1
