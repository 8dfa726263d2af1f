"""SpikingJelly's neurons, of ``spikingjelly.activation_based``.

A neuron takes one step a call in ``step_mode="s"``, and all of them in ``"m"``.  In both it keeps its state until
``functional.reset_net``.  A step charges the membrane, compares it with the threshold and resets it at once: the stored membrane is
the one after the reset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .library import (
    Dynamics,
    Library,
    Recurrence,
    Slope,
    States,
    Stepper,
    Synapse,
    Visit,
    arctan_slope,
    empty_steps,
    is_surrogate,
    laid_out_as,
    refuse_second_order,
    slope_of,
    slopes_backwards,
)

_INTEGRATE, _LEAKY, _LEARNED = "IFNode", "LIFNode", "ParametricLIFNode"
_INTEGRATORS = ("NonSpikingIFNode", "NonSpikingLIFNode")  # they start from rest in every call
_BASES, _NORMALISED = {"BaseNode", "SimpleBaseNode"}, "MPBNBaseNode"  # with a membrane ``v``; with a batch norm of fixed width
_ALL_STEPS = "MultiStepModule"  # base of the modules that have no other mode


class SpikingJelly(Library):
    """SpikingJelly: neurons that store their state, and take one step or all of them by their ``step_mode``."""

    name = "spikingjelly"
    title = "SpikingJelly"
    example = "neuron.LIFNode()"
    integrator = "neuron.NonSpikingLIFNode()"
    packages = ("spikingjelly.activation_based.neuron",)
    without_leak = "has one time constant for all its units"
    known_alone = "IFNode, LIFNode, ParametricLIFNode or another BaseNode, NonSpikingIFNode, NonSpikingLIFNode"
    known_dynamics = "an IFNode, LIFNode or ParametricLIFNode of SpikingJelly"

    def takes_sequences(self, module: nn.Module) -> bool:
        """Return whether a neuron or container has ``step_mode="m"``, or no other mode."""
        return getattr(module, "step_mode", None) == "m" or _ALL_STEPS in self._bases(module)

    def integrates(self, neuron: nn.Module) -> bool:
        return self._neuron_class(neuron) in _INTEGRATORS

    def keeps_state(self, neuron: nn.Module) -> bool:
        return not self.integrates(neuron)

    def unit_thresholds(self, neuron: nn.Module) -> Tensor | None:
        value = getattr(neuron, "v_threshold", None)
        return None if value is None else torch.as_tensor(value)

    def dynamics(self, neuron: Any) -> Dynamics:
        name = self._neuron_class(neuron)
        if name == _INTEGRATE:
            rate = 0.0
        elif name == _LEAKY:
            rate = 1 / self._scalar(neuron, neuron.tau)
        elif name == _LEARNED:
            rate = self._scalar(neuron, neuron.w.detach().sigmoid())
        else:
            raise self._unknown_dynamics(f"a neuron of class {type(neuron).__name__}")
        threshold = self._scalar(neuron, neuron.v_threshold)
        reset = None if neuron.v_reset is None else self._scalar(neuron, neuron.v_reset)
        return Dynamics(
            leak=1 - rate,
            gain=rate if getattr(neuron, "decay_input", False) else 1.0,
            rest=rate * (reset or 0.0),
            start=reset or 0.0,
            threshold=threshold,
            subtract=(1 - rate) * threshold if reset is None else 0.0,  # at once: it leaks in the next step
            reset=reset,
        )

    def _stepper(self, neuron: Any) -> Stepper | None:
        """Return the stepper of an IFNode, LIFNode or ParametricLIFNode that keeps no record of its membrane."""
        known = self._neuron_class(neuron) in (_INTEGRATE, _LEAKY, _LEARNED)
        usual = known and not neuron.store_v_seq and getattr(neuron, "_neuron_precision", None) is None
        found = SpikingJellyStepper(neuron, self.takes_sequences(neuron))
        return found if usual and is_surrogate(neuron.surrogate_function, torch.ge) else None

    def synapse(self, neuron: nn.Module) -> Synapse | None:
        return None  # weights lie in layers before the neuron

    def recurrence(self, neuron: nn.Module) -> Recurrence | None:
        return None  # recurrence lies in containers around a neuron

    def _simulate(self, neuron: Any, currents: Tensor, visit: Visit) -> None:
        """Simulate a BaseNode, or the update of an integrator, whose forward takes all steps together."""
        if self.integrates(neuron):
            neuron.v = torch.zeros_like(currents[0])
            for current in currents:
                neuron.neuronal_charge(current)
                visit(neuron.v, neuron.v)
            return
        if not _BASES & self._bases(neuron) or _NORMALISED in self._bases(neuron):
            raise self._not_alone(neuron)
        self.reset(neuron)
        neuron.store_v_seq = False
        at_once = self.takes_sequences(neuron)
        for current in currents:
            # The class's forward, not the module's call, so that a user's hooks on the neuron don't fire.
            spikes = type(neuron).forward(neuron, current[None] if at_once else current)
            visit(spikes[0] if at_once else spikes, neuron.v)

    def reset(self, module: nn.Module) -> None:
        """Call the module's own ``reset``, as ``functional.reset_net`` does."""
        reset = getattr(module, "reset", None)
        if callable(reset):
            reset()

    def spikes(self, output: Any) -> Tensor:
        """Return the spikes, or the membranes of an integrator, which may return a list of all steps."""
        return torch.stack(output) if isinstance(output, list) else super().spikes(output)

    def membrane(self, neuron: nn.Module, output: Any) -> Tensor | None:
        """Return an integrator's list of all steps, else the stored membrane, of all steps only with ``store_v_seq=True``.

        None for an integrator that decodes its membrane.
        """
        if self.integrates(neuron):
            return self.spikes(output) if isinstance(output, list) else None
        stored = getattr(neuron, "v_seq" if self.takes_sequences(neuron) else "v", None)
        return stored if isinstance(stored, Tensor) and stored.shape == self.spikes(output).shape else None


