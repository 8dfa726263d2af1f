"""Figure of a built recurrent layer: its spikes and its recurrent matrix, neurons sorted by the part that they play."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.render_docs import ROOT
from snn_recon_plugin import convex_init_
from snn_recon_plugin.networks import library_of
from snn_recon_plugin.plots import BLUE, GREEN, GREY, ORANGE

from .nets import NETS
from .tasks import Places, load_task

FIGURE = ROOT / "docs" / "recurrent_layer.png"

__all__ = ["draw_layer", "record_spikes", "recurrent_matrix", "sort_neurons"]

OTHERS = "others"
_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", GREY)


def draw_layer(net: nn.Module, inputs: Tensor, groups: Mapping[str, Sequence[int]], path: Path, sample: int = 0) -> Figure:
    """Draw the hidden layer of a net of nets.py and save the figure.

    Args:
        net: its hidden neurons are ``net.neuron``, a recurrent module of snnTorch or Norse.
        inputs: (n, T, D); all are used to sort the neurons.
        groups: row indices of each part, by name, from top to bottom; neurons of none come last.
        path: of the figure.
        sample: the one whose spikes are shown.

    Returns:
        The figure: the raster on the left, the matrix on the right.
    """
    spikes, matrix = record_spikes(net, inputs), recurrent_matrix(net)
    parts = sort_neurons(spikes, groups)
    order = torch.tensor([row for rows in parts.values() for row in rows])
    figure = Figure(figsize=(10.5, 4.8), layout="constrained")
    raster, image = figure.subplots(1, 2)
    position = 0
    for (name, rows), colour in zip(parts.items(), _COLOURS * len(parts), strict=False):
        steps, neurons = spikes[sample][:, rows].nonzero(as_tuple=True)
        raster.scatter(steps.numpy(), neurons.numpy() + position, s=5, marker="|", color=colour, label=name)
        position += len(rows)
    raster.set_ylim(len(order) - 0.5, -0.5)
    raster.set_xlim(-0.5, spikes.shape[1] - 0.5)
    raster.set_xlabel("step")
    raster.set_title("spikes of one sample", fontsize=10)
    sorted_matrix = matrix[order][:, order]
    rows, columns = sorted_matrix.nonzero(as_tuple=True)
    weights = sorted_matrix[rows, columns]
    bound = float(weights.abs().quantile(0.9)) if len(weights) else 1.0
    shown = image.scatter(
        columns.numpy(), rows.numpy(), c=weights.numpy(), s=4, marker="s", cmap="RdBu_r", vmin=-bound, vmax=bound, linewidths=0
    )
    image.set_facecolor("#dddddd")
    image.set_xlim(-0.5, len(order) - 0.5)
    image.set_ylim(len(order) - 0.5, -0.5)
    image.set_xlabel("from")
    image.set_title("recurrent weights that are not zero", fontsize=10)
    figure.colorbar(shown, ax=image, shrink=0.7)
    _mark_groups(raster, image, {name: len(rows) for name, rows in parts.items()})
    figure.savefig(path, dpi=150)
    return figure


@torch.no_grad()
def record_spikes(net: nn.Module, inputs: Tensor) -> Tensor:
    """Spikes of the hidden neurons, (n, T, N)."""
    found: list[Tensor] = []
    neuron = net.neuron
    handle = neuron.register_forward_hook(lambda module, args, output: found.append(output[0]))
    try:
        net(inputs)
    finally:
        handle.remove()
    return torch.stack(found, 1)


def recurrent_matrix(net: nn.Module) -> Tensor:
    """Recurrent weights, (to, from)."""
    recurrence = library_of(net.neuron).recurrence(net.neuron)
    if recurrence is None or recurrence.weight is None:
        raise ValueError(f"{type(net.neuron).__name__} has no recurrent matrix: pass a recurrent net")
    matrix: Tensor = getattr(*recurrence.weight)
    return matrix.detach()


def sort_neurons(spikes: Tensor, groups: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Rows of each group by their mean time of spiking, silent ones last; rows of no group are the last group."""
    counts = spikes.sum((0, 1))
    steps = torch.arange(spikes.shape[1], dtype=spikes.dtype)
    times = torch.where(counts > 0, torch.einsum("ntk,t->k", spikes, steps) / counts, torch.inf)
    known = {row for rows in groups.values() for row in rows}
    rest = [row for row in range(spikes.shape[2]) if row not in known]
    parts = {**groups, **({OTHERS: rest} if rest else {})}
    return {name: sorted(map(int, rows), key=lambda row: (float(times[row]), row)) for name, rows in parts.items() if len(rows)}


def _mark_groups(raster: Axes, image: Axes, sizes: Mapping[str, int]) -> None:
    """Lines between the groups, and their names beside them."""
    begin, middles = 0, []
    for size in sizes.values():
        middles.append(begin + (size - 1) / 2)
        begin += size
        raster.axhline(begin - 0.5, color="black", lw=0.8)
        image.axhline(begin - 0.5, color="black", lw=0.8)
        image.axvline(begin - 0.5, color="black", lw=0.8)
    for axes in (raster, image):
        axes.set_yticks(middles, list(sizes), fontsize=8)
    image.set_xticks(middles, list(sizes), fontsize=8, rotation=45)


def main() -> None:
    """Build the recurrent layer of the study's net on MNIST by row, and draw it into docs/."""
    parser = argparse.ArgumentParser(prog="python -m temporal.layer_figure", description=main.__doc__)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    data = load_task("rows", Places(parser.parse_args().root, None))
    torch.manual_seed(0)
    net = NETS["snntorch-recurrent"](data.train_inputs.shape[2], 256, 10)
    loader = DataLoader(TensorDataset(data.train_inputs, data.train_labels), 128, shuffle=True)
    witnesses = convex_init_(net, loader).layers[0].witnesses
    if witnesses is None:
        raise SystemExit("The layer was not built.")
    ends = list(accumulate(witnesses.kinds.values(), initial=0))
    groups = {kind: range(*part) for kind, part in zip(witnesses.kinds, pairwise(ends), strict=True)}
    draw_layer(net, data.test_inputs[:200], groups, FIGURE)


if __name__ == "__main__":
    main()
