"""Damped recurrence: a smaller gradient through recurrent weights, where surrogate gradients explode over the time steps.

The gradient at an early step is a sum over chains of recurrent weights and surrogate derivatives.  Under a wide surrogate, such as
snnTorch's default arc tangent, chains grow with every step, and the sum is noise that destroys a start.  Clipping and lower rates
keep its direction.  A factor on each passage through recurrent weights shortens long chains alone, and changes no score.

The factor is chosen by the growth of random gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.calls.batches import device_of
from ..networks.calls.record import run_forward
from ..networks.libraries import is_neuron, library_of, reset_states
from ..networks.private.quiet import quiet, unwrap
from ..networks.private.workbench import private_copy
from ..options import Options

FACTORS = (1.0, 0.5, 0.25)  # 1/8 trained no better than 1/4, and 0 worse
# Starts with a growth of up to 1.6 trained best undamped, those from 2.8 damped.  At the margin for fresh weights, which grow in
# training, it was up to 1.3 and from 4.1 (docs/evidence/training.md).
LARGEST_GROWTH, FRESH_MARGIN = 2.0, 2.0
SAMPLES = 64  # on which growth is measured, and the loss after a write: gradients that explode, and a lost start, show on few


class Damping(AbstractContextManager["Damping"]):
    """Smaller gradient through a net's recurrent weights to earlier spikes, until ``remove`` or the end of a ``with`` block.

    Scores keep their bits, and passes without gradients run as before.  Frozen recurrent weights are damped as well, since
    gradients pass through them all the same.  Damping that the net has is replaced, also if it came with a copy of a damped net.
    Norse's layers that take all steps in one call are out of reach.  Damp a compiled net before its first call.

    Attributes:
        sites: names of the recurrent layers, which are damped if the factor is below 1; with a factor of 1 nothing is installed.
    """

    def __init__(self, net: nn.Module, factor: float) -> None:
        places = _find_places(net)
        self.factor, self.sites = factor, list(places)
        self._places = dict(places.values())  # once each: layers may share a module
        self.remove()
        for module, field in self._places.items() if factor < 1 else ():
            _install(module, _Damper(factor, field))

    def remove(self) -> None:
        """Let gradients pass unchanged; a second call does nothing."""
        for module in self._places:
            _remove_dampers(module)

    def __exit__(self, *error: object) -> None:
        self.remove()


def choose_damping(
    net: nn.Module, batches: Iterable[Any], options: Options, *, fresh: bool = False, shared: Iterable[object] = ()
) -> float:
    """Return the largest of ``FACTORS`` at which gradients grow at most twofold, or the smallest one if there is none.

    ``fresh`` weights of a default initialisation are measured as if twice as large.  Other arguments: see ``measure_growth``.
    """
    margin = FRESH_MARGIN if fresh else 1.0
    grown = (measure_growth(net, batches, options, margin * factor, shared) for factor in FACTORS)
    return next((factor for factor, growth in zip(FACTORS, grown, strict=False) if growth <= LARGEST_GROWTH), FACTORS[-1])


def measure_growth(
    net: nn.Module, batches: Iterable[Any], options: Options, factor: float = 1.0, shared: Iterable[object] = ()
) -> float:
    """Return how much random gradients grow on their way back through a recurrent layer; infinite if they overflow.

    Every spike of the layer, at every step, gets a gradient of 1 or -1 at random.  Sums of such gradients over n steps have the
    norm of ``sqrt(n)`` of them if they neither grow nor shrink from step to step.  The growth is the largest ratio to that norm,
    over steps and layers, and at least 1.

    A private copy runs, of which ``factor`` replaces the damping; it shares the objects in ``shared``, such as a trainer.
    """
    growth = 1.0
    if not _find_places(net):
        return growth
    bench = private_copy(unwrap(net), shared)
    places = dict(_find_places(bench).values())
    with quiet(bench, seed=options.seed, loader=batches):
        for inputs, _ in options.open(batches, device_of(bench)).sample(SAMPLES):
            dampers = [_Damper(factor, field, []) for field in places.values()]
            for module, damper in zip(places, dampers, strict=True):
                _install(module, damper)
            reset_states(bench)
            with torch.enable_grad():
                run_forward(bench, inputs, options.call)
            growth = max(growth, *(_growth_over(damper.seen) for damper in dampers))
    return growth


def _growth_over(spikes: list[Tensor] | None) -> float:
    """Return the growth of random gradients over the spikes of a layer, one tensor a step."""
    if not spikes:  # nothing below them is trained
        return 1.0
    draw = torch.Generator().manual_seed(0)
    signs = [(2 * torch.randint(2, step.shape, generator=draw) - 1).to(step) for step in spikes]
    gradients = torch.autograd.grad(spikes, spikes, signs, retain_graph=True)
    left = range(len(spikes), 0, -1)
    ratios = [float(one.double().norm()) / math.sqrt(count * one.numel()) for count, one in zip(left, gradients, strict=True)]
    return max(ratios) if all(map(math.isfinite, ratios)) else math.inf


class _Scale(torch.autograd.Function):
    """Identity whose gradient is multiplied by a factor.  It returns a view: a sum with zero would change the sign of -0.0."""

    @staticmethod
    def forward(ctx: Any, spikes: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return spikes.view_as(spikes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


@dataclass
class _Damper:
    """Forward pre-hook; a class, so that a damped net can be pickled."""

    gradient_factor: float
    field: str | None  # of the spikes in a state among the arguments; None if they are an argument
    seen: list[Tensor] | None = None  # gets the spikes that a gradient reaches, one tensor a call; None outside of measurements

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            return None
        damped = self._damped if self.field is None else self._with_damped
        return tuple(map(damped, args)), {name: damped(value) for name, value in kwargs.items()}

    def _damped(self, spikes: Any) -> Any:
        if not isinstance(spikes, Tensor) or not spikes.requires_grad:
            return spikes
        if self.seen is not None:
            self.seen.append(spikes)
        return _Scale.apply(spikes, self.gradient_factor)  # type: ignore[no-untyped-call]

    def _with_damped(self, state: Any) -> Any:
        """Damp the spikes of a state, a named tuple that may hold another one."""
        fields = getattr(state, "_fields", ())
        damped = {name: (self._damped if name == self.field else self._with_damped)(getattr(state, name)) for name in fields}
        return state._replace(**damped) if fields else state


def _install(module: nn.Module, damper: _Damper) -> None:
    _remove_dampers(module)
    module.register_forward_pre_hook(damper, with_kwargs=True)


def _remove_dampers(module: nn.Module) -> None:
    """Remove the damping of a module, also if it came with a copy of a damped one."""
    for key in [key for key, hook in module._forward_pre_hooks.items() if isinstance(hook, _Damper)]:
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)


def _find_places(net: nn.Module) -> dict[str, tuple[nn.Module, str | None]]:
    """Return ``Library.recurrent_input`` of the recurrent layers that have one, by name."""
    neurons = {name: module for name, module in unwrap(net).named_modules() if is_neuron(module)}
    recurrent = {name: neuron for name, neuron in neurons.items() if library_of(neuron).recurrence(neuron) is not None}
    places = {name: library_of(neuron).recurrent_input(neuron) for name, neuron in recurrent.items()}
    return {name: place for name, place in places.items() if place is not None}
