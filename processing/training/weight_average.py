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
    Keeps an exponential moving average of a model's trainable parameters (Polyak and Juditsky 1992).

    The first steps are averaged faster, with `min(decay, (1 + steps) / (10 + steps))`, so that the average does not
    hold on to the initial weights. Buffers, such as the statistics of batch normalisation, are not averaged: the
    average goes with those of the newest weights.

    `torch.optim.swa_utils.AveragedModel` would copy the whole model, frozen encoders and all, and most of this file
    would remain: lending the average to the model that the Trainer scores and saves, and going on with it.

    Args:
        model (`nn.Module`):
            The model whose weights to average, in its state at the start.
        decay (`float`):
            Weight of the past at each step, in (0, 1).

    Raises:
        ValueError: if `decay` lies outside (0, 1).
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
        """Take the current weights into the average; call it once after every step of the optimizer."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        for name, parameter in self._averaged_parameters(model):
            average = self.averages[name] = self.averages[name].to(parameter.device)
            average.lerp_(parameter.to(average.dtype), 1.0 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within this context the model has the averaged weights; afterwards it has its own again."""
        own = {name: parameter.detach().clone() for name, parameter in self._averaged_parameters(model)}
        self._write(model, self.averages)
        try:
            yield
        finally:
            self._write(model, own)

    def save(self, folder: str | Path) -> None:
        """Write the average into a folder."""
        save_file(
            {name: average.contiguous() for name, average in self.averages.items()},
            Path(folder) / self.file_name,
            metadata={"num_updates": str(self.num_updates)},
        )

    def load(self, folder: str | Path) -> None:
        """
        Read the average that [`~WeightAverage.save`] wrote into a folder.

        Raises:
            FileNotFoundError: if there is none, as when the run that is taken up again kept no average.
            ValueError: if it belongs to another model.
        """
        path = Path(folder) / self.file_name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: the run that wrote this checkpoint kept no average of its weights. Go on without"
                " one (`ema_decay` unset) or begin a new run."
            )
        averages = load_file(path)
        if averages.keys() != self.averages.keys():
            raise ValueError(
                f"{path} averages other parameters than this model trains, for example"
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
