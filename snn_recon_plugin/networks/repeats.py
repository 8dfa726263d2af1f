"""Layers that see the same input at every step, computed once: a static image shown for 25 steps costs one product, not 25.

Most networks on static data call their first layer anew at each step, with the same tensor.  Passes that only look at the net
need not: the layer's output is kept, and given again while input and parameters stay equal.  What comes out is bit for bit what
the layer gives by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

__all__ = ["computed_once"]

_PURE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # whose output follows from input and parameters alone
_MISSES = 2  # in a row, and a layer is left alone: the first step of each batch is one, and a layer fed by spikes has no other


@contextmanager
def computed_once(net: nn.Module) -> Iterator[None]:
    """Let linear and convolutional layers give their last output again where their input has not changed.

    Only while gradients are off; hooks on the layers fire at every call.  Subclasses, parametrized layers and layers with a
    ``forward`` of their own are left alone.

    Args:
        net: the net.

    Yields:
        Nothing.  Layers then compute at every call again.
    """
    with ExitStack() as stack:
        for module in net.modules():
            if type(module) in _PURE and "forward" not in vars(module):
                vars(module)["forward"] = _once(module)
                stack.callback(vars(module).pop, "forward", None)
        yield


def _once(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Wrap a layer's forward."""
    plain, memory = module.forward, _Memory()

    @functools.wraps(plain)
    def forward(input: Tensor) -> Tensor:
        parameters = [parameter for parameter in module._parameters.values() if parameter is not None]
        if torch.is_grad_enabled() or memory.misses >= _MISSES or any(part.is_inference() for part in parameters):
            result: Tensor = plain(input)  # tensors of inference mode don't tell whether they were written into
            return result
        output = memory.recall(input, parameters)
        if output is None:
            output = plain(input)
            memory.learn(input, parameters, output)
        return output.clone()  # what a net writes into it must not reach the next step

    return forward


class _Memory:
    """The last input of a layer, the parameters it had, and what came out.

    Inputs are compared by what is in them, so that neither a new tensor nor one written into in place is taken for another; but
    for the same tensor, not written into, which need not be looked at.
    """

    def __init__(self) -> None:
        self.misses = 0
        self._call: tuple[Tensor, list[tuple[nn.Parameter, int]], bool, Tensor] | None = None
        self._seen: tuple[Tensor, int] | None = None  # the input itself; held, so that no other tensor is taken for it

    def recall(self, value: Tensor, parameters: list[nn.Parameter]) -> Tensor | None:
        """What came out for the same input and parameters in the last call; None where that was another."""
        if self._call is None:
            return None
        kept, held, autocast, output = self._call
        same_layer = len(held) == len(parameters) and all(
            one is two and version == two._version for (one, version), two in zip(held, parameters, strict=True)
        )
        same_kind = (kept.shape, kept.dtype, kept.device) == (value.shape, value.dtype, value.device)
        if not same_layer or not same_kind or autocast != _autocast(value):
            return None
        if not self._is_seen(value):
            if not torch.equal(kept, value):
                return None
            self._see(value)
        self.misses = 0
        return output

    def learn(self, value: Tensor, parameters: list[nn.Parameter], output: Tensor) -> None:
        """Keep a call; of a layer that keeps seeing something else, nothing."""
        self.misses += 1
        versions = [(parameter, parameter._version) for parameter in parameters]
        self._call = None if self.misses >= _MISSES else (value.clone(), versions, _autocast(value), output)
        self._see(value)

    def _see(self, value: Tensor) -> None:
        """Know a tensor again; one of inference mode does not tell whether it was written into."""
        self._seen = None if self._call is None or value.is_inference() else (value, value._version)

    def _is_seen(self, value: Tensor) -> bool:
        return self._seen is not None and value is self._seen[0] and value._version == self._seen[1]


def _autocast(value: Tensor) -> bool:
    return torch.is_autocast_enabled(value.device.type)
