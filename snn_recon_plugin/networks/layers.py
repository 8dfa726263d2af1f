"""What a net consists of, as far as the package is concerned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModuleError

__all__ = ["HiddenLayer", "NetworkMap", "ReadoutLayer", "spell"]


@dataclass(frozen=True)
class HiddenLayer:
    """A synapse and the hidden neuron that it feeds; pooling, views or normalisation may lie between.

    Args:
        name: the synapse's name in the net.
        synapse: a Linear or a convolution; the neuron itself where that holds its own weights, as recurrent ones of Norse do.
        neuron_name: the neuron's name in the net.
        neuron: the neuron.
    """

    name: str
    synapse: nn.Module
    neuron_name: str
    neuron: nn.Module


@dataclass(frozen=True)
class ReadoutLayer:
    """The layer that reads out, and the output neuron that it feeds.

    Args:
        name: the name in the net of the module that holds the weight.
        module: that module: an nn.Linear, or Norse's LILinearCell, which is weight and neuron in one.
        neuron_name: the output neuron's name, or None where the layer's own values are the scores.
        neuron: the output neuron, or None.
        weight_name: the weight's name in the module.
        bias_name: the bias's name in the module, or None without a bias.
    """

    name: str
    module: nn.Module
    neuron_name: str | None
    neuron: nn.Module | None
    weight_name: str = "weight"
    bias_name: str | None = "bias"

    @property
    def linear(self) -> nn.Linear:
        """The module where it is an nn.Linear; an UnsupportedModuleError otherwise."""
        if isinstance(self.module, nn.Linear):
            return self.module
        raise UnsupportedModuleError(
            f"a readout {self.name!r} of class {type(self.module).__name__}",
            "an nn.Linear",
            "use an nn.Linear followed by the neuron, e.g. norse.LICell()",
        )

    @property
    def weight(self) -> Tensor:
        """The weight as the net uses it, ``[C, P]``; computed from other parameters where a parametrization does so."""
        return cast(Tensor, getattr(self.module, self.weight_name))

    @property
    def bias(self) -> Tensor | None:
        """The bias as the net uses it, ``[C]``, or None."""
        return None if self.bias_name is None else cast(Tensor, getattr(self.module, self.bias_name))

    @property
    def in_features(self) -> int:
        """How many features enter, P."""
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        """How many outputs there are, C."""
        return int(self.weight.shape[0])

    @property
    def tolerance(self) -> float:
        """Difference of scores, relative to the largest, that is rounding alone: of sums in single or the weight's precision."""
        rounding = torch.finfo(self.weight.dtype).eps
        return max(1e-4, 8 * rounding) if rounding > 1e-6 else 1e-4

    @property
    def fused(self) -> bool:
        """Whether the module is its own output neuron."""
        return self.module is self.neuron


@dataclass(frozen=True)
class NetworkMap:
    """What one forward pass of a net consists of.

    Args:
        library: whose neurons the net is built from, ``"snntorch"`` or ``"norse"``.
        hidden: the hidden layers that lead to the readout, from the input up.
        readout: the readout layer.
        num_steps: time steps of one forward.
        calls: how often one forward calls the readout, ``num_steps`` times or once.
        layout: in which order the readout sees time and batch, one of :data:`~.layouts.LAYOUTS`.
    """

    library: str
    hidden: tuple[HiddenLayer, ...]
    readout: ReadoutLayer
    num_steps: int
    calls: int
    layout: str = "steps"


def spell(name: str) -> str:
    """Write a module's name in the net as a user types it, e.g. ``net.layers[2].fc`` for ``layers.2.fc``."""
    parts = name.split(".") if name else []
    return "net" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)
