"""First call of the user's forward, with the layer in which it fails, and later ones, which may start from other membranes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ...errors import NetworkError
from ..libraries import is_neuron, library_of, reset_states
from ..private.quiet import seeded
from ..private.workbench import probe_copy
from ..structure.layers import CONVOLUTIONS, SYNAPSES
from .batches import describe, tensors_in
from .forward import Forward
from .record import Taps, call_forward, run_forward, tapped

_PASS_STEP = (
    "pass step=train_batch, the function of your script that trains on a batch, which shows how the net is called; or "
    "step=lambda net, batch: loss_fn(forward_pass(net, batch[0]), batch[1]); if the inputs are right, correct forward: the error "
    "above shows the line"
)


def carries_over(net: nn.Module, inputs: Any, forward: Forward, calls: int = 2) -> bool:
    """Return whether a call starts from the membranes that the last call left; the net is private, within ``quiet``.

    ``calls`` is their number: a few, if the membranes need some time until spikes show them.
    """
    reset_states(net)

    def call() -> list[Tensor]:
        with torch.no_grad(), seeded(0, net):
            return [value.clone() for value in tensors_in(call_forward(net, inputs, forward, partial(_explain_again, inputs)))]

    first = call()
    return any(not _same_outputs(first, call()) for _ in range(calls - 1))


def _explain_again(inputs: Any, raised: str) -> NetworkError:
    return NetworkError(
        f"{raised}, for inputs that it ran on before: {describe(inputs)}",
        "a forward that runs each time it is called",
        "let forward keep nothing that stops its next call: the error above shows the line",
    )


def _same_outputs(first: list[Tensor], second: list[Tensor]) -> bool:
    """Return whether two calls returned equal tensors."""
    return len(first) == len(second) and all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@contextmanager
def refuse_calls(origin: nn.Module) -> Iterator[None]:
    """Refuse, until the block ends, a forward that runs the user's network in place of the private copy that it is given."""
    modules = set(origin.modules())

    def refuse(module: nn.Module, args: Any) -> None:
        if module in modules:
            raise NetworkError(
                f"a forward that runs another net than the one passed, a {type(origin).__name__}",
                "a forward that runs its argument, since work is done on a private copy",
                "let forward call its first argument, e.g. forward=lambda net, x: net(x)",
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
    reset_states(net)
    with torch.no_grad(), seeded(0):
        call_forward(net, inputs, forward, partial(_explain, net, inputs, forward))


def _explain(net: nn.Module, inputs: Any, forward: Forward, raised: str) -> NetworkError:
    """Build the error of a forward that fails on the first batch."""
    found = f"{raised}, for inputs of the first batch: {describe(inputs)}"
    failed = _find_failed(net, inputs, forward)
    if failed is not None:
        name, module, shape = failed
        found += f"; it failed in {name!r} ({type(module).__name__}), which takes {_describe_input(module)} and got {shape}"
    needed = "a forward that runs on the loader's batches"
    first = next(((name, module) for name, module in net.named_modules() if _weight_of(module) is not None), None)
    if first is not None:
        needed += f"; the first layer {first[0]!r} ({type(first[1]).__name__}) takes {_describe_input(first[1])}"
    return NetworkError(found, needed, _PASS_STEP)


def _weight_of(module: nn.Module) -> Tensor | None:
    """Return the weight of a linear or convolutional layer, or the matrix that a neuron holds for its inputs; None for others."""
    if isinstance(module, SYNAPSES):
        return module.weight
    own = library_of(module).synapse(module) if is_neuron(module) else None
    return None if own is None or own.weight is None else getattr(own.module, own.weight)


def _describe_input(layer: nn.Module) -> str:
    """Describe the shape that a layer with a weight takes."""
    weight = _weight_of(layer)
    assert weight is not None
    if isinstance(layer, CONVOLUTIONS):
        places = ("length", "height, width", "depth, height, width")[weight.dim() - 3]
        return f"[batch, {layer.in_channels}, {places}]"
    time = "time, " if is_neuron(layer) and library_of(layer).takes_sequences(layer) else ""
    return f"[{time}batch, {weight.shape[1]}]"


def _find_failed(net: nn.Module, inputs: Any, forward: Forward) -> tuple[str, nn.Module, str] | None:
    """Return name, layer and described input of the layer with a weight that raises in a run of a copy, or None."""
    running: list[tuple[str, nn.Module, str]] = []  # layers that were entered and not left
    copied, _ = probe_copy(net)
    layers = {module: name for name, module in copied.named_modules() if _weight_of(module) is not None}

    def enter(layer: nn.Module) -> Callable[[Tensor], None]:
        return lambda value: running.append((layers[layer], layer, describe(value)))

    taps = Taps({layer: enter(layer) for layer in layers}, {layer: lambda output: running.pop() for layer in layers})
    reset_states(copied)
    try:
        with torch.no_grad(), tapped(taps), seeded(0):
            run_forward(copied, inputs, forward)
    except Exception:  # a net may raise anything on inputs that it was not made for
        return running[-1] if running else None
    return None
