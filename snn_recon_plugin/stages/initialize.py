"""One initialisation: the stages in order on a private copy of the network, then the write into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import SINGLE_PROCESS, SingleProcess
from ..errors import NetworkError
from ..networks.calls.batches import Padded, device_of, map_tensors, tensors_in, to_device
from ..networks.calls.forward import keep_autocast
from ..networks.calls.record import refuse_calls
from ..networks.private.parameters import write_values
from ..networks.private.quiet import run_quietly, unwrap
from ..networks.private.workbench import Workbench
from ..networks.structure.inspect import Inspections
from ..networks.write import Transaction, check_writable, commit
from ..options import Options
from ..read.step import advice_for_step, open_loader
from ..report.content import Report
from ..report.hints import measure_scale
from ..scan.passes import fast_passes
from .build import HiddenResult, choose_hidden, count_wanted
from .calibrate import CalibratedReadout, calibrate_readout
from .collect import ProgramData, capture_data, check_outputs_early, count_samples
from .fit import Fit, solve_best
from .place import SolvedStages, keeps_old, make_report, place
from .run import MEASURE, START, Initialisation, SolveMode, StageTimer
from .stream import Stream, refuse_repeats
from .task import Task, inspect_task, warn_of_carried_membranes
from .validation import check_form, was_trained

_CPU = torch.device("cpu")


def initialize_network(
    net: nn.Module,
    loader: Iterable[Any],
    options: Options,
    mode: SolveMode = START,
    *,
    val_loader: Iterable[Any] | None = None,
    fit_val: bool = True,
    processes: SingleProcess = SINGLE_PROCESS,
    shared: Iterable[object] = (),
) -> Report:
    """Solve the convex program of a network's readout on a private copy, and write the answer into the network if it is better.

    On any error the network is bit for bit as before; errors are those of ``ConvexInitializer.initialize``.

    ``val_loader``, ``fit_val`` and ``processes`` are as for ``ConvexInitializer.initialize``.  ``shared`` are objects that the
    network and its private copies refer to, such as a trainer.
    """
    net, options = prepare_network(net, options)
    bench = Workbench.of(net, shared)

    def run_stages() -> Callable[[Transaction], Report]:
        solved = solve_stages(bench, loader, options, mode, val_loader, fit_val=fit_val, processes=processes)
        with solved.run.timer.stage("calibrate"):
            calibrated = calibrate_readout(solved.run, solved.task, solved.data, solved.fit)
        return place_stages(bench, solved, calibrated, in_trainer=bool(shared))

    write = run_quietly(bench.net, run_stages, seed=options.seed, loader=(loader, val_loader))
    return commit(Transaction(net, allow_tied=options.allow_tied), write)


def solve_stages(
    bench: Workbench,
    loader: Iterable[Any],
    options: Options,
    mode: SolveMode,
    val_loader: Iterable[Any] | None = None,
    **data: Any,
) -> SolvedStages:
    """Run the stages up to the solution of the program; ``data`` are further fields of ``Initialisation``."""
    timer = StageTimer(options.progress)
    with timer.stage("inspect"):
        options, stream, task = _inspect(bench, loader, options, mode, data.get("processes", SINGLE_PROCESS))
        validation = None
        if val_loader is not None:
            with data.get("processes", SINGLE_PROCESS).share_errors():
                validation = options.open(val_loader, device_of(bench.net), training=stream)
                check_form(validation, stream, task.net_map.num_steps)
        run = Initialisation(
            bench.net, stream, options, mode, timer, validation=validation, was_trained=was_trained(bench.origin), **data
        )
        first = stream.head(1)[0][0]
        measure = partial(measure_scale, run.net, first, task, options)
        scale = None if mode.trained else run.processes.on_first(measure, device_of(run.net))
        with run.processes.share_errors():
            few = [] if mode.trained else stream.sample(options.max_samples)
    return SolvedStages(run, bench.origin, few, task, scale, *solve_task(run, task))


def solve_task(run: Initialisation, task: Task) -> tuple[HiddenResult, ProgramData, Fit]:
    """Choose hidden layers, capture all samples, and solve the program."""
    with run.processes.share_errors():
        samples = count_samples(run, task)
    with fast_passes(run.net):
        hidden = (_choose_together if run.processes.is_distributed else choose_hidden)(run, task, count_wanted(task, run.options))
        captured = capture_data(run, task, hidden, samples)
    with run.timer.stage("solve", None, "strengths"):
        return hidden, captured, solve_best(run, task, captured)


def place_stages(
    bench: Workbench, solved: SolvedStages, calibrated: CalibratedReadout, *, in_trainer: bool = False
) -> Callable[[Transaction], Report]:
    """Write a calibrated readout into the private net and verify it; return the function that writes into the user's."""
    run, task = solved.run, solved.task
    with run.timer.stage("write and verify"):
        placed = place(solved, calibrated)
        # A fresh net may have been silent.  A module that a trainer runs may reset it outside its forward.
        if not (run.mode.trained or task.carries_over or in_trainer):
            warn_of_carried_membranes(run.net, solved.data.captured.batches[0].inputs, run.options)
    changed = {**{place: getattr(*place) for place in solved.hidden.before}, **placed.values}
    values = {} if keeps_old(solved, calibrated) else changed

    def write(transaction: Transaction) -> Report:
        with run.processes.share_errors():
            for (module, name), value in values.items():
                transaction.write(bench.origin_of(module), name, value)
        return make_report(solved, calibrated, placed, transaction)

    return write


