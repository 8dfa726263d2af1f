"""Fractions of solved readouts of spiking outputs: what they decide, and how an epoch of the user's own loop goes from each."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import snntorch as snn
import snntorch.functional as SF
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.render import machine_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Places, Study
from snn_recon_plugin import Report, convex_init_
from snn_recon_plugin.demo import load_mnist_data
from tests.user_nets.catalogue import GROUPS
from tests.user_nets.data import Samples, digits
from tests.user_nets.record import TYPED, UserNet

FACTORS, SEED, BATCH, RATE = (1.0, 0.5, 0.25), 0, 16, 1e-3
NETS = [entry for group, nets in GROUPS.items() if group != "lines to change" for entry in nets]
IMAGES, TEST, HIDDEN, STEPS, EPOCHS, RATES, SEEDS = 3000, 2000, 300, 15, 3, (5e-4, 2e-3), 2  # of tutorial 5
OTHER_FORM = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)  # of outputs that are not time first, say in a dict
cross_entropy = nn.functional.cross_entropy


def each_step(membranes: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the membranes, summed over the steps, as in tutorial 5 of snnTorch."""
    return torch.stack([cross_entropy(step, labels) for step in membranes]).sum()


def loss_of(entry: UserNet, options: dict[str, Any], report: Report, output: Any, labels: Tensor) -> Tensor:
    """Return the typed loss of a net's output, or what the libraries' tutorials train such a net by."""
    first, *others = [output] if isinstance(output, Tensor) else output
    both = bool(others) and isinstance(others[0], Tensor) and others[0].shape == first.shape  # else a state follows
    typed: Callable[[Tensor, Tensor], Tensor] | None = options.get("loss")
    if typed is not None:
        return typed(others[0] if both and "membrane" in type(typed).__name__ else first, labels)
    if first.dim() == 2:
        return cross_entropy(first, labels)
    if report.readout.kind == "first_spike":
        return SF.ce_temporal_loss()(first, labels)
    if both and "over_time" not in entry.options:
        return each_step(others[0], labels)
    return SF.ce_rate_loss()(first, labels) if both else cross_entropy(first.sum(0), labels)


def write_fraction(net: nn.Module, weights: dict[str, Tensor], report: Report, factor: float) -> None:
    """Give the net its weights after the line, with a fraction of the solved readout."""
    net.load_state_dict(weights)
    with torch.no_grad():
        for name, value in report.solved_weights.items():
            net.get_parameter(name).copy_(factor * value)


def train_epoch(entry: UserNet, net: nn.Module, samples: Samples, report: Report) -> None:
    """Train for one epoch, in batches of the net's own form."""
    typed = {"net": None, "loader": None, "convex_init_": lambda net, loader, **options: options}
    options: dict[str, Any] = eval(entry.line(), {**TYPED, **entry.names, **typed})
    forward, unpack = options.get("forward", lambda net, inputs: net(inputs)), options.get("unpack", lambda batch: batch)
    if type(net).train is nn.Module.train:  # one net has a training loop of its own under this name
        net.train()
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    torch.manual_seed(SEED)
    shuffled = entry.order(samples.of(torch.randperm(len(samples.labels))))
    parts = torch.arange(len(shuffled.labels)).split(BATCH)
    for number in torch.randperm(len(parts)).tolist():
        for batch in entry.loader(shuffled.of(parts[number])):
            inputs, labels = unpack(batch)
            optimizer.zero_grad()
            loss_of(entry, options, report, forward(net, inputs), labels).backward()
            optimizer.step()
            snn.utils.reset(net)
            functional.reset_net(net)


def measure(entry: UserNet, number: int) -> dict[str, Any]:
    """Return own tests before and after an epoch from each fraction; of a spiking or resetting output alone.

    Nets whose outputs have another form than ``loss_of`` takes are left out.
    """
    train, fresh = (entry.order(part) for part in digits(number))
    torch.manual_seed(SEED)
    net = entry.build()
    report = entry.run(net, train, "progress=False")
    result: dict[str, Any] = {"exactness": report.exactness.label, "factor": report.factor, "start": [], "epoch": []}
    if report.exactness.label != "surrogate" or report.kept_old or set(report.solved_weights) - dict(net.named_parameters()).keys():
        return result
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    for factor in FACTORS:
        write_fraction(net, weights, report, factor)
        start = entry.test(net, entry.loader(fresh))
        try:
            train_epoch(entry, net, train, report)
        except OTHER_FORM:
            break
        result["start"].append(start)
        result["epoch"].append(entry.test(net, entry.loader(fresh)))
    return result


