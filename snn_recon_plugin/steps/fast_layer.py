"""Layers and functions without states, computed once for all time steps that they can be computed for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..networks.structure.layers import POOLS, SYNAPSES
from .installed import Installed
from .sequence import Kept, Place, Sequence, Tape, condition_of, is_tracked
from .walk import Walk

_RANKS = {"1d": 3, "2d": 4, "3d": 5}  # axes of a batch, by the end of the name of a class or function
# Layers whose samples are independent of each other, and reproducible, in evaluation mode only.
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_EVALUATED = (*NORMS, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
LAYERS = (*SYNAPSES, *POOLS, *_EVALUATED, nn.Flatten, nn.Identity, nn.ReLU, nn.LayerNorm, nn.GroupNorm)
_FUNCTIONS = {f"{kind}_pool{rank}" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for rank in _RANKS} | {"relu"}


class Repeated:
    """A function of samples that gives its values again.

    If its input is one step of a sequence, it is computed on the whole sequence, once.  If its input is the same as in the last
    call, it is not computed again.  A value is given while input, parameters and modes are the same, and in one pass only:
    parameters may be written through ``.data`` between two passes, which nothing counts.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], tape: Tape) -> None:
        self.function, self.tape = function, tape
        self._last: tuple[Place, object, Kept] | None = None  # input, condition and value of the last call
        self._given = self._pass = 0  # times that this value was given, and the pass in which it was computed

    def __call__(self, x: Tensor, condition: object, found: tuple[Sequence, int] | None) -> Tensor:
        """Return the value at ``x``, which may be found as a step of a sequence."""
        if found is not None:
            return self._through(*found, x, condition)
        place, last = Place(x), self._last
        same = last is not None and last[0] == place and last[1] == condition and last[2].is_valid
        if last is None or not same or self._given >= self.tape.steps or self._pass != self.tape.passes:
            last, self._given, self._pass = (place, condition, Kept(self.function(x))), 0, self.tape.passes
        self._last, self._given = last, self._given + 1
        return last[2].values

    def _through(self, sequence: Sequence, step: int, x: Tensor, condition: object) -> Tensor:
        """Return the value at a step ``x`` of a sequence."""
        known = sequence.results.get(self)
        if known is None or known[0] != condition or not known[1].holds(step):
            inputs = sequence.shaped_like(x)
            values: Tensor = self.function(inputs.flatten(0, 1))
            values = values.reshape(*inputs.shape[:2], *values.shape[1:])
            known = sequence.results[self] = (condition, self.tape.add(Sequence(values)))
        return known[1].slices[step]


class FastLayer(Installed):
    """Forward of a layer that gives its outputs again, also for steps ``x[t]`` of the user, as many as in the pass before."""

    def __init__(self, module: nn.Module, tape: Tape) -> None:
        super().__init__(module, tape)
        self.outputs = Repeated(self._compute, tape)
        self.work = 0  # multiplications of the last operation
        self._walk = Walk(tape)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the layer's output."""
        self.calls += 1
        if len(args) != 1 or kwargs or not self._applies(args[0]):
            self.computed += 1
            return self.own(*args, **kwargs)
        x: Tensor = args[0]
        if isinstance(self.module, nn.Linear) and x.dim() > 2 and x.stride(0) == 0:  # one step, expanded over time
            self.calls += len(x) - 1
            return self._compute(x[0]).expand(len(x), *x.shape[1:-1], -1)
        held = (*self.module._parameters.values(), *self.module._buffers.values())
        condition = condition_of([part for part in held if part is not None], self.module.training)
        return self.outputs(x, condition, self._walk.find(x, condition))

    def _compute(self, x: Tensor) -> Tensor:
        output: Tensor = self.own(x)
        weight = self.module._parameters.get("weight")
        self.work = output.numel() * (1 if weight is None else weight[0].numel())
        self.computed += 1
        return output

    def _applies(self, x: Any) -> bool:
        """Return whether an input is a batch whose samples the layer maps one by one."""
        if (
            not isinstance(x, Tensor)
            or not is_tracked(x)
            or torch.is_autocast_enabled(x.device.type)
            or (self.module.training and isinstance(self.module, _EVALUATED))
        ):
            return False
        rank = None if isinstance(self.module, _EVALUATED) else _RANKS.get(type(self.module).__name__[-2:])
        return x.dim() >= 2 if rank is None else x.dim() == rank


class FastFunctions(TorchFunctionMode):
    """Give the values of pooling functions between layers again, while a net's forward runs."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.values: dict[object, Repeated] = {}
        self.calls = self.computed = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Call a function, or give its value."""
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        if name not in _FUNCTIONS or not args or not isinstance(args[0], Tensor) or kwargs.get("return_indices"):
            return function(*args, **kwargs)
        x, *rest = args
        found = self.tape.find(x)
        if x.dim() != _RANKS.get(name[-2:], x.dim()) or not is_tracked(x) or (found is None and self.tape.holds(x)):
            return function(*args, **kwargs)
        self.calls += 1
        key = (name, str(rest), str(kwargs), x.shape[1:])
        if key not in self.values:
            self.values[key] = Repeated(lambda x: self._compute(function, x, *rest, **kwargs), self.tape)
        return self.values[key](x, condition_of([], training=False), found)

    def _compute(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        self.computed += 1
        return function(*args, **kwargs)


class FastNet(Installed):
    """Forward of a net, which begins a pass; within :class:`FastFunctions` if the net calls some of them."""

    def __init__(self, module: nn.Module, tape: Tape, has_functions: bool) -> None:
        super().__init__(module, tape)
        self.functions, self.has_functions = FastFunctions(tape), has_functions

    @property
    def is_idle(self) -> bool:
        """True if no value of a function was given again: the mode itself takes time."""
        return self.functions.calls == self.functions.computed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the net returns."""
        self.tape.begin_call()
        with self.functions if self.has_functions else nullcontext():
            return self.own(*args, **kwargs)
