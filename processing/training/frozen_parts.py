"""Helpers to freeze parts of a model."""

from typing import Any

from torch import nn


# The base class of all batch normalization layers, which has no public name in torch.
_BatchNorm = nn.modules.batchnorm._BatchNorm


def freeze(module: nn.Module) -> None:
    """Freezes all parameters of a module."""
    module.requires_grad_(requires_grad=False)


def batch_norm_layers(module: nn.Module) -> list[nn.Module]:
    """Returns the batch normalization layers of a module, which update their statistics in training mode."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


def freeze_batch_norm_statistics(module: nn.Module) -> None:
    """
    Let batch normalization use its saved means and variances in training mode too, and leave them as they are.

    For any training loop. A batch of a few images does not measure them well, and adapters (LoRA) do not save them: a
    model that is reloaded with its adapter would otherwise compute with other statistics than the trained one.
    """
    for layer in batch_norm_layers(module):
        layer.register_forward_pre_hook(_into_evaluation_mode)


def _into_evaluation_mode(layer: nn.Module, _: Any) -> None:
    layer.eval()
