"""Samplers of candidate rows, one function each, and the leaks in which candidates may differ.

Samplers other than "relays" place boundaries, where a row's current is the rheobase.  With a slope of one, the current one unit
above gives half the maximal rate.  Slopes are drawn over two octaves, raised to what training keeps, and the selection chooses.

Leaks are a grid of time constants up to the length of the sequence.  Each gets an equal share of the candidates, drawn for a neuron
with that leak.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import DataError, OptionError, UnsupportedModuleError
from ..networks.libraries import library_of, list_for_message
from ..networks.private.parameters import is_frozen, with_values
from ..networks.structure.layers import HiddenLayer
from ..networks.write import Transaction
from .hidden_task import HiddenTask
from .neuron import average_units, measure_excitability, read_unit_values
from .site import Candidates, LayerSite, Sampler, weight_of

_FRESH = 3**-0.5  # norm of a row of torch's default initialisation
_LEAST_SLOPE = 25e-3  # least current one unit above a boundary, of the sum of inputs: what 25 steps of Adam at 1e-3 add
_STEEPEST = 32.0  # times a slope of one at most: steeper rows have no rates between none and the largest
# Shares of the kinds in the pool of "auto", by what enters the layer.  Relays preserve the layer below, and pairs add to it.
POOLS: dict[str, dict[str, float]] = {
    "constant": {"pairs": 1.0},
    "changing": {"traces": 1.0},
    "spikes": {"relays": 1 / 3, "pairs": 2 / 3},
}
_LEVELS = 8  # leaks of the grid
_SHORTEST = 0.5  # leak of the shortest time constant, 1.4 steps


def pairs(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    """Place boundaries half-way between two samples of different classes."""
    first, second = site.draw_pairs(count, generator)
    return boundary_between(site, site.inputs[first], site.inputs[second], generator)


def traces(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    """Place boundaries between two samples as the neuron remembers them at a random step; ``pairs`` where inputs are constant."""
    if not site.changes:
        return pairs(site, count, generator)
    first, second = site.draw_pairs(count, generator)
    steps = site.draw_steps(len(first), generator)
    return boundary_between(site, site.take_traces(first, steps), site.take_traces(second, steps), generator)


def gaussian(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    """Place boundaries of Gaussian directions, of one spread, through random samples (arXiv 2605.08022, section 4)."""
    chosen = torch.randint(len(site.inputs), (count,), generator=generator).to(site.inputs.device)
    points = site.take_traces(chosen, site.draw_steps(count, generator)) if site.changes else site.inputs[chosen]
    directions = torch.randn(count, points.shape[1], generator=generator).to(points)
    directions = directions / measure_spread(points, directions)[:, None]
    return place_boundaries(site, directions, (directions * points).sum(1), generator)


def relays(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    """Return neurons that spike about when one neuron of the layer below does; ``pairs`` for a layer not fed by spikes."""
    width = site.inputs[0].numel()
    if not site.fed_by_spikes:
        return pairs(site, count, generator)
    order = torch.randperm(width, generator=generator)[:count].to(site.inputs.device)
    weight = site.inputs.new_zeros(len(order), width)
    weight[torch.arange(len(order), device=weight.device), order] = site.excitability.relay_weight
    return Candidates(weight, weight.new_zeros(len(order)) if site.has_bias else None)


def auto(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    """Draw a pool of kinds that suits what enters the layer."""
    return draw_pool(_find_pool(site), site, count, generator)


def _find_pool(site: LayerSite) -> dict[str, float]:
    return POOLS["spikes" if site.fed_by_spikes else "changing" if site.changes else "constant"]


def list_pool(sampler: Sampler, site: LayerSite) -> dict[str, Sampler]:
    """Return the samplers that one consists of, by name: several for the pool of "auto"."""
    if sampler is auto:
        return {kind: SAMPLERS[kind] for kind in _find_pool(site)}
    return {_name_sampler(sampler): sampler}


def _name_sampler(sampler: Sampler) -> str:
    return str(getattr(sampler, "__name__", "custom"))


def draw_pool(shares: Mapping[str, float], site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    """Draw candidates of several kinds by their shares; the last kind makes up for any that has fewer."""
    parts: list[Candidates] = []
    for number, (kind, share) in enumerate(shares.items(), start=1):
        left = count - sum(map(len, parts))
        wanted = left if number == len(shares) else min(left, max(1, round(share * count)))
        if wanted:
            drawn = SAMPLERS[kind](site, wanted, generator)
            parts.append(replace(drawn, kinds=(kind,) * len(drawn)))
    return Candidates.join(parts)


SAMPLERS: dict[str, Sampler] = {sampler.__name__: sampler for sampler in (auto, gaussian, pairs, traces, relays)}


def get_sampler(witnesses: str | Sampler) -> Sampler:
    """Return the sampler of a name, or the user's function itself."""
    if callable(witnesses):
        return witnesses
    if witnesses not in SAMPLERS:
        raise OptionError(f"witnesses={witnesses!r}", f"one of {list(SAMPLERS)}, or a function", "pass witnesses='auto'")
    return SAMPLERS[witnesses]