class Tutorial5(nn.Module):
    """Two dense layers of leaky neurons; returns spikes and membranes of the output, [T, B, 10] each."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(784, HIDDEN), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, 10), snn.Leaky(beta=0.95)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        below, above, spikes, membranes = self.lif1.init_leaky(), self.lif2.init_leaky(), [], []
        for _ in range(STEPS):
            hidden, below = self.lif1(self.fc1(inputs), below)
            spike, above = self.lif2(self.fc2(hidden), above)
            spikes.append(spike)
            membranes.append(above)
        return torch.stack(spikes), torch.stack(membranes)


def measure_tutorial(places: Places, rate: float, seed: int) -> dict[str, Any]:
    """Return test accuracies of tutorial 5 on MNIST, from each fraction and after some epochs from it."""
    data = load_mnist_data(places.need("mnist"), IMAGES)
    inputs, labels, test, classes = data.train_inputs, data.train_labels, data.test_inputs[:TEST], data.test_labels[:TEST]
    torch.manual_seed(seed)
    net, loader = Tutorial5(), DataLoader(TensorDataset(inputs, labels), 128, shuffle=True)

    def accuracy() -> float:
        with torch.no_grad():
            return float((net(test)[0].sum(0).argmax(1) == classes).double().mean())

    report = convex_init_(net, loader, progress=False, seed=seed)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    result: dict[str, Any] = {"exactness": report.exactness.label, "factor": report.factor, "start": [], "epoch": []}
    for factor in FACTORS:
        write_fraction(net, weights, report, factor)
        result["start"].append(accuracy())
        optimizer = torch.optim.Adam(net.parameters(), rate)
        torch.manual_seed(seed)
        for some, own in (batch for _ in range(EPOCHS) for batch in loader):
            optimizer.zero_grad()
            each_step(net(some)[1], own).backward()
            optimizer.step()
        result["epoch"].append(accuracy())
    return result


def cells(bench: Bench) -> Cells:
    """Tutorial 5 at two rates, and all user nets that classify."""
    tutorial = {
        f"tutorial 5 | {rate:g} | {seed}": partial(measure_tutorial, bench.places, rate, seed)
        for rate in RATES
        for seed in range(SEEDS)
    }
    nets = {
        f"net | {entry.name}": partial(measure, entry, number)
        for number, entry in enumerate(NETS)
        if entry.must == "work" and not entry.regression
    }
    return {**tutorial, **nets}


def rows_of(title: str, found: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a row for each fraction, and one for the fraction that the line chose."""
    rows = []
    for factor in (*FACTORS, None):
        places = [FACTORS.index(each["factor"] if factor is None else factor) for each in found]
        starts, epochs = ([each[key][place] for each, place in zip(found, places, strict=True)] for key in ("start", "epoch"))
        fall = max(each["start"][0] - start for each, start in zip(found, starts, strict=True))
        values = (statistics.fmean(starts), fall, statistics.fmean(epochs))
        name = "chosen" if factor is None else f"{factor:g}"
        rows.append((title, str(len(found)), name, *(f"{100 * value:.1f}" for value in values)))
    return rows


def pages(store: Store) -> dict[str, dict[str, str]]:
    """One table."""
    nets = [result for name, result in store.named().items() if name.startswith("net") and result["start"]]
    rows = rows_of("user nets, one epoch of Adam at 0.001", nets)
    for rate in RATES:
        rows += rows_of(f"tutorial 5, {EPOCHS} epochs at {rate:g}", store.cells(f"tutorial 5 | {rate:g} | *"))
    heads = ("nets", "runs", "factor", "start", "largest fall from 1", "trained")
    text = f"{markdown_table(heads, rows)}\n\n{machine_line(store.cells()[-1]['machine'])}"
    return {"evidence/training.md": {"factor": text}}


STUDY = Study(
    title="fractions of the solved readout: decisions, and training from them",
    minutes=6,
    cells=cells,
    pages=pages,
    fields=("exactness", "factor", "start", "epoch"),
    packages=("snntorch", "norse", "spikingjelly"),
    needs=("mnist",),
)