# -- several steps at once --------------------------------------------------------------------------------------------------------


class SpikingJellyStepper(Stepper):
    """Steps of a membrane that is charged, compared with the threshold and reset at once."""

    def __init__(self, neuron: Any, takes_sequences: bool) -> None:
        self.neuron, self.takes_sequences = neuron, takes_sequences

    def read(self, args: tuple[Any, ...]) -> tuple[Tensor, States] | None:
        """Return input and stored membrane, or one at rest if shapes differ; None on a GPU, where SpikingJelly has kernels."""
        if len(args) != 1 or args[0].dtype != torch.float32 or args[0].dim() == 0 or args[0].device.type != "cpu":
            return None
        if len(self.neuron._memories) != 1 or getattr(self.neuron, "_neuron_precision", None) is not None:
            return None  # more states than a membrane, or one in another precision
        step, held = args[0][0] if self.neuron.step_mode == "m" else args[0], self.neuron.v
        if isinstance(held, Tensor):
            rest = 0.0 if self.neuron.v_reset is None else self.neuron.v_reset
            return args[0], (held.to(step) if held.shape == step.shape else torch.full_like(step, rest),)
        return args[0], (torch.full_like(step, held),)

    def held(self, args: tuple[Any, ...]) -> States:
        """Return the stored membrane; none if the neuron is at rest."""
        return (self.neuron.v,) if isinstance(self.neuron.v, Tensor) else ()

    def scan(self, x: Tensor, states: States, steps: int, shared: bool) -> tuple[Tensor, States]:
        neuron = self.neuron
        learned = neuron.w.sigmoid() if hasattr(neuron, "w") else None
        options = _Charge(
            0.0 if learned is not None else float(getattr(neuron, "tau", 0.0)),
            getattr(neuron, "decay_input", False),
            neuron.v_threshold,
            neuron.v_reset,
            neuron.detach_reset,
        )
        found = ResetScan.apply(options, neuron.surrogate_function, steps, shared, x, *states, learned)  # type: ignore[no-untyped-call]
        return found[0], (found[1],)

    def left(self, output: Any) -> States:
        return (self.neuron.v,)

    def answer(self, spikes: Tensor, states: States) -> Any:
        """Store the membrane, of all steps the last one, and return the spikes."""
        self.neuron.v = states[0][-1].clone() if self.takes_sequences else states[0]
        return spikes


class _Charge(NamedTuple):
    """How inputs charge a membrane, and what a spike does."""

    tau: float  # 0 without a leak, or with a learned one
    decays_input: bool
    threshold: float
    reset: float | None  # None for a reset by subtraction
    detached: bool  # a reset has no gradient


