"""snnTorch's neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    arctan_slope,
    empty_steps,
    gradient_factor,
    is_surrogate,
    laid_out_as,
    recurrent_gradient,
    refuse_second_order,
    slope_of,
    slopes_backwards,
)

# The state that each class carries from step to step; an empty one makes it start from rest on its next call.
_STATES: dict[str, tuple[str, ...]] = {
    "Leaky": ("mem",),
    "Synaptic": ("syn", "mem"),
    "Alpha": ("syn_exc", "syn_inh", "mem"),
    "Lapicque": ("mem",),
    "RLeaky": ("spk", "mem"),
    "RSynaptic": ("spk", "syn", "mem"),
}
# One call takes all steps; no state is carried from call to call.
_SEQUENCES = ("LinearLeaky", "StateLeaky")
_WITH_LINEAR = "LinearLeaky"
_WITH_RNN = "LeakyParallel"  # its weights lie in an nn.RNN, which also holds the recurrence
_WITH_MATRIX = "AssociativeLeaky"  # its state is a matrix; it takes all steps as well
_RNN_INPUTS = ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0")
_FEED_FORWARD, _RECURRENT = "Leaky", "RLeaky"  # those whose dynamics are given
_LEAKS = {"Leaky": "beta", "Synaptic": "beta", "RLeaky": "beta", "RSynaptic": "beta"}  # the membrane's; one value or one a unit


class SnnTorch(Library):
    """snnTorch: neurons that may store their state, and return spikes alone or with states."""

    name = "snntorch"
    title = "snnTorch"
    example = "snn.Leaky(beta=0.9)"
    integrator = "snn.Leaky(beta=0.9, reset_mechanism='none')"
    resets = ("snntorch.utils.reset(net)", "for m in net.modules(): m.reset_mem() if hasattr(m, 'reset_mem') else None")
    readouts = "an nn.Linear or a LinearLeaky"
    known_leaks = f"snnTorch's {', '.join(_LEAKS)}"
    packages = ("snntorch._neurons",)
    known_alone = ", ".join(sorted({*_STATES, *_SEQUENCES} - {"RLeaky", "RSynaptic"}))
    known_dynamics = "a Leaky or RLeaky (dense, reset by subtraction) of snnTorch"
    parts = ("RecurrentOneToOne",)  # the recurrent weight per unit of RLeaky and RSynaptic with all_to_all=False

    def takes_sequences(self, module: nn.Module) -> bool:
        return self._neuron_class(module) in (*_SEQUENCES, _WITH_RNN, _WITH_MATRIX)

    def integrates(self, neuron: nn.Module) -> bool:
        """Return whether the neuron was built with ``reset_mechanism="none"``; a StateLeaky has no such choice."""
        return getattr(neuron, "reset_mechanism", None) == "none" and self._neuron_class(neuron) in _STATES

    def keeps_state(self, neuron: nn.Module) -> bool:
        return bool(getattr(neuron, "init_hidden", False))

    def quantises_state(self, neuron: nn.Module) -> bool:
        return bool(getattr(neuron, "state_quant", False))

    def inhibits(self, neuron: nn.Module) -> bool:
        return bool(getattr(neuron, "inhibition", False))

    def unit_thresholds(self, neuron: nn.Module) -> Tensor | None:
        threshold = getattr(neuron, "threshold", None)
        return threshold if isinstance(threshold, Tensor) else None

    def dynamics(self, neuron: Any) -> Dynamics:
        name = self._neuron_class(neuron)
        if name not in (_FEED_FORWARD, _RECURRENT):
            raise self._unknown_dynamics(f"a neuron of class {type(neuron).__name__}")
        mechanism = neuron.reset_mechanism
        recurrent = name == _RECURRENT
        recurrence = self.recurrence(neuron)
        graded = self._scalar(neuron, neuron.graded_spikes_factor) != 1
        odd = neuron.inhibition or neuron.state_quant or not neuron.reset_delay or graded
        if odd or (recurrent and (mechanism == "zero" or recurrence is None or recurrence.weight is None)):
            oddities = "inhibition, a quantised state, graded spikes, an immediate reset, or recurrence that is not dense"
            raise self._unknown_dynamics(f"{name} with {oddities}")
        threshold = self._scalar(neuron, neuron.threshold)
        return Dynamics(
            leak=min(max(self._scalar(neuron, neuron.beta), 0.0), 1.0),
            threshold=threshold,
            subtract=threshold if mechanism == "subtract" else 0.0,
            reset=0.0 if mechanism == "zero" else None,
        )

    def leak_name(self, neuron: nn.Module) -> str | None:
        return _LEAKS.get(self._neuron_class(neuron) or "")

    def synapse(self, neuron: nn.Module) -> Synapse | None:
        name = self._neuron_class(neuron)
        linear = getattr(neuron, "linear", None)
        rnn = getattr(neuron, "rnn", None)
        if name == _WITH_LINEAR and isinstance(linear, nn.Linear):
            return Synapse(linear, "weight", None if linear.bias is None else "bias")
        if name == _WITH_RNN:
            names = [part for part in _RNN_INPUTS if isinstance(getattr(rnn, part, None), Tensor)]
            return Synapse(neuron, others=tuple((rnn, part) for part in names) if isinstance(rnn, nn.RNN) else ())
        return None

    def recurrence(self, neuron: nn.Module) -> Recurrence | None:
        inner = getattr(neuron, "recurrent", None)
        if isinstance(inner, nn.Linear):
            return Recurrence((inner, "weight"), bias=inner.bias, units=inner.out_features)
        return Recurrence(None) if isinstance(inner, nn.Module) else None

    def recurrent_input(self, neuron: nn.Module) -> tuple[nn.Module, str | None] | None:
        inner = getattr(neuron, "recurrent", None)
        return (inner, None) if isinstance(inner, nn.Module) else None

    def _set_weights(self, neuron: nn.Module, currents: Tensor, recurrent: Tensor | None) -> None:
        if recurrent is not None:
            neuron._modules["recurrent"] = RecurrentWeights(recurrent)

    def _simulate(self, neuron: nn.Module, currents: Tensor, visit: Visit) -> None:
        """Simulate any neuron that carries a state, a StateLeaky, or what follows the Linear of a LinearLeaky."""
        name = self._neuron_class(neuron) or ""
        if name in _SEQUENCES:
            self._simulate_sequence(neuron, currents, visit)
            return
        if name not in _STATES:
            raise self._not_alone(neuron)
        for state in _STATES[name]:
            setattr(neuron, state, currents.new_zeros(0))
        for current in currents:
            # The class's forward, not the module's call, so that a user's hooks on the neuron don't fire.
            output = type(neuron).forward(neuron, current)
            membrane = self.membrane(neuron, output)
            assert membrane is not None
            visit(self.spikes(output), membrane)

    def _simulate_sequence(self, neuron: nn.Module, currents: Tensor, visit: Visit) -> None:
        fused = self._neuron_class(neuron) == _WITH_LINEAR
        owner: Any = next(cls for cls in type(neuron).__mro__ if cls.__name__ == "StateLeaky" or not fused)
        tau = neuron.tau
        assert isinstance(tau, Tensor)
        output = owner.forward(neuron, currents.to(tau.dtype))  # a convolution with a kernel of that dtype
        for spikes, membranes in zip(self.spikes(output), output[-1] if isinstance(output, tuple) else output, strict=True):
            visit(spikes, membranes)

    def _stepper(self, neuron: nn.Module) -> Stepper | None:
        """Return the stepper of a Leaky, RLeaky or Synaptic without inhibition, quantised state or immediate reset."""
        name = self._neuron_class(neuron) or ""
        each: Any = neuron
        if name not in _KNOWN:
            return None
        odd = each.inhibition or each.state_quant or not each.reset_delay or not is_surrogate(each.spike_grad, torch.gt)
        reset, recurrent = each.state_function.__name__, getattr(neuron, "recurrent", None)
        if odd or reset not in _RESETS or not isinstance(recurrent, nn.Linear | RecurrentWeights | None):
            return None
        if name == "Synaptic" and reset == "_base_zero":  # it subtracts a membrane computed a second time
            return None
        return SnnTorchStepper(neuron, _STATES[name])

    def reset(self, module: nn.Module) -> None:
        """Call the neuron's own ``reset_mem``; ``snntorch.utils.reset`` misses nested neurons and resets those of other nets."""
        reset_mem = getattr(module, "reset_mem", None)
        if callable(reset_mem):
            reset_mem()

    @contextmanager
    def isolated(self, net: nn.Module) -> Iterator[None]:
        """Let ``snntorch.utils.reset`` reach the neurons of a net: it acts on a list of all that were ever built."""
        neurons = [module for module in net.modules() if self.is_neuron(module)]
        kind: Any = next((kind for each in neurons for kind in type(each).__mro__ if "instances" in vars(kind)), None)
        if kind is None:
            yield
            return
        built, kind.instances = kind.instances, [neuron for neuron in neurons if isinstance(neuron, kind)]
        try:
            yield
        finally:
            kind.instances = built

    def missed_by_reset(self, net: nn.Module) -> list[str]:
        """List nested neurons of a class that no direct child of the net has: ``snntorch.utils.reset`` reads only those."""
        reached = {None, *map(self._neuron_class, net.children())}
        keeping = [(name, module) for name, module in net.named_modules() if getattr(module, "init_hidden", False)]
        return [name for name, module in keeping if self._neuron_class(module) not in reached]

    def membrane(self, neuron: nn.Module, output: Any) -> Tensor | None:
        stored = getattr(neuron, "mem", None)
        if isinstance(stored, Tensor):
            return stored
        last = output[-1] if isinstance(output, (tuple, list)) else output
        assert isinstance(last, Tensor)
        return last


