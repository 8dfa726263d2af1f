"""Stepper of snnTorch's Leaky, RLeaky and Synaptic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .stepper import (
    Call,
    Pull,
    States,
    Stepper,
    Sums,
    inputs_at,
    is_plain_linear,
    joined,
    pull_through,
    recurrent_gradient,
    refuse_second_order,
)

_FLOATS = (torch.float32, torch.float64)
_KNOWN = ("Leaky", "Synaptic", "RLeaky")
_PROBES = (-math.inf, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, math.inf, math.nan)  # a surrogate function must compare these with 0


def snntorch_stepper(neuron: Any, name: str, states: tuple[str, ...]) -> Stepper | None:
    """Return the stepper of a neuron of class ``name`` with these states, or None if its own code must run."""
    if name not in _KNOWN:
        return None
    odd = neuron.inhibition or neuron.state_quant or not neuron.reset_delay or not _has_gradient(neuron.spike_grad)
    recurrent = getattr(neuron, "recurrent", None)
    if odd or (recurrent is not None and not isinstance(recurrent, nn.Linear)):
        return None
    if name == "Synaptic" and neuron.reset_mechanism == "zero":  # it subtracts a membrane that was computed a second time
        return None
    return SnnTorchStepper(neuron, states)


class SnnTorchStepper(Stepper):
    """Steps ``u = beta u + current`` less the reset of a spike one step before, and a spike where ``u > threshold``."""

    def __init__(self, neuron: Any, names: tuple[str, ...]) -> None:
        self.neuron, self.names = neuron, names

    @property
    def parameters(self) -> list[Tensor]:
        """Leak, threshold, factor of graded spikes, decay of the synapse, and recurrent weights."""
        neuron = self.neuron
        own = [neuron.beta, neuron.threshold, neuron.graded_spikes_factor]
        own += [neuron.alpha] if "syn" in self.names else []
        return own + (list(neuron.recurrent.parameters()) if "spk" in self.names else [])

    def read(self, args: tuple[Any, ...]) -> Call | None:
        """Return input and states, zeros where they have no batch yet."""
        neuron, (x, *given) = self.neuron, args
        if len(given) > len(self.names) or (neuron.init_hidden and given) or x.dtype not in _FLOATS:
            return None
        if "spk" in self.names and not is_plain_linear(neuron.recurrent):
            return None
        given += [None] * (len(self.names) - len(given))
        states = [getattr(neuron, name) if value is None else value for name, value in zip(self.names, given, strict=True)]
        if not all(isinstance(state, Tensor) for state in states):
            return None
        states = [state if state.shape == x.shape else torch.zeros_like(x) for state in states]
        return Call(x, tuple(states)) if states[-1].dtype == x.dtype else None

    def scan(self, x: Tensor, states: States, steps: int, shared: bool) -> tuple[Tensor, States]:
        """Take steps."""
        neuron = self.neuron
        own = dict(zip(self.names, states, strict=True))
        alpha = neuron.alpha if "syn" in own else None
        weight, bias = (neuron.recurrent.weight, neuron.recurrent.bias) if "spk" in own else (None, None)
        plan = _SnnTorchPlan(steps, shared, neuron.reset_mechanism, neuron.spike_grad)
        tensors = (x, own["mem"], own.get("syn"), own.get("spk"), neuron.beta, neuron.threshold, alpha, weight, bias)
        spikes, membranes, currents = LeakyScan.apply(plan, *tensors)  # type: ignore[no-untyped-call]
        factor = neuron.graded_spikes_factor
        if factor.requires_grad or factor.dim() > 0 or float(factor) != 1.0:
            spikes = spikes * factor
        found = {"mem": membranes, "syn": currents, "spk": spikes}
        return spikes, tuple(found[name] for name in self.names)

    def left(self, output: Any) -> States:
        """Return the stored states."""
        return tuple(getattr(self.neuron, name) for name in self.names)

    def answer(self, spikes: Tensor, states: States) -> Any:
        """Set the neuron's states and return spikes, with states unless it hides them."""
        for name, state in zip(self.names, states, strict=True):
            setattr(self.neuron, name, state)
        if self.neuron.init_hidden and not self.neuron.output:
            return spikes
        return (spikes, *(state for name, state in zip(self.names, states, strict=True) if name != "spk"))


