"""Low-rank adapters on the encoders (LoRA, Hu et al. 2022, arXiv:2106.09685), for little data or little memory.

The weights of the encoders stay frozen, and the product of two small matrices is learned for each. All other parts of
the model are trained in full. At the end, the products are added to the weights, so that the saved model needs no
`peft`.
"""

from pathlib import Path

import torch
from torch import nn


# `model.safetensors` of a checkpoint has other names for the adapted layers, and cannot be loaded for resuming.
ADAPTED_WEIGHTS = "adapted_weights.pt"
_ENCODERS = ("backbone", "text_model")


def add_adapters(model: nn.Module, rank: int) -> None:
    """
    Freezes the encoders and adds adapters to their linear layers and 1 x 1 convolutions. Layers that are already
    frozen get no adapter. The outputs do not change, because the adapters are initialized to zero.

    Args:
        model (`JMCELNModel`): Changed in place.
        rank (`int`): Rank of the learned products.

    Raises:
        ImportError: if `peft` is not installed.
        ValueError: for a rank below 1, or if no layer is left to adapt.
    """
    if rank < 1:
        raise ValueError(f"`lora_rank` must be at least 1, got {rank}.")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("`lora_rank` needs peft: pip install 'jmceln[peft]'") from error
    targets = [
        f"{encoder}.{name}"
        for encoder in _ENCODERS
        for name, layer in model.get_submodule(encoder).named_modules()
        if _is_adaptable(layer)
    ]
    if not targets:
        raise ValueError("`lora_rank`: all layers of the encoders are frozen, so that there is nothing to adapt.")
    others = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith(tuple(f"{encoder}." for encoder in _ENCODERS))
    ]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), model)
    for parameter in others:
        parameter.requires_grad_(True)
    for layer in model.modules():
        if hasattr(layer, "lora_A") and isinstance(layer.get_base_layer(), nn.Conv2d):
            # MobileNets read these attributes of their convolutions for the padding of TensorFlow.
            for name in ("stride", "kernel_size", "dilation"):
                setattr(layer, name, getattr(layer.get_base_layer(), name))


def has_adapters(model: nn.Module) -> bool:
    """Whether [`add_adapters`] changed a model, and [`merge_adapters`] did not change it back."""
    return any(hasattr(layer, "lora_A") for layer in model.modules())


def merge_adapters(model: nn.Module) -> None:
    """Merges the adapters into the matrices that they belong to, and removes them."""
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "lora_A"):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())


def save_adapted_weights(model: nn.Module, folder: str | Path) -> None:
    """Saves all trained weights and all buffers to a folder."""
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    fixed = {name for name, _ in model.named_parameters()} - learned
    weights = {name: weight for name, weight in model.state_dict().items() if name not in fixed}
    torch.save(weights, Path(folder) / ADAPTED_WEIGHTS)


def load_adapted_weights(model: nn.Module, folder: str | Path) -> None:
    """
    Loads the weights that [`save_adapted_weights`] saved for a model with the same adapters.

    Raises:
        ValueError: if the adapters differ.
    """
    weights = torch.load(Path(folder) / ADAPTED_WEIGHTS, map_location="cpu", weights_only=True)
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not learned <= weights.keys() <= model.state_dict().keys():
        raise ValueError(f"The adapters in {folder} are not those of the model to train.")
    model.load_state_dict(weights, strict=False)


def _is_adaptable(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.groups == 1 and layer.weight.requires_grad
    return isinstance(layer, nn.Linear) and layer.weight.requires_grad