# -- several steps at once --------------------------------------------------------------------------------------------------------

_FLOATS = (torch.float32, torch.float64)
_KNOWN = ("Leaky", "Synaptic", "RLeaky")
_RESETS = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}  # that a neuron was built with, and keeps to


class RecurrentWeights(nn.Module):
    """Currents from the spikes one step before, through weights (M, M), or (M,) from each unit to itself; without gradients."""

    bias = None

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, spikes: Tensor) -> Tensor:
        return spikes * self.weight if self.weight.dim() == 1 else functional.linear(spikes, self.weight)


class SnnTorchStepper(Stepper):
    """Steps ``u = beta u + current`` less the reset of a spike one step before, and a spike where ``u > threshold``."""

    def __init__(self, neuron: Any, names: tuple[str, ...]) -> None:
        self.neuron, self.names, self.membrane = neuron, names, names.index("mem")

    def read(self, args: tuple[Any, ...]) -> tuple[Tensor, States] | None:
        """Return input and states, zeros where they have no batch yet."""
        neuron, (x, *given) = self.neuron, args
        if len(given) > len(self.names) or (neuron.init_hidden and given) or x.dtype not in _FLOATS:
            return None
        if "spk" in self.names and self._damping() is None:
            return None
        held = self.held(args)
        if not all(isinstance(state, Tensor) for state in held):
            return None
        states = tuple(state if state.shape == x.shape else torch.zeros_like(x) for state in held)
        return (x, states) if states[-1].dtype == x.dtype else None

    def held(self, args: tuple[Any, ...]) -> States:
        given = (*args[1:], *[None] * len(self.names))
        return tuple(getattr(self.neuron, name) if value is None else value for name, value in zip(self.names, given, strict=False))

    def scan(self, x: Tensor, states: States, steps: int, shared: bool) -> tuple[Tensor, States]:
        neuron, own = self.neuron, dict(zip(self.names, states, strict=True))
        alpha = neuron.alpha if "syn" in own else None
        weight, bias = (neuron.recurrent.weight, neuron.recurrent.bias) if "spk" in own else (None, None)
        factor = self._damping() if "spk" in own else None
        reset = _RESETS[neuron.state_function.__name__]
        options = (steps, shared, reset, neuron.spike_grad, 1.0 if factor is None else factor)
        tensors = (x, own["mem"], own.get("syn"), own.get("spk"), neuron.beta, neuron.threshold, alpha, weight, bias)
        spikes, membranes, currents = LeakyScan.apply(*options, *tensors)  # type: ignore[no-untyped-call]
        factor = neuron.graded_spikes_factor
        if factor.requires_grad or factor.dim() > 0 or float(factor) != 1.0:
            spikes = spikes * factor
        found = {"mem": membranes, "syn": currents, "spk": spikes}
        return spikes, tuple(found[name] for name in self.names)

    def _damping(self) -> float | None:
        recurrent = self.neuron.recurrent
        return 1.0 if isinstance(recurrent, RecurrentWeights) else gradient_factor(recurrent)

    def left(self, output: Any) -> States:
        return tuple(getattr(self.neuron, name) for name in self.names)

    def answer(self, spikes: Tensor, states: States) -> Any:
        """Set the neuron's states and return spikes, with states unless it hides them."""
        for name, state in zip(self.names, states, strict=True):
            setattr(self.neuron, name, state)
        if self.neuron.init_hidden and not self.neuron.output:
            return spikes
        return (spikes, *(state for name, state in zip(self.names, states, strict=True) if name != "spk"))


