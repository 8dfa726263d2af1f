"""One initialisation: the stages in order, inside the guard that restores the network after an error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..distributed import SingleProcess
from ..errors import NetworkError
from ..networks import (
    Inspections,
    Transaction,
    all_or_nothing,
    device_of,
    fast_passes,
    keep_autocast,
    unwrap,
)
from .build import HiddenResult, choose_hidden, count_wanted
from .calibrate import calibrate_readout
from .collect import capture_data, check_outputs_early, count_samples
from .fit import solve_best
from .gather import gather_first
from .loader import refuse_repeats
from .options import START, Context, Options
from .place import write_network
from .progress import Progress
from .report_content import ReportContent
from .report_parts import Sample
from .stream import Stream
from .summary import make_report, warn_of_others
from .task import Task, inspect_task


def initialize_network(net: nn.Module, loader: Iterable[Any], options: Options, context: Context = START) -> ReportContent:
    """Solve the convex program of a network's readout, and write the answer into the network.

    On any error the network is bit for bit as before; errors are those of ``ConvexInitializer.initialize``.
    """
    net, options = prepare_network(net, options)
    transaction = Transaction(net, allow_tied=options.allow_tied)
    return all_or_nothing(
        net,
        lambda: _run_stages(net, loader, options, context, transaction),
        seed=options.seed,
        loader=loader,
        undo=transaction.roll_back,
        written=lambda: transaction.buffers,
    )


def _run_stages(
    net: nn.Module, loader: Iterable[Any], options: Options, context: Context, transaction: Transaction
) -> ReportContent:
    """Run the stages; the transaction stays open until the last one, for an error to roll back."""
    progress, processes = Progress(options.progress), context.processes
    with transaction:
        with progress.stage("inspect"):
            stream, task = _inspect(net, loader, options, context)
            with processes.share_errors():
                first_samples = [] if context.warm_start else stream.sample(options.max_samples)
                sample = Sample(net, options, first_samples, processes)
                samples = count_samples(net, stream, task, options, processes)
        with fast_passes(net):
            hidden = _choose_hidden(net, stream, task, options, processes, progress)
            data = capture_data(net, stream, task, hidden, options, context, progress, samples=samples)
        with progress.stage("solve", None, "strengths"):
            fit = solve_best(task, data, options, context, progress)
        with progress.stage("calibrate"):
            # With a tied readout a factor would change other modules too.
            trains_on = context.trains_on and not (options.names_program or options.allow_tied)
            calibrated = calibrate_readout(task, data, fit, processes, trains_on=trains_on)
        # Not in fast passes: a forward that they change would agree with what they captured.
        with progress.stage("write and verify"):
            written = write_network(net, transaction, hidden.values, calibrated, task, data, fit, options, context)
        report = make_report(task, hidden.decisions, data, fit, calibrated, written, progress.seconds, transaction, sample)
        warn_of_others(report, options, context)
    return report


def _inspect(net: nn.Module, loader: Iterable[Any], options: Options, context: Context) -> tuple[Stream, Task]:
    """Open the data and inspect the network on the first batch."""
    processes = context.processes
    with processes.share_errors():
        stream = _open(net, loader, options)
        head, targets = stream.head(1)
        task = inspect_task(net, head[0], targets, options, context)
        if not processes.is_distributed:  # a process alone may lack classes
            check_outputs_early(stream, task, options)
    steps = int(processes.broadcast_number(task.net_map.num_steps))
    with processes.share_errors():
        task = task.at(steps, options)
    readout = task.readout
    parts = readout.kind, readout.exactness, task.rows, readout.filter.tolist(), [str(source) for source in readout.others]
    processes.check_equal("readouts", parts)
    return stream, task


def _choose_hidden(
    net: nn.Module, stream: Stream, task: Task, options: Options, processes: SingleProcess, progress: Progress
) -> HiddenResult:
    """Choose hidden layers in rank 0, on the first samples of all processes; return the choice in all of them."""
    wanted = count_wanted(task, options)
    if not (wanted and processes.is_distributed):
        return choose_hidden(net, stream, task, options, progress)
    modules, found = dict(net.named_modules()), None
    names = {module: name for name, module in modules.items()}
    first = gather_first(stream, wanted, processes)
    with processes.share_errors():
        if first is not None:
            hidden = choose_hidden(net, first.stream, task, options, progress)
            used = None if hidden.used is None else first.numbers[hidden.used].sort().values
            found = hidden.decisions, {(names[owner], name): value for (owner, name), value in hidden.values.items()}, used
    shared = processes.broadcast_object(found, device_of(net))
    assert shared is not None
    decisions, values, used = shared
    return HiddenResult(decisions, {(modules[owner], name): value for (owner, name), value in values.items()}, used)


def _open(net: nn.Module, loader: Iterable[Any], options: Options) -> Stream:
    refuse_repeats(loader)
    return options.open(loader, device_of(net))


def prepare_network(net: nn.Module, options: Options) -> tuple[nn.Module, Options]:
    """Return the network without a compiler's wrapper, and options whose forward runs in the autocast of this moment."""
    if not isinstance(net, nn.Module):
        raise NetworkError(f"a net of type {type(net).__name__}", "a torch.nn.Module", "pass the network, then the loader")
    return unwrap(net), replace(options, forward=keep_autocast(options.call))


@dataclass(frozen=True)
class NetworkCheck:
    """Facts about a network that a refit would not refuse at its first batch."""

    parameters: list[nn.Parameter]  # of the readout
    can_spread: bool  # the program's rows can be shared by several processes


def check_network(net: nn.Module, loader: Iterable[Any], options: Options, inspections: Inspections) -> NetworkCheck:
    """Refuse what a refit would refuse at its first batch; the network stays as it is."""
    net, options = prepare_network(net, options)

    def check() -> NetworkCheck:
        _, task = _inspect(net, loader, options, Context(warm_start=True, inspections=inspections))
        smooth = all(loss.smooth for loss in task.programs)
        can_spread = smooth and options.solver in ("auto", "newton", "fista")
        return NetworkCheck(list(task.net_map.readout.module.parameters()), can_spread)

    return all_or_nothing(net, check, seed=options.seed, loader=loader)
