"""First call of the user's forward.  If it fails, usual alternatives are tried, and the message has one that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..errors import NetworkError
from .batches import cut, describe, tensors_in
from .forward import Forward, OverTime, bare, keeps_state, over_time, plain_forward
from .guard import seeded
from .layers import SYNAPSES
from .libraries import is_neuron, library_of, reset_states
from .record import Taps, call_forward, tapped

_Call: TypeAlias = tuple[str, Forward, int | None]  # as a user types it, and the calls of each neuron; None for any number
_STEPS, _TRIED = 25, 2  # steps in the text of a suggestion, and in its trial

# Changes that may turn the loader's inputs into those that a net takes, as typed behind "x".
_CHANGES: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    ("", lambda x: x),
    (".flatten(1)", lambda x: x.flatten(1)),
    (".transpose(0, 1)", lambda x: x.transpose(0, 1)),
    (".flatten(2)", lambda x: x.flatten(2)),
    (".transpose(0, 1).flatten(2)", lambda x: x.transpose(0, 1).flatten(2)),
    (".unsqueeze(1)", lambda x: x.unsqueeze(1)),
    (".permute(0, 3, 1, 2)", lambda x: x.permute(0, 3, 1, 2)),
)


def carries_over(net: nn.Module, inputs: Any, forward: Forward) -> bool:
    """Return whether a call starts from the membranes that the last call left; the net is private, within ``quiet``."""
    reset_states(net)
    calls = []
    for _ in range(2):
        with torch.no_grad(), seeded(0, net):
            calls.append([value.clone() for value in tensors_in(forward(net, inputs))])
    first, second = calls
    return len(first) != len(second) or any(not torch.equal(one, two) for one, two in zip(first, second, strict=True))


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


def check_forward(net: nn.Module, inputs: Any, forward: Forward, batch: int) -> None:
    """Run a private net, within ``quiet``, once on the first batch, of ``batch`` samples.

    Raises:
        DataError: the batch does not fit into memory.
        NetworkError: the forward raised.  The message has the shape of the inputs, the one that the first layer takes, and the
            first alternative ``forward=`` that runs.
    """
    reset_states(net)
    with torch.no_grad(), seeded(0):
        call_forward(net, inputs, forward, partial(_explain, net, inputs, forward, batch))


def _explain(net: nn.Module, inputs: Any, forward: Forward, batch: int, raised: str) -> NetworkError:
    """Build the error of a forward that fails on the first batch."""
    found = f"{raised}, for inputs of the first batch: {describe(inputs)}"
    failed = _find_failing_layer(net, inputs, forward)
    if failed is not None:
        name, module, shape = failed
        found += f"; it failed in {name!r} ({type(module).__name__}), which takes {_describe_input(module)} and got {shape}"
    needed = "a forward that runs on the loader's batches"
    first = next(((name, module) for name, module in net.named_modules() if isinstance(module, SYNAPSES)), None)
    if first is not None:
        needed += f"; the first layer {first[0]!r} ({type(first[1]).__name__}) takes {_describe_input(first[1])}"
    suggestion = _suggest_forward(net, inputs, bare(forward), batch)
    if suggestion is None:
        fix = "let the loader give inputs as forward takes them, or pass your own forward=lambda net, x: net(...); "
        return NetworkError(found, needed, fix + "if the inputs are right, correct forward: the error above shows the line")
    steps = " with your number of steps" if "over_time(25" in suggestion and "over_time(25" not in repr(bare(forward)) else ""
    return NetworkError(found, needed, f"pass forward={suggestion}{steps}, which runs on this batch")


def _describe_input(layer: nn.Module) -> str:
    """Describe the shape that a linear or convolutional layer takes."""
    if isinstance(layer, nn.Linear):
        return f"[batch, {layer.in_features}]"
    assert isinstance(layer, SYNAPSES)
    places = ("length", "height, width", "depth, height, width")[layer.weight.dim() - 3]
    return f"[batch, {layer.in_channels}, {places}]"


def _find_failing_layer(net: nn.Module, inputs: Any, forward: Forward) -> tuple[str, nn.Module, str] | None:
    """Run a failing forward again; return name, layer and a description of the input of the linear or convolution that raises."""
    names: dict[nn.Module, str] = {module: name for name, module in net.named_modules() if isinstance(module, SYNAPSES)}
    running: list[tuple[str, nn.Module, str]] = []

    def entered(module: nn.Module) -> Callable[[Tensor], None]:
        return lambda value: running.append((names[module], module, describe(value)))

    taps = Taps(inputs={module: entered(module) for module in names}, outputs=dict.fromkeys(names, lambda output: running.pop()))
    with tapped(taps):
        _try(net, inputs, forward)
    return running[-1] if running else None


# -- alternatives --------------------------------------------------------------------------------------------------------------


def _suggest_forward(net: nn.Module, inputs: Any, forward: Forward, batch: int) -> str | None:
    """Return a ``forward=``, as the user types it, that runs on a tensor or an array on which the given one raises, or None."""
    if not isinstance(inputs, Tensor | np.ndarray):
        return None
    few, count = cut(inputs, batch) if isinstance(inputs, Tensor) else (inputs, batch)
    return next((text for text, call, steps in _calls(net, few, forward) if _fits(net, few, count, call, steps)), None)


def _fits(net: nn.Module, inputs: Any, batch: int, forward: Forward, steps: int | None) -> bool:
    """Return whether a call runs, returns a value per sample, and steps the neurons on all samples ``steps`` times."""
    neurons = [module for module in net.modules() if is_neuron(module)]
    seen: dict[nn.Module, list[torch.Size]] = {neuron: [] for neuron in neurons}

    def watch(neuron: nn.Module) -> Callable[[Any], None]:
        return lambda output: seen[neuron].append(library_of(neuron).spikes(output).shape)

    with tapped(Taps(outputs={neuron: watch(neuron) for neuron in neurons})):
        returned = _try(net, inputs, forward)
    values = [value for value in tensors_in(returned) if value.ndim > 1]
    by_sequence = {neuron for neuron in neurons if library_of(neuron).takes_sequences(neuron)}
    # With as many samples as steps, swapped axes would return tensors of the right size, too.
    counts = [shape[1 if neuron in by_sequence else 0] for neuron, shapes in seen.items() for shape in shapes if len(shape) > 1]
    if not values or batch not in counts or not all(batch in value.shape[:2] for value in values):
        return False
    return steps is None or all(len(seen[neuron]) in (0, steps) for neuron in neurons if neuron not in by_sequence)


def _calls(net: nn.Module, inputs: Any, forward: Forward) -> Iterator[_Call]:
    """Yield the calls to try, the most usual first."""
    if isinstance(inputs, Tensor) and forward is plain_forward and keeps_state(net):
        yield from _loops(inputs)
    if isinstance(inputs, Tensor) and isinstance(forward, OverTime):
        flat = replace(forward, flatten=True)
        yield repr(flat), flat, None
    for conversion, convert in _conversions(inputs):
        for change, function in _CHANGES:
            if conversion == "x" and not change:
                continue

            def call(net: nn.Module, x: Any, convert: Any = convert, function: Any = function) -> Any:
                return forward(net, function(convert(x)))

            yield f"lambda net, x: {_typed(forward, conversion + change)}", call, None


def _loops(inputs: Tensor) -> Iterator[_Call]:
    """Yield time loops around a net that keeps its state from call to call."""
    for flatten in (False, True):
        static = over_time(_TRIED, flatten=flatten)
        yield f"over_time({_STEPS}{', flatten=True' if flatten else ''})", static, _TRIED
    for time_dim in (0, 1):
        for flatten in (False, True):
            loop = over_time(time_dim=time_dim, flatten=flatten)
            yield repr(loop), loop, inputs.shape[time_dim] if inputs.ndim > time_dim else 0


def _conversions(inputs: Any) -> list[tuple[str, Callable[[Any], Tensor]]]:
    """List conversions of the inputs to a tensor of the layers' dtype."""
    if isinstance(inputs, np.ndarray):
        return [("torch.as_tensor(x)", torch.as_tensor), ("torch.as_tensor(x).float()", lambda x: torch.as_tensor(x).float())]
    as_it_is: list[tuple[str, Callable[[Any], Tensor]]] = [("x", lambda x: x)]
    return as_it_is if inputs.dtype is torch.float32 else [*as_it_is, ("x.float()", lambda x: x.float())]


def _typed(forward: Forward, inputs: str) -> str:
    """Write the call of a forward on inputs."""
    if forward is plain_forward:
        return f"net({inputs})"
    name = repr(forward) if isinstance(forward, OverTime) else getattr(forward, "__name__", "forward").strip("<>")
    return f"{'forward' if name == 'lambda' else name}(net, {inputs})"


def _try(net: nn.Module, inputs: Any, forward: Forward) -> Any:
    """Run the net from rest and return its output; None if that raises."""
    reset_states(net)
    try:
        with torch.no_grad(), seeded(0):
            return forward(net, inputs)
    except Exception:  # a net may raise anything on inputs that it was not made for
        return None
