"""Functions between a layer's synapse and its neuron, such as pooling and a batch norm, found by following one pass.

Batch norms that have not been trained get running statistics from the data, from the input up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..networks.calls.batches import tensors_in
from ..networks.calls.calls import CallRecorder
from ..networks.calls.record import Taps, record, run_by
from ..networks.private.parameters import Values, can_replace, is_frozen, write_values
from ..networks.structure.layers import HiddenLayer

MEASURED = 128  # samples on which the statistics of fresh norms are measured

_Visitor: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any], None]

# They change the order of time and samples at most, and may name the size of the batch, or join the steps of a synapse.
_RESHAPES = frozenset({"contiguous", "flatten", "reshape", "squeeze", "stack", "unflatten", "unsqueeze", "view", "view_as"})


class _Functions(TorchFunctionMode):
    """Show a visitor every function of torch that has run, with its arguments and its result."""

    def __init__(self, visit: _Visitor) -> None:
        super().__init__()
        self._visit = visit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._visit(func, args, kwargs or {}, result)
        return result


@dataclass(frozen=True)
class Stage:
    """Functions between a layer's synapse and its neuron, each of values of samples (n, M, *); reshapes are left out."""

    before: tuple[Callable[[Tensor], Tensor], ...] = ()  # functions in front of the norm, in order; none without a norm
    norm: nn.Module | None = None  # a batch norm whose values may be written
    behind: tuple[Callable[[Tensor], Tensor], ...] = ()  # functions behind the norm, in order; all without a norm
    # True if something else comes in too, such as a shortcut, or the functions could not be followed to the neuron
    joined: bool = False

    def run(self, values: Tensor) -> Tensor:
        """Apply all functions, the norm as it is."""
        values, norm = self.run_to_norm(values), cast(Any, self.norm)
        if norm is not None:
            values = functional.batch_norm(values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return _apply(self.behind, values)

    def run_to_norm(self, values: Tensor) -> Tensor:
        """Apply the functions in front of the norm."""
        return _apply(self.before, values)

    def run_without_norm(self, values: Tensor) -> Tensor:
        """Apply all functions but the norm."""
        return _apply(self.behind, self.run_to_norm(values))

    def scales(self, outputs: Tensor) -> bool:
        """Return whether a gain of the synapse, or of the norm, is one of the currents, tried on outputs of the synapse."""
        values = self.run_to_norm(outputs)
        return torch.allclose(_apply(self.behind, 2 * values), 2 * _apply(self.behind, values), rtol=1e-4, atol=1e-6)

    def is_by_row(self, outputs: Tensor) -> bool:
        """Return whether any number of rows may run, each alone, tried on outputs (n, N) of the synapse."""
        some = outputs + torch.linspace(-1.0, 1.0, outputs.shape[1]).to(outputs)  # they may be zero
        try:
            own, other, both = (self.run_without_norm(values) for values in (some, -some, torch.cat([some, -some], 1)))
        except (RuntimeError, ValueError, IndexError):  # values for each row, as a layer norm has
            return False
        parts = torch.cat([own, other], 1)
        return own.shape == some.shape and both.shape == parts.shape and torch.allclose(both, parts, rtol=1e-4, atol=1e-6)


def follow_stage(recorder: CallRecorder, layer: HiddenLayer) -> Stage:
    """Return the stage of a layer, from the first call of its synapse in a pass of the first batch."""
    net, inner = recorder.net, layer.library.synapse(layer.neuron)
    if inner is not None and inner.module is layer.synapse:
        return Stage()
    own = {id(tensor) for tensor in (*net.parameters(), *net.buffers())}
    norms = {id(mean): norm for norm in net.modules() if (mean := getattr(norm, "running_mean", None)) is not None}
    follower = _Follower(own, norms)
    with ExitStack() as stack:
        stack.callback(layer.synapse.register_forward_hook(follower.begin).remove)
        stack.callback(layer.neuron.register_forward_pre_hook(follower.end, with_kwargs=True).remove)
        stack.enter_context(follower)
        record(net, recorder.batches[0], recorder.forward)
    return follower.stage


def _apply(functions: Iterable[Callable[[Tensor], Tensor]], values: Tensor) -> Tensor:
    for function in functions:
        values = function(values)
    return values


class _Follower(_Functions):
    """The values of one layer on their way from its synapse to its neuron, in one pass.

    ``own`` are ids of the net's parameters and buffers, ``norms`` its norms by the ids of their running means.
    """

    def __init__(self, own: set[int], norms: dict[int, nn.Module]) -> None:
        super().__init__(self.see)
        self.own, self.norms = own, norms
        self.value: Tensor | None = None  # where it is now; None before the start and at the end
        self.outputs: list[Tensor] = []  # of the synapse, one a call
        self.stage = Stage(joined=True)  # so far; joined until the value arrives at the neuron
        self.ended = False

    def begin(self, module: nn.Module, args: object, output: Any) -> None:
        if not self.ended and isinstance(output, Tensor):
            self.outputs.append(output)
            self.value = output if self.value is None else self.value

    def end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Stop at the neuron; the stage is known if the value arrives there."""
        if self.value is not None:
            arrived = any(value is self.value for value in tensors_in((args, kwargs)))
            self.stage = replace(self.stage, joined=not arrived)
            self.ended, self.value = True, None

    def see(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note a function that takes the value to its next place."""
        if self.value is None or not isinstance(result, Tensor):
            return
        given = list(tensors_in((args, kwargs)))
        if not any(tensor is self.value for tensor in given):
            return
        name = getattr(function, "__name__", "")
        steps = set(map(id, self.outputs)) if name == "stack" else {id(self.value)}
        if any(id(tensor) not in steps | self.own for tensor in given):
            if result is self.value:  # joined in place
                self.ended, self.value = True, None
            return
        if name not in _RESHAPES:
            stage, norm = self.stage, self._find_norm(given) if function is functional.batch_norm else None
            if norm is None or stage.norm is not None:
                self.stage = replace(stage, behind=(*stage.behind, partial(_call, function, args, kwargs, self.value)))
            else:
                self.stage = replace(stage, before=stage.behind, norm=norm, behind=())
        self.value = result

    def _find_norm(self, given: Sequence[Tensor]) -> nn.Module | None:
        """Return the norm that a call belongs to, by its running mean, if its values may be written."""
        found = next((self.norms[id(tensor)] for tensor in given if id(tensor) in self.norms), None)
        writable = found is not None and all(can_replace(found, one) and not is_frozen(found, one) for one in ("weight", "bias"))
        return found if writable else None


def _call(function: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any], place: Tensor, value: Tensor) -> Tensor:
    """Call a function with a value in the place of the one that it was seen with."""
    args = [value if arg is place else arg for arg in args]
    return function(*args, **{name: value if arg is place else arg for name, arg in kwargs.items()})


