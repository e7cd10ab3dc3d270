"""Gradients against finite differences, in float64: contextual embedding, alignment, comparison and losses."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.func import functional_call

from modeling_jmceln.alignment import JMCELNProgressiveAlignment
from modeling_jmceln.contextual_embedding import JMCELNContextComparison, JMCELNContextReader, JMCELNContextWriter
from modeling_jmceln.losses import alignment_loss, dice_loss, mask_loss
from tests.modeling_jmceln.inputs import random_model
from tests.tiny import tiny_config


HEIGHT, WIDTH, HIDDEN, MASK_FEATURES = 3, 4, 32, 16


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def module_of(kind):
    """The last module of a kind in a model whose weights are all of consequence."""
    module = [module for module in random_model().double().modules() if isinstance(module, kind)][-1]
    return module.eval()


def check_module(module, *inputs, select=lambda outputs: outputs):
    """Checks gradients by the inputs that need them and by every parameter."""
    names, parameters = zip(*module.named_parameters(), strict=True)

    def apply(*values):
        given, weights = values[: len(inputs)], values[len(inputs) :]
        return select(functional_call(module, dict(zip(names, weights, strict=True)), given))

    assert gradcheck(apply, (*inputs, *(each.detach().requires_grad_() for each in parameters)), fast_mode=True)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_alignment():
    maps = numbers(2, HEIGHT, WIDTH), numbers(2, HEIGHT, WIDTH)
    module = module_of(JMCELNProgressiveAlignment)
    check_module(module, numbers(2, HEIGHT, WIDTH, MASK_FEATURES), *maps)


def test_context_is_written():
    bias = torch.zeros(2, 1, 1, 5, dtype=torch.float64)
    bias[1, ..., 3:] = -1e4
    pixels, positions = numbers(2, HEIGHT * WIDTH, HIDDEN), numbers(1, HEIGHT * WIDTH, HIDDEN)
    # What was found before says where to look, and learns nothing from that.
    before = torch.rand(2, 2, HEIGHT * WIDTH, dtype=torch.float64)
    check_module(
        module_of(JMCELNContextWriter),
        numbers(2, 4, HIDDEN),
        numbers(2, 5, HIDDEN),
        bias,
        pixels,
        positions,
        before,
        select=lambda outputs: outputs[0],
    )


def test_context_is_read():
    bias = torch.zeros(2, 1, 1, 5, dtype=torch.float64)
    bias[1, ..., 3:] = -1e4
    pixels, positions = numbers(2, HEIGHT * WIDTH, HIDDEN), numbers(1, HEIGHT * WIDTH, HIDDEN)
    module = module_of(JMCELNContextReader)
    check_module(module, pixels, positions, numbers(2, 4, HIDDEN), numbers(2, 5, HIDDEN), bias)


def test_comparison():
    previous = torch.randn(4, HEIGHT, WIDTH, 2, dtype=torch.float64)
    module = module_of(JMCELNContextComparison)
    check_module(module, numbers(4, 2, HIDDEN), numbers(2, HEIGHT, WIDTH, MASK_FEATURES), previous)


def targets_and_weights():
    targets = torch.rand(3, HEIGHT, WIDTH, dtype=torch.float64)
    weights = torch.rand(3, HEIGHT, WIDTH, dtype=torch.float64)
    targets[1], weights[2] = 0, 0
    return targets, weights, torch.tensor([True, False, True])


def test_mask_loss():
    targets, weights, has_target = targets_and_weights()
    config = tiny_config(binary_cross_entropy_weight=0.7, dice_weight=1.3)
    assert gradcheck(lambda logits: mask_loss(logits, targets, weights, has_target, config), numbers(3, HEIGHT, WIDTH))


def test_dice_loss():
    targets, weights, _ = targets_and_weights()
    assert gradcheck(lambda logits: dice_loss(logits.sigmoid(), targets, weights), numbers(3, HEIGHT, WIDTH))


def test_alignment_loss_teaches_each_stage_but_the_last():
    _, weights, has_target = targets_and_weights()
    coarse, fine = numbers(3, HEIGHT, WIDTH), numbers(3, 2 * HEIGHT, 2 * WIDTH)
    fine_weights = torch.ones(3, 2 * HEIGHT, 2 * WIDTH, dtype=torch.float64)

    def loss(stage):
        return alignment_loss((stage, fine), [weights, fine_weights], has_target)

    assert gradcheck(loss, coarse.detach().requires_grad_(), check_undefined_grad=False)
    loss(coarse).sum().backward()
    assert fine.grad is None
    assert coarse.grad[0].abs().max() > 0
    assert not coarse.grad[1].any()  # nothing is meant
