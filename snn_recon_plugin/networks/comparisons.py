"""Spikes by one comparison, in passes that only look at the net.

snnTorch's neurons compare a membrane twice, where a step ends and where the next one begins, and its surrogate functions convert
what comes out of each comparison; on a CPU this is most of what a step takes.  One comparison that writes numbers, kept for the
next step, is a fraction of that, to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["compared_once"]

_LIBRARY = "snntorch"
_MODULE = f"{_LIBRARY}.surrogate"
_ATTRIBUTE = "spike_grad"
_METHODS = ("fire", "mem_reset")
_OWNER = "SpikingNeuron"  # of snnTorch, whose methods these are where no neuron has others
_TOLD = (-math.inf, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, math.inf, math.nan)  # on which a function must be the comparison


@contextmanager
def compared_once(net: nn.Module) -> Iterator[None]:
    """Let neurons with one of snnTorch's surrogate functions spike by one operation, which the next step's reset is told by too.

    Only while gradients are off and membranes are of single precision.  Functions of the user's own are left alone.

    Args:
        net: the net.

    Yields:
        Nothing.  Neurons then have their own functions again.
    """
    with ExitStack() as stack:
        for module in net.modules():
            own = vars(module).get(_ATTRIBUTE)
            if own is None or not _compares(own):
                continue
            vars(module)[_ATTRIBUTE] = _quick(own)
            stack.callback(vars(module).__setitem__, _ATTRIBUTE, own)
            if all(_is_library(module, name) for name in _METHODS):
                for name, method in zip(_METHODS, _Neuron(module).methods(), strict=True):
                    vars(module)[name] = method
                    stack.callback(vars(module).pop, name, None)
        yield


def _compares(function: Any) -> bool:
    """Whether it is one of the library's, and does nothing but compare."""
    if getattr(function, "__module__", None) != _MODULE or not callable(function):
        return False
    told = torch.tensor(_TOLD)
    with torch.no_grad():
        return torch.equal(function(told), _above(told))


def _is_library(module: nn.Module, name: str) -> bool:
    """Whether a neuron's method is the one that the library's neurons share."""
    method = getattr(type(module), name, None)
    home, own = getattr(method, "__module__", None) or "", getattr(method, "__qualname__", "")
    return home.split(".")[0] == _LIBRARY and own == f"{_OWNER}.{name}" and name not in vars(module)


def _quick(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def spikes(membrane: Tensor) -> Tensor:
        return _above(membrane) if _is_plain(membrane) else own(membrane)

    return spikes


def _is_plain(membrane: Any) -> bool:
    return isinstance(membrane, Tensor) and not torch.is_grad_enabled() and membrane.dtype == torch.float32


def _above(membrane: Tensor) -> Tensor:
    """1.0 where above 0, else 0.0."""
    return torch.gt(membrane, 0, out=torch.empty_like(membrane))


class _Held:
    """A tensor as it is, told from others and from itself once it was written into.

    It is held, so that no other one can take its place in memory.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def is_still(self, tensor: Tensor) -> bool:
        """Whether this is the tensor, and nothing was written into it."""
        return tensor is self.tensor and tensor._version == self.version


class _Neuron:
    """A neuron's spikes and its reset, which are the same comparison where nothing has changed in between.

    Args:
        neuron: of snnTorch.
    """

    def __init__(self, neuron: Any) -> None:
        self._neuron = neuron
        self._fire: Callable[[Tensor], Tensor] = neuron.fire
        self._reset: Callable[[Tensor], Tensor] = neuron.mem_reset
        self._last: tuple[_Held, _Held, _Held] | None = None  # membrane, threshold, and where the one is above the other

    def methods(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """What takes the place of ``fire`` and of ``mem_reset``."""
        return self.fire, self.mem_reset

    def fire(self, membrane: Tensor) -> Tensor:
        """Spikes of a membrane."""
        factor, threshold = self._neuron.graded_spikes_factor, self._neuron.threshold
        if self._neuron.state_quant or not self._tells(membrane, threshold) or factor.dim() > 0:
            return self._fire(membrane)
        above = _above(membrane - threshold)
        self._last = _Held(membrane), _Held(threshold), _Held(above)
        if factor.device.type == "cpu" and factor.dtype == above.dtype and float(factor) == 1.0:
            return above  # as a product with one
        spikes: Tensor = above * factor
        return spikes

    def mem_reset(self, membrane: Tensor) -> Tensor:
        """Where a membrane is reset."""
        threshold = self._neuron.threshold
        if self._last is not None and self._tells(membrane, threshold):
            membranes, thresholds, above = self._last
            if membranes.is_still(membrane) and thresholds.is_still(threshold) and above.is_still(above.tensor):
                return above.tensor
        return self._reset(membrane)

    def _tells(self, membrane: Tensor, threshold: Tensor) -> bool:
        """Whether the comparison is the plain one, of tensors that tell whether they were written into."""
        return _is_plain(membrane) and not membrane.is_inference() and not threshold.is_inference()
