"""Measurements of a diagnosis: firing of each layer, gradients through it, and the score of a solved readout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .diagnose_drive import map_layers, measure_drive
from .diagnose_rules import LayerDiagnosis, Measured
from .errors import OptionError, ReconstructionError
from .networks.calls.activity import FiringCounter, LayerStats
from .networks.calls.batches import device_of, first_samples, tensors_in
from .networks.calls.fast_passes import fast_passes
from .networks.calls.record import StoredBatch, Taps, record, tapped
from .networks.libraries import LIBRARIES, is_neuron, library_of, reset_states
from .networks.private.quiet import seeded
from .networks.readout.readouts import SPIKE_READOUTS
from .networks.structure.layers import HiddenLayer, NetworkMap
from .networks.write import check_writable
from .options import Options
from .report.hints import Facts, find_hints, measure_scale
from .stages.build import choose_hidden, count_wanted
from .stages.calibrate import calibrate_readout
from .stages.collect import capture_data, check_outputs_early, count_samples
from .stages.fit import HeldOut, solve_best
from .stages.loader import refuse_repeats
from .stages.progress import Progress
from .stages.run import START, Context, Run
from .stages.stream import Stream
from .stages.task import Task, inspect_task
from .training.damping import measure_growth

_BACKWARD_SAMPLES = 64  # of the backward pass, whose graph holds all steps: a mean over them is known to a few percent


@dataclass(frozen=True)
class _Firing(LayerStats):
    """Firing of a layer's neurons, not a number if its calls differ in shape: no neuron can be followed then."""

    no_spike: float  # share of the samples without a spike in the layer; NaN if its batch axis is unclear


@dataclass(frozen=True)
class _Gradients:
    """Gradients at each neuron, or the reason why they were not measured."""

    surrogates: dict[nn.Module, float]  # mean derivative of a neuron's spikes by its input current; NaN if it is not finite
    ratios: dict[nn.Module, float]  # norm of the gradient at the input currents, relative to the layer above
    reason: str = ""


def measure(net: nn.Module, loader: Iterable[Any], options: Options, limit: int, call: str, start: str) -> Measured:
    """Measure a private net on the first ``limit`` samples, within ``quiet``.

    ``call`` is the line to type for an initialisation, ``start`` the line for hidden layers alone.

    Raises:
        OptionError: an option that does not fit the net.
        DataError: an empty loader, or batches that can't be used.
        NetworkError: the forward pass fails.
    """
    refuse_repeats(loader)
    # Drawn once, and cut: a single batch of all data costs no more than small ones.
    sample = _take_samples(options.open(loader, device_of(net)), limit)
    stream = Stream(sample, device_of(net))
    batches, targets = stream.head(limit)
    options = replace(options, max_samples=max(limit, len(targets)))  # more than the limit if a batch could not be cut
    task, refusal = None, None
    try:
        inspected = inspect_task(net, batches[0], targets[batches[0].rows], options, START)
        check_writable(net, inspected.net_map)
        task = inspected
        net_map: NetworkMap | None = task.net_map
        hidden: Sequence[HiddenLayer] = task.net_map.hidden
    except ReconstructionError as error:
        if isinstance(error, OptionError):
            raise
        refusal = error
        net_map, hidden = map_layers(net, batches[0], options)
    try:
        firing = _count_spikes(net, batches, [module for module in net.modules() if is_neuron(module)], options)
    except ReconstructionError:  # nothing can be measured
        if refusal is not None:
            raise refusal  # noqa: B904 -- it keeps its own cause
        raise
    gradients = _measure_gradients(net, batches[0], list(firing), options) if firing else _Gradients({}, {})
    growth = 1.0 if gradients.reason else measure_growth(net, sample, options)
    now, solved, unsolved = HeldOut(), HeldOut(), None
    if task is not None:
        try:
            now, solved = _solve_readout(net, stream, task, options)
        except ReconstructionError as error:
            unsolved = error
    return Measured(
        network=type(net).__name__ + ("" if task is None else f" ({task.net_map.library}), {task.net_map.num_steps} steps"),
        readout="" if task is None else f"{task.net_map.readout.name!r} as {task.readout.kind}",
        samples=len(targets),
        call="" if task is None else call,
        start=start,
        refusal=refusal,
        layers=measure_drive(net, batches[0], hidden, _describe_layers(net, net_map, hidden, firing, gradients), options),
        changed=[layer.name for layer in hidden],
        spikes_decide=task is None or task.readout.kind in SPIKE_READOUTS,
        no_gradients=gradients.reason,
        growth=growth,
        hints=() if task is None else find_hints(Facts(options, measure_scale(net, batches[0], task, options))),
        unsolved=unsolved,
        fitted=0 if task is None or unsolved is not None else len(targets) - solved.samples,
        now=now,
        solved=solved,
        not_reset=tuple(name for library in LIBRARIES for name in library.missed_by_reset(net)),
    )


