"""Description of a hidden layer for samplers: its inputs as its rows see them, the samples' classes, and its neuron's currents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import DataError
from .neuron import Excitability

_NEIGHBOURS = 32  # samples drawn, of which the nearest becomes the first end of a pair
_TENSORS = ("weight", "bias", "before", "autapses")  # fields of Candidates


@dataclass(frozen=True)
class Candidates:
    """Candidate rows (witnesses) of a hidden layer.  Samplers give weight and bias, and leave the others None."""

    weight: Tensor  # (M, D), each of the shape of one row of the layer's weight
    bias: Tensor | None  # (M,), or None for a layer without a bias.  In recurrent layers, a current at every step
    # values (M,) of parameters of the neuron, by name, that each candidate has for itself
    unit_values: Mapping[str, Tensor] | None = None
    kinds: tuple[str, ...] | None = None  # (M,), names of the samplers that drew them
    before: Tensor | None = None  # (M, P), weights from the P neurons of a recurrent layer's first generation
    autapses: Tensor | None = None  # (M,), weights from themselves, in a recurrent layer

    def __len__(self) -> int:
        return len(self.weight)

    def take(self, index: Tensor) -> Candidates:
        """Return the candidates ``index`` (K,), in that order."""
        tensors: dict[str, Any] = {name: value[index] for name in _TENSORS if (value := getattr(self, name)) is not None}
        values = None if self.unit_values is None else {name: value[index] for name, value in self.unit_values.items()}
        kinds = None if self.kinds is None else tuple(self.kinds[number] for number in index.tolist())
        return replace(self, **tensors, unit_values=values, kinds=kinds)

    @staticmethod
    def join(parts: Sequence[Candidates]) -> Candidates:
        """Concatenate several sets of candidates; a field that one of them lacks is None."""
        tensors: dict[str, Any] = {name: _join(parts, name, torch.cat) for name in _TENSORS}
        values = _join(parts, "unit_values", lambda each: {name: torch.cat([one[name] for one in each]) for name in each[0]})
        kinds = _join(parts, "kinds", lambda each: tuple(chain.from_iterable(each)))
        return replace(parts[0], **tensors, unit_values=values, kinds=kinds)

    def count_kinds(self) -> dict[str, int]:
        """Return the number of candidates of each kind, in alphabetical order."""
        return dict(sorted(Counter(self.kinds or ()).items()))


@dataclass(frozen=True)
class LayerSite:
    """A layer and the samples that candidates are made from."""

    synapse: nn.Module  # the layer's Linear
    inputs: Tensor  # (n, D), the layer's inputs averaged over time
    labels: Tensor  # (n,), class indices; for regression, the target's quantile out of eight
    excitability: Excitability  # of the layer's neuron
    fed_by_spikes: bool  # whether a layer of spikes feeds it, so that all inputs are 0 or 1
    # values (N,) that the layer's units have for parameters of their neuron, by name, for candidates to take along
    unit_values: Mapping[str, Tensor] = field(default_factory=dict)
    # (T, n, D), inputs of a Linear at each step, (1, n, D) if constant, bytes if all are 0 or 1; None if not recorded
    over_time: Tensor | None = None
    # (T, n, P), spikes that come behind the inputs at each step, of a recurrent layer's first generation
    before: Tensor | None = None
    # name and value of the leak that all candidates of this site have; None for the layer's own
    leak: tuple[str, float] | None = None
    # a site for each leak, among which candidates are split equally; empty if all have the layer's own
    variants: tuple[LayerSite, ...] = ()
    biased: bool | None = None  # whether each row has a bias, its own or that of a norm behind the synapse

    @property
    def changes(self) -> bool:
        """True if inputs that differ between steps were recorded."""
        return self.over_time is not None and len(self.over_time) > 1

    @property
    def has_bias(self) -> bool:
        """True for a layer with a bias."""
        return getattr(self.synapse, "bias", None) is not None if self.biased is None else self.biased

    @property
    def row_shape(self) -> torch.Size:
        """Shape of one row of the weight."""
        return weight_of(self.synapse).shape[1:]

    def split_variants(self) -> list[LayerSite]:
        """Return one site for each leak; the site itself if all candidates have the layer's own."""
        return list(self.variants) or [self]

    def split_steps(self, steps: Tensor | None) -> LayerSite:
        """Return a site with a sample for each of some steps (K,), as the labels have already; None changes nothing."""
        if steps is None:
            return self
        variants = tuple(variant.split_steps(steps) for variant in self.variants)
        index = torch.arange(len(self.inputs), device=self.inputs.device).repeat_interleave(len(steps))
        if not self.changes:
            return replace(self, inputs=self.inputs[index], over_time=None, before=None, variants=variants)
        inputs = self.take_traces(index, steps.to(index.device).repeat(len(self.inputs)))
        return replace(self, inputs=inputs, over_time=None, before=None, variants=variants)

    def draw_steps(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw steps (count,) at which traces are taken, none before the neuron's membrane has changed."""
        assert self.over_time is not None
        steps = len(self.over_time)
        first = min(self.excitability.latency, steps - 1)
        return torch.randint(first, steps, (count,), generator=generator).to(self.inputs.device)

    def take_traces(self, index: Tensor, steps: Tensor) -> Tensor:
        """Return traces (K, D) of samples ``index`` at ``steps`` (K,): averages of the inputs so far as the membrane holds them."""
        assert self.over_time is not None
        excitability, steps = self.excitability, steps.clamp_max(len(self.over_time) - 1)
        traces = excitability.average(self.over_time, index, steps).to(self.inputs)
        if self.before is None:
            return traces
        return torch.cat([traces, excitability.average(self.before, index, steps).to(traces)], 1)

    def draw_pairs(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw at most ``count`` pairs of samples of different classes.

        In the net's inputs, the first sample is the nearest of 32 drawn at random: errors are made at boundaries between similar
        samples.  Above, where distances of spike rates mean less, it is any.
        """
        labels = self.labels.cpu()
        if int(labels.min()) == int(labels.max()):
            raise DataError("samples of a single class", "at least two classes, for pairs between them", "pass more data, shuffled")
        second = torch.multinomial(torch.ones(len(labels)), count, replacement=True, generator=generator)
        others = torch.randint(len(labels), (_NEIGHBOURS, count), generator=generator)
        if self.fed_by_spikes:
            distances = torch.arange(float(_NEIGHBOURS))[:, None].repeat(1, count)
        else:
            flat = self.inputs.flatten(1)
            ends = flat[second.to(flat.device)]
            distances = torch.stack([(flat[other.to(flat.device)] - ends).square().sum(1).cpu() for other in others])
        distances[labels[others] == labels[second]] = torch.inf
        first = others[distances.argmin(0), torch.arange(count)]
        differ = labels[first] != labels[second]  # a rare class may not have met another class among the samples drawn
        return first[differ].to(self.inputs.device), second[differ].to(self.inputs.device)


# Draws at most a number of candidates: weights (M, *site.row_shape), and a bias (M,) if the layer has one.  The generator is the
# source of all randomness.
Sampler: TypeAlias = Callable[[LayerSite, int, torch.Generator], Candidates]


def _join(parts: Sequence[Candidates], name: str, concatenate: Callable[[list[Any]], Any]) -> Any:
    """Concatenate a field of several sets; None unless all have it."""
    values = [getattr(part, name) for part in parts]
    return None if any(value is None for value in values) else concatenate(values)


def weight_of(synapse: nn.Module) -> Tensor:
    """Return the weight of a Linear."""
    weight = synapse.weight
    assert isinstance(weight, Tensor)
    return weight


def own_rows(synapse: nn.Module) -> Candidates:
    """Return the rows that a Linear has."""
    bias = synapse.bias
    return Candidates(weight_of(synapse).detach(), bias.detach() if isinstance(bias, Tensor) else None)


def run_rows(inputs: Tensor, candidates: Candidates) -> Tensor:
    """Return the outputs (n, M) of a Linear whose rows are candidates, on inputs (n, D)."""
    bias = None if candidates.bias is None else candidates.bias.to(inputs)
    return functional.linear(inputs, candidates.weight.to(inputs), bias)
