"""Diagnosis of a network on the user's data, which reads only: the call, and what it measures.

Firing of each layer, gradients through it, the drive of layers that fire too little or too much, and the score of a solved readout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .diagnosis import RULES, Circumstances, Diagnosis, LayerDiagnosis
from .errors import DataError, OptionError, ReconstructionError, UnsupportedModuleError
from .hidden.drive import RATE, take_few
from .hidden.gains import DrivenLayer
from .hidden.stage import MEASURED, measure_fresh
from .networks.calls.batches import device_of, first_samples, stored_values, tensors_in
from .networks.calls.calls import CallRecorder, LayerStats, SpikeCounter
from .networks.calls.forward import Forward
from .networks.calls.record import StoredBatch, Taps, record, refuse_calls, run_forward, spike_taps, tapped
from .networks.libraries import LIBRARIES, is_neuron, library_of, reset_states
from .networks.private.quiet import run_quietly, seeded
from .networks.private.workbench import Workbench
from .networks.structure.graph import reads_spikes
from .networks.structure.inspect import inspect_hidden, inspect_network
from .networks.structure.layers import HiddenLayer, NetworkMap
from .networks.write import check_writable
from .options import Options, check_names, check_whole
from .read.loss_calls import Step
from .read.step import open_loader
from .report.hints import find_hints, measure_scale
from .scan.passes import fast_passes
from .stages.calibrate import calibrate_readout
from .stages.collect import check_outputs_early
from .stages.initialize import prepare_network, solve_task
from .stages.run import DIAGNOSE, Initialisation, StageTimer
from .stages.scores import HeldOut
from .stages.stream import Stream, Unpack, refuse_repeats
from .stages.task import Task, inspect_task
from .training.damping import measure_growth

_SPELLED = ("step", "loss", "readout", "readout_layer", "forward", "classes", "unpack")  # options that a proposed call repeats
_TAKEN = (*_SPELLED, "max_samples", "seed")
_BACKWARD_SAMPLES = 64  # of the backward pass, whose graph holds all steps: a mean over them is known to a few percent
_DRIVE_SAMPLES = 64  # of a batch whose currents are kept


def diagnose(
    net: nn.Module,
    loader: Iterable[Any],
    *,
    step: Step | None = None,
    loss: object = None,
    readout: str = "auto",
    readout_layer: str | None = None,
    forward: Forward | None = None,
    classes: int | None = None,
    unpack: Unpack | None = None,
    max_samples: int = 1000,
    seed: int = 0,
    **unknown: NoReturn,
) -> Diagnosis:
    """Measure how a network fires, whether gradients pass, and what a readout solved on its spikes would score.

    Nothing is written: parameters, their gradients, modes, hooks, random generators and membranes are left as found, also after an
    error or an interrupt.  All measurements are in evaluation mode; batch norms that have not been trained are first given the
    statistics of the data, on a copy.  Without such norms the report of ``convex_init_(hidden="keep")`` with the same
    ``max_samples`` and ``seed`` has the same accuracies and firing rates.

    Args:
        net: a network of snnTorch, Norse or SpikingJelly.  Of one that ``convex_init_`` refuses, firing and gradients are
            reported, and the refusal is a finding.
        loader: (input, target) batches, as for ``ConvexInitializer.initialize``.
        step: your training step, ``step(net, batch)``, in place of ``loss``, ``forward`` and ``unpack``; as for ``convex_init_``.
        loss: your training loss, by name or as its object; default None: the network's attribute ``loss_fn``, ``criterion``
            or ``loss``, else "cross_entropy".
        readout: decoding of scores; default "auto".
        readout_layer: name of the readout's nn.Linear, for networks with several candidates.
        forward: ``forward(net, inputs)``; default ``net(inputs)``.
        classes: number of classes that the outputs stand for, if they are fewer than the outputs.
        unpack: ``unpack(batch)`` gives (input, target), for batches that are no such pairs.
        max_samples: maximum number of samples, the first ones of the loader, at least 10; default 1,000.  A fifth is held out.
        seed: of the split, of the shuffling of your loader during the call, and of everything else random; default 0.
        **unknown: none; other names are refused, with the closest option.

    Returns:
        The diagnosis.  ``print`` shows a table; each finding has what to do.

    Raises:
        OptionError: an unknown name, a number out of range, or an option that does not fit the net.
        DataError: an empty loader, or batches that can't be used.
        NetworkError: ``net`` is no module, or the forward pass fails, so that nothing can be measured.

    Example:
        >>> from snn_recon_plugin import convex_init_, diagnose
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=64, outputs=10, steps=8)
        >>> loader = [(data.train_inputs, data.train_labels)]
        >>> diagnose(net, loader).findings[-1].kind
        'gain'
        >>> report = convex_init_(net, loader, progress=False)
        >>> diagnose(net, loader).findings[-1].kind
        'nothing_to_gain'
    """
    given = {name: value for name, value in locals().items() if name in _TAKEN}
    check_names(unknown, _TAKEN)
    check_whole("max_samples", max_samples, 10)
    options = Options(hidden="keep", **given)
    inner, prepared = prepare_network(net, options)
    bench = Workbench.of(inner)
    calls = _spell_call("convex_init_", options, _SPELLED), _spell_call("hidden_init_", options, ("step", "forward", "unpack"))
    with refuse_calls(inner):
        work = partial(_measure, bench.net, loader, prepared, max_samples, *calls)
        found, circumstances = run_quietly(bench.net, work, seed=options.seed, loader=loader)
    return replace(found, findings=tuple(finding for rule in RULES for finding in rule(found, circumstances)))


def _spell_call(name: str, options: Options, repeated: Sequence[str]) -> str:
    """Return a call to type, with those of the given options that it takes."""
    fields = Options.__dataclass_fields__
    given = [f"{each}=..." for each in repeated if getattr(options, each) != fields[each].default]
    return f"{name}({', '.join(['net', 'loader', *given])})"


def _measure(
    net: nn.Module, loader: Iterable[Any], options: Options, limit: int, call: str, start: str
) -> tuple[Diagnosis, Circumstances]:
    """Measure a private net on the first ``limit`` samples; ``call`` and ``start`` are the lines to type for initialisations."""
    refuse_repeats(loader)
    options, stream = open_loader(net, loader, options)
    (first,) = Stream(_cut(stream.first(1), limit), device_of(net)).first(1)
    task, refusal = None, None
    try:
        inspected = inspect_task(net, first, first.targets, options, DIAGNOSE)
        check_writable(net, inspected.net_map)
        task = inspected
        net_map: NetworkMap | None = task.net_map
        hidden: Sequence[HiddenLayer] = task.net_map.hidden
    except ReconstructionError as error:
        if isinstance(error, OptionError):
            raise
        refusal = error
        net_map, hidden = _map_layers(net, first, options)
    try:
        # Drawn once, and cut: a single batch of all data costs no more than small ones.
        sample = _cut(stream.first(limit), limit)
        if (drawn := list(tensors_in([inputs for inputs, _ in sample]))) and not any(stored_values(each).any() for each in drawn):
            found = f"inputs that are all zero, of {sum(len(labels) for _, labels in sample):,} samples"
            raise DataError(found, "inputs that differ between samples", "find where they get lost: print(next(iter(loader)))")
        stream = Stream(sample, device_of(net))
        batches, targets = stream.head(limit)
        options = replace(options, max_samples=max(limit, len(targets)))  # more than the limit if a batch could not be cut
        readout = None if net_map is None else net_map.readout.module
        measure_fresh(CallRecorder(net, batches, options.call).first(MEASURED), hidden, readout)
        counters = _count_spikes(net, batches, options)
    except ReconstructionError:  # nothing can be measured
        if refusal is not None:
            raise refusal  # noqa: B904 -- it keeps its own cause
        raise
    gradients = _measure_gradients(net, batches[0], list(counters), options) if counters else _Gradients({}, {})
    growth = 1.0 if gradients.reason else measure_growth(net, sample, options)
    now, solved, unsolved = HeldOut(), HeldOut(), None
    if task is not None:
        try:
            now, solved = _solve_readout(net, stream, task, options)
        except ReconstructionError as error:
            unsolved = error
    own = {layer.name: layer for layer in hidden}
    recorder = CallRecorder(net, batches[:1], options.call)
    with fast_passes(net):
        layers = [
            _add_drive(recorder, own[layer.name], layer) if layer.is_unhealthy and layer.name in own else layer
            for layer in _describe_layers(net, net_map, hidden, counters, gradients)
        ]
    few, _ = first_samples(first.inputs, first.size, run=lambda inputs: run_forward(net, inputs, options.call))
    unhealthy = [layer.name for layer in layers if layer.is_unhealthy and layer.name in own]
    unread = [name for name in unhealthy if not reads_spikes(net, few, options.call, own[name].neuron)]
    diagnosis = Diagnosis(
        network=type(net).__name__ + ("" if task is None else f" ({task.net_map.library}), {task.net_map.num_steps} steps"),
        readout="" if task is None else f"{task.net_map.readout.name!r} as {task.readout.kind}",
        samples=len(targets),
        fitted=0 if task is None or unsolved is not None else len(targets) - solved.samples,
        heldout=solved.samples,
        accuracy_now=now.accuracy,
        accuracy_solved=solved.accuracy,
        loss_now=now.loss,
        loss_solved=solved.loss,
        layers=tuple(layers),
    )
    return diagnosis, Circumstances(
        call="" if task is None else call,
        start=start,
        refusal=refusal,
        changed=[layer.name for layer in hidden],
        unread=unread,
        spikes_decide=not targets.is_floating_point() if task is None else task.readout.of_spikes,
        no_gradients=gradients.reason,
        growth=growth,
        hints=() if task is None else find_hints(options, measure_scale(net, batches[0], task, options)),
        unsolved=unsolved,
        not_reset={library.resets: names for library in LIBRARIES if (names := library.missed_by_reset(net))},
    )


def _cut(batches: Sequence[StoredBatch], limit: int) -> list[tuple[Any, Tensor]]:
    """Return the first ``limit`` samples as (input, target) batches; the last one is whole if its batch axis is unclear."""
    few = [(first_samples(batch.inputs, batch.size, limit - batch.rows.start), batch.targets) for batch in batches]
    return [(inputs, labels[:count]) for (inputs, count), labels in few]


# -- layers --------------------------------------------------------------------------------------------------------------------


def _map_layers(net: nn.Module, batch: StoredBatch, options: Options) -> tuple[NetworkMap | None, Sequence[HiddenLayer]]:
    """Return the layers of a net that is refused for another reason, and its hidden ones; None and () if they can't be found."""
    few, _ = first_samples(batch.inputs, batch.size, run=lambda inputs: run_forward(net, inputs, options.call))
    with suppress(ReconstructionError):
        found = inspect_network(net, few, options.call, readout_layer=options.readout_layer)
        return found, found.hidden
    with suppress(ReconstructionError):
        return None, inspect_hidden(net, few, options.call)
    return None, ()


