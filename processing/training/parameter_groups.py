"""Parameter groups of the optimizer, by learning rate and weight decay."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn


# Prefixes that wrappers add to parameter names: DDP, FSDP, gradient checkpointing and torch.compile, in this order.
_WRAPPER = re.compile(r"(^|(?<=\.))(module|_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")


def plain_name(name: str) -> str:
    """Returns the name of a parameter without the prefixes of DDP, FSDP, checkpointing and `torch.compile`."""
    return _WRAPPER.sub("", name)


def decaying_parameter_names(model: nn.Module) -> set[str]:
    """
    Returns the names of the parameters with weight decay: matrices and kernels.

    Biases, gains, normalization parameters and relative position bias tables do not decay, as in Swin (Liu et al.
    2021).

    Args:
        model (`nn.Module`):
            The model without wrappers, since FSDP flattens parameters.
    """
    names = set()
    for module_name, module in model.named_modules():
        if "norm" in type(module).__name__.lower():
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1 and "bias" not in name:
                names.add(plain_name(f"{module_name}.{name}" if module_name else name))
    return names


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    learning_rate_scales: Mapping[str, float] | None = None,
    decaying: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """
    Groups the trainable parameters for an optimizer.

    Args:
        model (`nn.Module`):
            The model, wrapped or not.
        learning_rate (`float`):
            Learning rate of parameters without an entry in `learning_rate_scales`.
        weight_decay (`float`):
            Weight decay of `decaying`.
        learning_rate_scales (`Mapping[str, float]`, *optional*):
            Factor of the learning rate by the prefix of the parameter name; the longest matching prefix counts. A
            factor of 0 keeps a parameter constant, but its gradient is still computed.
        decaying (`Iterable[str]`, *optional*):
            Names of the parameters that decay. Defaults to [`decaying_parameter_names`] of `model`.

    Returns:
        `list[dict]`: groups with `params`, `lr` and `weight_decay`. The first group has the full learning rate, which
        trainers log.

    Raises:
        ValueError: If no parameter name starts with a prefix, or if a factor is negative.
    """
    scales = dict(learning_rate_scales or {})
    negative = {prefix: scale for prefix, scale in scales.items() if scale < 0}
    if negative:
        raise ValueError(f"Learning rates cannot be negative, got the factors {negative}.")
    decaying = set(decaying_parameter_names(model) if decaying is None else decaying)
    names = [plain_name(name) for name, _ in model.named_parameters()]
    unknown = [prefix for prefix in scales if not any(name.startswith(prefix) for name in names)]
    if unknown:
        raise ValueError(
            f"No parameter name starts with {unknown}; the model has the parts"
            f" {sorted({name.split('.')[0] for name in names})}."
        )
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = plain_name(name)
        prefix = max((prefix for prefix in scales if name.startswith(prefix)), key=len, default=None)
        scale = 1.0 if prefix is None else scales[prefix]
        groups.setdefault((scale, name in decaying), []).append(parameter)
    ordered = sorted(groups, key=lambda key: (key[0] != 1.0, -key[0], not key[1]))
    return [
        {
            "params": groups[scale, decays],
            "lr": learning_rate * scale,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for scale, decays in ordered
    ]
