"""snnTorch's neurons."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .library import Dynamics, Library, Recurrence, Synapse, Visit
from .snntorch_steps import RecurrentWeights, snntorch_stepper
from .stepper import Stepper

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
        return snntorch_stepper(neuron, name, _STATES.get(name, ()))

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
