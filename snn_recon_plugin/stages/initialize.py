"""One initialisation: the stages in order on a private copy of the network, then the write into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from ..errors import NetworkError
from ..networks.calls.batches import device_of
from ..networks.calls.calling import refuse_calls
from ..networks.calls.fast_passes import fast_passes
from ..networks.calls.forward import keep_autocast
from ..networks.private.parameters import write_values
from ..networks.private.quiet import run_quietly, unwrap
from ..networks.private.workbench import Workbench
from ..networks.structure.structure import Inspections
from ..networks.write import Transaction, check_writable, commit
from ..options import Options
from ..report.content import Report
from ..report.hints import InputScale, measure_scale
from ..report.rows import Sample
from .build import HiddenResult, choose_hidden, count_wanted
from .calibrate import CalibratedReadout, calibrate_readout
from .collect import ProgramData, capture_data, check_outputs_early, count_samples
from .fit import Fit, solve_best
from .gather import gather_first
from .loader import refuse_repeats
from .place import place
from .progress import Progress
from .run import START, Context, Run
from .stream import Stream
from .summary import Results, make_report, warn_of_others, warn_of_reach
from .task import Task, inspect_task, warn_of_carried_membranes


def initialize_network(net: nn.Module, loader: Iterable[Any], options: Options, context: Context = START) -> Report:
    """Solve the convex program of a network's readout on a private copy, and write the answer into the network if it is better.

    On any error the network is bit for bit as before; errors are those of ``ConvexInitializer.initialize``.
    """
    net, options = prepare_network(net, options)
    bench = Workbench.of(net, context.shared)
    stages = partial(_run_stages, bench, loader, options, context)
    write = run_quietly(bench.net, stages, seed=options.seed, loader=loader)
    return commit(Transaction(net, allow_tied=options.allow_tied), write)


@dataclass(frozen=True)
class SolvedStages:
    """Results of the stages up to the solution of the program."""

    run: Run
    sample: Sample
    task: Task
    scale: InputScale | None  # None: not measured
    hidden: HiddenResult
    data: ProgramData
    fit: Fit


def _run_stages(
    bench: Workbench, loader: Iterable[Any], options: Options, context: Context
) -> Callable[[Transaction], Report]:
    """Run the stages on the private net; return the function that writes into the user's, and makes the report."""
    solved = solve_stages(bench, loader, options, context)
    with solved.run.progress.stage("calibrate"):
        calibrated = calibrate_readout(solved.run, solved.task, solved.data, solved.fit)
    return place_stages(bench, solved, calibrated)


def solve_stages(bench: Workbench, loader: Iterable[Any], options: Options, context: Context) -> SolvedStages:
    """Run the stages up to the solution of the program."""
    progress, processes = Progress(options.progress), context.processes
    with progress.stage("inspect"):
        stream, task = _inspect(bench, loader, options, context)
        run = Run(bench.net, stream, options, context, progress)
        scale = None if context.warm_start else _measure_scale(run, task)
        with processes.share_errors():
            first_samples = [] if context.warm_start else stream.sample(options.max_samples)
            sample = Sample(bench.origin, options, first_samples, processes)
            samples = count_samples(run, task)
    with fast_passes(run.net):
        hidden = (_choose_together if processes.is_distributed else choose_hidden)(run, task, count_wanted(task, options))
        data = capture_data(run, task, hidden, samples)
    with progress.stage("solve", None, "strengths"):
        fit = solve_best(run, task, data)
    return SolvedStages(run, sample, task, scale, hidden, data, fit)


def place_stages(bench: Workbench, solved: SolvedStages, calibrated: CalibratedReadout) -> Callable[[Transaction], Report]:
    """Write a calibrated readout into the private net and verify it; return the function that writes into the user's."""
    run, task, data, fit = solved.run, solved.task, solved.data, solved.fit
    with run.progress.stage("write and verify"):
        placed = place(run, task, data, fit, calibrated)
        # A fresh net may have been silent.  A module that a trainer runs may reset it outside its forward.
        if not (run.context.warm_start or task.carries_over or run.context.shared):
            warn_of_carried_membranes(run.net, data.captured.batches[0].inputs, run.options)
    results = Results(task, solved.scale, solved.hidden, data, fit, calibrated, placed)
    changed = {**{place: getattr(*place) for place in solved.hidden.before}, **placed.values}
    values = {} if results.keep_old(run.options.write) else changed

    def write(transaction: Transaction) -> Report:
        with run.processes.share_errors():
            for (module, name), value in values.items():
                transaction.write(bench.origin_of(module), name, value)
        report = make_report(run, results, transaction, solved.sample)
        warn_of_others(report, run)
        warn_of_reach(report, results)
        return report

    return write


