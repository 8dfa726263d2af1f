"""Contract between the package and a library of spiking neurons, and of several time steps of a neuron as one operation.

The package reaches every neuron of a user's net through the :class:`Library` that owns its class.  A library is never imported:
the classes of a net's modules name the package in which they were defined.  Class names and attributes of neurons occur in this
folder alone.  To add a library, write its subclass of :class:`Library` in a file here and add it to ``LIBRARIES``;
:func:`~.conformance.check_library` tests it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModuleError
from ..private.workbench import has_custom_forward, private_copy

# Gets a neuron's spikes and membranes, [B, *] each, after a step.
Visit: TypeAlias = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Trace:
    """Spikes and membranes of a neuron over time, ``[T, B, *]``."""

    spikes: Tensor  # the neuron's output; its membrane if it never spikes
    membranes: Tensor  # after each step


@dataclass(frozen=True)
class Synapse:
    """Weights that a neuron module holds for its inputs, such as the Linear inside ``snn.LinearLeaky``."""

    module: nn.Module  # that holds the weight; the neuron itself where it holds a raw parameter
    weight: str | None = None  # name of the matrix [out, in] in that module; None if the weights are another form
    bias: str | None = None  # the bias's name, or None without one
    others: tuple[tuple[nn.Module, str], ...] = ()  # module and name of each parameter that makes up weights of another form

    @property
    def parameters(self) -> list[tuple[nn.Module, str]]:
        """Module and name of each parameter that a gain of the inputs multiplies."""
        return [*((self.module, name) for name in (self.weight, self.bias) if name is not None), *self.others]


@dataclass(frozen=True)
class Recurrence:
    """Weights through which a layer's spikes return to it one step later."""

    weight: tuple[nn.Module, str] | None  # module and name of the matrix [N, N]; None if the recurrence is not dense
    bias: Tensor | None = None  # the recurrence's own, [N]
    autapses: bool = True  # a unit's own spike returns to it
    units: int | None = None  # number N that it was built for, or None if unknown


@dataclass(frozen=True)
class Dynamics:
    """One step of a neuron: ``i = synapse i + current``, then ``u = leak u + gain i + rest``, then a spike if u > threshold."""

    leak: float
    threshold: float
    gain: float = 1.0
    synapse: float = 0.0
    rest: float = 0.0
    start: float = 0.0  # initial membrane
    subtract: float = 0.0  # from the membrane one step after a spike
    reset: float | None = None  # value of the membrane after a spike; None if a spike only subtracts

    def filter(self, sources: Tensor, spikes: Tensor) -> tuple[Tensor, Tensor]:
        """Filter the inputs ``[T, n, D]`` of one neuron, before its weights, given its own spikes ``[T, n]``, 0 or 1.

        Returns:
            Filtered inputs ``[T, n, D]`` and the membrane's offset ``[T, n]``: the membrane is their sum with weights plus offset.
        """
        current, membrane = torch.zeros_like(sources[0]), torch.zeros_like(sources[0])
        offset, spiked = torch.full_like(spikes[0], self.start), torch.zeros_like(spikes[0])
        filtered, offsets = [], []
        for step, source in enumerate(sources):
            if self.reset is not None:
                kept = 1 - spiked
                membrane, offset = membrane * kept[:, None], offset * kept + self.reset * spiked
            current = self.synapse * current + source
            membrane = self.leak * membrane + self.gain * current
            offset = self.leak * offset + self.rest - self.subtract * spiked
            filtered.append(membrane)
            offsets.append(offset)
            spiked = spikes[step]
        return torch.stack(filtered), torch.stack(offsets)