def _describe_layers(
    net: nn.Module,
    net_map: NetworkMap | None,
    hidden: Sequence[HiddenLayer],
    firing: dict[nn.Module, _Firing],
    gradients: _Gradients,
) -> tuple[LayerDiagnosis, ...]:
    """Return the measurements of neurons that spike, in order of their first calls."""
    names = {module: name for name, module in net.named_modules()}
    names |= {layer.neuron: layer.name for layer in hidden}
    if net_map is not None:
        names |= {net_map.readout.neuron: net_map.readout.name} if net_map.readout.neuron is not None else {}
    return tuple(
        LayerDiagnosis(
            names[neuron],
            type(neuron).__name__,
            net_map is not None and neuron is net_map.readout.neuron,
            **vars(values),
            surrogate=gradients.surrogates.get(neuron, math.nan),
            gradient=gradients.ratios.get(neuron, math.nan),
        )
        for neuron, values in firing.items()
        if library_of(neuron).threshold(neuron) is not None and not library_of(neuron).integrates(neuron)
    )


def _take_samples(stream: Stream, limit: int) -> list[tuple[Any, Tensor]]:
    """Return the first ``limit`` samples as (input, target) batches; the last one is whole if its batch axis is unclear."""
    batches, targets = stream.head(limit)
    few = [(first_samples(batch.inputs, batch.size, limit - batch.rows.start), targets[batch.rows]) for batch in batches]
    return [(inputs, labels[:count]) for (inputs, count), labels in few]


# -- firing --------------------------------------------------------------------------------------------------------------------


def _count_spikes(
    net: nn.Module, batches: Sequence[StoredBatch], neurons: Sequence[nn.Module], options: Options
) -> dict[nn.Module, _Firing]:
    """Run a private net, within ``quiet``, and return the firing of each neuron that ran, in order of their first calls.

    Raises:
        CaptureError: the forward pass calls none of the neurons.
        NetworkError: the forward pass fails.
    """
    counters: dict[nn.Module, _Counter] = {}
    size = 0

    def tap(neuron: nn.Module) -> Callable[[Any], None]:
        return lambda output: counters.setdefault(neuron, _Counter(neuron)).add(output, size)

    taps = Taps(outputs={neuron: tap(neuron) for neuron in neurons})
    with fast_passes(net):
        for batch in batches:
            size = batch.size
            record(net, batch, options.call, taps)
            for counter in counters.values():
                counter.end_batch()
    return {neuron: counter.firing() for neuron, counter in counters.items()}


class _Counter:
    """Counter of the spikes of each neuron of a layer, and of the samples without any."""

    def __init__(self, neuron: nn.Module) -> None:
        self._library, self._neurons = library_of(neuron), FiringCounter(neuron)
        self._axis = 1 if self._library.takes_sequences(neuron) else 0
        self._samples = self._quiet = 0  # samples, and those without a spike
        self._fired: Tensor | None = None  # samples of this batch that have spiked
        self._follows, self._batched = True, True

    def add(self, output: Any, size: int) -> None:
        """Count the spikes in an output of the neuron, for a batch of ``size`` samples."""
        spikes = self._library.spikes(output).detach()
        if spikes.ndim <= self._axis:
            self._follows = False
            return
        seen = self._neurons.spikes
        self._follows = self._follows and (seen is None or seen.shape == spikes.shape[self._axis + 1 :])
        self._batched = self._batched and spikes.shape[self._axis] == size
        if self._follows:
            self._neurons.add(output)
        if self._batched:
            fired = spikes.ne(0).movedim(self._axis, 0).reshape(size, -1).any(1)
            self._fired = fired if self._fired is None else self._fired | fired

    def end_batch(self) -> None:
        """Count the batch's samples without a spike."""
        if self._fired is not None:
            self._samples += len(self._fired)
            self._quiet += int((~self._fired).sum())
        self._fired = None

    def firing(self) -> _Firing:
        """Return how the layer fired."""
        if self._neurons.spikes is None or not self._follows:
            return _Firing(math.nan, math.nan, math.nan, neurons=0, no_spike=math.nan)
        quiet = self._quiet / self._samples if self._batched and self._samples else math.nan
        return _Firing(**vars(self._neurons.stats()), no_spike=quiet)