def _inspect(
    bench: Workbench,
    loader: Iterable[Any],
    options: Options,
    mode: SolveMode,
    processes: SingleProcess = SINGLE_PROCESS,
    inspections: Inspections | None = None,
) -> tuple[Options, Stream, Task]:
    """Open the data, inspect the network, refuse an unwritable readout; return the options with what their step shows too."""
    with processes.share_errors(), refuse_calls(bench.origin), advice_for_step(options):
        refuse_repeats(loader)
        options, stream = open_loader(bench.net, loader, options)
        head, targets = stream.head(1)
        task = inspect_task(bench.net, head[0], targets, options, mode, inspections)
        layer = replace(task.net_map.readout, module=bench.origin_of(task.net_map.readout.module))
        check_writable(bench.origin, replace(task.net_map, readout=layer), allow_tied=options.allow_tied)
        if not processes.is_distributed:  # a process alone may lack classes
            check_outputs_early(stream, task, options)
    steps = int(processes.broadcast_number(task.net_map.num_steps))
    with processes.share_errors():
        task = task.for_steps(steps, options)
    readout = task.readout
    parts = readout.kind, readout.exactness, task.rows, readout.filter.tolist(), [str(source) for source in readout.others]
    processes.check_equal("readouts", parts)
    return options, stream, task


def prepare_network(net: nn.Module, options: Options) -> tuple[nn.Module, Options]:
    """Return the network without a compiler's wrapper, and options with its loss and a forward in the autocast of this moment."""
    if not isinstance(net, nn.Module):
        raise NetworkError(f"a net of type {type(net).__name__}", "a torch.nn.Module", "pass the network, then the loader")
    net = unwrap(net)
    if options.step is not None:  # its loss is read later
        test = None if options.test is None else keep_autocast(options.test)
        return net, replace(options, step=keep_autocast(options.step), test=test)
    return net, replace(options.of_module(net), forward=keep_autocast(options.call))


def check_network(
    net: nn.Module, loader: Iterable[Any], options: Options, inspections: Inspections, shared: Iterable[object] = ()
) -> tuple[list[nn.Parameter], bool]:
    """Refuse what a refit would refuse; return the parameters of the readout, and whether processes can share rows."""
    net, options = prepare_network(net, options)
    bench = Workbench.of(net, shared)
    inspect = partial(_inspect, bench, loader, options, MEASURE, inspections=inspections)
    *_, task = run_quietly(bench.net, inspect, seed=options.seed, loader=loader)
    can_share = all(loss.smooth for loss in task.programs) and options.solver in ("auto", "newton")
    return list(bench.origin_of(task.net_map.readout.module).parameters()), can_share


