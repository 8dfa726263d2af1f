"""snnTorch's neurons.  The library itself is never imported: its modules say by their class where they come from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from .neurons import Synapse, Trace, Visit, class_in, collect
from .state import ModuleState

__all__ = ["SnnTorchAdapter"]

_PACKAGE = "snntorch._neurons"
# A recurrent weight a unit that RLeaky and RSynaptic hold with all_to_all=False: a part of a neuron, in the neurons' package.
_PARTS = ("RecurrentOneToOne",)
# The state each class carries from step to step; an empty one makes the class start from rest on its next call.
_STATES: dict[str, tuple[str, ...]] = {
    "Leaky": ("mem",),
    "Synaptic": ("syn", "mem"),
    "Alpha": ("syn_exc", "syn_inh", "mem"),
    "Lapicque": ("mem",),
}
# They take all steps in one call and carry no state.
_SEQUENCES = ("LinearLeaky", "StateLeaky")


def neuron_class(module: nn.Module) -> str | None:
    """Name the snnTorch neuron class that a module is of.

    Args:
        module: any module; one of a user's subclass counts as the snnTorch class it derives from.

    Returns:
        For example ``"Leaky"``, or None if the module is no snnTorch neuron.
    """
    name = class_in(module, (_PACKAGE,))
    return None if name in _PARTS else name


class SnnTorchAdapter:
    """Handles snnTorch's neurons; see :class:`~snn_recon_plugin.networks.neurons.NeuronAdapter`."""

    library = "snntorch"

    def owns(self, module: nn.Module) -> bool:
        """Say whether ``module`` is an instance, or of a subclass, of one of snnTorch's neuron classes."""
        return neuron_class(module) is not None

    def takes_sequences(self, module: nn.Module) -> bool:
        """Say whether one call takes ``[T, B, *]``, as StateLeaky, LinearLeaky and LeakyParallel do."""
        return neuron_class(module) in (*_SEQUENCES, "LeakyParallel")

    def synapse(self, module: nn.Module) -> Synapse | None:
        """Give the Linear inside a LinearLeaky, and a LeakyParallel itself, whose weights lie in an nn.RNN."""
        name, linear = neuron_class(module), getattr(module, "linear", None)
        if name == "LinearLeaky" and isinstance(linear, nn.Linear):
            return Synapse(linear, "weight", None if linear.bias is None else "bias")
        return Synapse(module) if name == "LeakyParallel" else None

    def threshold(self, module: nn.Module) -> tuple[float, float] | None:
        """Give the smallest and the largest of the thresholds."""
        threshold = getattr(module, "threshold", None)
        if not isinstance(threshold, Tensor):
            return None
        return float(threshold.detach().min()), float(threshold.detach().max())

    def integrates(self, module: nn.Module) -> bool:
        """Say whether the neuron was built with ``reset_mechanism="none"``; a StateLeaky has no such choice."""
        return getattr(module, "reset_mechanism", None) == "none" and neuron_class(module) in _STATES

    def unit_thresholds(self, module: nn.Module) -> Tensor | None:
        """Give the threshold as it is stored."""
        threshold = getattr(module, "threshold", None)
        return threshold if isinstance(threshold, Tensor) else None

    def reset(self, module: nn.Module) -> None:
        """Call the neuron's own ``reset_mem``; classes without one carry no state from call to call.

        ``snntorch.utils.reset`` is not used: it misses nested neurons and resets those of every other net.
        """
        reset_mem = getattr(module, "reset_mem", None)
        if callable(reset_mem):
            reset_mem()

    def spikes(self, output: Any) -> Tensor:
        """Pick the spikes: the first item, whether or not the neuron also returns its states."""
        spikes = output[0] if isinstance(output, (tuple, list)) else output
        assert isinstance(spikes, Tensor)
        return spikes

    def membrane(self, module: nn.Module, output: Any) -> Tensor | None:
        """Read the membrane: the stored one if there is one, else the last item that the call returned."""
        stored = getattr(module, "mem", None)
        if isinstance(stored, Tensor):
            return stored
        last = output[-1] if isinstance(output, (tuple, list)) else output
        assert isinstance(last, Tensor)
        return last

    def run(self, module: nn.Module, currents: Tensor) -> Trace:
        """Simulate the neuron alone, as ``each_step`` does, and give its spikes and membranes at all steps."""
        return collect(self.each_step, module, currents)

    def each_step(self, module: nn.Module, currents: Tensor, visit: Visit) -> None:
        """Simulate the neuron alone, step by step from rest, bit for bit as the network steps it.

        Args:
            module: a Leaky, Synaptic, Alpha, Lapicque, StateLeaky or LinearLeaky, whose Linear is left out.
            currents: ``[T, B, *]``, T at least 1.
            visit: called with its spikes and membranes after each step.

        Raises:
            UnsupportedModuleError: for another neuron class.
        """
        name = neuron_class(module) or ""
        if name not in _STATES and name not in _SEQUENCES:
            raise UnsupportedModuleError(
                f"a neuron of class {type(module).__name__}",
                f"a neuron that can be simulated alone: {', '.join(sorted((*_STATES, *_SEQUENCES)))}",
                "use one of those there; a hidden layer of another class can stay with hidden='keep'",
            )
        kept = ModuleState([module])
        try:
            with torch.no_grad():
                if name in _SEQUENCES:
                    self._sequence(module, currents, visit)
                else:
                    self._steps(module, currents, _STATES[name], visit)
        finally:
            kept.restore()

    def _steps(self, module: nn.Module, currents: Tensor, states: tuple[str, ...], visit: Visit) -> None:
        """Step the neuron from empty states, ``currents`` ``[T, B, *]``."""
        for state in states:
            setattr(module, state, currents.new_zeros(0))
        for current in currents:
            # The class's forward, not the module's call: hooks that a user put there must not see this.
            output = type(module).forward(module, current)
            membrane = self.membrane(module, output)
            assert membrane is not None
            visit(self.spikes(output), membrane)

    def _sequence(self, module: nn.Module, currents: Tensor, visit: Visit) -> None:
        """Run a StateLeaky, or what follows the Linear of a LinearLeaky, on ``currents`` ``[T, B, C]``."""
        fused = neuron_class(module) == "LinearLeaky"
        owner: Any = next(cls for cls in type(module).__mro__ if cls.__name__ == "StateLeaky" or not fused)
        tau = module.tau
        assert isinstance(tau, Tensor)
        output = owner.forward(module, currents.to(tau.dtype))  # the kernel's: a convolution mixes no dtypes
        for spikes, membranes in zip(self.spikes(output), output[-1] if isinstance(output, tuple) else output, strict=True):
            visit(spikes, membranes)
