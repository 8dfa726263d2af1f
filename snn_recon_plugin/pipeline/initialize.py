"""One initialisation: the stages in order, inside the guard that restores the network after an error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..convex import Loss
from ..networks import (
    ActivityRecorder,
    ReadoutLayer,
    Transaction,
    all_or_nothing,
    device_of,
    fast_passes,
    keep_autocast,
    record,
    unwrap,
)
from ..networks.population import block_mean
from ..networks.structures import tensors_in
from ..report import Report
from .alternatives import warn_of_others
from .calibrate import calibrate_readout
from .capture import ProgramData, capture_data, check_outputs_early, count_samples
from .cost import epoch_products
from .data import Stream
from .fit import Chosen, choose_strength
from .hidden import HiddenResult, choose_hidden
from .options import START, Context, Options
from .progress import Progress
from .summary import make_report
from .task import Task, check_network_type, inspect_task
from .temperature import solve_best
from .write import write_network

__all__ = ["NetworkCheck", "accepts_batches", "check_network", "initialize_network"]

_ROUNDING = 5e-6  # of the relative gap, left for rounding to the network's precision: the largest seen is 5.5e-6


def initialize_network(net: nn.Module, loader: Iterable[Any], options: Options, context: Context = START) -> Report:
    """Solve the convex program of a network's readout, and write the answer into the network.

    Args:
        net: a snnTorch or Norse network; on any error it is bit for bit as before.
        loader: (input, target) batches, each read once.
        options: the user's options.
        context: circumstances of a refit; by default those of a start.

    Raises:
        ReconstructionError: as for ``ConvexInitializer.initialize``.
    """
    net, options = _prepare(net, options)
    transaction = Transaction(net, allow_tied=options.allow_tied)
    return all_or_nothing(
        net,
        lambda: _run_stages(net, loader, options, context, transaction),
        seed=options.seed,
        loader=loader,
        undo=transaction.roll_back,
        written=lambda: transaction.buffers,
    )


def _run_stages(net: nn.Module, loader: Iterable[Any], options: Options, context: Context, transaction: Transaction) -> Report:
    """Run the stages; the transaction stays open until the last one, for an error to roll back."""
    progress, processes = Progress(options.progress), context.processes
    with transaction:
        with processes.together():
            task, hidden, data = _gather(net, loader, options, context, progress)
        readout = task.readout
        processes.alike("readouts", (readout.kind, readout.exactness, task.rows, readout.filter.tolist()))
        with progress.stage("solve", None, "strengths"):
            scaled = solve_best(task, data, partial(_choose, task, data, options, context, progress))
        with progress.stage("calibrate"):
            calibrated = calibrate_readout(task, data, scaled)
        with progress.stage("write and verify"):
            written = write_network(net, transaction, hidden.values, calibrated, task, data, scaled.fit, options, context)
            report = make_report(
                type(net).__name__,
                task,
                hidden.decisions,
                data,
                scaled.fit,
                calibrated,
                written,
                options,
                progress.seconds,
                transaction,
            )
        warn_of_others(report, options, context)
    return report


def _gather(
    net: nn.Module, loader: Iterable[Any], options: Options, context: Context, progress: Progress
) -> tuple[Task, HiddenResult, ProgramData]:
    """Run the stages ahead of the solve: inspect, hidden layers, capture."""
    with progress.stage("inspect"):
        stream = _open(net, loader, options)
        head, targets = stream.head(1)
        task = inspect_task(net, head[0], targets, options, context)
        check_outputs_early(stream, task, options)
        samples = count_samples(net, stream, task, options)
    with fast_passes(net):
        hidden = choose_hidden(net, stream, task, options, progress)
        data = capture_data(net, stream, task, hidden, options, context, progress, samples=samples)
    return task, hidden, data


def _choose(task: Task, data: ProgramData, options: Options, context: Context, progress: Progress, program: Loss) -> Chosen:
    """Choose the strength of one program."""
    # A trained readout is near the solution of the loss that it was trained with, and of no other.
    warm = context.warm_start and type(program) is type(task.loss)
    readout = task.readout
    return choose_strength(
        data.captured.features,
        data.captured.targets,
        data.split,
        num_outputs=task.classes,
        bias_column=data.bias_column(task),
        loss=program,
        penalty=options.penalty,
        strength=options.strength,
        solver=options.solver,
        tol=max(0.5 * options.tol, options.tol - _ROUNDING),
        rows=task.rows,
        filters=None if readout.filters is None else readout.filters.index,
        weights=data.weights,
        shards=context.processes,
        start=_own_point(task.net_map.readout, readout.per_class) if warm else None,
        previous=context.previous_strength(program.name),
        max_products=options.max_cost * epoch_products(task, data, context.processes),
        progress=lambda point: progress.note(f"strength {point.strength:.1e}, held-out loss {point.heldout_loss:.4f}"),
    )


def _own_point(layer: ReadoutLayer, per_class: int) -> tuple[Tensor, Tensor]:
    """Return the readout's own weight and bias for a warm start."""
    weight = block_mean(layer.weight.detach().double(), per_class)
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else block_mean(layer.bias.detach().double(), per_class)