# -- hidden layers, for several processes ----------------------------------------------------------------------------------------


def _choose_together(run: Initialisation, task: Task, wanted: int) -> HiddenResult:
    """Choose hidden layers in rank 0, on the first samples of all processes; return the choice in all of them."""
    processes, modules = run.processes, dict(run.net.named_modules())
    wanted = int(processes.broadcast_number(wanted))
    if not wanted:
        return choose_hidden(run, task, wanted)
    first = gather_first(run.stream, wanted, processes)
    judging = None if run.validation is None else gather_first(run.validation, wanted, processes)

    def choose() -> tuple[Any, ...]:
        assert first is not None
        stream, numbers = first
        validation = None if judging is None else judging[0]
        names = {module: name for name, module in modules.items()}
        hidden = choose_hidden(replace(run, stream=stream, validation=validation), task, wanted)
        used = None if hidden.used is None else numbers[hidden.used].sort().values
        changed = {(names[owner], name): getattr(owner, name).detach().clone() for owner, name in hidden.before}
        write_values(hidden.before)  # all processes write the choice
        return hidden.decisions, changed, used, hidden.judged

    decisions, changed, used, judged = processes.on_first(choose, device_of(run.net))
    before = write_values({(modules[owner], name): value for (owner, name), value in changed.items()})
    return HiddenResult(decisions, before, used, judged)


@dataclass(frozen=True)
class _Batch:
    inputs: Any
    targets: Tensor
    axis: int | None  # of the samples in the inputs
    numbers: Tensor  # of the samples among those of all processes


def gather_first(stream: Stream, wanted: int, processes: SingleProcess) -> tuple[Stream, Tensor] | None:
    """Return the first samples of all processes, about as many as wanted, in rank 0; None in the others.

    The stream is as one process would read it, if samples are dealt out one by one.  Numbers (n,) are those among all samples.
    """
    with processes.share_errors():
        batches = stream.first(max(1, processes.local_count(wanted)))
        sizes = [len(batch.targets) for batch in batches]
        numbers = torch.split(processes.global_indices(stream.numbers[: sum(sizes)]), sizes)
        own = [
            _Batch(to_device(batch.inputs, _CPU), batch.targets.cpu(), stream.axis_of(batch), some)
            for batch, some in zip(batches, numbers, strict=True)
        ]
    parts = processes.collect(own)
    with processes.share_errors():
        return _join_batches(parts, batches[0].targets.device) if parts else None


def _join_batches(parts: list[list[_Batch]], device: torch.device) -> tuple[Stream, Tensor]:
    """Return the batches of all processes.

    Inputs of one form are laid out in the order of their samples, in batches of the first one's size.  Other batches stay whole,
    in rounds over the processes.
    """
    batches = [batch for some in zip_longest(*parts) for batch in some if batch is not None]
    numbers, axis = torch.cat([batch.numbers for batch in batches]), batches[0].axis
    if axis is None or len({_form(batch) for batch in batches}) > 1:
        return Stream([(batch.inputs, batch.targets) for batch in batches], device), numbers
    order, size = numbers.argsort(), len(batches[0].targets)
    whole = zip(*(tensors_in(batch.inputs) for batch in batches), strict=True)
    split = [torch.split(torch.cat(each, axis).index_select(axis, order), size, axis) for each in whole]

    def refill(tensors: Iterator[Tensor]) -> Any:
        return map_tensors(lambda _: next(tensors), batches[0].inputs)

    inputs = [refill(iter(few)) for few in zip(*split, strict=True)]
    targets = torch.cat([batch.targets for batch in batches])[order]
    return Stream(list(zip(inputs, torch.split(targets, size), strict=True)), device), numbers[order]


def _form(batch: _Batch) -> object:
    """Return what batches have in common that can be joined along their samples."""
    axis = batch.axis
    if axis is None or isinstance(batch.inputs, Padded):
        return object()
    return axis, str(map_tensors(lambda tensor: (tensor.dtype, tensor.select(axis, 0).shape), batch.inputs))
