"""Leaks of a hidden layer in which its candidates may differ: a grid of time constants up to the length of the sequence.

Each leak of the grid gets an equal share of the candidates, drawn for a neuron with that leak.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UnsupportedModuleError
from ..networks.libraries import library_of, list_for_message
from ..networks.private.parameters import is_frozen, with_values
from ..networks.structure.layers import HiddenLayer
from ..networks.write import Transaction
from .hidden_task import HiddenTask
from .neuron import average_units, measure_excitability, read_unit_values
from .samplers import WitnessOptions
from .site import LayerSite, weight_of

_LEVELS = 8  # leaks of the grid
_SHORTEST = 0.5  # leak of the shortest time constant, 1.4 steps


@dataclass(frozen=True)
class LeakChoice:
    """Decision on the leaks of a layer's candidates."""

    name: str | None = None  # of the parameter or buffer in which candidates differ; None if they share the layer's own
    reason: str = ""  # why they can't differ, if that was asked for
    offered: bool = False  # True if heterogeneous=True would let them differ

    def count(self, values: Mapping[str, Tensor] | None) -> dict[float, int]:
        """Return the leaks among the values of some candidates, and how many have each."""
        return {} if self.name is None or values is None else dict(sorted(Counter(values[self.name].tolist()).items()))

    def is_offered(self, inputs: Tensor | None, fed_by_spikes: bool) -> bool:
        """Return True if the leaks might differ where the net's inputs change.

        ``inputs`` (T, n, D) are the layer's, which change over time in any case if a layer of spikes feeds it.
        """
        return self.offered and inputs is not None and len(inputs) > 1 and not fed_by_spikes


def choose_leak(task: HiddenTask, layer: HiddenLayer, options: WitnessOptions) -> LeakChoice:
    """Return whether candidates of a layer may differ in their leak."""
    wanted, neuron = options.heterogeneous, layer.neuron
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


def refuse_without_leaks(task: HiddenTask, options: WitnessOptions) -> None:
    """Refuse heterogeneous=True if no layer can have a leak for each unit."""
    layers = task.net_map.hidden
    reasons = [choose_leak(task, layer, options).reason for layer in layers]
    if options.heterogeneous and layers and all(reasons):
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