# -- gradients -----------------------------------------------------------------------------------------------------------------


def _measure_gradients(net: nn.Module, batch: StoredBatch, neurons: Sequence[nn.Module], options: Options) -> _Gradients:
    """Measure how much of the gradient each layer passes down; ``neurons`` are in order of their first calls, outputs included.

    The gradient is taken of the returned values, each with a random sign, on a few samples.  No ``.grad`` is written.
    """
    currents: dict[nn.Module, list[Tensor]] = {neuron: [] for neuron in neurons}
    spikes: dict[nn.Module, list[Tensor]] = {neuron: [] for neuron in neurons}

    def enter(neuron: nn.Module) -> Callable[[Tensor], Tensor]:
        def keep(current: Tensor) -> Tensor:
            current = current if current.requires_grad else current.detach().requires_grad_().clone()
            currents[neuron].append(current)
            return current

        return keep

    def leave(neuron: nn.Module) -> Callable[[Any], None]:
        return lambda output: spikes[neuron].append(library_of(neuron).spikes(output))

    taps = Taps(new_inputs={neuron: enter(neuron) for neuron in neurons}, outputs={neuron: leave(neuron) for neuron in neurons})
    inputs, _ = first_samples(batch.inputs, batch.size, _BACKWARD_SAMPLES)
    try:
        reset_states(net)
        with torch.enable_grad(), tapped(taps), seeded(batch.rows.start, net):
            returned = [value for value in tensors_in(options.call(net, inputs)) if value.requires_grad]
            if not returned:
                return _Gradients({}, {}, "what forward returns does not depend on the layers by operations that torch can derive")
            surrogates = {neuron: _mean_derivative(spikes[neuron], currents[neuron]) for neuron in neurons}
            return _Gradients(surrogates, _ratios(returned, currents))
    except Exception as error:  # a user's forward or surrogate may raise anything in a backward pass
        lines = str(error).strip().splitlines()
        return _Gradients({}, {}, type(error).__name__ + (f": {lines[0][:200]}" if lines else ""))


def _mean_derivative(spikes: list[Tensor], currents: list[Tensor]) -> float:
    """Return the mean absolute derivative of a neuron's spikes, summed over its steps, by its current at one step."""
    outputs = [value.sum() for value in spikes if value.requires_grad]
    found = torch.autograd.grad(outputs, currents, retain_graph=True, allow_unused=True) if outputs else [None] * len(currents)
    total = sum(float(value.double().abs().sum()) for value in found if value is not None)
    mean = total / sum(value.numel() for value in currents)
    return mean if math.isfinite(mean) else math.nan


def _ratios(returned: list[Tensor], currents: dict[nn.Module, list[Tensor]]) -> dict[nn.Module, float]:
    """Return each neuron's gradient norm relative to the neuron that is called next, or to what is returned."""
    generator = torch.Generator().manual_seed(0)
    signs = [(2 * torch.randint(0, 2, value.shape, generator=generator) - 1).to(value) for value in returned]
    found = iter(torch.autograd.grad(returned, [c for calls in currents.values() for c in calls], signs, allow_unused=True))
    norms = []
    for calls in currents.values():
        parts = [value for value in (next(found) for _ in calls) if value is not None]
        norms.append(math.sqrt(sum(float(value.double().square().sum()) for value in parts)))
    above = [*norms[1:], math.sqrt(sum(value.numel() for value in signs))]
    return {neuron: norm / top if top > 0 else math.nan for neuron, norm, top in zip(currents, norms, above, strict=True)}


# -- readout -------------------------------------------------------------------------------------------------------------------


def _solve_readout(net: nn.Module, stream: Stream, task: Task, options: Options) -> tuple[HeldOut, HeldOut]:
    """Solve the readout as an initialisation does; return held-out results of the net as it is, and with that readout."""
    check_outputs_early(stream, task, options)
    run = Run(net, stream, options, Context(trains_on=False), Progress(options.progress))
    samples = count_samples(run, task)
    with fast_passes(net):
        hidden = choose_hidden(run, task, count_wanted(task, run.options))
        data = capture_data(run, task, hidden, samples)
    with run.progress.stage("solve", None, "strengths"):
        fit = solve_best(run, task, data)
    return fit.before, calibrate_readout(run, task, data, fit).heldout