class Library(ABC):
    """Reads, resets and simulates the neurons of one library."""

    name: ClassVar[str]  # the library's top-level package
    packages: ClassVar[tuple[str, ...]]  # packages or modules in which its neuron classes are defined
    parts: ClassVar[tuple[str, ...]] = ()  # classes defined there that are only parts of a neuron
    encoders: ClassVar[str] = ""  # module of its encoders, each of which runs as one operation

    # For messages:
    title: ClassVar[str]  # the library's name as its authors write it
    example: ClassVar[str]  # code that makes a spiking neuron
    integrator: ClassVar[str]  # code that makes a neuron without a reset, whose membrane can be read
    resets: ClassVar[tuple[str, str]]  # code that resets a net, and each neuron of one, if :meth:`missed_by_reset` lists any
    readouts: ClassVar[str] = "an nn.Linear"  # modules that can be the readout
    known_dynamics: ClassVar[str]  # neurons that have :meth:`dynamics`
    known_alone: ClassVar[str]  # neurons that can be simulated alone
    known_leaks: ClassVar[str] = ""  # neurons that have a :meth:`leak_name`
    without_leak: ClassVar[str] = "has no leak that each unit may have for itself"  # reason for no :meth:`leak_name`

    # -- recognise ---------------------------------------------------------------------------------------------------------

    def owns(self, module: nn.Module) -> bool:
        """Return whether a module's class, or one it derives from, is the library's: a neuron or a helper."""
        return any(cls.__module__.partition(".")[0] == self.name for cls in type(module).__mro__)

    def is_neuron(self, module: nn.Module) -> bool:
        """Return whether a module is a neuron of this library, or of a user's subclass of one."""
        return self._neuron_class(module) is not None

    def is_encoder(self, module: nn.Module) -> bool:
        """Return whether a module is an encoder of this library; a user's subclass is none."""
        return type(module).__module__ == self.encoders

    def _neuron_class(self, module: nn.Module) -> str | None:
        """Return the name of the library's neuron class that a module is of, such as ``"Leaky"``, or None."""
        return _neuron_class(type(module).__mro__, self.packages, self.parts)

    def _bases(self, module: nn.Module) -> set[str]:
        """Return the names of the library's classes that a module is of."""
        return {cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith(f"{self.name}.")}

    @abstractmethod
    def takes_sequences(self, module: nn.Module) -> bool:
        """Return whether one call of a neuron or helper takes all steps, ``[T, B, *]``, not one step, ``[B, *]``."""

    @abstractmethod
    def integrates(self, neuron: nn.Module) -> bool:
        """Return whether the neuron was built without a reset, as a leaky integrator whose membrane is read."""

    def keeps_state(self, neuron: nn.Module) -> bool:
        """Return whether the neuron keeps its state from call to call, so that a time loop around the net can step it."""
        return False

    def quantises_state(self, neuron: nn.Module) -> bool:
        """Return whether the neuron rounds its membrane to a few values."""
        return False

    def inhibits(self, neuron: nn.Module) -> bool:
        """Return whether a spike of one unit keeps the layer's other units from spiking."""
        return False

    # -- constants and dynamics --------------------------------------------------------------------------------------------

    @abstractmethod
    def unit_thresholds(self, neuron: nn.Module) -> Tensor | None:
        """Return the firing threshold, one value or one per unit; None for a neuron that never spikes."""

    def threshold(self, neuron: nn.Module) -> tuple[float, float] | None:
        """Return the lowest and the highest firing threshold; None for a neuron that never spikes."""
        values = self.unit_thresholds(neuron)
        return None if values is None else (float(values.detach().min()), float(values.detach().max()))

    @abstractmethod
    def dynamics(self, neuron: nn.Module) -> Dynamics:
        """Return the update of one step.

        Raises:
            UnsupportedModuleError: the update is not linear, is not known, or differs between units.
        """

    def _scalar(self, neuron: nn.Module, value: Any) -> float:
        """Return a constant that all units share, or refuse units that differ."""
        value = torch.as_tensor(value)
        if value.numel() != 1:
            raise self._unknown_dynamics(f"{type(neuron).__name__} whose units have parameters of their own")
        return float(value)

    def _unknown_dynamics(self, found: str) -> UnsupportedModuleError:
        fix = "use one of those, or hidden='reconstruct', which selects candidates and needs no pattern"
        return UnsupportedModuleError(found, self.known_dynamics, fix)

    def leak_name(self, neuron: nn.Module) -> str | None:
        """Return the name of the parameter or saved buffer that holds the leak, the share of the membrane that a step keeps.

        It has one value or one for each unit.  None if units can't each have their own, or it is not saved with the net.
        """
        return None

    # -- weights -----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def synapse(self, neuron: nn.Module) -> Synapse | None:
        """Return the weights that the neuron holds for its inputs; None for a neuron that takes a current."""

    @abstractmethod
    def recurrence(self, neuron: nn.Module) -> Recurrence | None:
        """Return the weights from the layer's own spikes; None for a feed-forward neuron."""

    def recurrent_input(self, neuron: nn.Module) -> tuple[nn.Module, str | None] | None:
        """Return the module that is called with the spikes that return to a recurrent layer, once a step.

        The name is of the spikes' field in the state among its arguments; None if they are an argument themselves.  None for no
        such module, as in a layer that takes all steps in one call.
        """
        return None

    # -- simulation alone --------------------------------------------------------------------------------------------------

    def each_step(self, neuron: nn.Module, currents: Tensor, visit: Visit, *, recurrent: Tensor | None = None) -> None:
        """Simulate units of a copy of a neuron alone from rest, bit for bit as in the net.

        Currents are ``[T, B, *]``, T at least 1; weights that the neuron holds for its inputs are left out.  Units of a recurrent
        neuron need ``recurrent``, weights (M, M) between them, or (M,) from each to itself.  Only what ``visit`` keeps takes
        memory.

        Raises:
            UnsupportedModuleError: neurons of this class can't be simulated alone, or depend on each other.
        """
        if recurrent is None and self.recurrence(neuron) is not None:
            raise self._not_alone(neuron)
        copied = private_copy(neuron, neuron.parameters())
        with torch.no_grad():
            self._set_weights(copied, currents, recurrent)
            if not self._scan(copied, currents, visit):
                self._simulate(copied, currents, visit)

    def run(self, neuron: nn.Module, currents: Tensor, recurrent: Tensor | None = None) -> Trace:
        """Simulate a neuron alone as :meth:`each_step` does, and return all steps."""
        steps: list[tuple[Tensor, ...]] = []
        self.each_step(neuron, currents, lambda *step: steps.append(step), recurrent=recurrent)
        spikes, membranes = zip(*steps, strict=True)
        return Trace(torch.stack(spikes), torch.stack(membranes))

    def _not_alone(self, neuron: nn.Module) -> UnsupportedModuleError:
        found = f"a neuron of class {type(neuron).__name__}"
        fix = "use one of those there; a hidden layer of another class is kept as it is"
        return UnsupportedModuleError(found, f"a neuron that can be simulated alone: {self.known_alone}", fix)

    def _set_weights(self, neuron: nn.Module, currents: Tensor, recurrent: Tensor | None) -> None:
        """Let a copy of a neuron pass its currents on as they are, and give it weights among its units if there are any."""
        if recurrent is not None:
            raise self._unknown_dynamics(f"a neuron of class {type(neuron).__name__}")

    def _scan(self, neuron: nn.Module, currents: Tensor, visit: Visit) -> bool:
        """Simulate a copy of a neuron by its stepper; return False if its own code must run."""
        stepper = self.stepper(neuron)
        if stepper is None:
            return False
        self.reset(neuron)
        call = stepper.read((currents if stepper.takes_sequences else currents[0],))
        if call is None:
            return False
        shared = len(currents) > 1 and currents.stride(0) == 0
        spikes, states = stepper.scan(currents[0] if shared else currents, call[1], len(currents), shared)
        for step in zip(spikes, states[stepper.membrane], strict=True):
            visit(*step)
        return True

    @abstractmethod
    def _simulate(self, neuron: nn.Module, currents: Tensor, visit: Visit) -> None:
        """Do what :meth:`each_step` promises, with a copy of the neuron."""

    def stepper(self, neuron: nn.Module) -> Stepper | None:
        """Return what takes several steps of a neuron as one operation; None if its own code must run, as of a user's method."""
        library_class = self._neuron_class(neuron)
        users = takewhile(lambda cls: cls.__name__ != library_class, type(neuron).__mro__)
        methods = {name for cls in users for name, value in vars(cls).items() if callable(value)}
        methods |= {name for name in vars(neuron).keys() - {"forward"} if callable(getattr(type(neuron), name, None))}
        return None if has_custom_forward(neuron) or methods - {"__init__"} else self._stepper(neuron)

    def _stepper(self, neuron: nn.Module) -> Stepper | None:
        """Return the stepper of a neuron whose class runs the library's code; None for a class without one."""
        return None

    def isolated(self, net: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which functions of the library that act on all neurons of the process act on those of a net."""
        return nullcontext()

    # -- state and output --------------------------------------------------------------------------------------------------

    @abstractmethod
    def reset(self, module: nn.Module) -> None:
        """Put a module that the library owns, a neuron or a helper, into its resting state, through its own reset if it has one."""

    def missed_by_reset(self, net: nn.Module) -> list[str]:
        """List the names of neurons that keep a state and that the library's own reset of a whole net does not reach."""
        return []

    def spikes(self, output: Any) -> Tensor:
        """Return the spikes in the output of a call: the first item if it also holds states."""
        spikes = output[0] if isinstance(output, (tuple, list)) else output
        assert isinstance(spikes, Tensor)
        return spikes

    @abstractmethod
    def membrane(self, neuron: nn.Module, output: Any) -> Tensor | None:
        """Return the membrane right after a call that returned ``output``; None if it isn't visible."""


@lru_cache(maxsize=4096)
def _neuron_class(classes: tuple[type, ...], packages: tuple[str, ...], parts: tuple[str, ...]) -> str | None:
    """Return the name of the first class, of one and its bases, that is defined in some packages; None for a part of a neuron."""
    for cls in classes:
        if any(f"{cls.__module__}.".startswith(f"{package}.") for package in packages):
            return None if cls.__name__ in parts else cls.__name__
    return None


# -- several steps at once -----------------------------------------------------------------------------------------------------

States = tuple[Tensor, ...]
# Gets distances from the threshold, which it may write into; returns the derivative of the spikes.
Slope = Callable[[Tensor], Tensor]
_CACHED = 2**19  # bytes
_PROBES = (-math.inf, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, math.inf, math.nan)  # distances from a threshold
_gradient = torch.autograd.grad  # which ends a step of the user's while it is watched


class Stepper(ABC):
    """Time steps of one neuron, with its own values and gradients."""

    takes_sequences = False  # a call gives all steps
    membrane = 0  # its place among the states

    @abstractmethod
    def read(self, args: tuple[Any, ...]) -> tuple[Tensor, States] | None:
        """Return input, ``[B, *]`` or ``[T, B, *]`` of all steps, and states of a call; None if the neuron itself must answer."""

    @abstractmethod
    def held(self, args: tuple[Any, ...]) -> States:
        """Return the states, of whatever shape, that a call gives or the neuron holds; none if it makes them."""

    @abstractmethod
    def scan(self, x: Tensor, states: States, steps: int, shared: bool) -> tuple[Tensor, States]:
        """Take steps with inputs ``[T, B, *]``, or ``[B, *]`` that all share; return spikes and states after each one."""

    @abstractmethod
    def left(self, output: Any) -> States:
        """Return the states after a call that the neuron's own code answered with ``output``."""

    @abstractmethod
    def answer(self, spikes: Tensor, states: States) -> Any:
        """Store the states as the neuron does, and return what its call returns.

        Spikes and states are those of one step, or of all steps if the neuron takes them in one call.
        """


def slope_of(function: Callable[[Tensor], Tensor]) -> Slope:
    """Return the derivative of any surrogate function, through its own backward pass."""

    def slope(distances: Tensor) -> Tensor:
        with torch.enable_grad():
            variable = distances.detach().requires_grad_()
            spikes = function(variable)
            return _gradient(spikes, variable, torch.ones_like(spikes))[0]

    return slope


def arctan_slope(distances: Tensor, alpha: float) -> Tensor:
    """Return ``alpha / 2 / (1 + (pi / 2 alpha d)^2)``, the derivative of an arc tangent, written into the distances."""
    return distances.mul_(math.pi / 2 * alpha).square_().add_(1).reciprocal_().mul_(alpha / 2)


def is_surrogate(function: Callable[[Tensor], Tensor], fires: Callable[[Tensor, float], Tensor]) -> bool:
    """Return whether a function fires where a distance ``fires(distance, 0)``, to single precision.

    Where gradients are recorded it must have one derivative as well: no random one, and the same for any gradient.
    """
    probes, distances, scales = torch.tensor(_PROBES), torch.tensor([-1.0, 0.0, 1.0]), (1.0, 1.0, 2.0**20)

    def derivative(scale: float) -> Tensor:
        return slope_of(lambda values: function(values) * scale)(distances) / scale

    try:
        with torch.no_grad():
            same = torch.equal(function(probes), fires(probes, 0).float())
        with torch._C.DisableTorchFunction():  # a watched step of the user's ends at a gradient
            found = [*map(derivative, scales)] if same and torch.is_grad_enabled() else []
    except Exception:  # whatever a user's function raises on tensors of another shape, or without a gradient
        return False
    return same and all(torch.equal(found[0], other) for other in found)


def empty_steps(step: Tensor, steps: int) -> Tensor:
    """Return an array of so many steps, each of which lies in memory as a given one, also with its channels last."""
    is_dense = step.is_contiguous() or (step.dim() == 4 and step.is_contiguous(memory_format=torch.channels_last))
    shape = (steps, *step.shape)
    return step.new_empty_strided(shape, (step.numel(), *step.stride())) if is_dense else step.new_empty(shape)


def laid_out_as(gradient: Tensor | None, steps: Tensor) -> Tensor | None:
    """Return a gradient of some steps that lies in memory as they do."""
    if gradient is None or gradient.dim() < 5 or gradient.stride() == steps.stride():
        return gradient
    return torch.empty_like(steps).copy_(gradient)


def slopes_backwards(
    membranes: Tensor, threshold: Tensor | float, slope: Slope | None, out: Tensor | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield the steps of membranes ``[T, B, *]`` from the last one to the first, each with the derivatives of its spikes.

    They are computed for as many steps at once as stay in a processor's cache, zeros without a ``slope``, and written into ``out``.
    """
    size = max(1, _CACHED // max(1, membranes[0].numel() * membranes.element_size()))
    for stop in range(len(membranes), 0, -size):
        part = slice(max(0, stop - size), stop)
        found = torch.empty_like(membranes[part]) if out is None else out[part]
        if slope is None:
            found.zero_()
        else:
            found.copy_(slope(torch.sub(membranes[part], threshold, out=found)))
        yield from zip(range(stop - 1, part.start - 1, -1), reversed(found.unbind(0)), strict=True)


def recurrent_gradient(gradients: Tensor, first: Tensor, spikes: Tensor) -> Tensor:
    """Return the gradient of recurrent weights, from gradients of all currents, and spikes before the first step and at each."""
    gradient = gradients[0].flatten(0, -2).T @ first.flatten(0, -2)
    return gradient.addmm_(gradients[1:].flatten(0, -2).T, spikes[:-1].flatten(0, -2))


def gradient_factor(module: nn.Module) -> float | None:
    """Return the factor on gradients through an nn.Linear, 1 unless it is damped; None for others, or with hooks of the user."""
    hooks = [hook for held in (module._forward_hooks, module._backward_hooks, module._backward_pre_hooks) for hook in held.values()]
    factors = [getattr(hook, "gradient_factor", math.nan) for hook in module._forward_pre_hooks.values()]
    factor = math.prod(map(float, factors))
    return None if type(module) is not nn.Linear or has_custom_forward(module) or hooks or math.isnan(factor) else factor


def refuse_second_order() -> None:
    """Raise if a backward pass is recorded."""
    if torch.is_grad_enabled():
        raise UnsupportedModuleError(
            "a second derivative (create_graph=True) through fast_steps",
            "first derivatives",
            "call remove() of the handle before, or leave out fast_steps",
        )
