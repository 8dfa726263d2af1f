"""One comparison per step for snnTorch's neurons, in passes without gradients.

A neuron compares its membrane with the threshold at the end of a step and again at the start of the next one, and its surrogate
function converts the result both times.  On a CPU that is most of a step.  Here one comparison writes numbers and serves both
times, to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["compare_once"]

_LIBRARY = "snntorch"
_SURROGATES = "snntorch.surrogate"
_BASE = "SpikingNeuron"
_FUNCTION, _METHODS = "spike_grad", ("fire", "mem_reset")
_PROBES = (-math.inf, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, math.inf, math.nan)  # a surrogate function must compare these with 0


@contextmanager
def compare_once(net: nn.Module) -> Iterator[None]:
    """Let the neurons of a net spike, and reset, by one comparison until the block ends.

    Applies while gradients are off and membranes are of single precision.  A user's own functions and methods are left alone.
    """
    with ExitStack() as stack:
        for module in net.modules():
            own = vars(module).get(_FUNCTION)
            if own is None or not _only_compares(own):
                continue
            vars(module)[_FUNCTION] = _fast(own)
            stack.callback(vars(module).__setitem__, _FUNCTION, own)
            if all(_is_inherited(module, name) for name in _METHODS):
                neuron = _Neuron(module)
                for name in _METHODS:
                    vars(module)[name] = getattr(neuron, name)
                    stack.callback(vars(module).pop, name, None)
        yield


def _only_compares(function: Any) -> bool:
    """Return whether a function is one of the library's surrogates, and does nothing but compare with 0 in the forward pass."""
    if getattr(function, "__module__", None) != _SURROGATES or not callable(function):
        return False
    probes = torch.tensor(_PROBES)
    with torch.no_grad():
        return torch.equal(function(probes), _above_zero(probes))


def _is_inherited(module: nn.Module, name: str) -> bool:
    """Return whether a neuron's method is the one of the library's base class."""
    method = getattr(type(module), name, None)
    package = (getattr(method, "__module__", None) or "").split(".")[0]
    return package == _LIBRARY and getattr(method, "__qualname__", "") == f"{_BASE}.{name}" and name not in vars(module)


def _fast(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function that compares in one operation where it may, and calls ``own`` otherwise."""

    def spikes(membrane: Tensor) -> Tensor:
        return _above_zero(membrane) if _applies(membrane) else own(membrane)

    return spikes


def _applies(membrane: Any) -> bool:
    return isinstance(membrane, Tensor) and not torch.is_grad_enabled() and membrane.dtype == torch.float32


def _above_zero(membrane: Tensor) -> Tensor:
    """Return 1.0 where a membrane is above 0, else 0.0."""
    return torch.gt(membrane, 0, out=torch.empty_like(membrane))


class _Version:
    """A tensor at one version.  It is held, so that no other tensor can take its place in memory."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self._version = tensor, tensor._version

    def is_current(self, tensor: Tensor) -> bool:
        """Return whether this is the tensor, and nothing was written into it since."""
        return tensor is self.tensor and tensor._version == self._version


class _Neuron:
    """``fire`` and ``mem_reset`` of one neuron, sharing a comparison where nothing has changed in between."""

    def __init__(self, neuron: Any) -> None:
        self._neuron = neuron
        self._own_fire: Callable[[Tensor], Tensor] = neuron.fire
        self._own_reset: Callable[[Tensor], Tensor] = neuron.mem_reset
        self._last: tuple[_Version, _Version, _Version] | None = None  # membrane, threshold, and where the one exceeds the other

    def fire(self, membrane: Tensor) -> Tensor:
        """Return the spikes of a membrane."""
        factor, threshold = self._neuron.graded_spikes_factor, self._neuron.threshold
        if self._neuron.state_quant or not self._has_versions(membrane, threshold) or factor.dim() > 0:
            return self._own_fire(membrane)
        above = _above_zero(membrane - threshold)
        self._last = _Version(membrane), _Version(threshold), _Version(above)
        if factor.device.type == "cpu" and factor.dtype == above.dtype and float(factor) == 1.0:
            return above  # the product with 1
        spikes: Tensor = above * factor
        return spikes

    def mem_reset(self, membrane: Tensor) -> Tensor:
        """Return where a membrane is reset."""
        threshold = self._neuron.threshold
        if self._last is not None and self._has_versions(membrane, threshold):
            membranes, thresholds, above = self._last
            if membranes.is_current(membrane) and thresholds.is_current(threshold) and above.is_current(above.tensor):
                return above.tensor
        return self._own_reset(membrane)

    def _has_versions(self, membrane: Tensor, threshold: Tensor) -> bool:
        """Return whether the comparison is the plain one, of tensors that count the writes into them."""
        return _applies(membrane) and not membrane.is_inference() and not threshold.is_inference()
