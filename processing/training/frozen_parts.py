"""Parts of a model that do not learn by the user's wish."""

from typing import Any

from torch import nn


# Every class of batch normalisation, which torch exports by no common public name.
_BatchNorm = nn.modules.batchnorm._BatchNorm


def freeze(module: nn.Module) -> None:
    """Let no parameter of a module learn. No gradient is computed for it, and no activation kept."""
    module.requires_grad_(requires_grad=False)


def batch_norm_layers(module: nn.Module) -> list[nn.Module]:
    """The layers within a module that keep running means and variances while they are in training mode."""
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
