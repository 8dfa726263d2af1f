"""Norse's neurons.  The library itself is never imported: its modules say by their class where they come from.

Norse's modules keep no state: a call takes one and returns the next, as a NamedTuple.  Their constants lie in a NamedTuple
``p``, whose default tensors all cells share; they are read here and never written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from .neurons import Synapse, Trace, Visit, class_in, collect
from .state import ModuleState

__all__ = ["NorseAdapter"]

_PACKAGE = "norse.torch.module"
_FILES = (
    "coba_lif iaf izhikevich leaky_integrator leaky_integrator_box lif lif_adex lif_adex_refrac lif_box lif_correlation lif_ex "
    "lif_mc lif_mc_refrac lif_refrac lsnn"
)
_NEURONS = tuple(f"{_PACKAGE}.{file}" for file in _FILES.split())
_INTEGRATORS = tuple(f"{_PACKAGE}.{file}" for file in ("leaky_integrator", "leaky_integrator_box"))


class NorseAdapter:
    """Handles Norse's neurons; see :class:`~snn_recon_plugin.networks.neurons.NeuronAdapter`."""

    library = "norse"

    def owns(self, module: nn.Module) -> bool:
        """Say whether ``module`` is an instance, or of a subclass, of one of Norse's neuron classes."""
        return class_in(module, _NEURONS) is not None

    def takes_sequences(self, module: nn.Module) -> bool:
        """Say whether one call takes ``[T, B, *]``: the layers, such as LIF, do; the cells, such as LIFCell, don't."""
        return bool({"SNN", "SNNRecurrent"} & _bases(module))

    def synapse(self, module: nn.Module) -> Synapse | None:
        """Give the module itself where it holds its own weights: LILinearCell and all recurrent layers."""
        if class_in(module, _NEURONS) == "LILinearCell":
            return Synapse(module, weight="input_weights")
        return None if {"SNN", "SNNCell"} & _bases(module) else Synapse(module)

    def threshold(self, module: nn.Module) -> tuple[float, float] | None:
        """Give the smallest and the largest ``v_th``; None for leaky integrators."""
        values = [torch.as_tensor(value).detach().double() for value in _find(getattr(module, "p", None), "v_th")]
        if not values:
            return None
        return min(float(value.min()) for value in values), max(float(value.max()) for value in values)

    def integrates(self, module: nn.Module) -> bool:
        """Say whether the neuron is one of Norse's leaky integrators."""
        return class_in(module, _INTEGRATORS) is not None

    def unit_thresholds(self, module: nn.Module) -> Tensor | None:
        """Give ``v_th`` as it is stored; None for leaky integrators."""
        value = next(iter(_find(getattr(module, "p", None), "v_th")), None)
        return None if value is None else torch.as_tensor(value)

    def reset(self, module: nn.Module) -> None:
        """Do nothing: the modules keep no state."""

    def spikes(self, output: Any) -> Tensor:
        """Pick the spikes: the first item, the second being the state."""
        spikes = output[0] if isinstance(output, (tuple, list)) else output
        assert isinstance(spikes, Tensor)
        return spikes

    def membrane(self, module: nn.Module, output: Any) -> Tensor | None:
        """Read the membrane: a leaky integrator's output, else the state's ``v``; a spiking layer shows only its last one."""
        if class_in(module, _INTEGRATORS) is not None:
            return self.spikes(output)
        found = next(iter(_find(output[1], "v")), None) if isinstance(output, (tuple, list)) and len(output) > 1 else None
        if not isinstance(found, Tensor) or found.shape != self.spikes(output).shape:
            return None
        return found

    def run(self, module: nn.Module, currents: Tensor) -> Trace:
        """Simulate the neuron alone, as ``each_step`` does, and give its spikes and membranes at all steps."""
        return collect(self.each_step, module, currents)

    def each_step(self, module: nn.Module, currents: Tensor, visit: Visit) -> None:
        """Simulate the neuron alone from rest, bit for bit as the network does.

        Args:
            module: any feed-forward neuron, layer or cell, or a LILinearCell, whose weights are left out.
            currents: ``[T, B, *]``, T at least 1.
            visit: called with its spikes and membranes after each step.

        Raises:
            UnsupportedModuleError: for a neuron with weights of its own.
        """
        own = self.synapse(module)
        if own is not None and own.weight is None:
            raise UnsupportedModuleError(
                f"a neuron of class {type(module).__name__}",
                "a neuron that can be simulated alone: one without weights of its own, e.g. LIF, LIFCell, LI or LICell",
                "use one of those there; a hidden layer of another class is kept as it is",
            )
        kept, weights = ModuleState([module]), module._parameters.get("input_weights")
        try:
            with torch.no_grad():
                if own is not None:  # An identity passes each current through unchanged.
                    identity = torch.eye(currents.shape[-1], dtype=currents.dtype, device=currents.device)
                    module._parameters["input_weights"] = nn.Parameter(identity, requires_grad=False)
                if self.takes_sequences(module):
                    _layer(module, currents, visit)
                else:
                    self._cell(module, currents, visit)
        finally:
            if own is not None:
                module._parameters["input_weights"] = weights
            kept.restore()

    def _cell(self, module: nn.Module, currents: Tensor, visit: Visit) -> None:
        """Step a cell, ``currents`` ``[T, B, *]``."""
        state = None
        for current in currents:
            # The class's forward, not the module's call: hooks that a user put there must not see this.
            output = type(module).forward(module, current, state)
            state = output[1]
            membrane = self.membrane(module, output)
            assert membrane is not None
            visit(self.spikes(output), membrane)


def _layer(module: nn.Module, currents: Tensor, visit: Visit) -> None:
    """Run a layer step by step, ``currents`` ``[T, B, *]``: all at once it would hold the states of all steps.

    A forward of the user's own may look at all steps, and is given them.
    """
    forward = type(module).forward
    own = not forward.__module__.startswith(_PACKAGE)
    module.record_states = own  # type: ignore[assignment]
    if own:
        spikes, states = forward(module, currents)
        for spike, membrane in zip(spikes, next(iter(_find(states, "v"))), strict=True):
            visit(spike, membrane)
        return
    state = None
    for current in currents:
        spikes, state = forward(module, current[None], state)
        visit(spikes[0], next(iter(_find(state, "v"))))


def _bases(module: nn.Module) -> set[str]:
    """Name all Norse classes that a module is an instance of."""
    return {cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith(_PACKAGE)}


def _find(value: Any, name: str) -> Iterator[Any]:
    """Yield the fields of a name in named tuples nested in each other, as LIFRefracState holds a LIFState."""
    fields = getattr(value, "_fields", None)
    if fields is None and hasattr(value, "_asdict"):
        fields = tuple(value._asdict())
    for field in fields or ():
        item = getattr(value, field)
        if field == name:
            yield item
        elif isinstance(item, tuple):
            yield from _find(item, name)
