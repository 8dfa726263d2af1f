"""Batch norms that have not been trained: their running statistics are set from the data, from the input up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..networks.calls.batches import tensors_in
from ..networks.calls.forward import Forward
from ..networks.calls.record import StoredBatch, Taps, record
from ..networks.private.parameters import Values, is_frozen
from ..networks.structure.layers import HiddenLayer


def list_fresh_norms(net: nn.Module, layers: Sequence[HiddenLayer], batch: StoredBatch, forward: Forward) -> list[list[nn.Module]]:
    """List the norms without statistics yet, that may be given some, by the first hidden neuron that runs behind them.

    The last list is of norms behind all of them.
    """
    fresh = {id(norm.running_mean): norm for norm in net.modules() if is_fresh(norm) and not is_frozen(norm, "weight")}
    if not fresh:
        return [[] for _ in range(len(layers) + 1)]
    events: list[nn.Module] = []
    taps = Taps(calls={layer.neuron: partial(_note, events, layer.neuron) for layer in layers})
    with _Norms(fresh, partial(_note, events)):
        record(net, batch, forward, taps)
    events = list(dict.fromkeys(events))
    places = [*(events.index(layer.neuron) for layer in layers), len(events)]
    found: list[list[nn.Module]] = [[] for _ in places]
    for place, event in enumerate(events):
        if id(getattr(event, "running_mean", None)) in fresh:
            found[min(range(len(places)), key=lambda number: (places[number] < place, places[number]))].append(event)
    return found


def measure_statistics(net: nn.Module, batches: Sequence[StoredBatch], forward: Forward, norms: Sequence[nn.Module]) -> Values:
    """Return running statistics of some norms in the net as it is, over all steps of some batches."""
    if not norms:
        return {}
    sums: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}

    def add(norm: nn.Module, value: Tensor) -> None:
        values = value.double().movedim(1, 0).flatten(1)
        sums[norm].append(torch.stack([torch.full_like(values[:, 0], values.shape[1]), values.sum(1), values.square().sum(1)]))

    with _Norms({id(norm.running_mean): norm for norm in norms}, add):
        for batch in batches:
            record(net, batch, forward)
    found: dict[tuple[nn.Module, str], Tensor] = {}
    for norm, parts in sums.items():
        count, total, square = torch.stack(parts).sum(0)
        mean = total / count
        found[norm, "running_mean"] = mean
        found[norm, "running_var"] = (square / count - mean.square()).clamp_min(0)
    return found


def _note(events: list[nn.Module], module: nn.Module, *_: object) -> None:
    events.append(module)


class _Norms(TorchFunctionMode):
    """Show what enters some batch norms, found by their running means."""

    def __init__(self, norms: dict[int, nn.Module], visit: Any) -> None:
        super().__init__()
        self.norms, self.visit = norms, visit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in (functional.batch_norm, functional.instance_norm):
            value, *others = tensors_in((args, kwargs or {}))
            norm = next((self.norms[id(tensor)] for tensor in others if id(tensor) in self.norms), None)
            if norm is not None:
                self.visit(norm, value)
        return func(*args, **(kwargs or {}))


def has_statistics(norm: nn.Module) -> bool:
    """Return whether a module is a batch norm that keeps running statistics."""
    return isinstance(getattr(norm, "running_mean", None), Tensor) and isinstance(getattr(norm, "running_var", None), Tensor)


def is_fresh(norm: Any) -> bool:
    """Return whether a module is a batch norm with the running statistics that it was made with."""
    return has_statistics(norm) and bool((norm.running_mean == 0).all()) and bool((norm.running_var == 1).all())
