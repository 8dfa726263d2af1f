"""Recording of a layer's inputs, and the order of time and samples in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..networks.calls.record import StoredBatch, Taps, record
from ..networks.capture import neuron_currents
from ..networks.structure.layers import LAYOUTS, HiddenLayer, fits, time_first
from .hidden_task import HiddenTask, check_samples
from .site import own_rows, run_rows, weight_of
from .stage import Stage

CONSTANT = "constant"  # layout of a single call whose output serves at all steps
_LAYOUT_SAMPLES = 8, 64  # least and most samples on which the order of time and batch is determined
_LAYOUT_VALUES = 2**20  # most currents that are recorded for it, unless the least samples have more
_COMPARED = 2**17  # most currents that are compared at a time


def record_first_calls(task: HiddenTask, layer: HiddenLayer) -> list[Tensor]:
    """Return the input of every call of a layer's synapse on the first batch, as :func:`find_layout` takes them."""
    return _record_calls(task, layer, task.batches[0])


def collect_inputs(task: HiddenTask, layer: HiddenLayer, layout: str, subsets: Sequence[Tensor]) -> list[Tensor]:
    """Return a layer's inputs ``[T, k, *]``, or ``[1, k, *]`` if they are constant, of each of some sets of samples (k,).

    Bytes if all are 0 or 1.  Beside the results, one batch is in memory at a time.
    """
    found: list[Tensor | None] = [None for _ in subsets]
    start = 0
    for batch in task.batches:
        inputs = _join_batch(task, layer, layout, batch)
        stop = start + inputs.shape[1]
        for number, samples in enumerate(subsets):
            places = ((samples >= start) & (samples < stop)).nonzero()[:, 0]
            found[number] = values = _make_room(found[number], inputs, len(samples))
            values[:, places.to(values.device)] = inputs[:, (samples[places] - start).to(inputs.device)].to(values)
        start = stop
        del inputs  # before the next batch is recorded
    check_samples(layer, start, len(task.targets))
    return [values for values in found if values is not None]


def _join_batch(task: HiddenTask, layer: HiddenLayer, layout: str, batch: StoredBatch) -> Tensor:
    """Return the inputs of a batch, ``[T, B, *]``, or ``[1, B, *]`` if they are constant."""
    calls = _record_calls(task, layer, batch)
    if layout == CONSTANT or (layout == "steps" and all(call is calls[0] for call in calls)):
        return calls[0][None, : batch.size]
    return time_first(layout, calls, task.temporary.num_steps)[:, : batch.size]


def _make_room(values: Tensor | None, inputs: Tensor, count: int) -> Tensor:
    """Return ``values`` of ``count`` samples in the type, and with the steps, that also hold the inputs of one more batch."""
    if values is None:
        return inputs.new_zeros(len(inputs), count, *inputs.shape[2:])
    if len(values) < len(inputs):
        values = values.expand(len(inputs), *values.shape[1:]).clone()
    return values if inputs.dtype is torch.uint8 else values.to(inputs.dtype)


def record_means(task: HiddenTask, layer: HiddenLayer) -> tuple[Tensor, bool]:
    """Return a layer's inputs averaged over time, (n, *), and whether all are 0 or 1, with one batch in memory at a time."""
    means, binary = [], True
    for batch in task.batches:
        calls = _record_calls(task, layer, batch)
        means.append(average_calls(calls, task.temporary.num_steps, batch.size, weight_of(layer.synapse).dim()))
        binary = binary and all(call.dtype is torch.uint8 for call in calls)
    return torch.cat(means), binary


def _record_calls(task: HiddenTask, layer: HiddenLayer, batch: StoredBatch) -> list[Tensor]:
    """Return the input of every call; those of 0 and 1 are bytes, and one that equals the first shares its tensor."""
    calls: list[Tensor] = []

    def add(value: Tensor) -> None:
        if calls and torch.equal(value, calls[0].to(value.dtype)):
            calls.append(calls[0])
        else:
            binary = bool(((value == 0) | (value == 1)).all())
            calls.append(value.detach().to(torch.uint8) if binary else value.detach().clone())

    record(task.net, batch, task.forward, Taps(inputs={layer.synapse: add}))
    return calls


