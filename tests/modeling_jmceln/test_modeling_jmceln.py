"""The whole model: inputs it refuses, precision, wrapping, saving, cost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

import modeling_jmceln
from modeling_jmceln import JMCELNConfig, JMCELNForReferringSegmentation, JMCELNModel
from tests.modeling_jmceln.inputs import random_inputs, random_labels, random_model
from tests.tiny import tiny_config


def test_refused_inputs():
    model, inputs = random_model(), random_inputs(2, 3)
    with pytest.raises(ValueError, match="either `pixel_values` or `image_features`"):
        model(input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match="either `pixel_values` or `image_features`"):
        model(**inputs, image_features=model.get_image_features(inputs["pixel_values"]))
    with pytest.raises(ValueError, match="No expression was given: pass `input_ids`"):
        model(pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="without a dimension of size 0"):
        model(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"][..., :0])
    with pytest.raises(ValueError, match="2 images, but expressions for 1"):
        model(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"][:1])
    with pytest.raises(ValueError, match="must both have the same shape"):
        model(**{**inputs, "attention_mask": inputs["attention_mask"][:, 0]})
    with pytest.raises(ValueError, match=r"`labels` must have the shape \(2, 3, 64, 64\)"):
        model(**inputs, labels=torch.zeros(2, 3, 32, 32, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(batch, 3, height, width\), got \(3, 64, 64\)"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][0]})
    features = model.get_image_features(inputs["pixel_values"], return_dict=False)
    with pytest.raises(TypeError, match="`image_features` is a tuple"):
        model(image_features=features, input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match="got \\(0, 3, 64, 64\\)"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][:0]})


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan"), float("inf"), 128])
@pytest.mark.parametrize("name", ["labels", "landmark_masks"])
def test_masks_of_other_values_are_refused(name, value):
    model, inputs = random_model(), random_inputs(1, 2)
    masks = {"labels": random_labels(inputs), "landmark_masks": random_labels(inputs)}
    masks[name] = masks[name].float() if isinstance(value, float) else masks[name]
    masks[name][0, 1, 5, 7] = value
    with pytest.raises(ValueError, match=rf"`{name}` must hold 1 at the object.*got \[{value}\]"):
        model(**inputs, **masks)


def test_probabilities_are_no_labels():
    model, inputs = random_model(), random_inputs(1, 2)
    with pytest.raises(ValueError, match="Compare probabilities with a threshold"):
        model(**inputs, labels=torch.rand(1, 2, 64, 64))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bool])
def test_masks_of_every_type_give_the_same_loss(dtype):
    model, inputs = random_model(), random_inputs(1, 2)
    labels = random_labels(inputs).clamp(max=1)
    expected = model(**inputs, labels=labels).loss
    assert torch.equal(model(**inputs, labels=labels.to(dtype)).loss, expected)


@pytest.mark.parametrize(
    "name",
    ["pixel_values", "input_ids", "attention_mask", "pixel_mask", "labels", "landmark_masks"],
)
@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.tolist])
def test_what_is_no_tensor_is_named(name, convert):
    model, inputs = random_model(), random_inputs(1, 2)
    inputs["labels"] = inputs["landmark_masks"] = random_labels(inputs)
    inputs["pixel_mask"] = torch.ones(1, 64, 64)
    inputs[name] = convert(inputs[name])
    with pytest.raises(TypeError, match=f"`{name}` must be a tensor, got a (ndarray|list)"):
        model(**inputs)


@pytest.mark.parametrize("name", ["image_features", "text_features"])
@pytest.mark.parametrize("features", [{"last_hidden_state": 1}, [1], 3])
def test_features_that_are_no_output_are_named(name, features):
    inputs = random_inputs(1, 1)
    del inputs["pixel_values" if name == "image_features" else "input_ids"]
    inputs.pop("attention_mask")
    with pytest.raises(TypeError, match=f"`{name}` is a (dict|list|int): pass the output of `get_{name}`"):
        random_model()(**inputs, **{name: features})


def test_expressions_longer_than_the_text_encoder_reads_are_refused():
    model, inputs = random_model(), random_inputs(1, 1)
    longest = model.config.text_config.max_position_embeddings
    for length in (longest, longest + 1):
        inputs["input_ids"] = inputs["attention_mask"] = torch.ones(1, 1, length, dtype=torch.long)
        if length == longest:
            model(**inputs)
    with pytest.raises(ValueError, match=rf"{longest + 1} tokens.*`truncation=True, max_length={longest}`"):
        model(**inputs)


def test_unknown_arguments_are_named_with_the_nearest():
    model, inputs = random_model(), random_inputs(1, 1)
    with pytest.raises(TypeError, match="has no argument `label`: did you mean `labels`"):
        model(**inputs, label=random_labels(inputs))
    with pytest.raises(TypeError, match="has no argument `zzz`: it takes pixel_values, input_ids"):
        model(**inputs, zzz=1)


def test_what_the_processor_returns_is_taken():
    inputs = random_inputs(1, 1)
    outputs = random_model()(**inputs, original_sizes=torch.tensor([[480, 640]]))
    assert outputs.logits.shape == (1, 1, 64, 64)


def test_the_name_of_the_task_is_the_model():
    assert JMCELNForReferringSegmentation is JMCELNModel
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", modeling_jmceln.__version__)
    assert (Path(modeling_jmceln.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("sizes_in_text", [{"text_features": True, "input_ids": True}, {}])
def test_either_words_or_their_features(sizes_in_text):
    model, inputs = random_model(), random_inputs(1, 1)
    features = model.get_text_features(inputs["input_ids"])
    given = {name: features if name == "text_features" else inputs["input_ids"] for name in sizes_in_text}
    with pytest.raises(ValueError, match="`input_ids`"):
        model(inputs["pixel_values"], **given)
    with pytest.raises(TypeError, match="`text_features` is a tuple: pass the output of `get_text_features`"):
        model(inputs["pixel_values"], text_features=features.to_tuple())


def test_wrong_strides_are_named():
    model, inputs = random_model(), random_inputs(1, 1)
    model.config.feature_strides = [8, 16, 32, 64]
    with pytest.raises(ValueError, match=r"`feature_strides=\[8, 16, 32, 64\]` it should be \(8, 8\)"):
        model(**inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_half_precision_is_close_to_single(dtype, implementation):
    model, inputs = random_model(), random_inputs(2, 2)
    inputs["attention_mask"][0, 0, 4:] = 0
    inputs["attention_mask"][1, 1] = 0
    model.set_attn_implementation(implementation)
    probabilities = model(**inputs).logits.sigmoid()
    half = model.to(dtype)(**inputs)  # whose pixels are float32, as a processor gives them
    assert half.logits.dtype == dtype
    assert (half.logits.float().sigmoid() - probabilities)[0].abs().mean() < 0.02


@pytest.mark.slow
@torch.no_grad()
def test_float16_where_a_map_has_more_cells_than_it_can_count():
    # 1024 x 1024 pixels are 65,536 cells at stride 4, and float16 ends at 65,504.
    model = random_model()
    for stage in model.cascade.stages:
        nn.init.constant_(stage.predictor.bias.bias, 12.0)
    for stage in model.cascade.stages[1:]:
        nn.init.normal_(stage.predictor.comparison.weights.weight, std=0.3)
    inputs = random_inputs(1, 1, height=1024, width=1024)
    expected = model(**inputs).logits
    logits = model.half()(**inputs).logits
    assert expected.min() > 0, "a mask that covers all"
    assert logits.isfinite().all()
    assert (logits.float() - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_autocast_trains():
    model, inputs = random_model().train(), random_inputs(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**inputs, labels=random_labels(inputs)).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        model, inputs = random_model(num_stages=3).train(), random_inputs(2, 2)
        for module in model.modules():
            # Swin drops paths and BERT drops units at random, in another order when recomputed without the state.
            if "Drop" in type(module).__name__:
                module.eval()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            assert model.is_gradient_checkpointing
        model(**inputs, labels=random_labels(inputs)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_save_and_load_bit_for_bit(tmp_path):
    model = random_model()
    model.save_pretrained(tmp_path, max_shard_size="500kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for loader in (JMCELNModel, AutoModel):
        loaded = loader.from_pretrained(tmp_path)
        assert isinstance(loaded, JMCELNModel)
        for (name, ours), (loaded_name, theirs) in zip(
            model.state_dict().items(), loaded.state_dict().items(), strict=True
        ):
            assert name == loaded_name
            assert torch.equal(ours, theirs)
    inputs = random_inputs()
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


def test_truncated_checkpoint_is_refused(tmp_path):
    random_model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(Exception, match=r"(?i)header|deserializ|incomplete"):
        JMCELNModel.from_pretrained(tmp_path)


def test_resize_token_embeddings():
    model = random_model()
    model.resize_token_embeddings(120)
    assert model.config.text_config.vocab_size == 120
    inputs = random_inputs()
    inputs["input_ids"][..., 0] = 119
    assert model(**inputs).logits.isfinite().all()


def test_lora_on_the_attention_layers():
    peft = pytest.importorskip("peft")
    model, inputs = random_model(), random_inputs()
    expected = model(**inputs).logits
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["presence_head"])
    )
    torch.testing.assert_close(adapted(**inputs).logits, expected)
    adapted(**inputs, labels=random_labels(inputs)).loss.backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert any("lora_A" in name for name in trained)
    assert all("lora_" in name or "modules_to_save" in name for name in trained)


@pytest.mark.slow
def test_compiled_model_gives_the_same_logits_and_gradients():
    model, inputs = random_model(), random_inputs()
    labels = random_labels(inputs)
    expected = model(**inputs, labels=labels)
    expected.loss.backward()
    gradient = model.presence_head.hidden.weight.grad.clone()
    model.zero_grad()
    # What can break is the capture of one whole graph; the code generator behind it takes minutes on a small machine.
    compiled = torch.compile(model, backend="aot_eager")
    outputs = compiled(**inputs, labels=labels)
    outputs.loss.backward()
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.presence_head.hidden.weight.grad, gradient, atol=1e-4, rtol=1e-3)


def test_tuple_output():
    model, inputs = random_model(), random_inputs()
    outputs = model(**inputs, return_dict=False)
    assert torch.equal(outputs[0], model(**inputs).logits)


def count_flops(config: JMCELNConfig, expressions: int, size: int) -> dict[str, float]:
    with torch.device("meta"):
        model = JMCELNModel(config)
    # Zeros cost as many operations as trained weights, and no time to draw.
    model = model.to_empty(device="cpu").eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.zero_()
    inputs = random_inputs(1, expressions, 20, height=size, width=size)
    with FlopCounterMode(display=False, depth=2) as counter:
        model(**inputs)
    return {name.removeprefix("JMCELNModel."): sum(c.values()) / 1e9 for name, c in counter.get_flop_counts().items()}


@torch.no_grad()
def test_cost_at_swin_base_and_bert_base_stays_in_the_budget():
    # The encoders' depth changes nothing of what comes after them, so one layer each does.
    config = JMCELNConfig(attn_implementation="eager")
    config.backbone_config.depths = [1, 1, 1, 1]
    config.text_config.num_hidden_layers = 1
    one, two = (count_flops(config, count, 480) for count in (1, 2))
    assert one["Global"] - one["backbone"] - one["text_model"] < 17
    for part in ("backbone", "pixel_decoder", "upsampler"):
        assert one[part] == two[part]
    further = (two["Global"] - two["text_model"]) - (one["Global"] - one["text_model"])
    assert further < 9.5


@torch.no_grad()
def test_cost_grows_no_faster_than_the_pixels():
    for max_key_size, is_linear in ((4, True), (64, False)):
        config = tiny_config(attn_implementation="eager", max_key_size=max_key_size)
        # Working maps of 8 x 8 and of 16 x 16 cells, four times as many.
        small, large = (count_flops(config, 1, size) for size in (128, 256))
        for part in ("fusion_layers.0", "cascade", "pixel_decoder"):
            assert (large[part] <= 4 * small[part]) == is_linear


def test_config_in_the_folder_names_the_code(tmp_path):
    random_model().save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_jmceln.JMCELNConfig",
        "AutoModel": "modeling_jmceln.JMCELNModel",
    }


def test_even_the_smallest_variants_run():
    for overrides in ({"num_stages": 1}, {"num_fusion_layers": 0, "num_image_layers": 0}, {"num_stages": 5}):
        model = JMCELNModel(tiny_config(**overrides)).eval()
        outputs = model(**random_inputs())
        assert outputs.logits.shape == (2, 3, 64, 64)
