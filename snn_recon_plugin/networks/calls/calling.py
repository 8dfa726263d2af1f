"""First call of the user's forward, with the layer in which it fails, and later ones, which may start from other membranes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ...errors import PASS_STEP, NetworkError
from ..libraries import reset_states
from ..private.quiet import seeded
from ..structure.layers import SYNAPSES
from .batches import describe, tensors_in
from .forward import Forward
from .record import Taps, call_forward, tapped


def carries_over(net: nn.Module, inputs: Any, forward: Forward, calls: int = 2) -> bool:
    """Return whether a call starts from the membranes that the last call left; the net is private, within ``quiet``.

    ``calls`` is their number: a few, if the membranes need some time until spikes show them.
    """
    reset_states(net)

    def explain(raised: str) -> NetworkError:
        found = f"{raised}, for inputs that it ran on before: {describe(inputs)}"
        fix = "let forward keep nothing that stops its next call: the error above shows the line"
        return NetworkError(found, "a forward that runs each time it is called", fix)

    def call() -> list[Tensor]:
        with torch.no_grad(), seeded(0, net):
            return [value.clone() for value in tensors_in(call_forward(net, inputs, forward, explain))]

    first = call()
    later = (call() for _ in range(calls - 1))
    return any(len(first) != len(other) or not all(map(torch.equal, first, other)) for other in later)


@contextmanager
def refuse_calls(origin: nn.Module) -> Iterator[None]:
    """Refuse, until the block ends, a forward that runs the user's network in place of the private copy that it is given."""
    modules = set(origin.modules())

    def refuse(module: nn.Module, args: Any) -> None:
        if module in modules:
            raise NetworkError(
                f"a forward or step that runs another net than the one passed, a {type(origin).__name__}",
                "one that runs its argument, since work is done on a private copy",
                "call the first argument, e.g. forward=lambda net, x: net(x); a method of an object that holds the net is no step",
            )

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def check_forward(net: nn.Module, inputs: Any, forward: Forward) -> None:
    """Run a private net, within ``quiet``, once on the first batch.

    Raises:
        DataError: the batch does not fit into memory.
        NetworkError: the forward raised.  The message has the shape of the inputs, and the layer that failed.
    """
    layers: dict[nn.Module, str] = {module: name for name, module in net.named_modules() if isinstance(module, SYNAPSES)}
    running: list[str] = []  # layers that were entered and not left

    def enter(layer: nn.Module) -> Callable[[Tensor], None]:
        takes = f"{layers[layer]!r} ({type(layer).__name__}), which takes {_describe_input(layer)}"
        return lambda value: running.append(f"{takes} and got {describe(value)}")

    def explain(raised: str) -> NetworkError:
        found = f"{raised}, for inputs of the first batch: {describe(inputs)}"
        found += f"; it failed in {running[-1]}" if running else ""
        fix = f"{PASS_STEP}; if the inputs are right, correct forward: the error above shows the line"
        return NetworkError(found, "a forward that runs on the loader's batches", fix)

    taps = Taps({layer: enter(layer) for layer in layers}, {layer: lambda output: running.pop() for layer in layers})
    reset_states(net)
    with torch.no_grad(), seeded(0), tapped(taps):
        call_forward(net, inputs, forward, explain)


def _describe_input(layer: nn.Module) -> str:
    """Describe the shape that a linear or convolutional layer takes."""
    if isinstance(layer, nn.Linear):
        return f"[batch, {layer.in_features}]"
    assert isinstance(layer, SYNAPSES)
    places = ("length", "height, width", "depth, height, width")[layer.weight.dim() - 3]
    return f"[batch, {layer.in_channels}, {places}]"
