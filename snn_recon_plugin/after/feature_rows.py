"""Rows of a readout's program, read batch by batch from a network whose hidden layers stay, with what they depend on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, OptionError, UnsupportedModuleError, closest
from ..networks.calls.activity import ActivityRecorder
from ..networks.calls.batches import Batch, device_of
from ..networks.calls.calling import refuse_calls
from ..networks.capture import capture
from ..networks.private.workbench import Workbench, checksum
from ..networks.readout.readout import Readout
from ..networks.structure.layers import NetworkMap, as_typed
from ..networks.write import check_writable
from ..options import Options
from ..stages.collect import bias_column
from ..stages.loader import refuse_repeats
from ..stages.stream import Stream
from ..stages.task import find_structure

READING = ("forward", "unpack", "loss", "readout", "readout_layer", "seed")  # options that say how rows are read


def reading_options(given: Mapping[str, Any]) -> Options:
    """Return the options with which rows are read; refuse others."""
    for name in given:
        if name not in READING:
            near = closest(name, READING)
            fix = f"pass {near}=..." if near else "leave it out: hidden layers stay, and the squared loss is solved exactly"
            raise OptionError(f"an option {name}", f"one of {', '.join(READING)}", fix)
    return Options(**given)


@dataclass(frozen=True)
class Rows:
    """Rows of some samples.

    Args:
        values: (N, K, P + 1) float64 on the CPU, features through each of K filters, and last what one unit of bias adds.
        labels: (N,) int64, class indices; those of a sample's steps are the same.
        scores: (n, C) or (n, T, C), the network's own of the n samples.
    """

    values: Tensor
    labels: Tensor
    scores: Tensor


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
    def filters(self) -> int:
        """Number of temporal filters K."""
        return 1 if self.readout.filters is None else len(self.readout.filters.filters)

    @property
    def index(self) -> Tensor:
        """Filter of each output, (C,) int64."""
        return torch.zeros(self.outputs, dtype=torch.int64) if self.readout.filters is None else self.readout.filters.index.cpu()

    @property
    def rest(self) -> float | Tensor:
        """Part of the program's bias that is the output neuron's resting value, a number or (C,)."""
        return self.readout.rest_bias if self.net_map.readout.bias is not None else 0.0

    @property
    def identity(self) -> dict[str, str]:
        """Names and checksums of all that rows depend on: two networks with the same identity give the same rows."""
        layer, filters = self.net_map.readout, self.readout.filters
        matrices = {"filters": self.readout.matrix if filters is None else filters.matrices}
        own = tuple(f"{name}." for name in (layer.name, layer.neuron_name) if name)
        hidden = {name: value for name, value in self.net.state_dict().items() if not name.startswith(own)}
        return {
            "features": str(layer.in_features),
            "dtype": str(layer.weight.dtype).removeprefix("torch."),
            "readout": f"{self.readout.kind}{'' if layer.bias is not None else ' without a bias'}",
            "temporal filters (checksum)": checksum(matrices),
            "hidden layers (checksum)": checksum(hidden),
        }

    def read(self, batch: Batch) -> Rows:
        """Run the network on a batch, and return its rows."""
        _check_labels(batch.targets)
        captured = capture(self.net, [batch], self.recorder, self.options.call)
        filters, features = self.readout.filters, captured.features.cpu().double()
        if filters is None:
            features, column = features.unsqueeze(-2), bias_column(self.net_map, self.readout, captured)
        else:
            gains = filters.matrices.sum(2).T if self.readout.per_step else filters.filters.sum(1)  # [T, K] or [K]
            column = None if self.net_map.readout.bias is None else gains
        last = features.new_zeros(()) if column is None else torch.as_tensor(column).to(features)
        last = last.unsqueeze(-1) if filters is None and last.dim() > 0 else last
        values = torch.cat([features, last.expand(features.shape[:-1])[..., None]], -1)
        values = values.reshape(-1, *values.shape[-2:])
        labels = batch.targets.cpu().long()
        return Rows(values, labels.repeat_interleave(len(values) // len(labels)), captured.scores)


def open_source(bench: Workbench, loader: Iterable[Any], options: Options) -> tuple[RowSource, Stream]:
    """Open a loader, within ``quiet``, and inspect the network on it; refuse a readout that can't be written."""
    refuse_repeats(loader)
    with refuse_calls(bench.origin):
        stream = options.open(loader, device_of(bench.net))
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
