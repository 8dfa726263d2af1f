"""Test of a library against the contract, for authors of a :class:`~.library.Library`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import UnsupportedModuleError
from ..calls.batches import map_tensors
from ..calls.forward import over_time
from ..calls.record import StoredBatch, Taps, record
from ..private.quiet import quiet
from ..private.workbench import private_copy
from . import is_neuron, library_of
from .library import Library

_CLOSE = 1e-4  # of membranes and thresholds, relative to the largest membrane: the rounding of single precision
_FLIPPED = 0.01  # share of spikes that rounding of the currents may tip


def check_library(library: Library, nets: Mapping[str, nn.Module], inputs: Tensor) -> list[str]:
    """Check that a library reads, resets and simulates the neurons of some nets as the nets themselves run them.

    Return the nets with a neuron that the library does not simulate alone.

    Args:
        library: one of ``LIBRARIES``.
        nets: by name; a net may be a single neuron.  A neuron's output must be a tensor, or a tuple that begins with one.
        inputs: ``[T, B, *]``, under which neurons spike, but not always.

    Raises:
        AssertionError: a net's neuron and its library differ; the message names both.
    """
    refused = list[str]()
    for name, net in nets.items():
        copied = private_copy(net)
        own = [library_of(module) is library for module in copied.modules() if is_neuron(module)]
        assert set(own) == {True}, f"{name}: no neuron of {library.title}, or some of another library"
        with quiet(copied, seed=0):
            (first, calls), (second, _) = (_run(library, copied, inputs) for _ in range(2))
            assert _same(first, second), f"{name}: reset does not bring every state back to rest"
            alone = [_check_neuron(library, neuron, seen, f"{name}, {type(neuron).__name__}") for neuron, seen in calls.items()]
            refused += [] if all(alone) else [name]
    return refused


# Inputs, spikes, and membranes if they show, at each call of a neuron in a pass.
_Calls: TypeAlias = tuple[list[Tensor], list[Tensor], list[Tensor]]


def _run(library: Library, net: nn.Module, inputs: Tensor) -> tuple[Any, dict[nn.Module, _Calls]]:
    """Run a net from rest; return its output, and what enters and leaves its neurons."""
    seen: dict[nn.Module, _Calls] = {module: ([], [], []) for module in net.modules() if is_neuron(module)}

    def enter(neuron: nn.Module, value: Tensor) -> None:
        seen[neuron][0].append(value.clone())

    def leave(neuron: nn.Module, output: Any) -> None:
        _, spikes, membranes = seen[neuron]
        spikes.append(library.spikes(output).clone())
        membrane = library.membrane(neuron, output)
        membranes += [] if membrane is None else [membrane.clone()]

    taps = Taps({neuron: partial(enter, neuron) for neuron in seen}, {neuron: partial(leave, neuron) for neuron in seen})
    return record(net, StoredBatch(inputs, slice(0, inputs.shape[1])), over_time(time_dim=0), taps), seen


def _check_neuron(library: Library, neuron: nn.Module, calls: _Calls, where: str) -> bool:
    """Compare a neuron in the net with its simulation alone, its thresholds and its dynamics; return False without the first."""
    at_once, own, recurrence = library.takes_sequences(neuron), library.synapse(neuron), library.recurrence(neuron)
    join = torch.cat if at_once else torch.stack
    entered, spikes = join(calls[0]), join(calls[1])
    recurrent = None if recurrence is None or recurrence.weight is None else getattr(*recurrence.weight)
    currents, before, fired = entered, _contents(neuron), list[nn.Module]()
    if own is not None and own.weight is not None:
        bias = None if own.bias is None else getattr(own.module, own.bias)
        currents = functional.linear(entered, getattr(own.module, own.weight), bias)
    if recurrence is not None and recurrence.bias is not None:
        currents = currents + recurrence.bias
    hook = neuron.register_forward_hook(lambda *_: fired.append(neuron))
    try:
        trace = library.run(neuron, currents, recurrent)
    except UnsupportedModuleError:
        return False  # such a layer is kept as it is
    finally:
        hook.remove()
    assert not fired, f"{where}: a simulation calls the user's hooks"
    assert _same(before, _contents(neuron)), f"{where}: changed by a run"
    exact = own is None and recurrent is None
    alike = trace.spikes.shape == spikes.shape and float((trace.spikes != spikes).float().mean()) <= (0 if exact else _FLIPPED)
    assert alike, f"{where}: other spikes alone than in the net"
    if calls[2] and exact:
        assert torch.equal(trace.membranes, join(calls[2])), f"{where}: other membranes alone than in the net"
    if library.threshold(neuron) is None:
        assert torch.equal(trace.spikes, trace.membranes), f"{where}: no threshold, but an output that is not the membrane"
    else:
        _check_dynamics(library, neuron, currents, where)
    return True


def _check_dynamics(library: Library, neuron: nn.Module, currents: Tensor, where: str) -> None:
    """Compare a neuron whose units do not reach each other with its dynamics, if the library knows them."""
    try:
        dynamics = library.dynamics(neuron)
    except UnsupportedModuleError:
        return
    trace = library.run(neuron, currents, None if library.recurrence(neuron) is None else currents.new_zeros(currents.shape[-1]))
    filtered, offset = dynamics.filter(currents.flatten(1)[..., None], trace.spikes.flatten(1))
    membranes = (filtered[..., 0] + offset).reshape(currents.shape)  # before a reset
    close, silent = _CLOSE * float(membranes.abs().max()), trace.spikes == 0
    assert 0 < int(silent.sum()) < silent.numel(), f"{where}: inputs under which it always or never spikes"
    assert bool(((membranes - trace.membranes).abs() <= close)[silent].all()), f"{where}: dynamics give other membranes"
    above, clear = membranes > dynamics.threshold, (membranes - dynamics.threshold).abs() > close
    assert bool((above != silent)[clear].all()), f"{where}: spikes where dynamics are below the threshold, or none above it"


def _contents(net: nn.Module) -> dict[tuple[str, str], Any]:
    """Return the attributes, parameters and buffers of a net's modules."""
    found = {}
    for name, module in net.named_modules():
        for key, value in {**vars(module), **module._parameters, **module._buffers}.items():
            found[name, key] = map_tensors(Tensor.clone, value) if isinstance(value, Tensor | tuple) else value
    return found


def _same(one: Any, other: Any) -> bool:
    """Compare tensors by their bits, also in tuples and dicts."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one is other or one == other)
