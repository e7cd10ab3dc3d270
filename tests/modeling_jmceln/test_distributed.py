"""`DistributedDataParallel` with an encoder that has parameters without a gradient."""

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig

from modeling_jmceln import JMCELNModel
from tests.modeling_jmceln.inputs import random_inputs, random_labels


SIZES = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_model_with_unused_parameters(folder: Path) -> None:
    """A model whose vision encoder, SigLIP, has a pooling head that the model does not use."""
    vision = AutoConfig.for_model("siglip_vision_model", image_size=64, patch_size=16, **SIZES)
    text = AutoConfig.for_model("bert", vocab_size=99, **SIZES)
    fields = {"hidden_size": 16, "mask_feature_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    JMCELNModel.from_vision_text_pretrained(vision, text, **fields, num_stages=2).save_pretrained(folder / "model")


def train(rank: int, folder: Path, freezes: bool) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{freezes}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    model = JMCELNModel.from_pretrained(folder / "model").train()
    if freezes:
        assert any("head" in name for name in model.freeze_unused_parameters())
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD((each for each in model.parameters() if each.requires_grad), lr=0.01)
    for step in range(3):
        inputs = random_inputs(1, 2, seed=2 * step + rank)
        optimizer.zero_grad()
        parallel(**inputs, labels=random_labels(inputs)).loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / f"weights-{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_an_encoder_with_unused_parameters(tmp_path: Path) -> None:
    save_model_with_unused_parameters(tmp_path)
    with pytest.raises(multiprocessing.ProcessRaisedException, match="Expected to have finished reduction"):
        multiprocessing.spawn(train, (tmp_path, False), nprocs=2)
    multiprocessing.spawn(train, (tmp_path, True), nprocs=2)
    before = JMCELNModel.from_pretrained(tmp_path / "model").state_dict()
    one, other = (torch.load(tmp_path / f"weights-{rank}.pt") for rank in range(2))
    assert all(torch.equal(one[name], other[name]) for name in before)
    trained = {name for name, weight in before.items() if not torch.equal(weight, one[name])}
    assert any(name.startswith("backbone.encoder.encoder") for name in trained)
    assert not any(name.startswith("backbone.encoder.head") for name in trained)
