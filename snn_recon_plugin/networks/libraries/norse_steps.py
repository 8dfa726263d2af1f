"""Steppers of Norse's LIFCell, LIFRecurrentCell and LICell, and of the layers LIF, LIFRecurrent and LI."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .stepper import Call, Slope, States, Stepper, recurrent_gradient, refuse_second_order, slope_of, slopes_backwards

_FIELDS = {"LIFCell": ("v", "i"), "LIFRecurrentCell": ("z", "v", "i"), "LICell": ("v", "i")}
_FIELDS |= {"LIF": ("v", "i"), "LIFRecurrent": ("z", "v", "i"), "LI": ("v", "i")}  # which take all steps in one call
_INTEGRATORS = ("LICell", "LI")
_METHODS = ("super", "triangle", "tanh", "circ", "heavi_erfc")  # surrogate gradients of a comparison
_LEAST = ("tau_syn_inv", "tau_mem_inv", "v_leak")  # parameters of all of them


def norse_stepper(neuron: Any, name: str) -> Stepper | None:
    """Return the stepper of a neuron of class ``name``, or None if its own code must run."""
    if name not in _FIELDS:
        return None
    spiking = name not in _INTEGRATORS
    names = (*_LEAST, *(("v_th", "v_reset") if spiking else ()))
    constants = [torch.as_tensor(getattr(neuron.p, field)) for field in names]
    known = not spiking or neuron.p.method in _METHODS
    if not known or any(value.numel() != 1 or value.requires_grad for value in constants):
        return None
    return NorseStepper(neuron, _FIELDS[name], spiking, takes_sequences=not name.endswith("Cell"))


class NorseStepper(Stepper):
    """Steps of a current and a membrane that decay, with a spike and a reset within the same step."""

    def __init__(self, neuron: Any, names: tuple[str, ...], spiking: bool, takes_sequences: bool) -> None:
        self.neuron, self.names, self.spiking, self.takes_sequences = neuron, names, spiking, takes_sequences
        self.membrane = names.index("v")
        self._kind: Any = None  # class of the states of the last call

    def read(self, args: tuple[Any, ...]) -> Call | None:
        """Return input and states, those of the cell's fallback at rest."""
        x, state = (*args, None)[:2]
        if len(args) > 2 or x.dtype != torch.float32 or x.is_sparse:
            return None
        state = self.neuron.state_fallback(x) if state is None else state
        fields = getattr(state, "_fields", ())
        if set(fields) != set(self.names):
            return None
        self._kind = type(state)
        return Call(x, tuple(getattr(state, name) for name in self.names))

    def held(self, args: tuple[Any, ...]) -> States:
        """Return the states that are given."""
        return () if len(args) < 2 or args[1] is None else tuple(getattr(args[1], name) for name in self.names)

    def scan(self, x: Tensor, states: States, steps: int, shared: bool) -> tuple[Tensor, States]:
        """Take steps."""
        neuron, own = self.neuron, dict(zip(self.names, states, strict=True))
        weight = None
        if "z" in own:
            x, weight = functional.linear(x, neuron.input_weights), neuron.recurrent_weights
        shape = x.shape if shared else x.shape[1:]
        membrane, current = own["v"].expand(shape), own["i"].expand(shape)
        plan = _NorsePlan(neuron.p, neuron.dt, steps, shared, self._slope() if self.spiking else None)
        tensors = (x, membrane, current, own.get("z"), weight)
        spikes, membranes, currents = CurrentScan.apply(plan, *tensors)  # type: ignore[no-untyped-call]
        found = {"z": spikes, "v": membranes, "i": currents}
        return (spikes if self.spiking else membranes), tuple(found[name] for name in self.names)

    def left(self, output: Any) -> States:
        """Return the state that was returned."""
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
        return _super_spike if method == "super" else slope_of(lambda distances: threshold(distances, method, alpha))


def _super_spike(distances: Tensor) -> Tensor:
    """Return the derivative of Norse's default surrogate function, ``1 / (|d| + 1)^2``."""
    return distances.abs_().add_(1).square_().reciprocal_()


@dataclass(frozen=True)
class _NorsePlan:
    """Options of a scan: all that it gets beside tensors."""

    p: Any  # Norse's parameters
    dt: float
    steps: int
    shared: bool  # all steps have the same input
    slope: Slope | None  # of the spikes; None for an integrator


class CurrentScan(torch.autograd.Function):
    """Steps of a neuron with a current; the order of operations, and so each bit, is Norse's."""

    @staticmethod
    def forward(
        ctx: Any, plan: _NorsePlan, x: Tensor, membrane: Tensor, current: Tensor, *recurrent: Tensor | None
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Take the steps; of a recurrent neuron from the spikes before, through a matrix."""
        spikes, weight = recurrent
        p, steps, rate, decay = plan.p, plan.steps, plan.dt * plan.p.tau_mem_inv, -plan.dt * plan.p.tau_syn_inv
        entering = [x] * steps if plan.shared else x.unbind(0)
        membranes = membrane.new_empty((steps, *membrane.shape))
        currents, arrived = torch.empty_like(membranes), torch.empty_like(membranes[0])
        fired = torch.empty_like(membranes) if plan.slope is not None else None
        # Membranes before a reset, of which a pass without gradients keeps one.
        charged = membranes.new_empty((steps if fired is not None and any(ctx.needs_input_grad) else 1, *membrane.shape))
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
        ctx.plan, ctx.rate, ctx.decay = plan, rate, decay
        ctx.save_for_backward(spikes, weight, fired, charged, membranes)
        ctx.set_materialize_grads(False)
        return fired, membranes, currents

    @staticmethod
    def backward(ctx: Any, from_fired: Tensor | None, from_membranes: Tensor | None, from_currents: Tensor | None) -> Any:
        """Return the gradients, from the last step to the first; a reset has a gradient unless the neuron is recurrent."""
        refuse_second_order()
        spikes, weight, fired, charged, membranes = ctx.saved_tensors
        plan, steps, rate, decay = ctx.plan, len(membranes), float(ctx.rate), float(ctx.decay)
        v_th, v_reset = (0.0, 0.0) if fired is None else (plan.p.v_th, float(plan.p.v_reset))
        into = None if plan.shared and weight is None else torch.empty_like(membranes)
        total, current, summed = (torch.zeros_like(membranes[0]) for _ in range(3))  # of the states after a step; of one input
        for step, new in slopes_backwards(membranes if fired is None else charged, v_th, plan.slope):
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
        to_x = summed if into is None else into.sum(0) if plan.shared else into
        return (None, to_x, total, current, to_spikes, to_weight)
