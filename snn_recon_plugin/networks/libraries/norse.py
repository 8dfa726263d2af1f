"""Norse's neurons.

Modules keep no state: a call takes one and returns the next, as a NamedTuple.  Constants lie in a NamedTuple ``p``, whose default
tensors all cells share; they are read here and never written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .library import (
    Dynamics,
    Library,
    Recurrence,
    Slope,
    States,
    Stepper,
    Synapse,
    Visit,
    empty_steps,
    laid_out_as,
    recurrent_gradient,
    refuse_second_order,
    slope_of,
    slopes_backwards,
)

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
    encoders = f"{_PACKAGE}.encode"
    without_leak = "keeps its time constants where state_dict does not save them"
    known_alone = "one without weights of its own, such as LIF, LIFCell, LI or LICell"
    known_dynamics = "a LIF, LIFCell, LIFRecurrent or LIFRecurrentCell of Norse"

    def takes_sequences(self, module: nn.Module) -> bool:
        """Return whether the module is a layer of neurons, such as LIF, not a cell, such as LIFCell."""
        return bool(_SEQUENCE_BASES & self._bases(module))

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
        if self._neuron_class(neuron) != _WITH_LINEAR and _CURRENT_BASES & self._bases(neuron):
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
        """Return the stepper of a cell or layer whose constants all units share."""
        name = self._neuron_class(neuron) or ""
        if name not in _FIELDS:
            return None
        p: Any = neuron.p
        spiking = name not in _INTEGRATORS
        names = (*_LEAST, *(("v_th", "v_reset") if spiking else ()))
        constants = [torch.as_tensor(getattr(p, field)) for field in names]
        known = not spiking or p.method in _METHODS
        if not known or any(value.numel() != 1 or value.requires_grad for value in constants):
            return None
        return NorseStepper(neuron, _FIELDS[name], spiking, takes_sequences=not name.endswith("Cell"))

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


def _find(value: Any, name: str) -> Iterator[Any]:
    """Yield the fields of a name in nested named tuples, as LIFRefracState holds a LIFState."""
    for field in getattr(value, "_fields", ()):
        item = getattr(value, field)
        if field == name:
            yield item
        elif isinstance(item, tuple):
            yield from _find(item, name)


# -- several steps at once --------------------------------------------------------------------------------------------------------

# States of cells, and of layers that take all steps in one call.
_FIELDS: dict[str, tuple[str, ...]] = dict.fromkeys(("LIFCell", "LICell", "LIF", "LI"), ("v", "i"))
_FIELDS |= dict.fromkeys(("LIFRecurrentCell", "LIFRecurrent"), ("z", "v", "i"))
_INTEGRATORS = ("LICell", "LI")
_METHODS = ("super", "triangle", "tanh", "circ", "heavi_erfc")  # surrogate gradients of a comparison
_LEAST = ("tau_syn_inv", "tau_mem_inv", "v_leak")  # parameters of all of them


class NorseStepper(Stepper):
    """Steps of a current and a membrane that decay, with a spike and a reset within the same step."""

    def __init__(self, neuron: Any, names: tuple[str, ...], spiking: bool, takes_sequences: bool) -> None:
        self.neuron, self.names, self.spiking, self.takes_sequences = neuron, names, spiking, takes_sequences
        self.membrane = names.index("v")
        self._kind: Any = None  # class of the states of the last call

    def read(self, args: tuple[Any, ...]) -> tuple[Tensor, States] | None:
        """Return input and states, those of the cell's fallback at rest."""
        x, state = (*args, None)[:2]
        if len(args) > 2 or x.dtype != torch.float32 or x.is_sparse:
            return None
        state = self.neuron.state_fallback(x) if state is None else state
        fields = getattr(state, "_fields", ())
        if set(fields) != set(self.names):
            return None
        self._kind = type(state)
        return x, tuple(getattr(state, name) for name in self.names)

    def held(self, args: tuple[Any, ...]) -> States:
        return () if len(args) < 2 or args[1] is None else tuple(getattr(args[1], name) for name in self.names)

    def scan(self, x: Tensor, states: States, steps: int, shared: bool) -> tuple[Tensor, States]:
        neuron, own = self.neuron, dict(zip(self.names, states, strict=True))
        weight = None
        if "z" in own:
            x, weight = functional.linear(x, neuron.input_weights), neuron.recurrent_weights
        shape = x.shape if shared else x.shape[1:]
        membrane, current = own["v"].expand(shape), own["i"].expand(shape)
        options = (neuron.p, neuron.dt, steps, shared, self._slope() if self.spiking else None)
        tensors = (x, membrane, current, own.get("z"), weight)
        spikes, membranes, currents = CurrentScan.apply(*options, *tensors)  # type: ignore[no-untyped-call]
        found = {"z": spikes, "v": membranes, "i": currents}
        return (spikes if self.spiking else membranes), tuple(found[name] for name in self.names)

    def left(self, output: Any) -> States:
        return tuple(getattr(output[1], name) for name in self.names)

    def answer(self, spikes: Tensor, states: States) -> Any:
        """Return spikes, or an integrator's membrane, and the state; of all steps, the last state unless it records them."""
        if self.takes_sequences and not self.neuron.record_states:
            states = tuple(state[-1] for state in states)
        return spikes, self._kind(**dict(zip(self.names, states, strict=True)))

    def _slope(self) -> Slope:
        """Return the derivative of Norse's threshold function with the neuron's method."""
        threshold: Any = sys.modules["norse.torch.functional.threshold"].threshold
        method, alpha = self.neuron.p.method, self.neuron.p.alpha
        if method == "super":  # the default: 1 / (|d| + 1)^2
            return lambda distances: distances.abs_().add_(1).square_().reciprocal_()
        return slope_of(lambda distances: threshold(distances, method, alpha))


