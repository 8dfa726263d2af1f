"""A layer outside its net, on inputs recorded once: synapse, stage and neuron run for candidates in place of its rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..networks import HiddenLayer, library_of, trying
from .filtered_spikes import SpikeSums
from .neuron import read_unit_values, shape_unit_values
from .site import CONVOLUTIONS, Candidates, count_groups, weight_of
from .stage import Stage

CHUNK_BYTES = 256 * 2**20  # bound on the membranes and spikes in memory at a time
_FEW = 8  # samples at least in a chunk of a convolution's

# About nine pooled positions of a convolution, by the number of axes: a readout needs to know roughly where a feature is.
_POOLS: dict[int, tuple[Callable[[Tensor, int], Tensor], int]] = {
    1: (functional.adaptive_avg_pool1d, 9),
    2: (functional.adaptive_avg_pool2d, 3),
    3: (functional.adaptive_avg_pool3d, 2),
}


@dataclass(frozen=True)
class Emitted:
    """Spikes of candidates, filtered by K filters; G pooled positions of a convolution, else 1."""

    features: Tensor  # (n * K, M, G), all rows of a sample together
    rate: Tensor  # (M,), spikes a step and sample (and position)

    def take(self, index: Tensor) -> Emitted:
        """Return the candidates ``index``, in that order."""
        return Emitted(self.features[:, index], self.rate[index])

    @staticmethod
    def join(parts: Sequence[Emitted]) -> Emitted:
        """Concatenate several sets of candidates."""
        return Emitted(torch.cat([part.features for part in parts], 1), torch.cat([part.rate for part in parts]))

    @staticmethod
    def join_samples(parts: Sequence[Emitted]) -> Emitted:
        """Concatenate the same candidates on several sets of samples."""
        counts = [len(part.features) for part in parts]
        rate = torch.stack([part.rate * count for part, count in zip(parts, counts, strict=True)]).sum(0) / sum(counts)
        return parts[0] if len(parts) == 1 else Emitted(torch.cat([part.features for part in parts]), rate)


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
        splits = [candidates.take(some) for some in self._split(candidates)]
        chunks = self._chunks(len(candidates))
        return Emitted.join_samples([Emitted.join([self._emit(chunk, some) for some in splits]) for chunk in chunks])

    def run_own(self, gains: Sequence[float]) -> list[Emitted]:
        """Return the spikes of the layer's own rows with each of some gains, its norm as it is."""
        rows = own_rows(self.layer.synapse)
        if self._places == 1 and self.stage == Stage() and not read_unit_values(self.layer.neuron, len(rows)):
            return [self.run(_scale(rows, gain)) for gain in gains]
        parts: list[list[Emitted]] = [[] for _ in gains]
        for chunk in self._chunks(len(rows)):
            currents = self._currents(chunk, rows, self.stage.run)
            for number, gain in enumerate(gains):
                scaled = currents if gain == 1.0 else currents * gain
                parts[number].append(emit(self.layer.neuron, scaled.expand(self._steps, *scaled.shape[1:]), self.filters, None))
        return [Emitted.join_samples(each) for each in parts]

    @cached_property
    def scales(self) -> bool:
        """True if a gain of the layer's weights is one of its currents."""
        synapse, inputs = self.layer.synapse, next(self._chunks(1))[:1, :_FEW]
        return self.stage.scales(run_synapse(synapse, inputs.flatten(0, 1), own_rows(synapse)))

    def measure_norm(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Return mean and variance (M,) of what the rows of candidates, without their bias, give the stage's norm."""
        total = count = square = torch.zeros((), dtype=torch.float64)
        rows = replace(candidates, bias=None)
        for chunk in self._chunks(len(rows)):
            values = self._currents(chunk, rows, self.stage.run_to_norm).double().movedim(2, 0).flatten(1)
            total, square = total + values.sum(1), square + values.square().sum(1)
            count = count + values.shape[1]
        mean = total / count
        return mean, (square / count - mean.square()).clamp_min(0)

    @property
    def _steps(self) -> int:
        return self.filters.shape[1]

    @cached_property
    def _places(self) -> int:
        """Outputs of the synapse for one row and sample."""
        weight = weight_of(self.layer.synapse)
        rows = Candidates(weight[:1].detach(), None, groups=torch.zeros(1, dtype=torch.long, device=weight.device))
        return run_synapse(self.layer.synapse, self.inputs[:1, :1].flatten(0, 1).to(weight.dtype), rows).numel()

    def _chunks(self, count: int) -> Iterator[Tensor]:
        """Yield the inputs of some samples at a time, in the type of the weights."""
        size = self.inputs.shape[1]
        if self._places > 1:
            size = max(_FEW, CHUNK_BYTES // (16 * self._steps * self._places * count))
        for part in torch.split(self.inputs, size, 1):
            yield part.to(weight_of(self.layer.synapse).dtype)

    def _split(self, candidates: Candidates) -> Sequence[Tensor]:
        """Return the candidates that run at a time; a neuron may run all steps in one call."""
        samples = self.inputs.shape[1] if self._places == 1 else _FEW
        most = max(1, CHUNK_BYTES // (16 * self._steps * samples * self._places))
        return torch.split(torch.arange(len(candidates), device=self.inputs.device), most)

    def _currents(self, inputs: Tensor, candidates: Candidates, stage: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what a stage makes of the synapse's outputs (T, k, M, *)."""
        outputs = run_synapse(self.layer.synapse, inputs.flatten(0, 1), candidates)
        currents = stage(outputs)
        return currents.reshape(*inputs.shape[:2], *currents.shape[1:])

    def _emit(self, inputs: Tensor, candidates: Candidates) -> Emitted:
        currents = self._currents(inputs, candidates, self.stage.run_without_norm)
        currents = currents.expand(self._steps, *currents.shape[1:])
        return emit(self.layer.neuron, currents, self.filters, candidates.unit_values)


def own_rows(synapse: nn.Module) -> Candidates:
    """Return the rows that a Linear or convolution has."""
    weight, bias, groups = weight_of(synapse).detach(), synapse.bias, count_groups(synapse)
    index = torch.arange(groups, device=weight.device).repeat_interleave(len(weight) // groups)
    return Candidates(weight, bias.detach() if isinstance(bias, Tensor) else None, groups=index)


def _scale(rows: Candidates, gain: float) -> Candidates:
    return rows if gain == 1.0 else replace(rows, weight=rows.weight * gain, bias=None if rows.bias is None else rows.bias * gain)


def run_synapse(synapse: nn.Module, inputs: Tensor, candidates: Candidates) -> Tensor:
    """Return the outputs (n, M, *) of a Linear or convolution on inputs (n, *), with candidates as its rows."""
    weight = candidates.weight.to(inputs)
    bias = None if candidates.bias is None else candidates.bias.to(inputs)
    if not isinstance(synapse, CONVOLUTIONS):
        return functional.linear(inputs, weight, bias)
    single: Any = copy.copy(synapse)  # the same padding and stride for each group
    single.groups = 1
    if count_groups(synapse) == 1:
        outputs: Tensor = single._conv_forward(inputs, weight, bias)
        return outputs
    assert candidates.groups is not None
    channels, order, parts = inputs.chunk(count_groups(synapse), 1), [], []
    for group in sorted(set(candidates.groups.tolist())):
        members = (candidates.groups == group).nonzero()[:, 0]
        order.append(members)
        parts.append(single._conv_forward(channels[group], weight[members], None if bias is None else bias[members]))
    return torch.cat(parts, 1)[:, torch.cat(order).argsort()]


def emit(
    neuron: nn.Module, currents: Tensor, filters: Tensor, values: Mapping[str, Tensor] | None, autapses: Tensor | None = None
) -> Emitted:
    """Run units of a neuron alone on currents (T, n, M, *), with parameters (M,) that each row has for itself, by name.

    Units of a recurrent neuron have weights ``autapses`` (M,) from themselves.
    """
    sums = SpikeSums(filters)
    with trying(shape_unit_values(neuron, values, currents.dim() - 3)):
        library_of(neuron).each_step(neuron, currents, sums.add, autapses)
    filtered = sums.finish()
    return Emitted(pool_positions(filtered.features), filtered.rate)


def pool_positions(features: Tensor) -> Tensor:
    """Return features (n, M, G): a convolution's positions (n, M, *) averaged on a grid; G is 1 without positions."""
    axes = features.dim() - 2
    if axes == 0:
        return features[:, :, None]
    pool, size = _POOLS[axes]
    return pool(features, size).flatten(2)