def _prepare(net: nn.Module, options: Options) -> tuple[nn.Module, Options]:
    """Return the network without a compiler's wrapper, and options whose forward runs in the autocast of this moment."""
    return unwrap(check_network_type(net)), replace(options, forward=keep_autocast(options.call))


def _open(net: nn.Module, loader: Iterable[Any], options: Options) -> Stream:
    return Stream(loader, device_of(net), options.unpack, options.criterion.ignored)


@dataclass(frozen=True)
class NetworkCheck:
    """Facts about a network that an initialisation would not refuse at its first batch.

    Args:
        task: task of its program.
        parameters: parameters of the readout.
        can_spread: the program's rows can be shared by several processes.
        widest: neurons of the widest hidden layer.
    """

    task: Task
    parameters: list[nn.Parameter]
    can_spread: bool
    widest: int


def check_network(net: nn.Module, loader: Iterable[Any], options: Options, context: Context = START) -> NetworkCheck:
    """Refuse what ``initialize_network`` would refuse at its first batch; the network stays as it is.

    Raises:
        ReconstructionError: as for ``ConvexInitializer.initialize``.
    """
    net, options = _prepare(net, options)
    return all_or_nothing(net, lambda: _check(net, loader, options, context), seed=options.seed, loader=loader)


def _check(net: nn.Module, loader: Iterable[Any], options: Options, context: Context) -> NetworkCheck:
    stream = _open(net, loader, options)
    head, targets = stream.head(1)
    task = inspect_task(net, head[0], targets, options, context)
    check_outputs_early(stream, task, options)
    recorder = ActivityRecorder(task.net_map, task.readout)
    recorder.run(net, head[0], options.call)
    smooth = all(loss.smooth for loss in task.programs)
    can_spread = task.readout.exactness == "exact" and smooth and options.solver in ("auto", "newton", "fista")
    widest = max((layer.neurons for layer in recorder.stats().values()), default=task.net_map.readout.in_features)
    return NetworkCheck(task, list(task.net_map.readout.module.parameters()), can_spread, widest)


def accepts_batches(net: nn.Module, loader: Iterable[Any], options: Options) -> bool:
    """Return True if the network runs on batches as large as the loader's first; the network stays as it is."""
    net, options = _prepare(net, options)

    def shapes() -> tuple[int, list[torch.Size]]:
        head, targets = _open(net, loader, options).head(1)
        returned = tensors_in(record(net, head[0], options.call))
        return len(targets), [value.shape for value in returned]

    try:
        samples, found = all_or_nothing(net, shapes, seed=options.seed, loader=loader)
    except Exception:  # a forward written for one batch size may raise anything
        return False
    return bool(found) and all(samples in shape for shape in found if shape)