class CurrentScan(torch.autograd.Function):
    """Steps of a neuron with a current; the order of operations, and so each bit, is Norse's."""

    @staticmethod
    def forward(
        ctx: Any, p: Any, dt: float, steps: int, shared: bool, slope: Slope | None, *tensors: Any
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Take the steps with Norse's parameters; of a recurrent neuron from the spikes before, through a matrix.

        ``slope`` is of the spikes, None for an integrator.
        """
        x, membrane, current, spikes, weight = tensors
        rate, decay = dt * p.tau_mem_inv, -dt * p.tau_syn_inv
        entering = [x] * steps if shared else x.unbind(0)
        membranes = empty_steps(x if shared else x[0], steps)
        currents, arrived = torch.empty_like(membranes), torch.empty_like(membranes[0])
        fired = torch.empty_like(membranes) if slope is not None else None
        # Membranes before a reset, of which a pass without gradients keeps one.
        charged = torch.empty_like(membranes if fired is not None and any(ctx.needs_input_grad) else membranes[:1])
        last = spikes
        for step in range(steps):
            torch.add(current, entering[step], out=arrived)
            if weight is not None and last is not None:
                arrived.add_(functional.linear(last, weight))
            new = torch.sub(p.v_leak, membrane, out=membranes[step])
            new.add_(arrived).mul_(rate)
            if fired is None:
                membrane = new.add_(membrane)
            else:
                before = torch.add(membrane, new, out=charged[step % len(charged)])
                last = torch.gt(before, p.v_th, out=fired[step])
                membrane = torch.addcmul(before, last, before, value=-1, out=new).add_(last, alpha=float(p.v_reset))
            current = torch.mul(arrived, decay, out=currents[step]).add_(arrived)
        ctx.options = p, shared, slope, float(rate), float(decay)
        ctx.save_for_backward(spikes, weight, fired, charged, membranes)
        ctx.set_materialize_grads(False)
        return fired, membranes, currents

    @staticmethod
    def backward(ctx: Any, from_fired: Tensor | None, from_membranes: Tensor | None, from_currents: Tensor | None) -> Any:
        """Return the gradients, from the last step to the first; a reset has a gradient unless the neuron is recurrent."""
        refuse_second_order()
        spikes, weight, fired, charged, membranes = ctx.saved_tensors
        from_fired, from_membranes = (laid_out_as(each, membranes) for each in (from_fired, from_membranes))
        (p, shared, slope, rate, decay), steps = ctx.options, len(membranes)
        v_th, v_reset = (0.0, 0.0) if fired is None else (p.v_th, float(p.v_reset))
        into = None if shared and weight is None else torch.empty_like(membranes)
        total, current, summed = (torch.zeros_like(membranes[0]) for _ in range(3))  # of the states after a step; of one input
        for step, new in slopes_backwards(membranes if fired is None else charged, v_th, slope):
            if from_membranes is not None:
                total.add_(from_membranes[step])
            if fired is not None:
                gradient = None if from_fired is None else from_fired[step]
                if weight is None:
                    gradient = total * v_reset if gradient is None else torch.add(gradient, total, alpha=v_reset)
                    gradient.addcmul_(total, charged[step], value=-1)
                elif into is not None and step + 1 < steps:
                    gradient = into[step + 1] @ weight if gradient is None else torch.addmm(gradient, into[step + 1], weight)
                total.addcmul_(total, fired[step], value=-1)
                if gradient is not None:
                    total.addcmul_(gradient, new)
            if from_currents is not None:
                current.add_(from_currents[step])
            current.mul_(1 + decay).add_(total, alpha=rate)
            total.mul_(1 - rate)
            if into is None:
                summed.add_(current)
            else:
                into[step] = current
        to_weight = to_spikes = None
        if weight is not None and into is not None:
            to_weight, to_spikes = recurrent_gradient(into, spikes, fired), into[0] @ weight
        to_x = summed if into is None else into.sum(0) if shared else into
        return (None, None, None, None, None, to_x, total, current, to_spikes, to_weight)
