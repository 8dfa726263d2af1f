"""Recording of a layer's inputs, and the order of time and samples in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..networks import HiddenLayer, StoredBatch, Taps, neuron_currents, record
from ..networks.layers import LAYOUTS, fits, time_first
from .hidden_task import HiddenTask

CONSTANT = "constant"  # layout of a single call whose output serves at all steps
_LAYOUT_SAMPLES = 64  # samples on which the order of time and batch is determined
_LAYOUT_VALUES = 2**20  # currents that are compared at a time: those of all steps would take more memory than training


def record_inputs(task: HiddenTask, layer: HiddenLayer) -> tuple[list[list[Tensor]], bool]:
    """Return the input of every call of a layer's synapse, batch by batch, and whether all are 0 or 1; those are bytes.

    A call with the same input as the first one of its batch shares its tensor.
    """
    recorded = [_record_calls(task, layer, batch) for batch in task.batches]
    binary = _are_bytes(call for calls in recorded for call in calls)
    if not binary:
        recorded = [[call.float() if call.dtype is torch.uint8 else call for call in calls] for calls in recorded]
    return recorded, binary


def record_means(task: HiddenTask, layer: HiddenLayer) -> tuple[Tensor, bool]:
    """Return a layer's inputs averaged over time, (n, *), and whether all are 0 or 1, with one batch in memory at a time."""
    means, binary = [], True
    for batch in task.batches:
        calls = _record_calls(task, layer, batch)
        means.append(average_calls(calls, task.temporary.num_steps, batch.size))
        binary = binary and _are_bytes(calls)
    return torch.cat(means), binary


def _record_calls(task: HiddenTask, layer: HiddenLayer, batch: StoredBatch) -> list[Tensor]:
    calls: list[Tensor] = []

    def add(value: Tensor) -> None:
        if calls and torch.equal(value, calls[0].to(value.dtype)):
            calls.append(calls[0])
        else:
            binary = bool(((value == 0) | (value == 1)).all())
            calls.append(value.detach().to(torch.uint8) if binary else value.detach().clone())

    record(task.net, batch, task.forward, Taps(inputs={layer.synapse: add}))
    return calls


def _are_bytes(calls: Iterable[Tensor]) -> bool:
    return all(call.dtype is torch.uint8 for call in calls)


def average_calls(calls: Sequence[Tensor], steps: int, samples: int) -> Tensor:
    """Return inputs averaged over time, (samples, *).  A single call that folds time and samples is taken as time first."""
    if len(calls) == 1 and steps > 1 and len(calls[0]) % steps == 0 and len(calls[0]) >= steps * samples:
        calls = list(calls[0].reshape(steps, -1, *calls[0].shape[1:]))
    calls = [call for call in calls if call.shape == calls[-1].shape]  # a net may try its layer on other inputs first
    total = calls[0].float()
    for call in calls[1:]:
        total = total + call.float()
    return total[:samples] / len(calls)


def record_first_currents(task: HiddenTask, layer: HiddenLayer) -> Tensor:
    """Return the neuron's currents, ``[T, n, *]``, on a few samples of the first batch, as :func:`find_layout` takes them."""
    return neuron_currents(task.net, task.batches[:1], layer, task.forward, keep=_LAYOUT_SAMPLES)


def find_layout(synapse: nn.Linear, calls: Sequence[Tensor], currents: Tensor) -> str | None:
    """Return the layout in which a Linear's outputs in the first batch are the neuron's currents; None if no layout gives them."""
    steps = len(currents)
    shapes = [call.shape for call in calls]
    sizes = {*shapes[0][:-1], shapes[0][0] // steps}
    possible = [layout for layout in LAYOUTS if any(fits(layout, shapes, steps, size) for size in sizes)]
    if len(calls) == 1 and len(shapes[0]) == 2:
        possible.insert(0, CONSTANT)
    for layout in possible:
        some = [call[:_LAYOUT_SAMPLES] for call in calls] if layout == "steps" else calls
        inputs = _join_calls(layout, some, steps)[:, :_LAYOUT_SAMPLES]
        if _gives(synapse, inputs, currents[:, :_LAYOUT_SAMPLES]):
            return layout
    return None


def _gives(synapse: nn.Linear, inputs: Tensor, currents: Tensor) -> bool:
    """Return whether a Linear makes these currents ``[T, k, *]`` of inputs, compared a few steps at a time."""
    steps, samples = currents.shape[:2]
    if currents.dim() != 3 or len(inputs) != steps or inputs.shape[1] < samples or currents.shape[2] != len(synapse.weight):
        return False
    (low, high), rounding = torch.aminmax(currents), 4 * torch.finfo(currents.dtype).eps
    rtol, atol = max(1e-4, rounding), max(1e-5, rounding) * max(float(high), -float(low))
    size = max(1, _LAYOUT_VALUES // currents[0].numel())
    for start in range(0, steps, size):
        part = inputs[start : start + size, :samples].to(synapse.weight)
        expected = currents[start : start + size].to(part)
        if not torch.allclose(functional.linear(part, synapse.weight, synapse.bias), expected, rtol=rtol, atol=atol):
            return False
    return True


def join_batches(task: HiddenTask, layout: str, recorded: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the inputs of all samples, ``[T, n, *]``, or ``[1, n, *]`` if they are constant."""
    steps = 1 if layout == CONSTANT else task.temporary.num_steps
    parts = [_join_calls(layout, calls, steps)[:, : batch.size] for calls, batch in zip(recorded, task.batches, strict=True)]
    return torch.cat(parts, 1)


def _join_calls(layout: str, calls: Sequence[Tensor], steps: int) -> Tensor:
    """Return the inputs of all calls, ``[T, B, *]``."""
    if layout == CONSTANT:
        return calls[0].expand(steps, *calls[0].shape)
    return time_first(layout, calls, steps)
