"""A layer outside its net, on inputs recorded once: synapse, stage and neuron run for candidates in place of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..networks.libraries import library_of
from ..networks.private.parameters import with_values
from ..networks.structure.layers import HiddenLayer
from .filtered_spikes import SpikeSums
from .neuron import read_unit_values, shape_unit_values
from .site import Candidates, weight_of
from .stage import Stage

CHUNK_BYTES = 256 * 2**20  # bound on the membranes and spikes in memory at a time
_FEW = 8  # samples on which a gain is tried


@dataclass(frozen=True)
class Emitted:
    """Spikes of candidates, filtered by K filters."""

    features: Tensor  # (n * K, M), all rows of a sample together
    rate: Tensor  # (M,), spikes a step and sample

    def take(self, index: Tensor) -> Emitted:
        """Return the candidates ``index``, in that order."""
        return Emitted(self.features[:, index], self.rate[index])

    @staticmethod
    def join(parts: Sequence[Emitted]) -> Emitted:
        """Concatenate several sets of candidates."""
        return Emitted(torch.cat([part.features for part in parts], 1), torch.cat([part.rate for part in parts]))


@dataclass(frozen=True)
class LayerAlone:
    """A layer that runs on recorded inputs.

    Args:
        layer: of the net.
        stage: between its synapse and its neuron.
        inputs: (T, n, *), or (1, n, *) if constant; bytes if all are 0 or 1.
        filters: (K, T), temporal filters of its spikes.
    """

    layer: HiddenLayer
    stage: Stage
    inputs: Tensor
    filters: Tensor

    def run(self, candidates: Candidates) -> Emitted:
        """Return the spikes of candidates; a norm of the stage counts as the identity."""
        return Emitted.join([self._emit(candidates.take(some)) for some in self._split(candidates)])

    def run_own(self, gains: Sequence[float]) -> list[Emitted]:
        """Return the spikes of the layer's own rows with each of some gains, its norm as it is."""
        rows = own_rows(self.layer.synapse)
        if self.stage == Stage() and not read_unit_values(self.layer.neuron, len(rows)):
            return [self.run(_scale(rows, gain)) for gain in gains]
        currents = self._currents(rows, self.stage.run)
        scaled = (currents if gain == 1.0 else currents * gain for gain in gains)
        return [emit(self.layer.neuron, each.expand(self._steps, *each.shape[1:]), self.filters, None) for each in scaled]

    @cached_property
    def scales(self) -> bool:
        """True if a gain of the layer's weights is one of its currents."""
        synapse, inputs = self.layer.synapse, self._typed(self.inputs[:1, :_FEW])
        return self.stage.scales(run_rows(inputs.flatten(0, 1), own_rows(synapse)))

    def measure_norm(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Return mean and variance (M,) of what the rows of candidates, without their bias, give the stage's norm."""
        values = self._currents(replace(candidates, bias=None), self.stage.run_to_norm).double().flatten(0, 1)
        return values.mean(0), values.var(0, correction=0)

    @property
    def _steps(self) -> int:
        return self.filters.shape[1]

    def _typed(self, inputs: Tensor) -> Tensor:
        """Return inputs in the type of the weights."""
        return inputs.to(weight_of(self.layer.synapse).dtype)

    def _split(self, candidates: Candidates) -> Sequence[Tensor]:
        """Return the candidates that run at a time; a neuron may run all steps in one call."""
        most = max(1, CHUNK_BYTES // (16 * self._steps * self.inputs.shape[1]))
        return torch.split(torch.arange(len(candidates), device=self.inputs.device), most)

    def _currents(self, candidates: Candidates, stage: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what a stage makes of the synapse's outputs, (T, n, M)."""
        currents = stage(run_rows(self._typed(self.inputs).flatten(0, 1), candidates))
        return currents.reshape(*self.inputs.shape[:2], *currents.shape[1:])

    def _emit(self, candidates: Candidates) -> Emitted:
        currents = self._currents(candidates, self.stage.run_without_norm)
        currents = currents.expand(self._steps, *currents.shape[1:])
        return emit(self.layer.neuron, currents, self.filters, candidates.unit_values)


def own_rows(synapse: nn.Module) -> Candidates:
    """Return the rows that a Linear has."""
    bias = synapse.bias
    return Candidates(weight_of(synapse).detach(), bias.detach() if isinstance(bias, Tensor) else None)


def _scale(rows: Candidates, gain: float) -> Candidates:
    return rows if gain == 1.0 else replace(rows, weight=rows.weight * gain, bias=None if rows.bias is None else rows.bias * gain)


def run_rows(inputs: Tensor, candidates: Candidates) -> Tensor:
    """Return the outputs (n, M) of a Linear whose rows are candidates, on inputs (n, D)."""
    bias = None if candidates.bias is None else candidates.bias.to(inputs)
    return functional.linear(inputs, candidates.weight.to(inputs), bias)


def emit(
    neuron: nn.Module, currents: Tensor, filters: Tensor, values: Mapping[str, Tensor] | None, autapses: Tensor | None = None
) -> Emitted:
    """Run units of a neuron alone on currents (T, n, M), with parameters (M,) that each row has for itself, by name.

    Units of a recurrent neuron have weights ``autapses`` (M,) from themselves.
    """
    sums = SpikeSums(filters)
    with with_values(shape_unit_values(neuron, values)):
        library_of(neuron).each_step(neuron, currents, sums.add, autapses)
    filtered = sums.finish()
    return Emitted(filtered.features, filtered.rate)
