"""What the answer to an expression may not depend on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_jmceln import modeling_jmceln as modeling
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


def padded_to(pixel_values: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image in the upper left corner of a larger one, and where it is. What pads it is no zero on purpose."""
    padded = torch.full((1, 3, height, width), 3.0)
    padded[..., : pixel_values.shape[-2], : pixel_values.shape[-1]] = pixel_values
    mask = torch.zeros(1, height, width, dtype=torch.long)
    mask[:, : pixel_values.shape[-2], : pixel_values.shape[-1]] = 1
    return padded, mask


@pytest.mark.parametrize("use_contextual_embedding", [True, False])
@torch.no_grad()
def test_an_image_gets_the_same_answer_however_it_is_padded(use_contextual_embedding):
    # Any encoder and any size, since each image is computed as if it were alone: Swin sees windows, 50 is no stride.
    model = random_model(num_stages=3, use_contextual_embedding=use_contextual_embedding)
    images = [random_inputs(1, 3, height=height, width=width, seed=width) for height, width in ((50, 70), (64, 33))]
    images.append({**images[0], "pixel_values": images[0]["pixel_values"].flip(-1)})
    alone = [model(**image, output_attentions=True, output_hidden_states=True) for image in images]
    for height, width in ((64, 70), (100, 150)):
        pairs = [padded_to(image["pixel_values"], height, width) for image in images]
        batch = {
            "pixel_values": torch.cat([pixels for pixels, _ in pairs]),
            "pixel_mask": torch.cat([mask for _, mask in pairs]),
            "input_ids": torch.cat([image["input_ids"] for image in images]),
        }
        together = model(**batch, output_attentions=True, output_hidden_states=True)
        assert together.logits.shape == (3, 3, height, width)
        features = model.get_image_features(batch["pixel_values"], batch["pixel_mask"])
        torch.testing.assert_close(
            model(image_features=features, input_ids=batch["input_ids"]).logits, together.logits
        )
        for index, (image, expected) in enumerate(zip(images, alone, strict=True)):
            rows, columns = image["pixel_values"].shape[-2:]
            logits = together.logits[index]
            torch.testing.assert_close(logits[:, :rows, :columns], expected.logits[0], **TOLERANCE)
            assert (logits[:, rows:] < -10).all()
            assert (logits[:, :, columns:] < -10).all()
            torch.testing.assert_close(together.presence_logits[index], expected.presence_logits[0], **TOLERANCE)
            for ours, theirs in zip(together.stage_logits, expected.stage_logits, strict=True):
                cells = theirs.shape[-2:]
                torch.testing.assert_close(ours[index, :, : cells[0], : cells[1]], theirs[0], **TOLERANCE)
            for ours, theirs in zip(together.attentions, expected.attentions, strict=True):
                torch.testing.assert_close(ours[index].sum(-1), theirs[0].sum(-1))
                num_keys = theirs.shape[-1] + (ours[index].shape[-1] - theirs.shape[-1]) * use_contextual_embedding
                assert ours[index].shape[-1] == num_keys


def test_padding_teaches_nothing():
    model = random_model(num_stages=3)
    image = random_inputs(1, 2, height=50, width=70)
    labels, landmark_masks = random_labels(image), random_labels(image, seed=1)
    expected = model(**image, labels=labels, landmark_masks=landmark_masks).loss
    padded, mask = padded_to(image["pixel_values"], 100, 150)
    size = (0, 150 - 70, 0, 100 - 50)
    for value in (255, 1):
        loss = model(
            padded,
            image["input_ids"],
            pixel_mask=mask,
            labels=torch.nn.functional.pad(labels, size, value=value),
            landmark_masks=torch.nn.functional.pad(landmark_masks, size, value=value),
        ).loss
        torch.testing.assert_close(loss, expected)
    loss.backward()
    # The names before the last three differ between releases of transformers.
    (patches,) = (
        weight for name, weight in model.named_parameters() if name.endswith("patch_embeddings.projection.weight")
    )
    assert patches.grad.abs().sum() > 0


def test_refused_pixel_masks():
    inputs = random_inputs(2, 1)
    mask = torch.ones(2, 64, 64)
    with pytest.raises(ValueError, match=r"`pixel_mask` must have the shape .*\(2, 64, 64\)"):
        MODEL(**inputs, pixel_mask=mask[:, :32])
    mask[1, 3, 3] = 0
    with pytest.raises(ValueError, match=r"one rectangle in the upper left corner.*image 1 of the batch"):
        MODEL(**inputs, pixel_mask=mask)


@torch.no_grad()
def test_text_features_give_the_logits_of_the_one_call_form():
    inputs = random_inputs(2, 3)
    inputs["attention_mask"][0, 1, 4:] = 0
    expected = MODEL(**inputs).logits
    features = MODEL.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    torch.testing.assert_close(MODEL(inputs["pixel_values"], text_features=features).logits, expected)
    image_features = MODEL.get_image_features(inputs["pixel_values"])
    torch.testing.assert_close(MODEL(image_features=image_features, text_features=features).logits, expected)


@torch.no_grad()
def test_one_phrase_is_encoded_once_for_many_images():
    inputs = random_inputs(3, None)
    phrase = inputs["input_ids"][:1]
    features = MODEL.get_text_features(phrase)
    expected = MODEL(inputs["pixel_values"], phrase.expand(3, -1))
    outputs = MODEL(inputs["pixel_values"], text_features=features)
    torch.testing.assert_close(outputs.logits, expected.logits, **TOLERANCE)
    torch.testing.assert_close(outputs.presence_logits, expected.presence_logits, **TOLERANCE)


@torch.no_grad()
def test_many_expressions_are_answered_in_parts(monkeypatch):
    inputs = random_inputs(2, 7)
    whole = MODEL(**inputs, output_attentions=True)
    monkeypatch.setattr(modeling, "EXPRESSIONS_AT_A_TIME", 3)
    sizes = []
    original = MODEL._answer

    def recorded(image_features, words, *arguments, **kwargs):
        sizes.append(words.shape[1])
        return original(image_features, words, *arguments, **kwargs)

    monkeypatch.setattr(MODEL, "_answer", recorded)
    parts = MODEL(**inputs, output_attentions=True)
    assert sizes == [3, 3, 1]
    torch.testing.assert_close(parts.logits, whole.logits, **TOLERANCE)
    torch.testing.assert_close(parts.presence_logits, whole.presence_logits, **TOLERANCE)
    for ours, theirs in zip(parts.attentions, whole.attentions, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)
    with torch.enable_grad():
        MODEL(**inputs)
    assert sizes[3:] == [7]
