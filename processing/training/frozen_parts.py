"""Parts of a model that do not learn, by the user's wish or because nothing depends on them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


# Every class of batch normalisation, which torch exports by no common public name.
_BatchNorm = nn.modules.batchnorm._BatchNorm


def freeze(module: nn.Module) -> None:
    """Let no parameter of a module learn. No gradient is computed for it, and no activation kept."""
    module.requires_grad_(requires_grad=False)


def batch_norm_layers(module: nn.Module) -> list[nn.Module]:
    """The layers within a module that keep running means and variances while they are in training mode."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


def freeze_unused_parameters(model: nn.Module, height: int, width: int) -> list[str]:
    """
    Freeze the parameters of the encoders on which neither masks nor presence depend.

    Text encoders bring heads along that only other tasks use, such as poolers. With several processes DDP would wait
    for the gradients of these without an end. One small step backwards shows them, for whichever encoder.

    Args:
        model (`nn.Module`):
            A [`JMCELNModel`], not wrapped. It stays in the mode it is in.
        height, width (`int`):
            A size of images that the model takes.

    Returns:
        `list[str]`: names of the parameters that were frozen.
    """
    encoders = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith(("backbone.", "text_model.")) and parameter.requires_grad
    }
    if not encoders:
        return []
    device = next(iter(encoders.values())).device
    words = torch.ones(1, 1, 4, dtype=torch.long, device=device)
    with _evaluating(model):
        outputs = model(
            pixel_values=torch.zeros(1, 3, height, width, device=device), input_ids=words, attention_mask=words
        )
        outcome = outputs.logits.sum() + outputs.presence_logits.sum()
        gradients = torch.autograd.grad(outcome, list(encoders.values()), allow_unused=True)
    unused = [name for name, gradient in zip(encoders, gradients, strict=True) if gradient is None]
    for name in unused:
        encoders[name].requires_grad = False
    return unused


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, and without a change to the statistics of batch normalisation."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
