"""Response of a neuron's membrane to an input, below the threshold: what the neuron remembers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .spike_train import SpikeTrain

_GATHERED_BYTES = 2**25  # bound on the inputs gathered at a time


@dataclass(frozen=True)
class Response:
    """Membrane of a neuron below its threshold."""

    kernel: Tensor  # (T,), membrane a number of steps after a current of one
    threshold: float  # membrane at which it spikes

    @property
    def latency(self) -> int:
        """Steps from an input to the first at which the membrane has changed."""
        return int((self.kernel != 0).long().argmax())

    def respond(self, currents: Tensor) -> Tensor:
        """Return the membrane at each step after currents ``[T, *]``, of the same shape."""
        steps = len(currents)
        age = torch.arange(steps)[:, None] - torch.arange(steps)
        matrix = torch.where(age >= 0, self.kernel.cpu()[age.clamp_min(0)], torch.zeros(()))
        return (matrix.to(currents) @ currents.flatten(1)).reshape(currents.shape)

    def trace(self, inputs: Tensor | SpikeTrain, samples: Tensor, steps: Tensor) -> Tensor:
        """Return what the membrane holds of the inputs (T, n, D) of samples (k,) at steps (k,), before any weight, (k, D)."""

        def take(index: Tensor) -> Tensor:
            return inputs.take_samples(index).unpack() if isinstance(inputs, SpikeTrain) else inputs[:, index]

        age = steps[:, None] - torch.arange(inputs.shape[0], device=steps.device)
        weights = torch.where(age >= 0, self.kernel[age.clamp_min(0)], self.kernel.new_zeros(()))
        size = max(1, _GATHERED_BYTES // (4 * inputs.shape[0] * inputs.shape[2]))
        parts = zip(torch.split(samples, size), torch.split(weights, size), strict=True)
        return torch.cat([torch.einsum("kt,tkd->kd", weight, take(index).to(weight)) for index, weight in parts])

    def average(self, inputs: Tensor | SpikeTrain, samples: Tensor, steps: Tensor) -> Tensor:
        """Return the same as an average of the inputs so far, weighted as the membrane holds them; zero before the latency."""
        held = self.kernel.cumsum(0)[steps]
        return self.trace(inputs, samples, steps) / torch.where(held == 0, torch.ones_like(held), held)[:, None]
