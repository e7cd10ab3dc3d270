"""
The model, its training and its pipeline on a device, against the same on the CPU in float32.

Each test runs on the CPU too, on a tiny model, so that only the device itself is new where there is one:
`make gpu-check` runs those marked `gpu`.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from modeling_jmceln import JMCELNModel
from processing import ReferringImageSegmentationPipeline
from processing.training import run as train
from tests.processing.training.tiny_run import write_settings
from tests.tiny import tiny_config, tiny_processor


SIZE = 64
# Largest difference of a probability, and of the gradient's length as a share of it.
TOLERANCES = {torch.float32: (1e-3, 1e-2), torch.bfloat16: (0.05, 0.1), torch.float16: (0.01, 0.05)}

on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@pytest.fixture
def model() -> JMCELNModel:
    """In evaluation mode: what dropout draws differs from device to device."""
    torch.manual_seed(0)
    return JMCELNModel(tiny_config()).eval()


def batch(device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.long)
    labels[..., 10:40, 20:50] = 1
    inputs = {
        "pixel_values": torch.randn(2, 3, SIZE, SIZE, generator=generator),
        "input_ids": torch.randint(5, 99, (2, 3, 7), generator=generator),
        "labels": labels,
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def gradient_length(model: JMCELNModel) -> float:
    gradients = [parameter.grad.float().norm() for parameter in model.parameters() if parameter.grad is not None]
    return torch.stack(gradients).norm().item()


@on_each_device
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_forward_and_backward_agree_with_the_cpu(model: JMCELNModel, device: str, dtype: torch.dtype) -> None:
    reference = model(**batch("cpu"))
    reference.loss.backward()
    expected_length = gradient_length(model)
    other = copy.deepcopy(model).to(device)
    other.zero_grad()
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        outputs = other(**batch(device))
    outputs.loss.backward()
    probability, length = TOLERANCES[dtype]
    got, expected = (each.logits.float().cpu().sigmoid() for each in (outputs, reference))
    torch.testing.assert_close(got, expected, atol=probability, rtol=0)
    assert outputs.loss.item() == pytest.approx(reference.loss.item(), rel=length)
    assert gradient_length(other) == pytest.approx(expected_length, rel=length)


@on_each_device
def test_compiled_model_agrees(model: JMCELNModel, device: str) -> None:
    model = model.to(device)
    inputs = batch(device)
    torch._dynamo.reset()
    # The compiler of kernels takes minutes on a CPU; what can break is the graph, which is the same.
    compiled = torch.compile(model, backend="inductor" if device == "cuda" else "eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, atol=1e-3, rtol=1e-3)


@on_each_device
def test_gradient_checkpointing_changes_no_gradient(model: JMCELNModel, device: str) -> None:
    model = model.to(device).train()
    lengths = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        torch.manual_seed(0)
        model(**batch(device)).loss.backward()
        lengths.append(gradient_length(model))
    assert lengths[1] == pytest.approx(lengths[0], rel=1e-3)


@on_each_device
def test_sharded_model_trains_as_the_whole_one(model: JMCELNModel, device: str, tmp_path: Path) -> None:
    whole = copy.deepcopy(model).to(device)
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=distributed.FileStore(str(tmp_path / "store"), 1),
        rank=0,
        world_size=1,
    )
    try:
        mesh = init_device_mesh(device, (1,))
        sharded = fully_shard(model.to(device), mesh=mesh)
        losses = {}
        for name, each in (("whole", whole), ("sharded", sharded)):
            optimizer = torch.optim.AdamW(each.parameters(), lr=1e-3)
            losses[name] = []
            for _ in range(3):
                loss = each(**batch(device)).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses[name].append(loss.item())
        assert losses["sharded"] == pytest.approx(losses["whole"], rel=1e-3)
        assert losses["sharded"][-1] < losses["sharded"][0]
    finally:
        distributed.destroy_process_group()


@on_each_device
def test_pipeline_gives_what_processor_and_model_give_on_the_cpu(model: JMCELNModel, device: str) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    expressions = ["the red circle", "a large star"]
    processor = tiny_processor()
    with torch.no_grad():
        outputs = model(**processor(images=photo, text=expressions, return_tensors="pt"))
    (expected,) = processor.post_process_referring_segmentation(
        outputs, threshold=0.0, mask_threshold=0.2, target_sizes=[photo.shape[:2]]
    )
    place = 0 if device == "cuda" else device
    pipe = ReferringImageSegmentationPipeline(model=copy.deepcopy(model), processor=processor, device=place)
    answers = pipe(photo, expressions, threshold=0.0, mask_threshold=0.2)
    for answer, mask, score in zip(answers, expected["masks"].numpy(), expected["scores"].tolist(), strict=True):
        assert answer["score"] == pytest.approx(score, abs=1e-3)
        assert ((np.asarray(answer["mask"]) > 0) != mask).mean() < 0.01


@on_each_device
@pytest.mark.slow
def test_resumed_run_ends_as_the_whole_one(device: str, tmp_path: Path) -> None:
    settings = str(write_settings(tmp_path, use_cpu=device == "cpu", save_steps=3, eval_strategy="no", eval_data=None))
    train.main([settings])
    run = tmp_path / "run"
    (whole,) = run.glob("checkpoint-6/model.safetensors")
    expected = JMCELNModel.from_pretrained(whole.parent).state_dict()
    train.main(
        [settings, "--output_dir", str(tmp_path / "again"), "--resume_from_checkpoint", str(run / "checkpoint-3")]
    )
    for name, tensor in JMCELNModel.from_pretrained(tmp_path / "again" / "checkpoint-6").state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-3, rtol=1e-2)
