"""Norse's neurons.

Modules keep no state: a call takes one and returns the next, as a NamedTuple.  Constants lie in a NamedTuple ``p``, whose default
tensors all cells share; they are read here and never written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .library import Dynamics, Library, Recurrence, Synapse, Visit
from .norse_steps import norse_stepper
from .stepper import Stepper

_PACKAGE = "norse.torch.module"
_INTEGRATOR_FILES = ("leaky_integrator", "leaky_integrator_box")
_LIF_FILES = ("lif", "lif_adex", "lif_adex_refrac", "lif_box", "lif_correlation", "lif_ex", "lif_mc", "lif_mc_refrac", "lif_refrac")
_FILES = (*_INTEGRATOR_FILES, *_LIF_FILES, "coba_lif", "iaf", "izhikevich", "lsnn")
_SEQUENCE_BASES = {"SNN", "SNNRecurrent"}  # one call takes all steps
_CURRENT_BASES = {"SNN", "SNNCell"}  # without weights, but for the next
_WITH_LINEAR = "LILinearCell"
_KNOWN_DYNAMICS = ("LIF", "LIFCell", "LIFRecurrent", "LIFRecurrentCell")


class Norse(Library):
    """Norse: layers, which take all steps in one call, and cells, which take one."""

    name = "norse"
    title = "Norse"
    example = "norse.LIFCell()"
    integrator = "norse.LICell()"
    readouts = "an nn.Linear or a LILinearCell"
    packages = tuple(f"{_PACKAGE}.{file}" for file in _FILES)
    without_leak = "keeps its time constants where state_dict does not save them"
    known_alone = "one without weights of its own, such as LIF, LIFCell, LI or LICell"
    known_dynamics = "a LIF, LIFCell, LIFRecurrent or LIFRecurrentCell of Norse"

    def takes_sequences(self, module: nn.Module) -> bool:
        """Return whether the module is a layer of neurons, such as LIF, not a cell, such as LIFCell."""
        return bool(_SEQUENCE_BASES & _bases(module))

    def integrates(self, neuron: nn.Module) -> bool:
        files = tuple(f"{_PACKAGE}.{file}" for file in _INTEGRATOR_FILES)
        return any(cls.__module__ in files for cls in type(neuron).__mro__)

    def unit_thresholds(self, neuron: nn.Module) -> Tensor | None:
        value = next(_find(getattr(neuron, "p", None), "v_th"), None)
        return None if value is None else torch.as_tensor(value)

    def dynamics(self, neuron: Any) -> Dynamics:
        if self._neuron_class(neuron) not in _KNOWN_DYNAMICS:
            raise self._unknown_dynamics(f"a neuron of class {type(neuron).__name__}")
        p = neuron.p
        dt = float(neuron.dt)
        rate, leak = dt * self._scalar(neuron, p.tau_mem_inv), self._scalar(neuron, p.v_leak)
        return Dynamics(
            leak=1 - rate,
            gain=rate,
            synapse=1 - dt * self._scalar(neuron, p.tau_syn_inv),
            rest=rate * leak,
            start=leak,
            threshold=self._scalar(neuron, p.v_th),
            reset=self._scalar(neuron, p.v_reset),
        )

    def synapse(self, neuron: nn.Module) -> Synapse | None:
        """Return the module itself if it holds its own weights: LILinearCell and all recurrent layers."""
        if self._neuron_class(neuron) != _WITH_LINEAR and _CURRENT_BASES & _bases(neuron):
            return None
        held = isinstance(getattr(neuron, "input_weights", None), Tensor)
        return Synapse(neuron, "input_weights" if held else None)

    def recurrence(self, neuron: nn.Module) -> Recurrence | None:
        if not isinstance(getattr(neuron, "recurrent_weights", None), Tensor):
            return None
        units, autapses = getattr(neuron, "hidden_size", None), bool(getattr(neuron, "autapses", False))
        return Recurrence((neuron, "recurrent_weights"), autapses=autapses, units=units)

    def recurrent_input(self, neuron: nn.Module) -> tuple[nn.Module, str | None] | None:
        """Return a recurrent cell itself, whose state holds the spikes ``z``; None for a layer, which loops inside one call."""
        return None if self.recurrence(neuron) is None or self.takes_sequences(neuron) else (neuron, "z")

    def _set_weights(self, neuron: nn.Module, currents: Tensor, recurrent: Tensor | None) -> None:
        if self.synapse(neuron) is not None and isinstance(getattr(neuron, "input_weights", None), Tensor):
            identity = torch.eye(currents.shape[-1], dtype=currents.dtype, device=currents.device)
            neuron._parameters["input_weights"] = nn.Parameter(identity, requires_grad=False)
        if recurrent is not None:
            matrix = recurrent.diag() if recurrent.dim() == 1 else recurrent
            neuron._parameters["recurrent_weights"] = nn.Parameter(matrix, requires_grad=False)
            neuron.hidden_size = torch.as_tensor(len(matrix))

    def _simulate(self, neuron: nn.Module, currents: Tensor, visit: Visit) -> None:
        """Simulate any layer or cell without its weights."""
        if self.synapse(neuron) is not None and not isinstance(getattr(neuron, "input_weights", None), Tensor):
            raise self._not_alone(neuron)
        if self.takes_sequences(neuron):
            _simulate_layer(neuron, currents, visit)
            return
        state = None
        for current in currents:
            # The class's forward, not the module's call, so that a user's hooks on the neuron don't fire.
            output = type(neuron).forward(neuron, current, state)
            state, membrane = output[1], self.membrane(neuron, output)
            assert membrane is not None
            visit(self.spikes(output), membrane)

    def _stepper(self, neuron: nn.Module) -> Stepper | None:
        """Return the stepper of a LIFCell, LIFRecurrentCell or LICell whose constants all units share."""
        return norse_stepper(neuron, self._neuron_class(neuron) or "")

    def reset(self, module: nn.Module) -> None:
        """Do nothing: the modules keep no state."""

    def membrane(self, neuron: nn.Module, output: Any) -> Tensor | None:
        """Return a leaky integrator's output, else the state's ``v``; a spiking layer shows only its last one, so None."""
        if self.integrates(neuron):
            return self.spikes(output)
        found = next(_find(output[1], "v"), None) if isinstance(output, (tuple, list)) and len(output) > 1 else None
        if not isinstance(found, Tensor) or found.shape != self.spikes(output).shape:
            return None
        return found


def _simulate_layer(layer: nn.Module, currents: Tensor, visit: Visit) -> None:
    """Run a layer step by step, for memory; a user's own forward may look at all steps, so it gets them in one call."""
    forward = type(layer).forward
    own = not forward.__module__.startswith(_PACKAGE)
    layer.record_states = own  # type: ignore[assignment]
    if own:
        spikes, states = forward(layer, currents)
        for spike, membrane in zip(spikes, next(_find(states, "v")), strict=True):
            visit(spike, membrane)
        return
    state = None
    for current in currents:
        spikes, state = forward(layer, current[None], state)
        visit(spikes[0], next(_find(state, "v")))


def _bases(module: nn.Module) -> set[str]:
    return {cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith(_PACKAGE)}


def _find(value: Any, name: str) -> Iterator[Any]:
    """Yield the fields of a name in nested named tuples, as LIFRefracState holds a LIFState."""
    for field in getattr(value, "_fields", ()):
        item = getattr(value, field)
        if field == name:
            yield item
        elif isinstance(item, tuple):
            yield from _find(item, name)