def _add_drive(recorder: CallRecorder, own: HiddenLayer, layer: LayerDiagnosis) -> LayerDiagnosis:
    """Add how near the currents of a layer bring its membranes to the threshold, if its neurons can run without the net."""
    library, neuron = own.library, own.neuron
    if own.synapse is neuron:
        return layer
    try:
        alone = DrivenLayer(recorder, own, currents=take_few(recorder.record_currents(own, keep=_DRIVE_SAMPLES)))
        first, gain = alone.find_gain(0.0), alone.find_gain(RATE)
    except ReconstructionError:
        return layer
    threshold = library.threshold(neuron)
    assert threshold is not None
    try:
        leak = library.dynamics(neuron).leak
    except UnsupportedModuleError:
        leak = math.nan
    reach, gain = 0.0 if first is None else 1 / first, math.inf if gain is None else gain
    return replace(layer, reach=reach, gain=gain, threshold=threshold[1], leak=leak)


def _describe_layers(
    net: nn.Module,
    net_map: NetworkMap | None,
    hidden: Sequence[HiddenLayer],
    counters: dict[nn.Module, _Counter],
    gradients: _Gradients,
) -> list[LayerDiagnosis]:
    """Return the measurements of neurons that spike, in order of their first calls."""
    names = {module: name for name, module in net.named_modules()} | {layer.neuron: layer.name for layer in hidden}
    output = None if net_map is None else net_map.readout.neuron
    if net_map is not None and output is not None:
        names[output] = net_map.readout.name
    layers = []
    for neuron, counter in counters.items():
        if library_of(neuron).threshold(neuron) is None or library_of(neuron).integrates(neuron) or not counter.spikes_alone:
            continue
        stats, no_spike = counter.firing()
        layers.append(
            LayerDiagnosis(
                names[neuron],
                type(neuron).__name__,
                neuron is output,
                **vars(stats),
                no_spike=no_spike,
                surrogate=gradients.surrogates.get(neuron, math.nan),
                gradient=gradients.ratios.get(neuron, math.nan),
            )
        )
    return layers


