"""Membranes as affine functions of the weights, once the spikes are given: what makes a spike pattern a convex program.

A neuron's reset depends on its own spikes.  Where those are prescribed, the membrane before each spike is affine in the weights:

    u[t] = w . x[t] + b c[t] + v . r[t] + o[t]

with inputs, ones and the layer's own delayed spikes filtered by the neuron, and an offset o from resets and rests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import library_of
from snn_recon_plugin.networks.neurons import class_in

__all__ = ["Dynamics", "dynamics_of"]

_SNNTORCH, _NORSE = ("snntorch",), ("norse",)
_RECURRENT = ("RLeaky", "LIFRecurrent", "LIFRecurrentCell")
_FORWARD = ("Leaky", "LIF", "LIFCell")


@dataclass(frozen=True)
class Dynamics:
    """One step of a neuron: ``i = synapse i + current``, then ``u = leak v + gain i + rest``, then a spike where u > threshold.

    Args:
        leak: of the membrane, a step.
        gain: of the current.
        synapse: what is left of the current after a step; 0 for a neuron without one.
        rest: added to the membrane at each step.
        start: the membrane at first.
        threshold: of the membrane.
        subtract: what a spike takes off the next step's membrane.
        reset: what the membrane is set to after a spike; None where a spike only subtracts.
        recurrent: whether the layer's spikes come back to it, one step later.
        autapses: whether a neuron's own do too.
    """

    leak: float
    gain: float
    synapse: float
    rest: float
    start: float
    threshold: float
    subtract: float
    reset: float | None
    recurrent: bool
    autapses: bool

    def filtered(self, sources: Tensor, pattern: Tensor) -> tuple[Tensor, Tensor]:
        """What enters one neuron, filtered up to its membrane, and the offset.

        Args:
            sources: (T, n, D), whatever the neuron weighs.
            pattern: (T, n), its own spikes, 0 or 1.

        Returns:
            (T, n, D) and (T, n).
        """
        current, membrane = torch.zeros_like(sources[0]), torch.zeros_like(sources[0])
        offset = torch.full_like(pattern[0], self.start)
        filtered, offsets = [], []
        spiked = torch.zeros_like(pattern[0])
        for step, source in enumerate(sources):
            if self.reset is not None:
                kept = 1 - spiked
                membrane, offset = membrane * kept[:, None], offset * kept + self.reset * spiked
            current = self.synapse * current + source
            membrane = self.leak * membrane + self.gain * current
            offset = self.leak * offset + self.rest - self.subtract * spiked
            filtered.append(membrane)
            offsets.append(offset)
            spiked = pattern[step]
        return torch.stack(filtered), torch.stack(offsets)


def dynamics_of(neuron: nn.Module) -> Dynamics:
    """The dynamics of a Leaky or RLeaky of snnTorch, or a LIF, LIFCell, LIFRecurrent or LIFRecurrentCell of Norse.

    Raises:
        UnsupportedModuleError: another class, or one of these with inhibition, quantised states, an immediate reset or units that
            differ.
    """
    name = class_in(neuron, _SNNTORCH) or class_in(neuron, _NORSE)
    if name not in (*_RECURRENT, *_FORWARD):
        raise _unsupported(f"a neuron of class {type(neuron).__name__}")
    return _snntorch(neuron, name) if library_of(neuron) == "snntorch" else _norse(neuron, name)


def _snntorch(neuron: Any, name: str) -> Dynamics:
    mechanism = neuron.reset_mechanism
    recurrent = name in _RECURRENT
    odd = neuron.inhibition or neuron.state_quant or not neuron.reset_delay or _scalar(neuron, neuron.graded_spikes_factor) != 1
    if odd or (recurrent and (mechanism == "zero" or not isinstance(getattr(neuron, "recurrent", None), nn.Linear))):
        oddities = "inhibition, a quantised state, graded spikes, an immediate reset, or recurrence that is not dense"
        raise _unsupported(f"{name} with {oddities}")
    threshold = _scalar(neuron, neuron.threshold)
    return Dynamics(
        leak=min(max(_scalar(neuron, neuron.beta), 0.0), 1.0),
        gain=1.0,
        synapse=0.0,
        rest=0.0,
        start=0.0,
        threshold=threshold,
        subtract=threshold if mechanism == "subtract" else 0.0,
        reset=0.0 if mechanism == "zero" else None,
        recurrent=recurrent,
        autapses=True,
    )


def _norse(neuron: Any, name: str) -> Dynamics:
    p, dt = neuron.p, float(neuron.dt)
    rate, leak = dt * _scalar(neuron, p.tau_mem_inv), _scalar(neuron, p.v_leak)
    return Dynamics(
        leak=1 - rate,
        gain=rate,
        synapse=1 - dt * _scalar(neuron, p.tau_syn_inv),
        rest=rate * leak,
        start=leak,
        threshold=_scalar(neuron, p.v_th),
        subtract=0.0,
        reset=_scalar(neuron, p.v_reset),
        recurrent=name in _RECURRENT,
        autapses=bool(getattr(neuron, "autapses", False)),
    )


def _scalar(neuron: nn.Module, value: Any) -> float:
    value = torch.as_tensor(value)
    if value.numel() != 1:
        raise _unsupported(f"{type(neuron).__name__} whose units have parameters of their own")
    return float(value)


def _unsupported(found: str) -> UnsupportedModuleError:
    return UnsupportedModuleError(
        found,
        "a Leaky or RLeaky (dense, reset by subtraction) of snnTorch, or a LIF, LIFCell, LIFRecurrent or LIFRecurrentCell of Norse",
        "use one of those, or hidden='reconstruct', which selects candidates and needs no pattern",
    )
