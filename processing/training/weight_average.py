"""An exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from .parameter_groups import plain_name


class WeightAverage:
    """
    Keeps an exponential moving average of the trainable parameters of a model (Polyak and Juditsky 1992).

    In the first steps, the decay is lower, `min(decay, (1 + steps) / (10 + steps))`, so that the initial weights are
    forgotten quickly. Buffers, such as batch normalization statistics, are not averaged: the average is used with
    their current values.

    `torch.optim.swa_utils.AveragedModel` would copy the whole model including frozen encoders, and most of this file
    would still be needed: swapping the averaged weights into the model for evaluation and saving, and resuming.

    Args:
        model (`nn.Module`):
            The model whose weights are averaged, in its initial state.
        decay (`float`):
            Weight of the previous average in each step, in (0, 1).

    Raises:
        ValueError: If `decay` is outside (0, 1).
    """

    file_name = "weight_average.safetensors"

    def __init__(self, model: nn.Module, decay: float):
        if not 0.0 < decay < 1.0:
            raise ValueError(f"The decay of the weight average must lie in (0, 1), got {decay}.")
        self.decay = decay
        self.num_updates = 0
        self.averages = {
            plain_name(name): parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Updates the average with the current weights. Call this once after every step of the optimizer."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        for name, parameter in self._averaged_parameters(model):
            average = self.averages[name] = self.averages[name].to(parameter.device)
            average.lerp_(parameter.to(average.dtype), 1.0 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Returns a context in which the model has the averaged weights. Afterward, it has its own weights again."""
        own = {name: parameter.detach().clone() for name, parameter in self._averaged_parameters(model)}
        self._write(model, self.averages)
        try:
            yield
        finally:
            self._write(model, own)

    def save(self, folder: str | Path) -> None:
        """Saves the average in a folder."""
        save_file(
            {name: average.contiguous() for name, average in self.averages.items()},
            Path(folder) / self.file_name,
            metadata={"num_updates": str(self.num_updates)},
        )

    def load(self, folder: str | Path) -> None:
        """
        Loads the average that [`~WeightAverage.save`] saved in a folder.

        Raises:
            FileNotFoundError: If there is none, because the run kept no average.
            ValueError: If it belongs to another model.
        """
        path = Path(folder) / self.file_name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: the run of this checkpoint kept no average of its weights. Resume without"
                " `ema_decay`, or start a new run."
            )
        averages = load_file(path)
        if averages.keys() != self.averages.keys():
            raise ValueError(
                f"{path} contains other parameters than the trainable ones of this model, for example"
                f" {sorted(averages.keys() ^ self.averages.keys())[0]!r}."
            )
        with safe_open(path, framework="pt") as file:
            self.num_updates = int(file.metadata()["num_updates"])
        self.averages = averages

    def _averaged_parameters(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in model.named_parameters():
            if plain_name(name) in self.averages:
                yield plain_name(name), parameter

    @torch.no_grad()
    def _write(self, model: nn.Module, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._averaged_parameters(model):
            parameter.copy_(values[name])
