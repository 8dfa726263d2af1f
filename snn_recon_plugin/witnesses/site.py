"""Description of a hidden layer for samplers: its inputs, the samples' classes, and the currents that its neuron needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import DataError, UnsupportedModuleError
from ..networks import library_of
from .conv import CONVOLUTIONS, count_groups, extract_patches

__all__ = ["Candidates", "Excitability", "LayerSite", "measure_excitability", "to_class_labels"]

_BINS = 8  # quantiles that replace the classes of a regression target
_NEIGHBOURS = 32  # samples drawn, of which the nearest becomes the first end of a pair
_GRID = 400  # currents tried, in equal ratios
_RANGE = (1e-4, 1e4)  # currents in thresholds; covers a leak of 0.9999 and a synapse that passes a thousandth
_TRAIN_RATE = 0.2  # spike rate at which the weight of a relay is found
_TRAINS = 32
_PULSE_STEPS = 4  # multiple of the net's steps within which a pulse should have decayed


@dataclass(frozen=True)
class Candidates:
    """Candidate rows (witnesses) of a hidden layer.

    Args:
        weight: (M, *), each of the shape of one row of the layer's weight.
        bias: (M,), or None for a layer without a bias.
        units: (M,), the unit whose parameters each candidate takes, for layers with unit parameters.  Samplers leave it None.
        groups: (M,), the group of a grouped convolution that each candidate belongs to.  Samplers leave it None.
    """

    weight: Tensor
    bias: Tensor | None
    units: Tensor | None = None
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.weight)

    def take(self, index: Tensor) -> Candidates:
        """Return the candidates ``index`` (K,), in that order."""
        others = (None if part is None else part[index] for part in (self.bias, self.units, self.groups))
        return Candidates(self.weight[index], *others)

    @staticmethod
    def join(parts: Sequence[Candidates]) -> Candidates:
        """Concatenate several sets of candidates."""
        rows = [(part.bias, part.units, part.groups) for part in parts]
        columns = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
        others = (torch.cat(some) if len(some) == len(parts) else None for some in columns)
        return Candidates(torch.cat([part.weight for part in parts]), *others)


@dataclass(frozen=True)
class Excitability:
    """Currents and weights at which a layer's neuron spikes, over the net's steps.

    Args:
        rheobase: least constant current that causes a spike.
        half_rate: least constant current that causes half of the largest number of spikes.
        relay_weight: weight at which a neuron driven by one other neuron spikes about as often as that one.
        memory: share of an input left in the membrane one step later, 0 to 1.  For a neuron with its own synapse: the leak
            of a neuron without one whose mean delay is the same.
    """

    rheobase: float
    half_rate: float
    relay_weight: float
    memory: float = 0.0


@dataclass(frozen=True)
class LayerSite:
    """A layer and the samples that candidates are made from.

    Args:
        synapse: the layer's Linear or convolution.
        inputs: (n, *), the layer's inputs averaged over time; for one group of a convolution, the group's channels.
        labels: (n,), class indices; for regression, the target's quantile out of eight.
        excitability: of the layer's neuron.
        fed_by_spikes: whether all inputs are 0 or 1.
        weights: (n,), relative frequency at which each sample is drawn; None draws all equally.
        dual: (n, C), dual rows of the current solution in later rounds of column generation; else None.
        units: width of a layer with unit parameters; 0 for other layers.
        over_time: (T, n, D), inputs of a Linear at each step, (1, n, D) if constant; None if not recorded.
        group: index of the group of a grouped convolution; None for other layers.
    """

    synapse: nn.Module
    inputs: Tensor
    labels: Tensor
    excitability: Excitability
    fed_by_spikes: bool
    weights: Tensor | None = None
    dual: Tensor | None = None
    units: int = 0
    over_time: Tensor | None = None
    group: int | None = None

    @property
    def has_bias(self) -> bool:
        """True for a layer with a bias."""
        return getattr(self.synapse, "bias", None) is not None

    @property
    def is_convolution(self) -> bool:
        """True for a layer whose rows see one patch of the input at a time."""
        return isinstance(self.synapse, CONVOLUTIONS)

    @property
    def row_shape(self) -> torch.Size:
        """Shape of one row of the weight."""
        weight = self.synapse.weight
        assert isinstance(weight, Tensor)
        return weight.shape[1:]

    @property
    def own_rows(self) -> Candidates:
        """The layer's rows as they are; for a group of a convolution, the group's rows."""
        weight, bias = self.synapse.weight, self.synapse.bias
        assert isinstance(weight, Tensor)
        each = len(weight) // count_groups(self.synapse)
        rows = slice(None) if self.group is None else slice(self.group * each, (self.group + 1) * each)
        return Candidates(weight.detach()[rows].clone(), bias.detach()[rows].clone() if isinstance(bias, Tensor) else None)

    def split_groups(self) -> list[LayerSite]:
        """Return one site for each group of a grouped convolution; the site itself for other layers."""
        count = count_groups(self.synapse)
        if count == 1:
            return [self]
        return [replace(self, inputs=part, group=number) for number, part in enumerate(self.inputs.chunk(count, 1))]

    def split_steps(self, steps: Tensor, labels: Tensor) -> LayerSite:
        """Return a site with one sample for each of some steps, for targets at every step.

        Args:
            steps: (K,).
            labels: (n * K,), class indices, all steps of a sample together.
        """
        index = torch.arange(len(self.inputs), device=self.inputs.device).repeat_interleave(len(steps))
        if self.over_time is None:
            return replace(self, inputs=self.inputs[index], labels=labels)
        inputs = self.take_traces(index, steps.to(index.device).repeat(len(self.inputs)))
        return replace(self, inputs=inputs, labels=labels, over_time=None)

    def weigh_by_dual(self, dual: Tensor) -> LayerSite:
        """Return the site for the next round of column generation: samples are drawn by the size of their dual rows (n, C)."""
        return replace(self, dual=dual, weights=dual.norm(dim=1))

    def take_points(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return the inputs of samples ``index`` (K,) as rows see them, (K, D); for a convolution one patch of each."""
        if not self.is_convolution:
            return self.inputs[index].flatten(1)
        patches = extract_patches(self.synapse, self.inputs[index])
        # An empty patch makes no boundary, so patches are drawn in proportion to their norm.
        sizes = patches.norm(dim=1) + 1e-12
        chosen = torch.multinomial(sizes.cpu(), 1, generator=generator)[:, 0].to(patches.device)
        return patches[torch.arange(len(index), device=patches.device), :, chosen]

    def take_traces(self, index: Tensor, steps: Tensor) -> Tensor:
        """Return averages of inputs up to a step, weighted by the neuron's memory; inputs must be recorded over time.

        Args:
            index: (K,), samples.
            steps: (K,), the step of each.

        Returns:
            (K, D).
        """
        assert self.over_time is not None
        memory, found = self.excitability.memory, self.inputs.new_zeros(len(index), self.over_time.shape[2])
        total, weight = torch.zeros_like(self.inputs), 0.0
        for step in range(int(steps.max()) + 1 if len(steps) else 0):
            value = self.over_time[min(step, len(self.over_time) - 1)].to(found)
            total, weight = memory * total + value, memory * weight + 1.0
            here = steps == step
            found[here] = total[index[here]] / weight
        return found

    def draw_pairs(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw at most ``count`` pairs of samples of different classes.

        The second sample is drawn by the site's weights.  In the net's inputs, the first one is the nearest of 32 drawn at random:
        errors are made at boundaries between similar samples.  Above, where distances of spike rates mean less, it is any.

        Raises:
            DataError: fewer than two classes.
        """
        labels = self.labels.cpu()
        if int(labels.min()) == int(labels.max()):
            raise DataError("samples of a single class", "at least two classes, for pairs between them", "pass more data, shuffled")
        chances = torch.ones(len(labels)) if self.weights is None else self.weights.detach().float().cpu() + 1e-12
        second = torch.multinomial(chances, count, replacement=True, generator=generator)
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


def to_class_labels(targets: Tensor) -> Tensor:
    """Return class indices (n,): the targets, the index of the largest of several values, or the quantile of one value."""
    if targets.dim() == 1 and not targets.is_floating_point():
        return targets.long()
    flat = targets.reshape(len(targets), -1).double()
    if flat.shape[1] > 1:
        return flat.argmax(1)
    edges = torch.quantile(flat[:, 0], torch.linspace(0, 1, _BINS + 1, dtype=torch.float64, device=flat.device)[1:-1])
    return torch.bucketize(flat[:, 0], edges)


def measure_excitability(neuron: nn.Module, num_steps: int, like: Tensor) -> Excitability:
    """Measure a neuron by running it alone from rest.

    Args:
        neuron: a neuron that can be simulated alone and whose units share their parameters.
        num_steps: steps of the net, T.
        like: a tensor on the device and of the dtype to run with.

    Raises:
        UnsupportedModuleError: the neuron can't be simulated alone, its units differ, or no current makes it spike.
    """
    library = library_of(neuron)
    limits = library.threshold(neuron)
    if limits is None or limits[0] <= 0:
        raise _unsupported(neuron, "no positive threshold")
    low, high = (float(torch.tensor(value, dtype=torch.float64).log10()) for value in _RANGE)
    grid = limits[1] * torch.logspace(low, high, _GRID, dtype=torch.float64).to(like)
    try:
        counts = library.run(neuron, grid.expand(num_steps, 1, _GRID).contiguous()).spikes.sum((0, 1))
    except RuntimeError as error:
        raise _unsupported(neuron, f"different parameters for each unit ({error})") from error
    most = float(counts.max())
    if most == 0:
        raise _unsupported(neuron, f"no spike within {num_steps} steps at any constant current")
    rheobase, half_rate = grid[int((counts > 0).nonzero()[0])], grid[int((counts >= most / 2).nonzero()[0])]
    generator = torch.Generator().manual_seed(0)
    train = (torch.rand(num_steps, _TRAINS, 1, generator=generator) < _TRAIN_RATE).to(like)
    passed = library.run(neuron, train * grid).spikes.sum((0, 1))
    relay_weight = grid[int((passed - train.sum()).abs().argmin())]
    return Excitability(float(rheobase), float(half_rate), float(relay_weight), _measure_memory(neuron, num_steps, 0.1 * rheobase))


def _measure_memory(neuron: nn.Module, num_steps: int, pulse: Tensor) -> float:
    """Return the memory m of a neuron, from the mean delay d = m / (1 - m) of a pulse below the threshold."""
    currents = pulse.new_zeros(_PULSE_STEPS * num_steps, 1, 2)
    currents[0, 0, 0] = pulse
    membranes = library_of(neuron).run(neuron, currents).membranes.double()
    left = (membranes[:, 0, 0] - membranes[:, 0, 1]).clamp_min(0.0)
    delay = float((left @ torch.arange(len(left), dtype=left.dtype, device=left.device)) / left.sum().clamp_min(1e-300))
    return delay / (1 + delay)


def _unsupported(neuron: nn.Module, found: str) -> UnsupportedModuleError:
    return UnsupportedModuleError(
        f"{type(neuron).__name__} with {found}",
        "a neuron whose units share their parameters and spike at a large enough current",
        "pass hidden='rescale', which keeps the layer's weights",
    )
