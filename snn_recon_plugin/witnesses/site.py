"""A hidden layer as samplers see it: what enters it, which classes its samples have, and how strong a current its neuron needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from snn_recon_plugin.errors import DataError

from .response import Response

__all__ = ["CONVOLUTIONS", "Candidates", "Site", "class_labels", "groups_of", "patches_of"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BINS = 8  # of a regression's target
_NEAR = 32  # samples among which the near end of a pair is looked for


@dataclass(frozen=True)
class Candidates:
    """Rows that hidden neurons might get.

    Args:
        weight: (M, *), each of the shape of one row of the layer's weight.
        bias: (M,), or None for a layer without a bias.
        units: (M,), whose parameters each takes, where the layer's units have some of their own; set for a sampler, not by it.
        groups: (M,), the group of a grouped convolution that each belongs to; set for a sampler, not by it.
    """

    weight: Tensor
    bias: Tensor | None
    units: Tensor | None = None
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.weight)

    def take(self, index: Tensor) -> Candidates:
        """Some of them, in the order of ``index`` (K,)."""
        others = (None if part is None else part[index] for part in (self.bias, self.units, self.groups))
        return Candidates(self.weight[index], *others)

    @staticmethod
    def join(parts: Sequence[Candidates]) -> Candidates:
        """All of several lots."""
        rows = [(part.bias, part.units, part.groups) for part in parts]
        columns = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
        others = (torch.cat(some) if len(some) == len(parts) else None for some in columns)
        return Candidates(torch.cat([part.weight for part in parts]), *others)


@dataclass(frozen=True)
class Site:
    """A layer and the samples that candidates are made from.

    Args:
        synapse: the layer's Linear or convolution.
        inputs: (n, *), what enters it, averaged over time: rates, where it is fed by spikes.  Of a grouped convolution, what
            enters the group.
        labels: (n,), class indices; for regression, which of eight quantiles the target lies in.
        response: of its neuron.
        fed_by_spikes: whether all that enters it is 0 or 1.
        weights: (n,), how often each sample should be drawn, e.g. its residual; None draws all alike.
        dual: (n, C), dual rows of the solution on the candidates so far, in rounds of column generation; else None.
        units: width of a layer whose units have parameters of their own; 0 where they are alike.
        over_time: (T, n, D), what enters a Linear at each step, or (1, n, D) where that is the same; None where it isn't recorded.
        group: which group of a grouped convolution candidates are made for; None for all layers else.
    """

    synapse: nn.Module
    inputs: Tensor
    labels: Tensor
    response: Response
    fed_by_spikes: bool
    weights: Tensor | None = None
    dual: Tensor | None = None
    units: int = 0
    over_time: Tensor | None = None
    group: int | None = None

    @property
    def has_bias(self) -> bool:
        """Whether the layer has a bias."""
        return getattr(self.synapse, "bias", None) is not None

    @property
    def is_convolution(self) -> bool:
        """Whether a row sees a patch of the input at a time."""
        return isinstance(self.synapse, CONVOLUTIONS)

    @property
    def own_rows(self) -> Candidates:
        """The layer's own rows; of a grouped convolution, the group's."""
        weight, bias = self.synapse.weight, self.synapse.bias
        assert isinstance(weight, Tensor)
        each = len(weight) // groups_of(self.synapse)
        rows = slice(None) if self.group is None else slice(self.group * each, (self.group + 1) * each)
        return Candidates(weight.detach()[rows].clone(), bias.detach()[rows].clone() if isinstance(bias, Tensor) else None)

    def of_groups(self) -> list[Site]:
        """The same layer group by group, each with the channels that enter it; the site itself where there is one group."""
        count = groups_of(self.synapse)
        if count == 1:
            return [self]
        return [replace(self, inputs=part, group=number) for number, part in enumerate(self.inputs.chunk(count, 1))]

    @property
    def row_shape(self) -> torch.Size:
        """Shape of one row of the weight."""
        weight = self.synapse.weight
        assert isinstance(weight, Tensor)
        return weight.shape[1:]

    def after(self, dual: Tensor) -> Site:
        """The same site for a round of column generation: samples are drawn by how far the solution is from fitting them.

        Args:
            dual: (n, C), the dual rows of that solution.
        """
        return replace(self, dual=dual, weights=dual.norm(dim=1))

    def points(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """What a row sees of samples ``index`` (K,), flat (K, D): all of it, or for a convolution a patch each, drawn by norm."""
        if not self.is_convolution:
            return self.inputs[index].flatten(1)
        patches = patches_of(self.synapse, self.inputs[index])
        # A patch without anything in it makes no boundary: chances are by norm.
        sizes = patches.norm(dim=1) + 1e-12
        chosen = torch.multinomial(sizes.cpu(), 1, generator=generator)[:, 0].to(patches.device)
        return patches[torch.arange(len(index), device=patches.device), :, chosen]

    def traces(self, index: Tensor, steps: Tensor) -> Tensor:
        """Inputs of samples ``index`` (K,) up to ``steps`` (K,), averaged as the neuron's memory weighs them, (K, D).

        Only where inputs are recorded over time.  Inputs that don't change are their own traces.
        """
        assert self.over_time is not None
        memory, found = self.response.memory, self.inputs.new_zeros(len(index), self.over_time.shape[2])
        total, weight = torch.zeros_like(self.inputs), 0.0
        for step in range(int(steps.max()) + 1 if len(steps) else 0):
            value = self.over_time[min(step, len(self.over_time) - 1)].to(found)
            total, weight = memory * total + value, memory * weight + 1.0
            here = steps == step
            found[here] = total[index[here]] / weight
        return found

    def at_steps(self, steps: Tensor, labels: Tensor) -> Site:
        """The same layer with every sample as it is at some steps, each a sample of its own: what has a target at each step.

        Args:
            steps: (K,).
            labels: (n * K,), class indices, those of a sample in a row.
        """
        index = torch.arange(len(self.inputs), device=self.inputs.device).repeat_interleave(len(steps))
        if self.over_time is None:
            return replace(self, inputs=self.inputs[index], labels=labels)
        inputs = self.traces(index, steps.to(index.device).repeat(len(self.inputs)))
        return replace(self, inputs=inputs, labels=labels, over_time=None)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pairs of samples of different classes, at most ``count``: the second by the site's weights, the first near it.

        In the net's own inputs the first is the nearest of some drawn by chance: boundaries between samples that are alike are
        where errors are made.  Above, where distances between spike rates tell less, it is any.  Measured in docs/decisions.md.

        Raises:
            DataError: fewer than two classes.
        """
        labels = self.labels.cpu()
        if int(labels.min()) == int(labels.max()):
            raise DataError("samples of a single class", "at least two classes, for pairs between them", "pass more data, shuffled")
        chances = torch.ones(len(labels)) if self.weights is None else self.weights.detach().float().cpu() + 1e-12
        second = torch.multinomial(chances, count, replacement=True, generator=generator)
        others = torch.randint(len(labels), (_NEAR, count), generator=generator)
        flat = self.inputs.flatten(1)
        ends = flat[second.to(flat.device)]
        apart = torch.stack([(flat[other.to(flat.device)] - ends).square().sum(1).cpu() for other in others])
        if self.fed_by_spikes:
            apart = torch.arange(_NEAR, dtype=apart.dtype)[:, None].repeat(1, count)
        apart[labels[others] == labels[second]] = torch.inf
        first = others[apart.argmin(0), torch.arange(count)]
        kept = labels[first] != labels[second]  # a rare class may not have met another among the samples drawn
        return first[kept].to(flat.device), second[kept].to(flat.device)


