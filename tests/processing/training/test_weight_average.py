"""The moving average of the weights."""

import pytest
import torch
from torch import nn

from processing.training.weight_average import WeightAverage


def test_is_the_average_that_its_formula_says():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average = WeightAverage(model, 0.9)
    expected = 1.0
    for step in range(30):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.averages["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_is_applied_and_taken_back_also_after_an_error():
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.5)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.weight.add_(1.0)
    changed = model.weight.clone()

    def fail_inside():
        with average.applied(model):
            assert torch.equal(model.weight, own["weight"])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_inside()
    assert torch.equal(model.weight, changed)


def test_is_saved_and_read_again(tmp_path):
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update(model)
    average.save(tmp_path)
    again = WeightAverage(nn.Linear(2, 2).requires_grad_(False), 0.9)
    with pytest.raises(ValueError, match="other parameters"):
        again.load(tmp_path)
    other = nn.Linear(2, 2)
    other.bias.requires_grad_(False)
    again = WeightAverage(other, 0.9)
    again.load(tmp_path)
    assert again.num_updates == 1
    assert torch.equal(again.averages["weight"], average.averages["weight"])
    with pytest.raises(FileNotFoundError, match="kept no average"):
        again.load(tmp_path / "elsewhere")


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_refuses_a_decay_that_is_none(decay):
    with pytest.raises(ValueError, match="in \\(0, 1\\)"):
        WeightAverage(nn.Linear(1, 1), decay)
