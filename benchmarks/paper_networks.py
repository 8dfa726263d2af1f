"""The networks of the paper's tables in snnTorch, batch first: branches of spiking layers side by side, one linear readout.

As in the paper, layers are recurrent and without biases, the leak is 0.99, the threshold 1, and the readout sees the signs of
the last layer's membranes.  Ours differ in what an option says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn

__all__ = ["SEES", "Branch", "SequenceNet"]

SEES = ("membrane", "analog", "spike")
_LARGEST = 0.9999  # a leak of 1 would never forget


class Branch(nn.Module):
    """Spiking layers, one on the other; each step goes through all of them.

    Args:
        inputs: D.
        widths: of the layers.
        leak: of the membranes, for all layers or each; a pair (low, high) spreads the units of a layer evenly between them.
        threshold: of the membranes.
        recurrent: whether spikes come back to their layer, all to all, for all layers or each.
        bias: whether the currents from below have one.
        reset: "subtract", "zero" or "none".
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        *,
        leak: float | Sequence[float | tuple[float, float]] = 0.99,
        threshold: float = 1.0,
        recurrent: bool | Sequence[bool] = True,
        bias: bool = False,
        reset: str = "subtract",
    ) -> None:
        super().__init__()
        leaks = [leak] * len(widths) if isinstance(leak, float) else list(leak)
        backs = [recurrent] * len(widths) if isinstance(recurrent, bool) else list(recurrent)
        below = [inputs, *widths[:-1]]
        self.synapses = nn.ModuleList(nn.Linear(size, width, bias=bias) for size, width in zip(below, widths, strict=True))
        self.neurons = nn.ModuleList(
            _neuron(width, leak, threshold, back, reset) for width, leak, back in zip(widths, leaks, backs, strict=True)
        )

    def forward(self, step: Tensor, state: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Spikes and membranes of the last layer, (B, N) each; ``state`` has those of all layers and is moved on."""
        spikes = step
        membranes = step
        for k, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
            current = synapse(spikes)
            if isinstance(neuron, snn.RLeaky):
                spikes, membranes = neuron(current, *state[k])
            else:
                spikes, membranes = neuron(current, state[k][1])
            state[k] = spikes, membranes
        return spikes, membranes

    def rest(self, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The state of a batch (B, D) before its first step."""
        zeros = [inputs.new_zeros(len(inputs), synapse.out_features) for synapse in self.synapses]  # type: ignore[misc]
        return [(zero, zero) for zero in zeros]


def _neuron(width: int, leak: float | tuple[float, float], threshold: float, recurrent: bool, reset: str) -> nn.Module:
    beta = leak if isinstance(leak, float) else torch.linspace(*leak, width).clamp(max=_LARGEST)[torch.randperm(width)]
    if not recurrent:
        return snn.Leaky(beta=beta, threshold=threshold, reset_mechanism=reset)
    neuron = snn.RLeaky(beta=beta, threshold=threshold, reset_mechanism=reset, linear_features=width)
    neuron.recurrent = nn.Linear(width, width, bias=False)
    return neuron


class SequenceNet(nn.Module):
    """Branches side by side and one linear readout of their last layers.

    Args:
        inputs: D.
        widths: of the layers, all branches together.
        outputs: C.
        branches: how many; widths are shared out evenly.
        sees: what the readout sees: "membrane", the sign of the last layer's membranes; "analog", these membranes; or "spike".
        steps: "last" for scores of the whole sequence after its last step, "mean" for the mean over steps, "each" for scores of
            every step.
        **layers: as ``Branch`` takes them.

    Forward takes (B, T, D), and returns scores (B, C), or (T, B, C) of each step.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        outputs: int,
        *,
        branches: int = 2,
        sees: str = "membrane",
        steps: str = "last",
        **layers: Any,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch(inputs, [width // branches for width in widths], **layers) for _ in range(branches))
        self.readout = nn.Linear(widths[-1] // branches * branches, outputs)
        self.sees, self.steps, self.sign = sees, steps, surrogate.fast_sigmoid(slope=25)

    def forward(self, inputs: Tensor) -> Tensor:
        states = [branch.rest(inputs[:, 0]) for branch in self.branches]  # type: ignore[operator]
        scores = []
        for step in inputs.unbind(1):
            parts = [branch(step, state) for branch, state in zip(self.branches, states, strict=True)]
            scores.append(self.readout(self.seen(parts)))
        if self.steps == "last":
            return scores[-1]
        return torch.stack(scores).mean(0) if self.steps == "mean" else torch.stack(scores)

    def seen(self, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        """What the readout gets of the branches' spikes and membranes, (B, P)."""
        spikes, membranes = (torch.cat(both, 1) for both in zip(*parts, strict=True))
        if self.sees == "spike":
            return spikes
        return membranes if self.sees == "analog" else self.sign(membranes)
