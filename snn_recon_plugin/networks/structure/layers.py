"""Layers of a net, as an inspection finds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..libraries import library_of
from ..libraries.library import Library, Synapse
from ..readout.filters import Scale

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SYNAPSES = (nn.Linear, *CONVOLUTIONS)  # their output follows from input and parameters alone
# With a weight and a bias for each channel or feature; batch norms have running statistics too.
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
POOLS = tuple(getattr(nn, f"{kind}Pool{rank}d") for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for rank in (1, 2, 3))


@dataclass(frozen=True)
class HiddenLayer:
    """A synapse and the hidden neuron that it feeds; pooling, views or normalisation may lie between.

    The synapse is a Linear or a convolution; the neuron itself if it holds its own weights.  Names are those in the net.  ``norm``
    is the last normalisation between them, such as a batch norm.
    """

    name: str
    synapse: nn.Module
    neuron_name: str
    neuron: nn.Module
    norm: nn.Module | None = None

    @property
    def library(self) -> Library:
        """The library of the neuron."""
        return library_of(self.neuron)

    @property
    def takes_sequences(self) -> bool:
        """True if one call of the neuron takes all steps."""
        return self.library.takes_sequences(self.neuron)

    @property
    def is_convolution(self) -> bool:
        """True if the synapse is a convolution."""
        return isinstance(self.synapse, CONVOLUTIONS)

    @property
    def weights(self) -> Synapse:
        """The weights that a gain of the layer multiplies: those of its norm, else of its synapse."""
        own = None if self.norm is not None else self.library.synapse(self.neuron)
        if own is not None and self.synapse in (own.module, self.neuron):
            return own
        module = self.synapse if self.norm is None else self.norm
        weight, bias = (name if isinstance(getattr(module, name, None), Tensor) else None for name in ("weight", "bias"))
        return Synapse(module, weight, bias)


@dataclass(frozen=True)
class ReadoutLayer:
    """The layer that reads out, an nn.Linear or weight and neuron in one, and the output neuron that it feeds, if any."""

    name: str
    module: nn.Module
    neuron_name: str | None
    neuron: nn.Module | None
    weight_name: str = "weight"
    bias_name: str | None = "bias"
    scale: Scale | None = None  # of the layer's output in the net, part of the weight and bias below

    @property
    def weight(self) -> Tensor:
        """The weight as the net uses it, ``[C, P]``, after any parametrization and scale."""
        weight = cast(Tensor, getattr(self.module, self.weight_name))
        return weight if self.scale is None else self.scale.weight(weight)

    @property
    def bias(self) -> Tensor | None:
        """The bias as the net uses it, ``[C]``, or None."""
        if self.bias_name is None:
            return None
        bias = cast(Tensor, getattr(self.module, self.bias_name))
        return bias if self.scale is None else self.scale.bias(bias)

    def parameters(self, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        """Return the values of the module's parameters, by name, that give the net this weight and bias."""
        if self.scale is not None:
            weight, bias = self.scale.invert(weight, bias)
        values = {self.weight_name: weight}
        return values if self.bias_name is None or bias is None else {**values, self.bias_name: bias}

    @property
    def in_features(self) -> int:
        """Number of features P."""
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        """Number of outputs C."""
        return int(self.weight.shape[0])

    @property
    def tolerance(self) -> float:
        """Relative difference of scores that is rounding alone, of sums in single precision or the weight's, if that is coarser."""
        return max(1e-4, 8 * torch.finfo(self.weight.dtype).eps)


@dataclass(frozen=True)
class NetworkMap:
    """Layers and time steps of one forward pass."""

    library: str  # name of the library whose neurons the net is built from
    hidden: tuple[HiddenLayer, ...]  # those that lead to the readout, from the input up
    readout: ReadoutLayer
    num_steps: int
    layout: str = "steps"  # order of time and batch in the readout's input, one of calls.LAYOUTS


def as_typed(name: str) -> str:
    """Return a module's name as a user types it, e.g. ``net.layers[2].fc`` for ``layers.2.fc``."""
    parts = name.split(".") if name else []
    return "net" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)
