"""One pass over the data: the features that the readout sees, the net's own scores, and how its layers fire."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CaptureError, DataError, NetworkError
from .batches import check_finite, device_of, split_batch
from .calling import call_forward
from .forward import Forward
from .guard import seeded
from .hooks import temporary_hooks
from .layers import HiddenLayer, NetworkMap
from .libraries import library_of, reset_states
from .readout import Readout
from .recorder import LayerStats, Recorder
from .structures import RowBuffer, to_device

__all__ = ["Captured", "LayerStats", "StoredBatch", "capture", "neuron_currents", "neuron_spikes", "run_batch"]

_DRAW = 982_451_653  # a prime, between the seeds of two draws: seeds that differ in one bit alone draw alike


@dataclass(frozen=True)
class StoredBatch:
    """A batch kept to run the net on again.

    Args:
        inputs: the inputs, on the net's device.
        rows: the rows of the captured features that are this batch's samples.  Where ``max_samples`` cut the batch,
            they are its first ones, and there are fewer of them than samples in ``inputs``.
        number: which batch of the loader it is, the first being 1; for messages.
    """

    inputs: Any
    rows: slice
    number: int = 1


@dataclass(frozen=True)
class Captured:
    """What one pass over the data gave.

    Args:
        features: ``[n, P]`` float32 on the net's device, ``sum_t filter[t] * s[t]`` of what enters the readout; for scores at
            every step ``[n, T, P]``, ``sum_s matrix[t, s] * s[s]``.  Where outputs have K filters of their own, ``[n, K, P]``, or
            ``[n, T, K, P]`` at every step.
        targets: the targets of the ``n`` samples, on the same device.
        scores: ``[n, C]``, the net's own scores, or ``[n, T, C]`` at every step.
        layers: for the name of each hidden layer's synapse, how it fires.
        batches: the first batches.
        num_steps: time steps of one forward, of the longest batch.
        spikes: ``[T, m, P]``, what enters the readout for the first ``m`` samples, uint8 where it is 0 or 1 throughout; None
            unless asked for.
        lengths: ``[n]``, the time steps of each sample's batch; None where they are the same for all.  Spikes of shorter ones
            stand at the last steps, after zeros.
    """

    features: Tensor
    targets: Tensor
    scores: Tensor
    layers: dict[str, LayerStats]
    batches: list[StoredBatch]
    num_steps: int
    spikes: Tensor | None = None
    lengths: Tensor | None = None


def run_batch(net: nn.Module, batch: StoredBatch, forward: Forward, draw: int = 0) -> Any:
    """Run the net from rest on a stored batch, with the random numbers that :func:`capture` ran it with.

    Args:
        net: the net; held by :func:`preserved`.
        batch: the batch.
        forward: how the net is called.
        draw: another number than 0 draws other random numbers.

    Returns:
        What the net's forward returned, for all samples of the batch's inputs.
    """
    reset_states(net)
    with torch.no_grad(), seeded(batch.rows.start + _DRAW * draw, net):
        return call_forward(net, batch.inputs, forward, batch.number)


def capture(
    net: nn.Module,
    loader: Iterable[Any],
    net_map: NetworkMap,
    readout: Readout,
    forward: Forward,
    *,
    max_samples: int | None = None,
    store_samples: int = 1024,
    keep_spikes: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Captured:
    """Run the net once over the data and gather features, scores and firing rates.

    Features are summed up step by step, so that the spikes of all steps never lie in memory together; for scores at every
    step they must, those of one batch.  The caller holds the net by :func:`preserved`; neurons are reset before each batch.

    Args:
        net: the net.
        loader: gives (input, target) batches; what it raises passes through unchanged.
        net_map: the net's map.
        readout: its readout.
        forward: how the net is called.
        max_samples: stop after so many samples.
        store_samples: keep batches until they hold so many samples; at least one is kept.
        keep_spikes: keep the spikes that enter the readout at every step for so many samples, the first ones; they take
            one byte for each step, sample and feature.
        progress: called after every batch with the number of samples done.

    Returns:
        What was gathered.

    Raises:
        CaptureError: if a batch has another number of time steps than the map says, and the readout needs one number.
        DataError: if the loader is empty, or a batch isn't a pair, isn't finite or has unequal numbers of samples.
        NetworkError: if the net's features are not finite.
    """
    recorder = Recorder(net_map, readout, keep_spikes)
    gathered = [RowBuffer(), RowBuffer(), RowBuffer()]
    batches: list[StoredBatch] = []
    lengths: list[Tensor] = []
    device, done, stored = device_of(net), 0, 0
    with torch.no_grad(), temporary_hooks() as hooks:
        recorder.register(hooks)
        for number, batch in enumerate(loader, start=1):
            inputs, target = split_batch(batch, number)
            check_finite(inputs, number)
            inputs, target = to_device(inputs, device), target.to(device)
            recorder.start()
            stored_batch = StoredBatch(inputs, slice(done, done + len(target)), number)
            outputs = run_batch(net, stored_batch, forward)
            if recorder.must_repeat():
                recorder.start(again=True)
                outputs = run_batch(net, stored_batch, forward)
            scores = readout.scores(outputs)
            left = len(target) if max_samples is None else min(len(target), max_samples - done)
            features = recorder.finish(number, left)
            _check_rows(number, features, scores, target)
            lengths.append(target.new_full((left,), recorder.num_steps, dtype=torch.int64))
            for table, rows in zip(gathered, (features, target, scores), strict=True):
                table.append(rows[:left], expected=_expected(loader, len(target), max_samples))
            if stored < store_samples or not batches:
                batches.append(StoredBatch(inputs, slice(done, done + left), number))
                stored += left
            done += left
            if progress is not None:
                progress(done)
            if done == max_samples:
                break
    if done == 0:
        raise DataError("a loader without a single sample", "at least one batch", "pass a loader over your data")
    features, targets, scores = (table.rows() for table in gathered)
    if readout.filters is not None:  # laid out filter by filter, so that the program of each copies nothing
        features = features.movedim(-2, 0).contiguous().movedim(0, -2)
    # A sum first, which takes a twentieth of the time; large values may only add up to infinity.
    if not math.isfinite(features.sum()) and not bool(torch.isfinite(features).all()):
        raise NetworkError("NaN or infinite values entering the readout", "finite spikes", "check the net's hidden layers")
    steps = torch.cat(lengths)
    longest = int(steps.max())
    unequal = steps if int(steps.min()) < longest else None
    return Captured(features, targets, scores, recorder.stats(), batches, longest, recorder.spikes(), unequal)


def neuron_currents(
    net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward, keep: int | None = None
) -> Tensor:
    """Record the current that enters a hidden layer's neuron.

    Args:
        net: the net; held by :func:`preserved`.
        batches: the batches to run.
        layer: the hidden layer.
        forward: how the net is called.
        keep: how many of each batch's samples; all by default.

    Returns:
        ``[T, n, *]``, the currents of all samples of the batches.

    Raises:
        CaptureError: if the forward pass doesn't reach the neuron, or a varying number of times.
    """
    calls: list[Tensor] = []
    own = library_of(layer.neuron).synapse(layer.neuron)
    steps: list[int] = []
    with torch.no_grad(), temporary_hooks() as hooks:
        if own is not None and own.module is not layer.neuron:
            # The current is what the synapse inside the neuron gives, for all steps in one call, time and batch folded.
            hooks.on_input(layer.neuron, lambda value: steps.append(len(value)))
            hooks.on_output(own.module, lambda current: calls.append(current.detach().unflatten(0, (steps[-1], -1)).clone()))
        else:
            axis = 1 if library_of(layer.neuron).takes_sequences(layer.neuron) else 0
            hooks.on_input(layer.neuron, lambda current: calls.append(_first(current, axis, keep).detach().clone()))
        return _over_batches(net, batches, layer, forward, calls)


def _first(value: Tensor, axis: int, keep: int | None) -> Tensor:
    return value if keep is None or value.ndim <= axis else value.narrow(axis, 0, min(keep, value.shape[axis]))


def neuron_spikes(net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward) -> Tensor:
    """Record what a hidden layer's neuron emits.

    Args:
        net: the net; held by :func:`preserved`.
        batches: the batches to run.
        layer: the hidden layer.
        forward: how the net is called.

    Returns:
        ``[T, n, *]``, the spikes of all samples of the batches.

    Raises:
        CaptureError: if the forward pass doesn't reach the neuron, or a varying number of times.
    """
    calls: list[Tensor] = []
    adapter = library_of(layer.neuron)
    with torch.no_grad(), temporary_hooks() as hooks:
        hooks.on_output(layer.neuron, lambda output: calls.append(adapter.spikes(output).detach().clone()))
        return _over_batches(net, batches, layer, forward, calls)


def _over_batches(
    net: nn.Module, batches: Sequence[StoredBatch], layer: HiddenLayer, forward: Forward, calls: list[Tensor]
) -> Tensor:
    """Run the batches and join, over time and samples, what hooks on the layer append to ``calls`` in each pass."""
    parts: list[Tensor] = []
    whole = library_of(layer.neuron).takes_sequences(layer.neuron)
    for batch in batches:
        calls.clear()
        run_batch(net, batch, forward)
        if not calls or (whole and len(calls) > 1) or (parts and not whole and len(calls) != len(parts[0])):
            raise CaptureError(
                f"the neuron {layer.neuron_name!r} was called {len(calls)} times in a forward pass",
                "the same number of calls for every batch, at least one",
                "run all batches over the same number of steps, and give every layer a neuron of its own",
            )
        joined = calls[0] if whole else torch.stack(calls)
        parts.append(joined[:, : batch.rows.stop - batch.rows.start])
    return torch.cat(parts, dim=1)


def _check_rows(number: int, features: Tensor, scores: Tensor, target: Tensor) -> None:
    if not len(features) == len(scores) == len(target):
        raise DataError(
            f"batch {number} has {len(target)} targets, but {len(features)} samples reach the readout and "
            f"{len(scores)} scores come out",
            "one target for every sample",
            "check the loader's targets, and that the batch is the axis after time",
        )
    if len(target) == 0:
        raise DataError(f"batch {number} is empty", "at least one sample in every batch", "drop empty batches")


def _expected(loader: object, batch_size: int, max_samples: int | None) -> int:
    """Estimate how many samples will come, to set memory aside once; a wrong guess only costs a copy."""
    try:
        total = len(loader) * batch_size  # type: ignore[arg-type]
    except TypeError:
        total = batch_size
    return total if max_samples is None else min(total, max_samples)