def list_fresh_norms(recorder: CallRecorder, layers: Sequence[HiddenLayer], readout: nn.Module | None) -> list[list[nn.Module]]:
    """List the norms without statistics yet, that may be given some, by the first hidden neuron that runs behind them.

    The last list is of norms behind all of them.  Those behind the readout are left out: they are part of the scores.
    """
    fresh = {id(norm.running_mean): norm for norm in recorder.net.modules() if is_fresh(norm) and not is_frozen(norm, "weight")}
    if not fresh:
        return [[] for _ in range(len(layers) + 1)]
    events: list[nn.Module] = []
    ends = [] if readout is None else [readout]
    taps = Taps(calls={module: partial(_note, events, module) for module in (*(layer.neuron for layer in layers), *ends)})
    with _each_norm(fresh, lambda norm, value: events.append(norm)):
        record(recorder.net, recorder.batches[0], recorder.forward, taps)
    events = list(dict.fromkeys(events))
    if readout in events:
        del events[events.index(readout) :]
    places = [*(events.index(layer.neuron) for layer in layers), len(events)]
    found: list[list[nn.Module]] = [[] for _ in places]
    for place, event in enumerate(events):
        if id(getattr(event, "running_mean", None)) in fresh:
            found[min(range(len(places)), key=lambda number: (places[number] < place, places[number]))].append(event)
    return found


def measure_statistics(recorder: CallRecorder, norms: Sequence[nn.Module]) -> Values:
    """Return running statistics of some norms in the net as it is, over all steps of some batches."""
    if not norms:
        return {}
    sums: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}

    def add(norm: nn.Module, value: Tensor) -> None:
        values = value.double().movedim(1, 0).flatten(1)
        sums[norm].append(torch.stack([torch.full_like(values[:, 0], values.shape[1]), values.sum(1), values.square().sum(1)]))

    with run_by(None), _each_norm({id(norm.running_mean): norm for norm in norms}, add):  # a plan joins equal calls
        for batch in recorder.batches:
            record(recorder.net, batch, recorder.forward)
    found: dict[tuple[nn.Module, str], Tensor] = {}
    for norm, parts in sums.items():
        count, total, square = torch.stack(parts).sum(0)
        mean = total / count
        found[norm, "running_mean"] = mean
        found[norm, "running_var"] = (square / count - mean.square()).clamp_min(0)
    return found


def measure_fresh(recorder: CallRecorder, layers: Sequence[HiddenLayer], readout: nn.Module | None) -> None:
    """Give the norms without statistics those of the data, from the input up."""
    for norms in list_fresh_norms(recorder, layers, readout):
        write_values(measure_statistics(recorder, norms))


def _note(events: list[nn.Module], module: nn.Module, *_: object) -> None:
    events.append(module)


def _each_norm(norms: Mapping[int, nn.Module], visit: Callable[[nn.Module, Tensor], object]) -> _Functions:
    """Return a mode that calls ``visit`` with each of some norms that runs, found by its running mean, and what enters it."""

    def see(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if function in (functional.batch_norm, functional.instance_norm):
            value, *others = tensors_in((args, kwargs))
            norm = next((norms[id(tensor)] for tensor in others if id(tensor) in norms), None)
            if norm is not None:
                visit(norm, value)

    return _Functions(see)


def has_statistics(norm: nn.Module) -> bool:
    """Return whether a module is a batch norm that keeps running statistics."""
    return isinstance(getattr(norm, "running_mean", None), Tensor) and isinstance(getattr(norm, "running_var", None), Tensor)


def is_fresh(norm: Any) -> bool:
    """Return whether a module is a batch norm with the running statistics that it was made with."""
    return has_statistics(norm) and bool((norm.running_mean == 0).all()) and bool((norm.running_var == 1).all())