def _inspect(bench: Workbench, loader: Iterable[Any], options: Options, context: Context) -> tuple[Stream, Task]:
    """Open the data, inspect the network on the first batch, and refuse a readout that the user's network can't be given."""
    processes = context.processes
    with processes.share_errors(), refuse_calls(bench.origin):
        stream = _open(bench.net, loader, options)
        head, targets = stream.head(1)
        task = inspect_task(bench.net, head[0], targets, options, context)
        layer = replace(task.net_map.readout, module=bench.origin_of(task.net_map.readout.module))
        check_writable(bench.origin, replace(task.net_map, readout=layer), allow_tied=options.allow_tied)
        if not processes.is_distributed:  # a process alone may lack classes
            check_outputs_early(stream, task, options)
    steps = int(processes.broadcast_number(task.net_map.num_steps))
    with processes.share_errors():
        task = task.at(steps, options)
    readout = task.readout
    parts = readout.kind, readout.exactness, task.rows, readout.filter.tolist(), [str(source) for source in readout.others]
    processes.check_equal("readouts", parts)
    return stream, task


def _measure_scale(run: Run, task: Task) -> InputScale | None:
    """Return the size of the first inputs of rank 0, in all ranks."""
    with run.processes.share_errors():
        (first, *_), _ = run.stream.head(1)
        scale = measure_scale(run.net, first, task, run.options)
    return run.processes.broadcast_object(scale, device_of(run.net))


def _choose_together(run: Run, task: Task, wanted: int) -> HiddenResult:
    """Choose hidden layers in rank 0, on the first samples of all processes; return the choice in all of them."""
    processes = run.processes
    wanted = int(processes.broadcast_number(wanted))
    if not wanted:
        return choose_hidden(run, task, wanted)
    modules, hidden, found = dict(run.net.named_modules()), None, None
    names = {module: name for name, module in modules.items()}
    first = gather_first(run.stream, wanted, processes)
    with processes.share_errors():
        if first is not None:
            hidden = choose_hidden(replace(run, stream=first.stream), task, wanted)
            used = None if hidden.used is None else first.numbers[hidden.used].sort().values
            changed = {(names[owner], name): getattr(owner, name).detach() for owner, name in hidden.before}
            found = hidden.decisions, changed, used
    shared = processes.broadcast_object(found, device_of(run.net))
    assert shared is not None
    decisions, changed, used = shared
    if hidden is not None:
        return replace(hidden, used=used)
    return HiddenResult(decisions, write_values({(modules[owner], name): value for (owner, name), value in changed.items()}), used)


def _open(net: nn.Module, loader: Iterable[Any], options: Options) -> Stream:
    refuse_repeats(loader)
    return options.open(loader, device_of(net))


def prepare_network(net: nn.Module, options: Options) -> tuple[nn.Module, Options]:
    """Return the network without a compiler's wrapper, and options with its loss and a forward in the autocast of this moment."""
    if not isinstance(net, nn.Module):
        raise NetworkError(f"a net of type {type(net).__name__}", "a torch.nn.Module", "pass the network, then the loader")
    net = unwrap(net)
    return net, replace(options.of_module(net), forward=keep_autocast(options.call))


@dataclass(frozen=True)
class NetworkCheck:
    """Facts about a network that a refit would not refuse at its first batch."""

    parameters: list[nn.Parameter]  # of the readout
    can_spread: bool  # the program's rows can be shared by several processes


def check_network(
    net: nn.Module, loader: Iterable[Any], options: Options, inspections: Inspections, shared: Iterable[object] = ()
) -> NetworkCheck:
    """Refuse what a refit would refuse at its first batch; the network stays as it is."""
    net, options = prepare_network(net, options)
    bench = Workbench.of(net, shared)
    context = Context(warm_start=True, inspections=inspections)
    _, task = run_quietly(bench.net, partial(_inspect, bench, loader, options, context), seed=options.seed, loader=loader)
    smooth = all(loss.smooth for loss in task.programs)
    can_spread = smooth and options.solver in ("auto", "newton", "fista")
    return NetworkCheck(list(bench.origin_of(task.net_map.readout.module).parameters()), can_spread)
