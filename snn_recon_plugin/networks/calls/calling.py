"""First call of the user's forward.  If it fails, a few usual alternatives are tried, and the message has one that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ...errors import NetworkError
from ..libraries import is_neuron, library_of, reset_states, takes_sequences
from ..private.quiet import seeded
from ..private.workbench import probe_copy
from ..structure.layers import SYNAPSES
from .batches import batch_axis, describe, first_samples, tensors_in
from .forward import Forward, OverTime, keeps_state, over_time, plain_forward, without_contexts
from .record import Taps, call_forward, tapped

_STEPS, _TRIED = 25, 2  # steps in the text of a suggestion, and in its trial


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
    failed = _try(net, inputs, forward).running
    if failed:
        name, module, shape = failed[-1]
        found += f"; it failed in {name!r} ({type(module).__name__}), which takes {_describe_input(module)} and got {shape}"
    needed = "a forward that runs on the loader's batches"
    first = next(((name, module) for name, module in net.named_modules() if isinstance(module, SYNAPSES)), None)
    if first is not None:
        needed += f"; the first layer {first[0]!r} ({type(first[1]).__name__}) takes {_describe_input(first[1])}"
    suggestion = _suggest_forward(net, inputs, without_contexts(forward), batch)
    if suggestion is None:
        fix = "let the loader give inputs as forward takes them, or pass your own forward=lambda net, x: net(...); "
        return NetworkError(found, needed, fix + "if the inputs are right, correct forward: the error above shows the line")
    proposed = f"({_STEPS}" in suggestion and f"({_STEPS}" not in repr(without_contexts(forward))
    steps = " with your number of steps" if proposed else ""
    return NetworkError(found, needed, f"pass forward={suggestion}{steps}, which runs on this batch")


def _describe_input(layer: nn.Module) -> str:
    """Describe the shape that a linear or convolutional layer takes."""
    if isinstance(layer, nn.Linear):
        return f"[batch, {layer.in_features}]"
    assert isinstance(layer, SYNAPSES)
    places = ("length", "height, width", "depth, height, width")[layer.weight.dim() - 3]
    return f"[batch, {layer.in_channels}, {places}]"


# -- trials --------------------------------------------------------------------------------------------------------------------


@dataclass
class _Trial:
    """One run of a copy of a net, for a message."""

    # Name, layer and described input of each linear or convolutional layer that was entered and not left: the last one raised.
    running: list[tuple[str, nn.Module, str]] = field(default_factory=list)
    steps: list[list[torch.Size]] = field(default_factory=list)  # shapes of the spikes at each call, for each neuron
    sequences: list[list[torch.Size]] = field(default_factory=list)  # the same of neurons that take all steps in one call
    returned: list[Tensor] = field(default_factory=list)  # none if forward raised


def _try(net: nn.Module, inputs: Any, forward: Forward) -> _Trial:
    """Run a copy of a net from rest; whatever that raises is not raised here."""
    trial, (copied, _) = _Trial(), probe_copy(net)
    enter: dict[nn.Module, Callable[[Tensor], object]] = {}
    leave: dict[nn.Module, Callable[[Any], object]] = {}

    def watch_layer(name: str, layer: nn.Module) -> None:
        enter[layer] = lambda value: trial.running.append((name, layer, describe(value)))
        leave[layer] = lambda output: trial.running.pop()

    def watch_neuron(neuron: nn.Module) -> None:
        library, shapes = library_of(neuron), list[torch.Size]()
        (trial.sequences if library.takes_sequences(neuron) else trial.steps).append(shapes)
        leave[neuron] = lambda output: shapes.append(library.spikes(output).shape)

    for name, module in copied.named_modules():
        if isinstance(module, SYNAPSES):
            watch_layer(name, module)
        elif is_neuron(module):
            watch_neuron(module)
    reset_states(copied)
    try:
        with torch.no_grad(), tapped(Taps(enter, leave)), seeded(0):
            trial.returned += tensors_in(forward(copied, inputs))
    except Exception:  # a net may raise anything on inputs that it was not made for
        trial.returned.clear()
    return trial


def _suggest_forward(net: nn.Module, inputs: Any, forward: Forward, batch: int) -> str | None:
    """Return a ``forward=``, as the user types it, that runs on inputs on which the given one raises, or None."""
    few, count = first_samples(inputs, batch)
    if isinstance(inputs, (tuple, list, dict)) and forward is plain_forward:
        by_name = isinstance(inputs, dict)
        trial = _try(net, few, lambda net, x: net(**x) if by_name else net(*x))
        return f"lambda net, x: net({'**' if by_name else '*'}x)" if _fits(trial, count, None) else None
    if not isinstance(inputs, Tensor):
        return None
    calls = _calls(net, few, forward, batch_axis(inputs, batch))
    return next((text for text, call, steps in calls if _fits(_try(net, few, call), count, steps)), None)


def _fits(trial: _Trial, batch: int, steps: int | None) -> bool:
    """Return whether a call returned a value per sample, and stepped the neurons on all samples ``steps`` times."""
    values = [value for value in trial.returned if value.ndim > 1]
    # With as many samples as steps, swapped axes would return tensors of the right size, too.
    calls = ((axis, shape) for axis, neurons in enumerate((trial.steps, trial.sequences)) for each in neurons for shape in each)
    counts = [shape[axis] for axis, shape in calls if len(shape) > 1]
    if not values or batch not in counts or not all(batch in value.shape[:2] for value in values):
        return False
    return steps is None or all(len(shapes) in (0, steps) for shapes in trial.steps)


def _calls(net: nn.Module, inputs: Tensor, forward: Forward, samples: int | None) -> Iterator[tuple[str, Forward, int | None]]:
    """Yield the calls to try, as a user types them, and the calls of each neuron, None for any number; the most usual first.

    ``samples`` is the axis of the batch in the inputs, which is no axis of time; None if it is unclear.
    """
    if forward is plain_forward and keeps_state(net):
        for flatten in (False, True):
            yield f"over_time({_STEPS}{', flatten=True' if flatten else ''})", over_time(_TRIED, flatten=flatten), _TRIED
        for time_dim in (axis for axis in (0, 1) if axis != samples):
            for flatten in (False, True):
                loop = over_time(time_dim=time_dim, flatten=flatten)
                yield repr(loop), loop, inputs.shape[time_dim] if inputs.ndim > time_dim else 0
    if forward is plain_forward and takes_sequences(net):
        repeated = f"x.flatten(1).expand({_STEPS}, -1, -1)"
        yield f"lambda net, x: net({repeated})", lambda net, x: net(x.flatten(1).expand(_TRIED, -1, -1)), None
        yield f"lambda net, x: net(x.expand({_STEPS}, *x.shape))", lambda net, x: net(x.expand(_TRIED, *x.shape)), None
    if isinstance(forward, OverTime):
        flat = replace(forward, flatten=True)
        yield repr(flat), flat, None
    else:
        name = getattr(forward, "__name__", "forward").replace("<lambda>", "forward")
        typed = "net(x.flatten(1))" if forward is plain_forward else f"{name}(net, x.flatten(1))"
        yield f"lambda net, x: {typed}", lambda net, x: forward(net, x.flatten(1)), None