def boundary_between(site: LayerSite, low: Tensor, high: Tensor, generator: torch.Generator) -> Candidates:
    """Place boundaries half-way between two points (M, D) each, at one unit of slope from either."""
    gap = high - low
    size = gap.square().sum(1, keepdim=True)
    directions = 2 * gap / size
    offsets = (directions * (low + high) / 2).sum(1)
    differ = size[:, 0] > 1e-12  # no boundary separates identical samples with different labels
    return place_boundaries(site, directions[differ], offsets[differ], generator)


def place_boundaries(site: LayerSite, directions: Tensor, offsets: Tensor, generator: torch.Generator) -> Candidates:
    """Return rows with the rheobase at ``directions @ x = offsets`` and, for slope one, half the maximal rate one unit above."""
    octaves = 2 * torch.rand(len(directions), generator=generator) - 1
    rheobase, half_rate = site.excitability.rheobase, site.excitability.half_rate
    usual = max(half_rate - rheobase, rheobase)
    if site.has_bias:  # rows shorter than fresh ones, or less steep than the sum of inputs, would not outlast a step of training
        lasting = (_FRESH / directions.norm(dim=1)).clamp_min(_LEAST_SLOPE * float(site.inputs.abs().sum(1).mean()))
        step = torch.maximum(usual * 2.0 ** octaves.to(directions), lasting.clamp_max(_STEEPEST * usual))
        return Candidates(directions * step[:, None], rheobase - step * offsets)
    # Without a bias, only one length and sign of the row puts the boundary there.
    possible = offsets.abs() > 1e-12
    return Candidates(directions[possible] * (rheobase / offsets[possible])[:, None], None)


def measure_spread(points: Tensor, directions: Tensor) -> Tensor:
    """Return the standard deviation of each direction's current over the points, (M,)."""
    return ((points - points.mean(0)) @ directions.T).std(0, correction=0).clamp_min(1e-12)