def class_labels(targets: Tensor) -> Tensor:
    """Class indices (n,): the targets themselves, the largest of several, or the quantile of a single value."""
    if targets.dim() == 1 and not targets.is_floating_point():
        return targets.long()
    flat = targets.reshape(len(targets), -1).double()
    if flat.shape[1] > 1:
        return flat.argmax(1)
    edges = torch.quantile(flat[:, 0], torch.linspace(0, 1, _BINS + 1, dtype=torch.float64, device=flat.device)[1:-1])
    return torch.bucketize(flat[:, 0], edges)


def groups_of(synapse: nn.Module) -> int:
    """Return how many groups a convolution has; 1 for other layers."""
    return int(synapse.groups) if isinstance(synapse, CONVOLUTIONS) else 1


def patches_of(conv: Any, inputs: Tensor) -> Tensor:
    """Return what a row of a convolution sees at each position.

    Args:
        conv: a convolution over one, two or three axes.
        inputs: (n, C, *), what enters it, or a group of its channels.

    Returns:
        (n, C * K, positions), K values a channel.
    """
    axes = inputs.dim() - 2
    found = functional.pad(inputs, [size for size in reversed(_padding(conv)) for _ in range(2)])
    for axis, size, stride, dilation in zip(range(axes), conv.kernel_size, conv.stride, conv.dilation, strict=True):
        found = found.unfold(axis + 2, dilation * (size - 1) + 1, stride)[..., ::dilation]
    kernel, positions = range(2 + axes, 2 + 2 * axes), range(2, 2 + axes)
    return found.permute(0, 1, *kernel, *positions).reshape(len(inputs), found.shape[1] * math.prod(conv.kernel_size), -1)


def _padding(conv: Any) -> tuple[int, ...]:
    """Return a convolution's padding in numbers; "same" pads alike on both sides here, which only moves the patches drawn."""
    if not isinstance(conv.padding, str):
        return tuple(conv.padding)
    if conv.padding == "valid":
        return (0,) * len(conv.kernel_size)
    return tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
