"""Start of a network's hidden layers without labels: the call, and its result."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from .hidden.drive import RATE, Driven, choose_drive
from .hidden.hidden_task import LayerGain, change_layers
from .networks.calls.batches import first_samples, tensors_in
from .networks.calls.calls import CallRecorder, LayerStats, SpikeCounter
from .networks.calls.forward import Forward, without_contexts
from .networks.calls.record import Taps, check_forward, record, refuse_calls, run_forward, spike_taps
from .networks.private.quiet import run_quietly
from .networks.private.workbench import Workbench
from .networks.structure.graph import reads_spikes
from .networks.structure.inspect import inspect_hidden
from .networks.structure.layers import HiddenLayer
from .networks.write import Transaction, commit
from .options import Options, check_fraction, check_whole
from .read.loss_calls import Step
from .read.step import open_loader
from .scan.passes import fast_passes
from .stages.initialize import prepare_network
from .stages.stream import Unpack
from .text_table import align, ruled

_HEADINGS = ("layer", "neuron", "rate before", "after", "never spike before", "after", "gain", "offset")


@dataclass(frozen=True)
class LayerStart:
    """One hidden layer.

    Args:
        name: name of its synapse in the net, such as "conv1".
        neuron: class of its neurons.
        before: how it fired before: ``firing_rate``, spikes per neuron and step, and ``silent``, the share that never spikes.
        after: how it fires now, on the same samples.
        gain: factor of its weight and bias, or of those of the norm before its neurons.
        offset: what its bias adds to the currents beside that, on average over units.
        reason: why the layer stays as it was; empty if it was set.

    Example:
        >>> from snn_recon_plugin import hidden_init_
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> start = hidden_init_(net, [data.train_inputs[:100]])
        >>> start.layers[0].name, start.layers[0].neuron
        ('fc1', 'Leaky')
    """

    name: str
    neuron: str
    before: LayerStats
    after: LayerStats
    gain: float = 1.0
    offset: float = 0.0
    reason: str = ""


@dataclass(frozen=True, repr=False, eq=False)
class HiddenStart:
    """Result of :func:`hidden_init_`; ``print`` shows a table.

    Args:
        layers: hidden layers, from the input up.
        samples: samples that were run.

    Example:
        >>> from snn_recon_plugin import hidden_init_
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> start = hidden_init_(net, [data.train_inputs[:100]])
        >>> len(start.layers), start.samples
        (1, 100)
    """

    layers: tuple[LayerStart, ...]
    samples: int
    _transaction: Transaction

    def undo(self) -> None:
        """Bring back the old weights, biases and running statistics; a second call does nothing.

        Raises:
            WriteError: a parameter was removed or replaced since, e.g. by pruning.
        """
        self._transaction.undo()

    def __str__(self) -> str:
        lines = align([_HEADINGS, *map(_cells, self.layers)], left=2)
        notes = [f"{layer.name!r} stays as it was: {layer.reason}" for layer in self.layers if layer.reason]
        return ruled(lines, [f"{self.samples:,} samples, no labels", *notes])

    def __repr__(self) -> str:
        return f"<HiddenStart of {', '.join(layer.name for layer in self.layers)}>"


def _cells(layer: LayerStart) -> tuple[str, ...]:
    both = layer.before, layer.after
    rates = (f"{one.firing_rate:.3f}" for one in both)
    silent = ("n/a" if math.isnan(one.silent) else f"{one.silent:.0%}" for one in both)
    return (repr(layer.name), layer.neuron, *rates, *silent, f"{layer.gain:.3g}", f"{layer.offset:.3g}")


def hidden_init_(
    net: nn.Module,
    loader: Iterable[Any],
    *,
    step: Step | None = None,
    forward: Forward | None = None,
    unpack: Unpack | None = None,
    rate: float = RATE,
    max_samples: int = 128,
) -> HiddenStart:
    """Set every hidden layer from a few batches without labels: a net in which nothing spikes, or everything, can then learn.

    Layers are set from the input up.  A layer's bias is dropped.  A unit whose mean current is further from zero than the
    current's standard deviation, over samples and steps, is shifted to there.  A gain of the weights then gives a firing rate;
    rows keep their pattern.  If a norm lies before the neurons, its weight, bias and running statistics are set.  A layer without
    a bias gets the gain alone.  Frozen (``requires_grad=False``) and computed parameters stay.  So do layers whose spikes nothing
    reads, and what the net ends in: it needs no readout.  Work is done on a private copy; on any error the net is bit for bit as
    before.

    Args:
        net: a network of snnTorch, Norse or SpikingJelly, for any purpose.
        loader: batches of inputs alone, or with targets behind them, which are not read.  A batch is a tensor, or a tuple or list
            whose first item is the input.  Inputs alone have their samples on the first axis, or where ``over_time`` has them.
        step: your training step, ``step(net, batch)``, in place of ``forward`` and ``unpack``; as for ``convex_init_``.
        forward: ``forward(net, inputs)``; default ``net(inputs)``.
        unpack: ``unpack(batch)`` gives the input, or a tuple that begins with it, for other batches, e.g. dictionaries.
        rate: firing rate to reach, in spikes per neuron and step, above 0 to 0.5; default 0.05.
        max_samples: maximum number of samples, the first ones of the loader, at least 10; default 128.

    Returns:
        The firing of each layer before and after, its gain and offset; ``undo()`` brings back the old values.

    Raises:
        OptionError: a number out of range.
        DataError: an empty loader, or batches that can't be used.
        NetworkError: the net can't be run or has no hidden layer; a SilentLayerError if a layer gets the same current for every
            sample.
        WriteError: a value that can't be written.

    Example:
        >>> from snn_recon_plugin import hidden_init_
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=64, outputs=10, steps=8)
        >>> start = hidden_init_(net, [data.train_inputs])
        >>> [(layer.name, round(layer.after.firing_rate, 2)) for layer in start.layers]
        [('fc1', 0.05)]

    Source: fluctuation-driven initialisation (Rossbroich, Gygax and Zenke 2022, doi 10.1088/2634-4386/ac97bb), with fluctuations
    measured instead of derived, and weights that keep their draw.
    """
    check_fraction("rate", rate, 0.5, RATE)
    check_whole("max_samples", max_samples, 10)
    inner, options = prepare_network(net, Options(step=step, forward=forward, unpack=unpack, max_samples=max_samples))
    bench = Workbench.of(inner)
    with refuse_calls(inner):
        choose = partial(_choose_all, bench.net, loader, options, rate)
        layers, samples, written = run_quietly(bench.net, choose, seed=0, loader=loader)

    def write(transaction: Transaction) -> HiddenStart:
        for module, name in written:
            transaction.write(bench.origin_of(module), name, getattr(module, name))
        return HiddenStart(layers, samples, transaction)

    return commit(Transaction(inner), write)


def _choose_all(
    net: nn.Module, loader: Iterable[Any], options: Options, rate: float
) -> tuple[tuple[LayerStart, ...], int, list[tuple[nn.Module, str]]]:
    """Set the layers of a private net from the input up; return them, the number of samples, and what was written."""
    if options.step is None:
        axis = getattr(without_contexts(options.call), "batch_dim", None)
        options = replace(options, unpack=partial(_without_labels, options.unpack, axis))
    options, stream = open_loader(net, loader, options)
    forward = options.call
    batches, targets = stream.head(options.max_samples or 0, options.max_samples)
    few, _ = first_samples(batches[0].inputs, batches[0].size, run=lambda inputs: run_forward(net, inputs, forward))
    if few is batches[0].inputs:
        check_forward(net, few, forward)
    hidden, recorder = inspect_hidden(net, few, forward), CallRecorder(net, batches, forward)

    def decide(number: int) -> Driven:
        if reads_spikes(net, few, forward, hidden[number].neuron):
            return choose_drive(recorder, hidden, number, rate=rate)
        return LayerGain(hidden[number].name, reason="nothing reads its spikes, but its membranes"), {}

    with fast_passes(net):
        before = _count_spikes(recorder, hidden)
        gains, changed = change_layers(hidden, decide)
        after = _count_spikes(recorder, hidden)
    layers = tuple(
        LayerStart(layer.name, type(layer.neuron).__name__, one, last, gain.gain, gain.offset, gain.reason)
        for layer, one, last, gain in zip(hidden, before, after, gains, strict=True)
    )
    return layers, len(targets), list(changed)


def _without_labels(unpack: Unpack | None, batch_dim: int | None, batch: Any) -> Any:
    """Return the input of a batch with zeros as targets, one for each sample, and with lengths if ``unpack`` gives them."""
    parts = batch if unpack is None else unpack(batch)
    inputs, *others = parts if isinstance(parts, (tuple, list)) and parts else (parts,)
    first = next(tensors_in(inputs), None)
    if first is None or first.dim() == 0 or isinstance(parts, Mapping):
        return parts  # refused, with what to pass
    labels = next(tensors_in(others[:1]), None)
    if batch_dim is not None:
        samples = first.shape[batch_dim] if first.dim() > batch_dim else len(first)
    else:
        samples = len(first) if labels is None or labels.dim() == 0 else len(labels)
    return (inputs, torch.zeros(samples), *(others[1:2] if unpack is not None else ()))


def _count_spikes(recorder: CallRecorder, layers: Sequence[HiddenLayer]) -> list[LayerStats]:
    counters = {layer.neuron: SpikeCounter() for layer in layers}
    taps = Taps(outputs=spike_taps({neuron: counter.add for neuron, counter in counters.items()}))
    for batch in recorder.batches:
        record(recorder.net, batch, recorder.forward, taps)
    return [counters[layer.neuron].stats() for layer in layers]