class ResetScan(torch.autograd.Function):
    """Steps of a membrane that is reset within a step; the order of operations, and so each bit, is SpikingJelly's."""

    @staticmethod
    def forward(
        ctx: Any, options: _Charge, surrogate: Callable[[Tensor], Tensor], steps: int, shared: bool, *tensors: Any
    ) -> tuple[Tensor, Tensor]:
        """Take the steps from a membrane, given inputs ``[T, B, *]``, or ``[B, *]`` that all steps share, and a learned rate."""
        x, membrane, rate = tensors
        tau, decays, threshold, reset, _ = options
        membranes = empty_steps(x if shared else x[0], steps)
        fired = torch.empty_like(membranes)
        # Membranes before a reset, of which a pass without gradients keeps one.
        charged = torch.empty_like(membranes if any(ctx.needs_input_grad) else membranes[:1])
        before = membrane
        for step, arriving in enumerate([x] * steps if shared else x):
            new = charged[step % len(charged)]
            if not tau and rate is None:
                torch.add(before, arriving, out=new)
            else:
                from_rest = torch.sub(before, reset, out=new) if reset else before
                change = torch.sub(arriving, from_rest, out=new) if decays else from_rest
                change = torch.div(change, tau, out=new) if rate is None else torch.mul(change, rate, out=new)
                change.add_(before) if decays else torch.sub(before, change, out=new).add_(arriving)
            over = torch.ge(new, threshold, out=fired[step])
            if reset is None:
                before = torch.sub(new, over, alpha=threshold, out=membranes[step])
            else:
                before = torch.addcmul(new, over, new, value=-1, out=membranes[step])
                before = before.add_(over, alpha=reset) if reset else before
        ctx.options = options, surrogate, shared
        ctx.save_for_backward(membrane, rate, charged, fired, membranes)
        ctx.set_materialize_grads(False)
        return fired, membranes

    @staticmethod
    def backward(ctx: Any, from_fired: Tensor | None, from_membranes: Tensor | None) -> Any:
        """Return the gradients, from the last step to the first."""
        refuse_second_order()
        first, rate, charged, fired, membranes = ctx.saved_tensors
        from_fired, from_membranes = (laid_out_as(each, membranes) for each in (from_fired, from_membranes))
        (tau, decays, threshold, reset, detached), surrogate, shared = ctx.options
        leak = (1 / tau if tau else 0.0) if rate is None else float(rate) if rate.numel() == 1 else rate
        into = None if shared else torch.empty_like(charged)
        later, total, scratch = (torch.zeros_like(first) for _ in range(3))  # of the membrane after a step; of one input
        to_rate = torch.zeros_like(first) if ctx.needs_input_grad[-1] else None
        for step, new in slopes_backwards(charged, threshold, _slope(surrogate)):
            if from_membranes is not None:
                later.add_(from_membranes[step])
            gradient = scratch.zero_() if from_fired is None else from_fired[step]
            if not detached:
                if reset is None:
                    gradient = torch.add(gradient, later, alpha=-threshold, out=scratch)
                else:
                    gradient = torch.addcmul(gradient, later, charged[step], value=-1, out=scratch)
                    gradient = gradient.add_(later, alpha=reset) if reset else gradient
            if reset is not None:
                later.addcmul_(later, fired[step], value=-1)
            later.addcmul_(gradient, new)
            if to_rate is not None:
                before = membranes[step - 1] if step else first
                to_rate.addcmul_(later, charged[step] - before if decays else (reset or 0.0) - before)
            if into is None:
                total.add_(later)
            else:
                into[step] = later
            later.mul_(1 - leak)
        to_x = total if into is None else into
        to_x = to_x.mul_(leak) if decays else to_x
        to_rate = None if to_rate is None else (to_rate / (leak if decays else 1.0)).sum_to_size(rate.shape)
        return None, None, None, None, to_x, later, to_rate


def _slope(surrogate: Any) -> Slope:
    """Return the derivative of a surrogate function, of the usual ones in few operations."""
    formula = _FORMULAS.get(type(surrogate).__qualname__) if type(surrogate).__module__ == _SURROGATES else None
    return slope_of(surrogate) if formula is None else lambda distances: formula(distances, float(surrogate.alpha))


# Derivatives of SpikingJelly's surrogate functions; the first is that of sigmoid(alpha d).
_SURROGATES = "spikingjelly.activation_based.surrogate"
_FORMULAS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Sigmoid": lambda d, alpha: d.mul_(alpha).sigmoid_().addcmul_(d, d, value=-1).mul_(alpha),
    "ATan": arctan_slope,
}