def _count_spikes(net: nn.Module, batches: Sequence[StoredBatch], options: Options) -> dict[nn.Module, _Counter]:
    """Run a private net, within ``quiet``, and return the counter of each neuron that ran, in order of their first calls."""
    counters, rows = dict[nn.Module, _Counter](), slice(0)

    def tap(neuron: nn.Module) -> Callable[[Tensor], None]:
        return lambda spikes: counters.setdefault(neuron, _Counter()).add(spikes, rows)

    taps = Taps(outputs=spike_taps({neuron: tap(neuron) for neuron in net.modules() if is_neuron(neuron)}))
    with fast_passes(net):
        for batch in batches:
            rows = batch.rows
            record(net, batch, options.call, taps)
    return counters


class _Counter:
    """Counter of the spikes of each neuron of a layer, and of the samples without any."""

    def __init__(self) -> None:
        self._units, self._follows, self._batched = SpikeCounter(), True, True
        self._sizes: Tensor | None = None  # of a spike of each unit; 0 before the first one
        self.spikes_alone = True  # False once a unit's output has a second size, as a membrane has
        self._fired: dict[int, Tensor] = {}  # for each batch, by its first sample, which samples have spiked

    def add(self, spikes: Tensor, rows: slice) -> None:
        """Count the spikes of one step of a batch of samples."""
        if spikes.ndim == 0:
            self._follows = False
            return
        self._units.add(spikes)
        sizes = spikes.detach().abs()
        if self._sizes is None or self._sizes.shape != sizes.shape[1:]:
            self._sizes = sizes.new_zeros(sizes.shape[1:])
        self._sizes = torch.where(self._sizes == 0, sizes.amax(0), self._sizes)
        self.spikes_alone = self.spikes_alone and bool(((sizes == 0) | (sizes == self._sizes)).all())
        self._batched = self._batched and len(spikes) == rows.stop - rows.start
        if self._batched:
            fired = spikes.detach().ne(0).reshape(len(spikes), -1).any(1)
            self._fired[rows.start] = fired | self._fired.get(rows.start, fired)

    def firing(self) -> tuple[LayerStats, float]:
        """Return the layer's firing, and the share of the samples without a spike; NaN where calls differ in shape."""
        if not self._follows:
            return LayerStats(math.nan, math.nan, math.nan, neurons=0), math.nan
        fired = torch.cat(list(self._fired.values())) if self._batched and self._fired else torch.empty(0)
        return self._units.stats(), int((fired == 0).sum()) / len(fired) if len(fired) else math.nan


@dataclass(frozen=True)
class _Gradients:
    """Gradients at each neuron, or the reason why they were not measured."""

    surrogates: dict[nn.Module, float]  # mean derivative of a neuron's spikes by its input current; NaN if it is not finite
    ratios: dict[nn.Module, float]  # norm of the gradient at the input currents, relative to the layer above
    reason: str = ""


def _measure_gradients(net: nn.Module, batch: StoredBatch, neurons: Sequence[nn.Module], options: Options) -> _Gradients:
    """Measure how much of the gradient each layer passes down, of returned values with random signs; no ``.grad`` is written."""
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
            returned = [value for value in tensors_in(run_forward(net, inputs, options.call)) if value.requires_grad]
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


def _solve_readout(net: nn.Module, stream: Stream, task: Task, options: Options) -> tuple[HeldOut, HeldOut]:
    """Solve the readout as an initialisation does; return held-out results of the net as it is, and with that readout."""
    check_outputs_early(stream, task, options)
    run = Initialisation(net, stream, options, DIAGNOSE, StageTimer(options.progress))
    _, data, fit = solve_task(run, task)
    return fit.before, calibrate_readout(run, task, data, fit).heldout
