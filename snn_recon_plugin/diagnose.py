"""Diagnosis of a network on the user's data: it reads only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from .diagnose_measure import Gradients, count_spikes, map_layers, measure_gradients, solve_readout, take_samples
from .diagnose_parts import (
    Finding,
    LayerDiagnosis,
    find_in_gradients,
    find_in_growth,
    find_in_layers,
    find_in_scores,
    spell_call,
)
from .diagnosis import Diagnosis
from .errors import OptionError, ReconstructionError, SilentLayerError
from .networks import (
    SPIKE_READOUTS,
    Forward,
    NetworkMap,
    Workbench,
    check_writable,
    device_of,
    is_neuron,
    library_of,
    refuse_calls,
    run_quietly,
)
from .stages import START, Options, Stream, Unpack, check_whole, inspect_task, prepare_network, refuse_repeats
from .stages.fit import HeldOut
from .training.damping import measure_growth

__all__ = ["Diagnosis", "Finding", "LayerDiagnosis", "diagnose"]


def diagnose(
    net: nn.Module,
    loader: Iterable[Any],
    *,
    loss: object = "cross_entropy",
    readout: str = "auto",
    readout_layer: str | None = None,
    forward: Forward | None = None,
    classes: int | None = None,
    unpack: Unpack | None = None,
    max_samples: int = 1000,
    seed: int = 0,
) -> Diagnosis:
    """Measure how a network fires, whether gradients pass, and what a readout solved on its spikes would score.

    Nothing is written: parameters, their gradients, modes, hooks, random generators and membranes are left as found, also after an
    error or an interrupt.  All measurements are in evaluation mode.  Options mean the same as in ``ConvexInitializer``.  The
    report of ``convex_init_(hidden="keep")`` with the same ``max_samples`` and ``seed`` has the same accuracies and firing rates.

    Args:
        net: a snnTorch or Norse network.  Of one that ``convex_init_`` refuses, firing and gradients are reported, and the refusal
            is a finding.
        loader: (input, target) batches, as for ``ConvexInitializer.initialize``.
        loss: your training loss, by name or as its object; default "cross_entropy".
        readout: decoding of scores; default "auto".
        readout_layer: name of the readout's nn.Linear, for networks with several candidates.
        forward: ``forward(net, inputs)``; default ``net(inputs)``.
        classes: number of classes that the outputs stand for, if they are fewer than the outputs.
        unpack: ``unpack(batch)`` gives (input, target), for batches that are no such pairs.
        max_samples: maximum number of samples, the first ones of the loader, at least 10; default 1,000.  A fifth is held out.
        seed: of the split, of the shuffling of your loader during the call, and of everything else random; default 0.

    Returns:
        The diagnosis: ``print`` shows a table.  Each finding has what to do.

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
    check_whole("max_samples", max_samples, 10)
    options = Options(
        hidden="keep",
        loss=loss,
        readout=readout,
        readout_layer=readout_layer,
        forward=forward,
        classes=classes,
        unpack=unpack,
        max_samples=max_samples,
        seed=seed,
    )
    call = spell_call(options)
    inner, options = prepare_network(net, options)
    bench = Workbench.of(inner)
    with refuse_calls(inner):
        work = partial(_diagnose, bench.net, loader, options, max_samples, call)
        return run_quietly(bench.net, work, seed=seed, loader=loader)


def _diagnose(net: nn.Module, loader: Iterable[Any], options: Options, limit: int, call: str) -> Diagnosis:
    """Run all measurements on a private network; ``call`` is the initialisation that the user would type."""
    refuse_repeats(loader)
    # Drawn once, and cut: a single batch of all data costs no more than small ones.
    sample = take_samples(options.open(loader, device_of(net)), limit)
    stream = Stream(sample, device_of(net))
    batches, targets = stream.head(limit)
    options = replace(options, max_samples=max(limit, len(targets)))  # more than the limit if a batch could not be cut
    found: list[Finding] = []
    task, net_map = None, None
    refusal: ReconstructionError | None = None
    now = solved = HeldOut()
    fitted = 0
    network, readout = type(net).__name__, ""
    try:
        inspected = inspect_task(net, batches[0], targets[batches[0].rows], options, START)
        check_writable(net, inspected.net_map)
        task, net_map = inspected, inspected.net_map
        network += f" ({net_map.library}), {net_map.num_steps} steps"
        readout = f"{net_map.readout.name!r} as {task.readout.kind}"
    except OptionError:
        raise
    except ReconstructionError as error:
        refusal, call = error, ""
        found.append(Finding("refused", f"convex_init_ refuses this net: {error.found}; needed: {error.needed}", error.fix))
        net_map = map_layers(net, batches[0], options)
    neurons = [module for module in net.modules() if is_neuron(module)]
    try:
        firing = count_spikes(net, batches, neurons, options)
    except ReconstructionError:  # nothing can be measured
        if refusal is not None:
            raise refusal  # noqa: B904 -- it keeps its own cause
        raise
    gradients = measure_gradients(net, batches[0], list(firing), options) if firing else Gradients({}, {})
    layers = tuple(
        LayerDiagnosis(
            *_place(net, net_map, neuron),
            **vars(values),
            surrogate=gradients.surrogates.get(neuron, math.nan),
            gradient=gradients.ratios.get(neuron, math.nan),
        )
        for neuron, values in firing.items()
        if library_of(neuron).threshold(neuron) is not None and not library_of(neuron).integrates(neuron)
    )
    changed = [layer.name for layer in net_map.hidden] if net_map is not None else []
    spikes_decide = task is None or task.readout.kind in SPIKE_READOUTS
    firing_findings = list(find_in_layers(layers, len(targets), call, changed, spikes_decide=spikes_decide))
    found += [*firing_findings, *find_in_gradients(layers, gradients.reason)]
    if not gradients.reason:
        found += find_in_growth(measure_growth(net, sample, options))
    if task is not None:
        try:
            now, solved = solve_readout(net, stream, task, options)
            fitted = len(targets) - solved.samples
            found.append(find_in_scores(now, solved, fitted, call, healthy=not firing_findings))
        except ReconstructionError as error:
            fix = f"{call}, which rebuilds hidden layers" if isinstance(error, SilentLayerError) else error.fix
            found.append(Finding("not_solved", f"no readout was solved: {error.found}; needed: {error.needed}", fix))
    return Diagnosis(
        network,
        readout,
        len(targets),
        fitted=fitted,
        heldout=solved.samples,
        accuracy_now=now.accuracy,
        accuracy_solved=solved.accuracy,
        loss_now=now.loss,
        loss_solved=solved.loss,
        layers=layers,
        findings=tuple(found),
    )


def _place(net: nn.Module, net_map: NetworkMap | None, neuron: nn.Module) -> tuple[str, str, bool]:
    """Return a layer's name, the class of its neuron, and True for the output neuron."""
    kind, name = type(neuron).__name__, next(name for name, module in net.named_modules() if module is neuron)
    if net_map is None:
        return name, kind, False
    if neuron is net_map.readout.neuron:
        return net_map.readout.name, kind, True
    return next((layer.name for layer in net_map.hidden if layer.neuron is neuron), name), kind, False
