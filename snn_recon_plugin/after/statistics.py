"""Sums over samples from which a readout is solved again without the samples, and a few rows of each class to judge it on."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, NetworkError, OptionError, UnsupportedModuleError
from ..networks.calls.record import StoredBatch, refuse_calls
from ..networks.capture import ActivityRecorder, capture
from ..networks.private.quiet import run_quietly
from ..networks.private.workbench import Workbench, checksum
from ..networks.readout.readout import Readout
from ..networks.structure.layers import NetworkMap, as_typed
from ..networks.write import check_writable
from ..options import Options, check_names
from ..read.step import open_loader
from ..stages.collect import bias_column
from ..stages.initialize import prepare_network
from ..stages.stream import Stream, refuse_repeats
from ..stages.task import find_structure

_KEPT = 50  # samples of a class at most: ten classes then resolve two points of accuracy, in less memory than the sums
_KEPT_SHARE = 0.2  # of a class's samples at most
_TENSORS, _FORMAT = ("gram", "sums", "kept", "kept_labels"), 3
READING = ("step", "forward", "unpack", "loss", "readout", "readout_layer", "seed")  # options that say how rows are read


def reading_options(given: Mapping[str, Any]) -> Options:
    """Return the options with which rows are read; refuse others."""
    check_names(given, READING, "extend_", "leave it out: hidden layers stay")
    return Options(**given)


@dataclass(frozen=True)
class ClassRows:
    """Rows of some samples."""

    values: Tensor  # (N, P + 1) float64 on the CPU, features, and last what one unit of bias adds
    labels: Tensor  # (N,) int64, class indices; those of a sample's steps are the same
    scores: Tensor  # (n, C) or (n, T, C), the network's own of the n samples


@dataclass(frozen=True)
class RowSource:
    """A private network, and how the rows of its readout are read."""

    net: nn.Module
    net_map: NetworkMap
    readout: Readout
    options: Options
    recorder: ActivityRecorder

    @staticmethod
    def find(net: nn.Module, inputs: Any, targets: Tensor, options: Options) -> RowSource:
        """Inspect a private network on a batch; refuse readouts that can't be solved from sums over samples."""
        _check_labels(targets)
        structure = find_structure(net, inputs, targets, options)
        net_map, readout = structure.net_map, structure.readout
        _check_readout(net_map, readout)
        return RowSource(net, net_map, readout, options, ActivityRecorder(net_map, readout))

    @property
    def outputs(self) -> int:
        """Number of outputs C."""
        return self.net_map.readout.out_features

    @property
    def rest(self) -> float:
        """Part of the program's bias that is the output neuron's resting value."""
        return self.readout.rest_bias if self.net_map.readout.bias is not None else 0.0

    @property
    def identity(self) -> dict[str, str]:
        """Names and checksums of all that rows depend on: two networks with the same identity give the same rows."""
        layer = self.net_map.readout
        own = tuple(f"{name}." for name in (layer.name, layer.neuron_name) if name)
        hidden = {name: value for name, value in self.net.state_dict().items() if not name.startswith(own)}
        return {
            "features": str(layer.in_features),
            "dtype": str(layer.weight.dtype).removeprefix("torch."),
            "readout": f"{self.readout.kind}{'' if layer.bias is not None else ' without a bias'}",
            "temporal filters (checksum)": checksum({"filters": self.readout.matrix}),
            "hidden layers (checksum)": checksum(hidden),
        }

    def read(self, batch: StoredBatch) -> ClassRows:
        """Run the network on a batch, and return its rows."""
        _check_labels(batch.targets)
        captured = capture(self.net, [replace(batch, rows=slice(0, len(batch.targets)))], self.recorder, forward=self.options.call)
        features, column = captured.features.cpu().double(), bias_column(self.net_map, self.readout, captured)
        last = torch.as_tensor(0.0 if column is None else column).to(features)
        values = torch.cat([features, last.expand(features.shape[:-1])[..., None]], -1).flatten(0, -2)
        labels = batch.targets.cpu().long()
        return ClassRows(values, labels.repeat_interleave(len(values) // len(labels)), captured.scores)


def open_source(bench: Workbench, loader: Iterable[Any], options: Options) -> tuple[RowSource, Stream]:
    """Open a loader, within ``quiet``, and inspect the network on it; refuse a readout that can't be written."""
    refuse_repeats(loader)
    with refuse_calls(bench.origin):
        options, stream = open_loader(bench.net, loader, options)
        (first, *_), targets = stream.head(1)
        source = RowSource.find(bench.net, first.inputs, targets, options)
    layer = source.net_map.readout
    check_writable(bench.origin, replace(source.net_map, readout=replace(layer, module=bench.origin_of(layer.module))))
    return source, stream


def _check_labels(targets: Tensor) -> None:
    if targets.dim() != 1 or targets.is_floating_point() or targets.dtype == torch.bool or int(targets.min()) < 0:
        found = f"targets of {targets.dtype}, shape {tuple(targets.shape)}, from {targets.min().item()}"
        raise DataError(found, "one class index a sample, (B,) whole numbers from 0", "let the loader, or unpack=, give labels")


def _check_readout(net_map: NetworkMap, readout: Readout) -> None:
    """Refuse readouts whose scores are not linear in the rows, or that are no plain Linear."""
    layer = net_map.readout
    found, fix = "", "read an output neuron without a reset by its mean: build it with reset_mechanism='none'"
    if readout.exactness != "exact":
        found = f"scores by {readout.kind}, which is {readout.exactness}: not linear in sums over samples"
        fix += ", and pass readout='membrane_mean'; or call convex_init_ with samples of all classes"
    elif readout.per_class > 1:
        found, fix = f"{readout.per_class} outputs for each class", "give the net one output a class"
    elif layer.scale is not None:
        found, fix = f"a norm or factor behind the readout {layer.name!r}", f"fold it into {as_typed(layer.name)} first"
    elif not isinstance(layer.module, nn.Linear):
        found, fix = f"a readout {layer.name!r} of class {type(layer.module).__name__}", "use an nn.Linear before the output neuron"
    if found:
        raise UnsupportedModuleError(found, "an nn.Linear whose scores are linear in its weight, one output a class", fix)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Sums over the samples of each class, from which a readout is solved again without the samples.

    Their size depends on the readout's P features and C classes alone, not on the number of samples: about 8 C P^2 bytes.

    Args:
        gram: (C, P + 1, P + 1) float64, sum of the products of the rows of each class; a row's last value is what one unit of
            bias adds.
        sums: (P + 1, C) float64, sums of the rows of each class.
        kept: (m, P + 1) float64, all rows of some samples, at most 50 and a fifth of a class, on which a readout is judged.
        kept_labels: (m,) int64, their classes.
        counts: number of rows of each class.
        identity: what the sums depend on: features, dtype, readout, and checksums of hidden layers and temporal filter.
        steps: number of rows of a sample: its time steps if the readout decides at each, else 1.

    Example:
        >>> from snn_recon_plugin import statistics_of
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> statistics_of(net, [(data.train_inputs, data.train_labels)])
        <Statistics of 1347 samples, 10 classes, 32 features: 0.2 MiB>
    """

    gram: Tensor
    sums: Tensor
    kept: Tensor
    kept_labels: Tensor
    counts: tuple[int, ...]
    identity: dict[str, str]
    steps: int = 1

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.counts)

    def __repr__(self) -> str:
        size = sum(getattr(self, name).nbytes for name in _TENSORS) / 2**20
        samples, features = sum(self.counts) // self.steps, self.gram.shape[-1] - 1
        return f"<Statistics of {samples} samples, {self.classes} classes, {features} features: {size:.1f} MiB>"

    def save(self, path: str | FilePath) -> None:
        """Save to a file, which ``torch.load`` reads with ``weights_only=True``."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        rest = {"counts": list(self.counts), "identity": dict(self.identity), "steps": self.steps}
        torch.save({"format": _FORMAT, **tensors, **rest}, path)

    @staticmethod
    def load(path: str | FilePath) -> Statistics:
        """Load what :meth:`save` wrote.

        Raises:
            OptionError: the file holds something else.
        """
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            if stored["format"] not in (2, _FORMAT):
                raise ValueError(f"format {stored['format']}")
            tensors = {name: stored[name] for name in _TENSORS}
            if stored["format"] == 2:  # of 0.4, with an axis of temporal filters
                tensors |= {name: stored[name].squeeze(int(name == "kept")) for name in ("gram", "sums", "kept")}
            return Statistics(**tensors, counts=tuple(stored["counts"]), identity=stored["identity"], steps=stored["steps"])
        except (pickle.UnpicklingError, RuntimeError, ValueError, LookupError, TypeError, EOFError) as error:
            found = f"a file {str(path)!r} that holds no statistics of this version ({type(error).__name__}: {error})"
            raise OptionError(found, "a file that Statistics.save wrote", "save statistics_of(net, loader).save(path)") from error

    def require(self, source: RowSource) -> None:
        """Raise a NetworkError unless the sums are of this network's readout and hidden layers, as they are now."""
        now = source.identity
        differing = [f"{name} {self.identity.get(name)}, now {now[name]}" for name in now if self.identity.get(name) != now[name]]
        if differing:
            found = f"statistics of another network: {'; '.join(differing)}"
            fix = "make them again by statistics_of(net, loader), or load the weights that they were made of"
            raise NetworkError(found, "statistics of this network with the hidden layers that it has now", fix)

    def joined(self, other: Statistics) -> Statistics:
        """Return the statistics of both groups of samples, over the classes of either."""
        classes = max(self.classes, other.classes)
        parts = [_widened(each.gram, each.sums, torch.tensor(each.counts), classes - each.classes) for each in (self, other)]
        gram, sums, counts = (one + two for one, two in zip(*parts, strict=True))
        kept, labels = torch.cat([self.kept, other.kept]), torch.cat([self.kept_labels, other.kept_labels])
        first = _first_of_each(labels, _KEPT * self.steps)
        return Statistics(gram, sums, kept[first], labels[first], tuple(counts.tolist()), self.identity, self.steps)

    def without_kept(self) -> Statistics:
        """Return the statistics of the samples other than those whose rows are kept."""
        gram, sums, counts = class_sums(self.kept, self.kept_labels, self.classes)
        left = tuple(count - int(kept) for count, kept in zip(self.counts, counts.tolist(), strict=True))
        return replace(self, gram=self.gram - gram, sums=self.sums - sums, counts=left)


def statistics_of(net: nn.Module, loader: Iterable[Any], **reading: Any) -> Statistics:
    """Sum up a loader's samples as a network's readout sees them; the network is only read.

    Args:
        net: a network whose readout is an nn.Linear and linear in its scores: an output neuron without a reset, or none.
        loader: (input, target) batches of class indices (B,); each is read once.
        **reading: ``forward``, ``unpack``, ``loss``, ``readout``, ``readout_layer`` and ``seed``, as for ``convex_init_``.

    Returns:
        The statistics, for ``extend_``.

    Raises:
        DataError: bad input, labels that are no class indices, or beyond the outputs.
        NetworkError: the network can't be read, or its readout has no solution from sums.
        OptionError: another option.

    Example:
        >>> from snn_recon_plugin import statistics_of
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=32, outputs=10, steps=8)
        >>> sum(statistics_of(net, [(data.train_inputs, data.train_labels)]).counts)
        1347
    """
    net, options = prepare_network(net, reading_options(reading))
    bench = Workbench.of(net)
    return run_quietly(bench.net, lambda: sum_loader(bench, loader, options), seed=options.seed, loader=loader)


def sum_loader(bench: Workbench, loader: Iterable[Any], options: Options) -> Statistics:
    """Sum up a loader's samples of the classes that the private network has."""
    source, stream = open_source(bench, loader, options)
    return summed(source, (check_below(source.read(batch), source.outputs) for batch in stream), source.outputs)


def summed(source: RowSource, parts: Iterable[ClassRows], classes: int = 0) -> Statistics:
    """Sum up the rows of batches over at least so many classes, and keep all rows of some samples of each, drawn at random."""
    size = source.net_map.readout.in_features + 1
    none, draw = torch.zeros(0, dtype=torch.int64), torch.Generator().manual_seed(source.options.seed)
    kept, labels, keys = torch.zeros(0, size).double(), none, torch.zeros(0).double()
    (gram, sums, counts), steps = class_sums(kept, none, classes), 1
    for part in parts:
        samples = len(part.scores)
        steps = len(part.labels) // samples
        more = max(0, int(part.labels.max()) + 1 - len(counts))
        gram, sums, counts = _widened(gram, sums, counts, more)
        added = zip((gram, sums, counts), class_sums(part.values, part.labels, len(counts)), strict=True)
        gram, sums, counts = (total.add_(own) for total, own in added)
        keys = torch.cat([keys, torch.rand(samples, generator=draw, dtype=torch.float64).repeat_interleave(steps)])
        kept, labels = torch.cat([kept, part.values]), torch.cat([labels, part.labels])
        order = keys.argsort(stable=True)
        best = order[_first_of_each(labels[order], _KEPT * steps)]
        kept, labels, keys = kept[best], labels[best], keys[best]
    few = [steps * int(_KEPT_SHARE * count / steps) for count in counts.tolist()]
    chosen = torch.cat([(labels == label).nonzero()[:most, 0] for label, most in enumerate(few)])
    return Statistics(gram, sums, kept[chosen], labels[chosen], tuple(counts.tolist()), source.identity, steps)


def check_below(rows: ClassRows, classes: int) -> ClassRows:
    """Return rows; refuse labels beyond the outputs."""
    if int(rows.labels.max()) >= classes:
        found = f"labels up to {int(rows.labels.max())} for {classes} outputs"
        raise DataError(found, f"labels from 0 to {classes - 1}", "add outputs for new classes by extend_(net, loader)")
    return rows


def class_sums(values: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums of products (C, P + 1, P + 1), the sums (P + 1, C) and the numbers (C,) of rows of each class."""
    size = values.shape[-1]
    gram = torch.zeros(classes, size, size).double()
    for label in torch.unique(labels).tolist():
        own = values[labels == label]
        gram[label] = own.T @ own
    sums = values.T @ (labels[:, None] == torch.arange(classes)).double()
    return gram, sums, torch.bincount(labels, minlength=classes)


def _first_of_each(labels: Tensor, most: int) -> Tensor:
    """Return the places of the first rows of each class, at most so many of a class, in ascending order."""
    return torch.cat([(labels == label).nonzero()[:most, 0] for label in torch.unique(labels).tolist()] or [labels]).sort().values


def _widened(gram: Tensor, sums: Tensor, counts: Tensor, more: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums over more classes, of which there are no samples."""
    pad = nn.functional.pad
    return pad(gram, (0, 0, 0, 0, 0, more)), pad(sums, (0, more)), pad(counts, (0, more))