@dataclass(frozen=True)
class _SnnTorchPlan:
    """Options of a scan: all that it gets beside tensors."""

    steps: int
    shared: bool  # all steps have the same input
    reset: str  # mechanism
    surrogate: Callable[[Tensor], Tensor]


class _Parts(NamedTuple):
    """Tensors of a scan beside input and membrane."""

    current: Tensor | None
    spikes: Tensor | None
    beta: Tensor
    threshold: Tensor
    alpha: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class LeakyScan(torch.autograd.Function):
    """Steps of a leaky neuron; the order of operations, and so each bit, is snnTorch's."""

    @staticmethod
    def forward(ctx: Any, plan: _SnnTorchPlan, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Take the steps, given the tensors that :class:`SnnTorchStepper` passes."""
        x, membrane, *parts = tensors
        current, spikes, beta, threshold, alpha, weight, bias = _Parts(*parts)
        steps, reset = plan.steps, plan.reset
        at, leak = inputs_at(x, plan.shared), beta.clamp(0, 1)
        membranes = x.new_empty((steps, *membrane.shape))
        fired = torch.empty_like(membranes, dtype=torch.float32)
        currents = torch.empty_like(membranes) if current is not None else None
        above = torch.gt(membrane, threshold).to(fired.dtype)
        first = membrane, current, above, spikes
        for step in range(steps):
            entering = at(step)
            if current is not None and currents is not None and alpha is not None:
                entering = torch.add(alpha.clamp(0, 1) * current, entering, out=currents[step])
                current = entering
            if reset == "zero" and weight is None:
                membrane = (1 - above) * membrane
            new = torch.mul(leak, membrane, out=membranes[step])
            new.add_(entering)
            if weight is not None and spikes is not None:
                new.add_(functional.linear(spikes if step == 0 else above, weight, bias))
            if reset == "subtract":
                new.sub_(above * threshold)
            elif reset == "zero" and weight is not None:
                new.sub_(above * new)
            membrane, above = new, torch.gt(new, threshold, out=fired[step])
        ctx.plan = plan
        ctx.save_for_backward(*first, membranes, fired, currents, beta, threshold, alpha, weight)
        ctx.set_materialize_grads(False)
        return fired, membranes, currents

    @staticmethod
    def backward(ctx: Any, from_fired: Tensor | None, from_membranes: Tensor | None, from_currents: Tensor | None) -> Any:
        """Return the gradients, from the last step to the first; resets are constants, as in snnTorch."""
        refuse_second_order()
        membrane, current, above, spikes, membranes, fired, currents, beta, threshold, alpha, weight = ctx.saved_tensors
        plan, needs, leak = ctx.plan, _Parts(*ctx.needs_input_grad[3:]), beta.clamp(0, 1)
        pull = _pull_of(plan.surrogate)
        decay = None if alpha is None else alpha.clamp(0, 1)
        into = None if plan.shared else torch.empty_like(membranes)
        totals = None if weight is None else torch.empty_like(membranes) if into is None else into
        sums = Sums(beta=beta, threshold=threshold, alpha=alpha)
        total: Tensor | None = None  # gradient of the membrane
        after: Tensor | None = None  # what an earlier step gets of it
        after_current: Tensor | None = None
        for step in reversed(range(len(membranes))):
            from_spikes = None if from_fired is None else from_fired[step]
            if totals is not None and total is not None:
                back = totals[step + 1] @ weight
                from_spikes = back if from_spikes is None else back.add_(from_spikes)
            total = None if from_spikes is None else pull(membranes[step] - threshold, from_spikes)
            if needs.threshold and total is not None:
                sums.subtract("threshold", total)
            total = joined(total, after, None if from_membranes is None else from_membranes[step])
            if total is None:
                total = torch.zeros_like(membrane)
            before, kept = (membranes[step - 1], fired[step - 1]) if step else (membrane, above)
            if plan.reset == "zero":
                kept = 1 - kept
                total, before = (total * kept, before) if weight is not None else (total, before * kept)
            elif plan.reset == "subtract" and needs.threshold:
                sums.subtract("threshold", total * kept)
            if needs.beta:
                sums.add("beta", total * before)
            if decay is not None:
                entering = joined(total.clone(), after_current, None if from_currents is None else from_currents[step])
                if needs.alpha:
                    sums.add("alpha", entering * (currents[step - 1] if step else current))
                after_current = entering * decay
            else:
                entering = total
            if plan.shared:
                into = joined(into, entering)
            elif into is not None and into is not totals:
                into[step] = entering
            if totals is not None:
                totals[step] = total
            after = total * leak if plan.reset != "zero" or weight is not None else total.mul(leak).mul_(kept)
        to_weight = to_bias = to_spikes = None
        if totals is not None:
            to_weight = recurrent_gradient(totals, spikes, fired) if needs.weight else None
            to_bias = totals.flatten(0, -2).sum(0) if needs.bias else None
            to_spikes = totals[0] @ weight
        to_beta = sums.of("beta") * ((beta >= 0) & (beta <= 1)) if needs.beta else None
        to_alpha = sums.of("alpha") * ((alpha >= 0) & (alpha <= 1)) if needs.alpha else None
        parameters = (to_beta, sums.of("threshold") if needs.threshold else None, to_alpha, to_weight, to_bias)
        return (None, into, after, after_current, to_spikes, *parameters)


def compares_with_zero(function: Callable[[Tensor], Tensor]) -> bool:
    """Return whether a surrogate function does nothing but compare with 0 in the forward pass, to single precision."""
    probes = torch.tensor(_PROBES)
    with torch.no_grad():
        return torch.equal(function(probes), (probes > 0).float())


def _has_gradient(function: Callable[[Tensor], Tensor]) -> bool:
    """Return whether a surrogate function compares with 0, and has a gradient without random numbers."""
    probes, pull = torch.tensor([-1.0, 0.0, 1.0]), pull_through(function)
    try:
        first, second = (pull(probes, torch.ones_like(probes)) for _ in range(2))
    except RuntimeError:  # no gradient
        return False
    return compares_with_zero(function) and torch.equal(first, second)


def _pull_of(function: Any) -> Pull:
    """Return the gradient of a surrogate function: the formula of snnTorch's usual ones, else the function's own backward pass."""
    name = getattr(function, "__qualname__", "").partition(".")[0]
    if getattr(function, "__module__", "") != "snntorch.surrogate" or name not in _FORMULAS:
        return pull_through(function)
    return _FORMULAS[name](*(cell.cell_contents for cell in function.__closure__))


def _arc_tangent(alpha: float) -> Pull:
    """Return the gradient of ``surrogate.atan``: ``alpha / 2 / (1 + (pi / 2 alpha d)^2)``."""
    return lambda d, grad: d.mul_(math.pi / 2 * alpha).square_().add_(1).reciprocal_().mul_(alpha / 2).mul_(grad)


def _fast_sigmoid(slope: float) -> Pull:
    """Return the gradient of ``surrogate.fast_sigmoid``: ``1 / (slope |d| + 1)^2``."""
    return lambda d, grad: d.abs_().mul_(slope).add_(1).square_().reciprocal_().mul_(grad)


_FORMULAS: dict[str, Callable[..., Pull]] = {"atan": _arc_tangent, "fast_sigmoid": _fast_sigmoid}