def average_calls(calls: Sequence[Tensor], steps: int, samples: int, rank: int) -> Tensor:
    """Return inputs averaged over time, (samples, *), of a layer that takes ``rank`` axes at a step.

    A single call with one more axis, or one that folds time and samples, is taken as time first.
    """
    if len(calls) == 1 and calls[0].dim() == rank + 1 and len(calls[0]) == steps and calls[0].shape[1] >= samples:
        calls = list(calls[0])
    if len(calls) == 1 and steps > 1 and len(calls[0]) % steps == 0 and len(calls[0]) >= steps * samples:
        calls = list(calls[0].reshape(steps, -1, *calls[0].shape[1:]))
    calls = [call for call in calls if call.shape == calls[-1].shape]  # a net may try its layer on other inputs first
    total = calls[0].float()
    for call in calls[1:]:
        total = total + call.float()
    return total[:samples] / len(calls)


def record_first_currents(task: HiddenTask, layer: HiddenLayer) -> Tensor:
    """Return the neuron's currents, ``[T, n, *]``, on a few samples of the first batch, as :func:`find_layout` takes them."""
    each = task.temporary.num_steps * len(weight_of(layer.synapse))
    least, most = _LAYOUT_SAMPLES
    keep = min(most, max(least, _LAYOUT_VALUES // each))
    return neuron_currents(task.net, task.batches[:1], layer, task.forward, keep=keep)


def find_layout(synapse: nn.Module, stage: Stage, calls: Sequence[Tensor], currents: Tensor) -> str | None:
    """Return the layout in which synapse and stage make the neuron's currents of the first batch; None if no layout gives them."""
    steps, shapes = len(currents), [call.shape for call in calls]
    sizes = {*shapes[0][:-1], shapes[0][0] // steps}
    possible = [layout for layout in LAYOUTS if any(fits(layout, shapes, steps, size) for size in sizes)]
    if len(calls) == 1 and len(shapes[0]) == 2:
        possible.insert(0, CONSTANT)
    for layout in possible:
        if _gives(synapse, stage, partial(_take_steps, layout, calls, *currents.shape[:2]), currents):
            return layout
    return None


def _take_steps(layout: str, calls: Sequence[Tensor], steps: int, samples: int, rows: slice) -> Tensor:
    """Return the inputs ``[K, k, *]`` of a few samples at some steps, in a layout; all steps together would take much memory."""
    if layout == "steps":
        return torch.stack([call[:samples] for call in calls[rows]])
    joined = calls[0].expand(steps, *calls[0].shape) if layout == CONSTANT else time_first(layout, calls, steps)
    return joined[rows, :samples]


def _gives(synapse: nn.Module, stage: Stage, take: Callable[[slice], Tensor], currents: Tensor) -> bool:
    """Return whether synapse and stage make these currents ``[T, k, *]`` of the inputs, compared a few steps at a time."""
    steps, weight = len(currents), weight_of(synapse)
    if currents.dim() < 3:
        return False
    still = currents.stride(0) == 0  # one step that stands for all, which a reduction would copy
    (low, high), rounding = torch.aminmax(currents[:1] if still else currents), 4 * torch.finfo(currents.dtype).eps
    rtol, atol = max(1e-4, rounding), max(1e-5, rounding) * max(float(high), -float(low))
    size = max(1, _COMPARED // currents[0].numel())
    for start in range(0, steps, size):
        part, expected = take(slice(start, start + size)).to(weight), currents[start : start + size]
        if part.shape[:2] != expected.shape[:2]:
            return False
        try:
            made = stage.run(run_rows(part.flatten(0, 1), own_rows(synapse)))
        except RuntimeError:  # a function that takes one number of samples
            return False
        if made.numel() != expected.numel():
            return False
        if not torch.allclose(made.reshape(expected.shape), expected.to(part), rtol=rtol, atol=atol):
            return False
    return True
