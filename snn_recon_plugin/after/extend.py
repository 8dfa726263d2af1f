"""New classes of a trained network: more outputs on the same hidden layers, solved together with the old ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..convex.checks import plain_number
from ..errors import DataError, NetworkError, OptionError, WriteError
from ..networks.calls.record import StoredBatch, Taps, record
from ..networks.libraries import reset_states
from ..networks.private.parameters import Values, store_of, write_values
from ..networks.private.quiet import run_quietly
from ..networks.private.workbench import Workbench
from ..networks.structure.layers import ReadoutLayer, as_typed
from ..networks.write import Transaction, commit
from ..stages.initialize import prepare_network
from ..stages.stream import Stream
from ..text_table import align, percent, rate
from ..training.protect import clear_optimizer_state
from .outputs import Outputs, checked_strength, solve_outputs
from .statistics import ClassRows, RowSource, Statistics, open_source, reading_options, sum_loader, summed

_MOST_NEW = 10_000  # new classes at most: a label far beyond is a mistake, and sums for it would fill the memory


@dataclass(frozen=True, eq=False)
class Extension:
    """Result of ``extend_``; ``print`` shows it.

    Args:
        old_classes: number of classes before.
        new_classes: number of new ones.
        strength: factor of the ridge.
        accuracy_before: of the old readout on kept samples of the old classes, 0 to 1, among these classes; NaN without any.
            It was probably trained on these samples.
        accuracy_old: of all outputs on kept samples of the old classes, which took no part in the fit; NaN without any.
        accuracy_new: the same on kept samples of the new classes.
        kept_old: number of kept samples of the old classes.
        kept_new: number of kept samples of the new classes.
        footprint: bytes of parameters and saved buffers, before and after.
        operations: synaptic operations of the readout for a sample, before and after: spikes that enter it times outputs.
        statistics: of the old and the new samples, for the next extension.

    Example:
        >>> from snn_recon_plugin import extend_, statistics_of
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=5, steps=8)
        >>> old = data.train_labels < 5
        >>> sums = statistics_of(net, [(data.train_inputs[old], data.train_labels[old])])
        >>> result = extend_(net, [(data.train_inputs[~old], data.train_labels[~old])], statistics=sums)
        >>> result.old_classes, result.new_classes
        (5, 5)
    """

    old_classes: int
    new_classes: int
    strength: float
    accuracy_before: float
    accuracy_old: float
    accuracy_new: float
    kept_old: int
    kept_new: int
    footprint: tuple[int, int]
    operations: tuple[float, float]
    statistics: Statistics
    _transaction: Transaction = field(repr=False)
    _optimizer: torch.optim.Optimizer | None = field(repr=False)

    def undo(self) -> None:
        """Take the new outputs away again, and bring the old readout back bit for bit; a second call does nothing.

        The state of ``optimizer=`` for these parameters is cleared again.

        Raises:
            WriteError: a module has replaced a written parameter; nothing changes then.
        """
        written = [parameter for parameter, _ in self._transaction.replaced]
        self._transaction.undo()
        if self._optimizer is not None:
            clear_optimizer_state([self._optimizer], written)

    def __str__(self) -> str:
        rows = [
            ("", "before", "after"),
            ("classes", str(self.old_classes), str(self.old_classes + self.new_classes)),
            ("accuracy, old classes", percent(self.accuracy_before), rate(self.accuracy_old, self.kept_old)),
            ("accuracy, new classes", "", rate(self.accuracy_new, self.kept_new)),
            ("bytes of the network", *(f"{value:,}" for value in self.footprint)),
            ("readout operations a sample", *(f"{value:,.0f}" for value in self.operations)),
        ]
        return "\n".join(align(rows, left=1))


def extend_(
    net: nn.Module,
    loader_new: Iterable[Any],
    loader_old: Iterable[Any] | None = None,
    *,
    statistics: Statistics | None = None,
    labels: Sequence[int] | None = None,
    strength: float | str = "auto",
    optimizer: torch.optim.Optimizer | None = None,
    **reading: Any,
) -> Extension:
    """Add outputs for new classes to a network's readout in place, and solve the readout of all classes; hidden layers stay.

    The readout is solved from sums over the samples of each class, so that ``statistics`` of the old ones do as well as samples.
    The loss is the squared hinge of one class against the rest, with the scores of a class taken as normal.  Classes weigh alike,
    also if a new one has few samples.

    The Parameter objects stay, with more rows; their gradients are dropped.  Make a new optimizer, or pass ``optimizer``.  Wrap the
    network anew in ``DistributedDataParallel``.

    Args:
        net: a trained network whose readout is an nn.Linear and linear in its scores, as for ``statistics_of``.
        loader_new: (input, target) batches of the new classes.  Labels are class indices that count on from the outputs.
        loader_old: batches of the old classes; or None, with ``statistics``.
        statistics: of the old classes, from ``statistics_of`` or an earlier ``Extension.statistics``; or None, with ``loader_old``.
        labels: the loader's label of each new class, in the order of the new outputs, if it numbers them otherwise.
        strength: factor of the ridge, a positive number; "auto" (default) takes the best on kept samples.
        optimizer: its state for the written parameters is cleared; default None.
        **reading: ``step``, ``forward``, ``unpack``, ``loss``, ``readout``, ``readout_layer`` and ``seed``: see ``convex_init_``.

    Returns:
        The result, with accuracies of old and new classes apart, and ``undo()``.

    Raises:
        DataError: labels of classes that exist, or a class without samples.
        NetworkError: statistics of another network; a readout that has no solution from sums; a forward that counts its outputs.
        OptionError: neither or both of ``loader_old`` and ``statistics``, or an invalid option.
        ReconstructionError: any of them; the network is then bit for bit as before.

    Example:
        >>> from snn_recon_plugin import convex_init_, extend_, statistics_of
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=64, outputs=8, steps=8)
        >>> x, y = data.train_inputs, data.train_labels
        >>> report = convex_init_(net, [(x[y < 8], y[y < 8])], progress=False)
        >>> kept = statistics_of(net, [(x[y < 8], y[y < 8])])
        >>> extend_(net, [(x[y >= 8], y[y >= 8])], statistics=kept).new_classes
        2
        >>> net.fc2.out_features
        10
    """
    given = checked_strength(strength)
    if (loader_old is None) == (statistics is None):
        found = f"{'neither' if statistics is None else 'both'} of loader_old and statistics"
        fix = "pass statistics=statistics_of(net, loader) of the old classes, or their loader as loader_old"
        raise OptionError(found, "one of them, which holds the old classes", fix)
    if not isinstance(optimizer, torch.optim.Optimizer | None):
        found = f"optimizer= of type {type(optimizer).__name__}"
        raise OptionError(found, "one torch optimizer, or None", "pass optimizer=optimizer")
    net, options = prepare_network(net, reading_options(reading))
    bench, known = Workbench.of(net), statistics
    if loader_old is not None:
        known = run_quietly(bench.net, partial(sum_loader, bench, loader_old, options), seed=options.seed, loader=loader_old)
    assert known is not None

    def work() -> tuple[Callable[..., Extension], Values]:
        source, stream = open_source(bench, loader_new, options)
        known.require(source)
        added = _sum_new(source, stream, labels)
        _check_counts(added.counts, range(source.outputs, added.classes), "new")
        everything = known.joined(added)
        _check_counts(everything.counts, range(source.outputs), "old")
        return _solve(source, everything, given, stream.first(1)[0])

    result, values = run_quietly(bench.net, work, seed=options.seed, loader=loader_new)
    size, transaction = footprint(net), Transaction(net)

    def write(transaction: Transaction) -> None:
        for (module, name), value in values.items():
            transaction.write(bench.origin_of(module), name, value, grows=True)

    commit(transaction, write)
    if optimizer is not None:
        clear_optimizer_state([optimizer], [parameter for parameter, _ in transaction.replaced])
    return result(footprint=(size, footprint(net)), _transaction=transaction, _optimizer=optimizer)


def _sum_new(source: RowSource, stream: Stream, labels: Sequence[int] | None) -> Statistics:
    """Sum up the samples of the new classes, whose labels count on from the outputs or are ``labels``."""
    outputs, name = source.outputs, source.net_map.readout.name
    if labels is None:
        return summed(source, (_check_new(source.read(batch), outputs, name) for batch in stream))
    given = [plain_number(label) for label in labels]
    if not given or len(set(given)) < len(given) or not all(isinstance(label, int) and label >= 0 for label in given):
        raise OptionError(f"labels={list(labels)!r}", "the loader's label of each new class, each once", "pass labels=[0, 1]")

    def numbered(rows: ClassRows) -> ClassRows:
        unknown = sorted(set(rows.labels.tolist()) - set(given))
        if unknown:
            found = f"samples with the labels {unknown}, which are not in labels={given}"
            raise DataError(found, "samples of the new classes alone", f"pass labels={sorted({*given, *unknown})}")
        places = torch.tensor([given.index(label) for label in rows.labels.tolist()])
        return replace(rows, labels=outputs + places)

    return summed(source, (numbered(source.read(batch)) for batch in stream), outputs + len(given))


def _check_new(rows: ClassRows, outputs: int, name: str) -> ClassRows:
    seen = torch.unique(rows.labels).tolist()
    known = [label for label in seen if label < outputs]
    if known:
        found = f"new samples with the labels {known}, which are classes already: {name!r} has {outputs} outputs"
        fix = f"pass labels={seen} if the loader numbers the new classes anew; else leave samples of old classes out"
        raise DataError(found, f"labels of new classes, from {outputs} on", fix)
    if seen[-1] >= outputs + _MOST_NEW:
        raise DataError(f"the label {seen[-1]}", f"labels that count on from {outputs}", f"pass labels={seen}")
    return rows


def _check_counts(counts: Sequence[float], classes: range, which: str) -> None:
    missing = [label for label in classes if label >= len(counts) or not counts[label]]
    if missing:
        fix = "pass labels= with the loader's label of each new class" if which == "new" else "make statistics of all old classes"
        raise DataError(f"no samples of the {which} classes {missing}", "samples of every class", fix)


def _solve(
    source: RowSource, statistics: Statistics, strength: float | None, first: StoredBatch
) -> tuple[Callable[..., Extension], Values]:
    """Return the result without footprint and write, and the values to write, with which the private network was verified."""
    outputs, before = source.outputs, Outputs.of(source)
    solved, strength = solve_outputs(statistics, strength)
    trial, _ = solve_outputs(statistics.without_kept(), strength)
    rows, labels = statistics.kept, statistics.kept_labels
    old, new = labels < outputs, labels >= outputs
    spikes, values = _spikes(source, first), _place(source, solved, first)
    return partial(
        Extension,
        outputs,
        statistics.classes - outputs,
        strength,
        before.accuracy(rows[old], labels[old]),
        trial.accuracy(rows[old], labels[old]),
        trial.accuracy(rows[new], labels[new]),
        int(old.sum()) // statistics.steps,
        int(new.sum()) // statistics.steps,
        operations=(spikes * outputs, spikes * statistics.classes),
        statistics=statistics,
    ), values


def _spikes(source: RowSource, first: StoredBatch) -> float:
    """Return the number of spikes that enter the readout for a sample of the first batch."""
    counts: list[float] = []
    taps = Taps(inputs={source.net_map.readout.module: lambda values: counts.append(float((values != 0).sum()))})
    record(source.net, first, source.options.call, taps)
    return sum(counts) / len(first.targets)


def _place(source: RowSource, solved: Outputs, first: StoredBatch) -> Values:
    """Write the outputs into the private network and compare its scores with theirs; return the values that were written."""
    layer, outputs = source.net_map.readout, source.outputs
    reset_states(source.net)  # a membrane of the last batch has as many values as outputs, too
    values = {
        **grown_neuron(layer, len(solved.weight) - outputs),
        **{(layer.module, name): value for name, value in layer.parameters(solved.weight, solved.bias - source.rest).items()},
    }
    values = {(module, name): value.to(getattr(module, name)) for (module, name), value in values.items()}
    write_values(values)
    try:
        grown = RowSource.find(source.net, first.inputs, first.targets, source.options)
        rows = grown.read(first)
    except NetworkError as error:
        found = f"a network that does not run with {len(solved.weight)} outputs ({error.found})"
        fix = f"replace the number {outputs} in forward and in other modules by {as_typed(layer.name)}.out_features"
        raise NetworkError(found, "a forward that takes the number of outputs from its layers", fix) from error
    promised = grown.readout.linked(Outputs.of(grown).scores(rows.values)).reshape(rows.scores.shape)
    difference = float((rows.scores.cpu().double() - promised).abs().max())
    if grown.identity != source.identity or not difference <= layer.tolerance * max(1.0, float(promised.abs().max())):
        found = f"scores of the network with {len(solved.weight)} outputs that differ from those promised by up to {difference:.3g}"
        fix = "make forward(net, inputs) deterministic and let it reset the membranes; pass readout= if it decodes differently"
        raise WriteError(found, "a network whose hidden layers and decoding do not depend on its outputs", fix)
    return values


def grown_neuron(layer: ReadoutLayer, more: int) -> Values:
    """Return what the output neuron keeps for each output, such as a leak, with as many more of these, which are alike."""
    neuron, values = layer.neuron, {}
    for module in [] if neuron is None else neuron.modules():
        for name in {**module._parameters, **module._buffers}:
            value = store_of(module, name).get(name)
            if isinstance(value, Tensor) and value.dim() == 1 and len(value) == layer.out_features > 1:
                values[module, name] = torch.cat([value.detach(), value.detach()[0].expand(more)])
    return values


def footprint(net: nn.Module) -> int:
    """Return the bytes of a network's parameters and saved buffers."""
    return sum(value.nbytes for value in net.state_dict().values() if isinstance(value, Tensor))