def draw_candidates(sampler: Sampler, site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    """Draw candidates, with equal shares of leaks, check that the layer can hold them, and assign its units in turn."""
    sites = site.split_variants()
    drawn = Candidates.join([_draw_variant(sampler, part, -(-count // len(sites)), generator) for part in sites])
    if len(drawn) == 0:
        found = "no candidates, since no two of the samples drawn differ in both class and input"
        fix = "check the inputs and the labels, or pass hidden='rescale'"
        raise DataError(found, "samples of different classes that differ", fix)
    if not site.unit_values:
        return drawn
    number = torch.arange(len(drawn), device=drawn.weight.device)
    own = {name: value[number % len(value)] for name, value in site.unit_values.items()}
    return replace(drawn, unit_values={**own, **(drawn.unit_values or {})})


def _draw_variant(sampler: Sampler, site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    drawn = sampler(site, count, generator)
    if not isinstance(drawn, Candidates):
        fix = "return Candidates(weight, bias) from the sampler"
        raise OptionError(f"a sampler that returns {type(drawn).__name__}", "Candidates", fix)
    device = site.inputs.device  # a custom sampler draws on the generator's device
    kinds = (_name_sampler(sampler),) * len(drawn) if drawn.kinds is None else drawn.kinds
    drawn = Candidates(drawn.weight.to(device), None if drawn.bias is None else drawn.bias.to(device), kinds=kinds)
    bias_shape = None if drawn.bias is None else tuple(drawn.bias.shape)
    finite = bool(torch.isfinite(drawn.weight).all()) and (drawn.bias is None or bool(torch.isfinite(drawn.bias).all()))
    if drawn.weight.shape[1:] != site.row_shape or bias_shape != ((len(drawn),) if site.has_bias else None) or not finite:
        raise OptionError(
            f"a sampler whose candidates have weights of shape {tuple(drawn.weight.shape)} and a bias of shape {bias_shape}"
            + ("" if finite else ", not all finite"),
            f"(number, {', '.join(map(str, site.row_shape))}) and {'one bias each' if site.has_bias else 'bias=None'}",
            "return Candidates(weight, bias) of these shapes from the sampler",
        )
    values = None if site.leak is None else {site.leak[0]: torch.full((len(drawn),), site.leak[1], device=device)}
    return replace(drawn, unit_values=values)


@dataclass(frozen=True)
class LeakChoice:
    """Decision on the leaks of a layer's candidates."""

    name: str | None = None  # of the parameter or buffer in which candidates differ; None if they share the layer's own
    reason: str = ""  # why they can't differ, if that was asked for
    offered: bool = False  # True if heterogeneous=True would let them differ

    def count(self, values: Mapping[str, Tensor] | None) -> dict[float, int]:
        """Return the leaks among the values of some candidates, and how many have each."""
        return {} if self.name is None or values is None else dict(sorted(Counter(values[self.name].tolist()).items()))

    def is_offered(self, inputs: Tensor, fed_by_spikes: bool) -> bool:
        """Return True if leaks might differ where inputs (T, n, D) change, as those of a layer that spikes feed do in any case."""
        return self.offered and len(inputs) > 1 and not fed_by_spikes


def choose_leak(task: HiddenTask, layer: HiddenLayer) -> LeakChoice:
    """Return whether candidates of a layer may differ in their leak."""
    wanted, neuron = task.heterogeneous, layer.neuron
    if layer.is_convolution:
        return LeakChoice(reason="the rows of a convolution stay" if wanted else "")
    weight = getattr(layer.synapse, "weight", None)
    if wanted is False or not isinstance(weight, Tensor):
        return LeakChoice()
    name = library_of(neuron).leak_name(neuron)
    if name is None:
        return LeakChoice(reason=f"a {type(neuron).__name__} {library_of(neuron).without_leak}" if wanted else "")
    own = name in read_unit_values(neuron, len(weight))
    fixed = _explain_fixed_leak(task, neuron, name, len(weight))
    if fixed:
        return LeakChoice(reason=fixed if wanted else "")
    if wanted is None and not own:
        return LeakChoice(offered=True)
    return LeakChoice(name)


def refuse_without_leaks(task: HiddenTask) -> None:
    """Refuse heterogeneous=True if no layer can have a leak for each unit."""
    layers = task.net_map.hidden
    reasons = [choose_leak(task, layer).reason for layer in layers]
    if task.heterogeneous and layers and all(reasons):
        found = f"heterogeneous=True for hidden layer {layers[0].name!r}: {reasons[0]}"
        needed = f"a leak for each unit that is saved with the net, as in {list_for_message(lambda library: library.known_leaks)}"
        raise UnsupportedModuleError(found, needed, "leave heterogeneous out, or use one of these neurons")


def _explain_fixed_leak(task: HiddenTask, neuron: nn.Module, name: str, width: int) -> str:
    value = getattr(neuron, name)
    if parametrize.is_parametrized(neuron, name):
        return f"its {name} is computed by a parametrization"
    if is_frozen(neuron, name):
        return f"its {name} is frozen"
    if value.numel() > 1 and name not in read_unit_values(neuron, width):
        return f"its {name} has the shape {list(value.shape)}, not one value for each of {width} units"
    return Transaction(task.recorder.net).explain(neuron, name)


def make_leak_grid(num_steps: int) -> list[float]:
    """Return leaks, their time constants in equal ratios from 1.4 steps to the length of the sequence."""
    shortest = -1 / math.log(_SHORTEST)
    ends = math.log(shortest), math.log(max(shortest, num_steps))
    leaks = torch.exp(-1 / torch.linspace(*ends, _LEVELS, dtype=torch.float64).exp())
    return sorted(set(leaks.tolist()))


def split_by_leak(site: LayerSite, neuron: nn.Module, name: str, num_steps: int) -> LayerSite:
    """Return a site with one variant for each leak of the grid, with the excitability of a neuron of that leak."""
    variants = []
    with average_units(neuron, len(weight_of(site.synapse))):
        for leak in make_leak_grid(num_steps):
            with with_values({(neuron, name): torch.tensor(leak)}):
                excitability = measure_excitability(neuron, num_steps, site.inputs)
            variants.append(replace(site, excitability=excitability, leak=(name, leak)))
    return replace(site, variants=tuple(variants))
