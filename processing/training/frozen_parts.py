"""Parts of a model that do not learn by the user's wish."""

from torch import nn


# Every class of batch normalisation, which torch exports by no common public name.
_BatchNorm = nn.modules.batchnorm._BatchNorm


def freeze(module: nn.Module) -> None:
    """Let no parameter of a module learn. No gradient is computed for it, and no activation kept."""
    module.requires_grad_(requires_grad=False)


def batch_norm_layers(module: nn.Module) -> list[nn.Module]:
    """The layers within a module that keep running means and variances while they are in training mode."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
