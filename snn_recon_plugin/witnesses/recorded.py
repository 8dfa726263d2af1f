"""What enters a layer, recorded call by call, and the order of time and samples in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from snn_recon_plugin.errors import CaptureError
from snn_recon_plugin.networks import Forward, HiddenLayer, StoredBatch, run_batch
from snn_recon_plugin.networks.hooks import temporary_hooks
from snn_recon_plugin.networks.layers import LAYOUTS, fits, time_first

__all__ = ["FEW", "different", "in_time", "layout_of", "mean_input", "record_inputs", "record_means"]

FEW = 64  # samples by which the order of time and batch is told


def record_inputs(
    net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward
) -> tuple[list[list[Tensor]], bool]:
    """What enters the synapse at each call, batch by batch, and whether all of it is 0 or 1.

    What is 0 or 1 is kept as bytes, and the same tensor again where a call sees what the first one saw.
    """
    recorded: list[list[Tensor]] = []
    calls: list[Tensor] = []
    first: list[Tensor] = []

    def record(value: Tensor) -> None:
        if first and value.shape == first[0].shape and torch.equal(value, first[0]):
            calls.append(calls[0])
            return
        value = value.detach()
        calls.append(value.to(torch.uint8) if _binary(value) else value.clone())
        if not first:
            first.append(value.clone())

    with torch.no_grad(), temporary_hooks() as hooks:
        hooks.on_input(layer.synapse, record)
        for batch in batches:
            calls.clear()
            first.clear()
            run_batch(net, batch, forward)
            _check_called(layer, len(calls))
            recorded.append(list(calls))
    every = all(call.dtype is torch.uint8 for calls in recorded for call in calls)
    if not every:
        recorded = [[call.float() if call.dtype is torch.uint8 else call for call in calls] for calls in recorded]
    return recorded, every


def record_means(
    net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward, steps: int
) -> tuple[Tensor, bool]:
    """What enters the synapse, averaged over time, (n, *), and whether all of it is 0 or 1; no call is kept."""
    parts, total, binary = [], list[Tensor](), [True]
    count = [0]

    def add(value: Tensor) -> None:
        value = value.detach().float()
        binary[0] = binary[0] and _binary(value)
        count[0] += 1
        if total and total[0].shape == value.shape:
            total[0] += value
        else:
            total[:] = [value.clone()]

    with torch.no_grad(), temporary_hooks() as hooks:
        hooks.on_input(layer.synapse, add)
        for batch in batches:
            total.clear()
            count[0] = 0
            run_batch(net, batch, forward)
            _check_called(layer, count[0])
            share = batch.rows.stop - batch.rows.start
            parts.append(mean_input([total[0] / count[0]], steps if count[0] == 1 else 1, share))
    return torch.cat(parts), binary[0]


def _binary(value: Tensor) -> bool:
    return bool(((value == 0) | (value == 1)).all())


def _check_called(layer: HiddenLayer, calls: int) -> None:
    if calls == 0:
        needed = "the same layers for every batch"
        raise CaptureError(f"a forward pass that does not call {layer.name!r}", needed, "check the loader")


def different(calls: Sequence[Tensor]) -> list[Tensor]:
    """The tensors among recorded calls, each once."""
    return list({id(call): call for call in calls}.values())


def mean_input(calls: Sequence[Tensor], steps: int, share: int) -> Tensor:
    """What enters a layer, averaged over time.  In a single call that folds time and samples, time is taken to come first."""
    if len(calls) == 1 and steps > 1 and len(calls[0]) % steps == 0 and len(calls[0]) >= steps * share:
        calls = list(calls[0].reshape(steps, -1, *calls[0].shape[1:]))
    total = calls[0].float()
    for call in calls[1:]:
        total = total + call
    return total[:share] / len(calls)


def layout_of(synapse: nn.Linear, calls: list[Tensor], currents: Tensor) -> str | None:
    """In which order a Linear sees time and batch, told by the neuron's currents; None where these are something else."""
    steps, shapes, rounding = len(currents), [call.shape for call in calls], 4 * torch.finfo(currents.dtype).eps
    sizes = {*shapes[0][:-1], shapes[0][0] // steps}
    for layout in ("still", *LAYOUTS):
        if layout == "still":
            fitting = len(calls) == 1 and len(shapes[0]) == 2
        else:
            fitting = any(fits(layout, shapes, steps, size) for size in sizes)
        if not fitting:
            continue
        few = in_time(layout, calls, steps)[:, :FEW].to(synapse.weight)
        wanted = currents[:, :FEW].to(few)
        made = functional.linear(few, synapse.weight, synapse.bias)[:, : wanted.shape[1]]
        if made.shape == wanted.shape and torch.allclose(
            made, wanted, rtol=max(1e-4, rounding), atol=max(1e-5, rounding) * float(wanted.abs().max())
        ):
            return layout
    return None


def in_time(layout: str, calls: Sequence[Tensor], steps: int) -> Tensor:
    """What all calls saw, ``[T, B, *]``; "still" is a single call whose output serves at all steps."""
    if layout == "still":
        return calls[0].expand(steps, *calls[0].shape)
    return time_first(layout, calls, steps)