class LeakyScan(torch.autograd.Function):
    """Steps of a leaky neuron; the order of operations, and so each bit of its outputs, is snnTorch's."""

    @staticmethod
    def forward(
        ctx: Any, steps: int, shared: bool, reset: str, surrogate: Callable[[Tensor], Tensor], damping: float, *tensors: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Take the steps, given the tensors that :class:`SnnTorchStepper` passes.

        ``damping`` is a factor on gradients through recurrent weights to earlier spikes.
        """
        x, membrane, current, spikes, beta, threshold, alpha, weight, bias = tensors
        leak = beta.clamp(0, 1)
        membranes = empty_steps(x if shared else x[0], steps)
        fired = torch.empty_like(membranes, dtype=torch.float32)
        currents = torch.empty_like(membranes) if current is not None else None
        above = torch.gt(membrane, threshold).to(fired.dtype)
        first = membrane, current, above, spikes
        entering = [x] * steps if shared else x.unbind(0)
        if currents is not None and alpha is not None:
            decay = alpha.clamp(0, 1)
            for arriving, new in zip(entering, currents, strict=True):
                current = torch.mul(decay, current, out=new).add_(arriving)
            entering = currents.unbind(0)
        for arriving, new, over in zip(entering, membranes.unbind(0), fired.unbind(0), strict=True):
            if reset == "zero" and weight is None:
                membrane = (1 - above) * membrane
            torch.mul(leak, membrane, out=new).add_(arriving)
            if weight is not None and spikes is not None:
                new.add_(spikes * weight if weight.dim() == 1 else functional.linear(spikes, weight, bias))
            if reset == "subtract":
                new.addcmul_(above, threshold, value=-1)
            elif reset == "zero" and weight is not None:
                new.sub_(above * new)
            membrane, above = new, torch.gt(new, threshold, out=over)
            spikes = None if spikes is None else above
        ctx.options = shared, reset, surrogate, damping
        ctx.save_for_backward(*first, membranes, fired, currents, beta, threshold, alpha, weight)
        ctx.set_materialize_grads(False)
        return fired, membranes, currents

    @staticmethod
    def backward(ctx: Any, from_fired: Tensor | None, from_membranes: Tensor | None, from_currents: Tensor | None) -> Any:
        """Return the gradients, from the last step to the first; resets are constants, as in snnTorch."""
        refuse_second_order()
        membrane, current, above, spikes, membranes, fired, currents, beta, threshold, alpha, weight = ctx.saved_tensors
        from_fired, from_membranes = (laid_out_as(each, membranes) for each in (from_fired, from_membranes))
        (shared, reset, surrogate, damping), leak = ctx.options, beta.clamp(0, 1)
        *_, needs_beta, needs_threshold, needs_alpha, needs_weight, needs_bias = ctx.needs_input_grad
        zeroes = reset == "zero" and weight is None
        # Gradients of a leak and a threshold, summed over steps.
        to_beta, to_threshold = (torch.zeros_like(membrane) if need else None for need in (needs_beta, needs_threshold))
        # The gradients of all steps are kept where somebody needs them; of one input for all steps their sum.
        total = None if shared and weight is None and alpha is None else torch.empty_like(membranes)
        entering = torch.zeros_like(membrane) if total is None else total
        slope = None if from_fired is None and weight is None else _formula(surrogate) or slope_of(surrogate)
        damped = None if weight is None else weight * damping
        number = float(leak) if leak.numel() == 1 else None
        scale = 1.0 if number is None else number
        later = torch.zeros_like(membrane)  # gradient of the membrane after the next step
        for step, new in slopes_backwards(membranes, threshold, slope, total):
            gradient = None if from_fired is None else from_fired[step]
            if damped is not None:
                gradient = later @ damped if gradient is None else torch.addmm(gradient, later, damped)
            if gradient is not None:
                new.mul_(gradient)
            if to_threshold is not None:
                to_threshold.sub_(new)
            if from_membranes is not None:
                new.add_(from_membranes[step])
            passed = later if number is not None else later * leak
            new.add_(passed, alpha=scale)
            if zeroes:
                new.addcmul_(passed, fired[step], value=-scale)
            before, over = (membranes[step - 1], fired[step - 1]) if step else (membrane, above)
            if reset == "zero" and weight is not None:
                new.addcmul_(new, over, value=-1)
            if to_threshold is not None and reset == "subtract":
                to_threshold.addcmul_(new, over, value=-1)
            if to_beta is not None:
                to_beta.addcmul_(new, before * (1 - over) if zeroes else before)
            if total is None:
                entering.add_(new)
            later = new
        to_membrane = later * leak
        to_membrane = to_membrane.addcmul_(to_membrane, above, value=-1) if zeroes else to_membrane
        to_alpha = to_weight = to_bias = to_spikes = None
        if alpha is not None and total is not None:
            decay = alpha.clamp(0, 1)
            entering = total if from_currents is None else total + from_currents
            for step in reversed(range(len(entering) - 1)):
                entering[step].addcmul_(entering[step + 1], decay)
            if needs_alpha:
                before = torch.cat([current[None], currents[:-1]])
                to_alpha = (entering * before).sum_to_size(alpha.shape) * ((alpha >= 0) & (alpha <= 1))
        if damped is not None and total is not None:
            to_weight = recurrent_gradient(total, spikes, fired) if needs_weight else None
            to_bias = total.flatten(0, -2).sum(0) if needs_bias else None
            to_spikes = total[0] @ damped
        to_x = entering.sum(0) if shared and total is not None else entering
        to_current = None if alpha is None else entering[0] * alpha.clamp(0, 1)
        to_beta = None if to_beta is None else to_beta.sum_to_size(beta.shape) * ((beta >= 0) & (beta <= 1))
        to_threshold = None if to_threshold is None else to_threshold.sum_to_size(threshold.shape)
        to_parts = to_current, to_spikes, to_beta, to_threshold, to_alpha, to_weight, to_bias
        return (None, None, None, None, None, to_x, to_membrane, *to_parts)


def _formula(function: Any) -> Slope | None:
    """Return the derivative of one of snnTorch's usual surrogate functions, in few operations; None for others."""
    name = getattr(function, "__qualname__", "").partition(".")[0]
    if getattr(function, "__module__", "") != "snntorch.surrogate" or name not in _FORMULAS:
        return None
    options = [cell.cell_contents for cell in function.__closure__]
    return lambda distances: _FORMULAS[name](distances, *options)


# Derivatives of functions of snntorch.surrogate; the second is 1 / (slope |d| + 1)^2.
_FORMULAS: dict[str, Callable[..., Tensor]] = {
    "atan": arctan_slope,
    "fast_sigmoid": lambda d, slope: d.abs_().mul_(slope).add_(1).square_().reciprocal_(),
}
