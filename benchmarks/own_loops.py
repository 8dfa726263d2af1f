"""One epoch of the user's own loop after the one line, without a guard, on every user net that must work.

The loss is the one in the typed line.  Without one it is what the libraries' tutorials type for such a net.

    python benchmarks/own_loops.py      writes benchmarks/results/own_loops.json; an interrupted run goes on where it was
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import snntorch.functional as SF
import torch
from snntorch import utils
from torch import Tensor, nn

from benchmarks.common import RESULTS, machine, run_all
from snn_recon_plugin import Report
from snn_recon_plugin.stages.factor import relative_size
from tests.user_nets.catalogue import GROUPS
from tests.user_nets.check import SEED
from tests.user_nets.data import Samples, digits
from tests.user_nets.record import TYPED, UserNet

LEARNS = 0.2  # test accuracy of an epoch from fresh weights, from which training alone learns something
TRAIN = 1344  # of 1,797 images: 84 full batches, and 453 images for the test
BATCH = 16
OPTIMIZERS = {"Adam": partial(torch.optim.Adam, lr=1e-3), "SGD": partial(torch.optim.SGD, lr=0.1)}
READOUT_PARAMETERS = ("weight", "input_weights", "bias")  # the last one is of Norse's LILinearCell
SHOWN = 15  # nets in the list of the largest falls

Loss = Callable[[Any, Tensor], Tensor]
cross_entropy = nn.functional.cross_entropy
NETS = {
    f"{group} | {entry.name}": (number, entry) for number, (group, entry) in enumerate((g, e) for g in GROUPS for e in GROUPS[g])
}


# -- losses ---------------------------------------------------------------------------------------------------------------


def ce_sum_over_steps(membranes: Tensor, labels: Tensor) -> Tensor:
    """Tutorial 5 of snnTorch."""
    return torch.stack([cross_entropy(step, labels) for step in membranes]).sum()


def ce_count(spikes: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(spikes.sum(0), labels)


def ce_mean(membranes: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(membranes.mean(0), labels)


def ce_last(membranes: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(membranes[-1], labels)


def ce_max(membranes: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(membranes.max(0).values, labels)


LOSS_OF_READOUT = {"first_spike": SF.ce_temporal_loss(), "membrane_last": ce_last, "membrane_max": ce_max}
LOSS_OF_NET = {"lightning module": SF.ce_rate_loss()}  # from its training_step


def choose_loss(entry: UserNet, options: dict[str, Any], kind: str, output: Any) -> tuple[str, Tensor, Loss]:
    """Return the loss's name, the returned value that it is taken of, and the loss.

    Args:
        entry: the net.
        options: those of the typed line.
        kind: the report's readout_kind.
        output: what the forward pass returned.
    """
    first, *others = [output] if isinstance(output, Tensor) else output
    both = bool(others) and isinstance(others[0], Tensor) and others[0].shape == first.shape  # else a state follows
    membranes = others[0] if both else first
    loss: Loss
    if loss := LOSS_OF_NET.get(entry.name) or options.get("loss"):
        value = membranes if "membrane" in type(loss).__name__ else first
    elif first.ndim == 2:  # one score a class
        value, loss = first, cross_entropy
    elif kind in LOSS_OF_READOUT:
        value, loss = first if kind == "first_spike" else membranes, LOSS_OF_READOUT[kind]
    elif both and "over_time" in entry.typed:  # tutorial 6: neurons keep their membranes, and the script collects spikes
        value, loss = first, SF.ce_rate_loss()
    elif both:
        value, loss = membranes, ce_sum_over_steps
    else:
        value, loss = (first, ce_count) if kind == "spike_count" else (first, ce_mean)
    return getattr(loss, "__name__", type(loss).__name__), value, loss


# -- the loop -------------------------------------------------------------------------------------------------------------


def typed_options(entry: UserNet) -> dict[str, Any]:
    """Return the options of the typed line."""
    return eval(
        entry.typed, {**TYPED, **entry.names, "net": None, "loader": None, "convex_init_": lambda net, loader, **options: options}
    )


def seed_all() -> None:
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(SEED)


def batches(entry: UserNet, samples: Samples) -> Iterator[Any]:
    """Yield batches of 16 in the form of the entry's loader, shuffled; samples in an order that the loader needs stay together."""
    shuffled = entry.order(samples.of(torch.randperm(len(samples.labels))))
    parts = torch.arange(len(samples.labels)).split(BATCH)
    for part in torch.randperm(len(parts)).tolist():
        yield from entry.loader(shuffled.of(parts[part]))


def train_epoch(entry: UserNet, net: nn.Module, samples: Samples, optimizer: str, kind: str) -> str:
    """Train for one epoch; return the loss's name."""
    options = typed_options(entry)
    forward = options.get("forward", lambda net, x: net(x))
    unpack = options.get("unpack", lambda batch: batch)
    if type(net).train is nn.Module.train:  # one net has a training loop of its own under this name
        net.train()
    stepper, name = OPTIMIZERS[optimizer](net.parameters()), ""
    seed_all()
    for batch in batches(entry, samples):
        inputs, labels = unpack(batch)
        utils.reset(net)  # for nets that keep their membranes; the script does it
        stepper.zero_grad()
        name, value, loss = choose_loss(entry, options, kind, forward(net, inputs))
        loss(value, labels).backward()
        stepper.step()
    return name


# -- cases ----------------------------------------------------------------------------------------------------------------


class Start(NamedTuple):
    """A net after the line."""

    net: nn.Module
    report: Report
    weights: dict[str, Tensor]
    fresh: float
    line: float
    seconds: float


def make(entry: UserNet) -> nn.Module:
    seed_all()
    return entry.build()


@cache
def run_line(name: str) -> Start:
    """Type the line once for all optimizers."""
    entry, train, test = load(name)
    net, began = make(entry), time.perf_counter()
    fresh = entry.test(net, entry.loader(test))
    net = make(entry)  # a test may leave modes and membranes behind
    report = entry.run(net, train)
    seconds = time.perf_counter() - began
    line = entry.test(net, entry.loader(test))
    return Start(net, report, {key: value.clone() for key, value in net.state_dict().items()}, fresh, line, seconds)


@cache
def train_fresh(name: str, optimizer: str, kind: str) -> float:
    """Accuracy after an epoch without the line."""
    entry, train, test = load(name)
    net = make(entry)
    train_epoch(entry, net, train, optimizer, kind)
    return entry.test(net, entry.loader(test))


@cache
def load(name: str) -> tuple[UserNet, Samples, Samples]:
    number, entry = NETS[name]
    train, test = (entry.order(part) for part in digits(number, TRAIN))
    return entry, train, test


def readout_values(net: nn.Module, report: Report) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of the readout as the net uses them."""
    layer = net.get_submodule(report.readout)
    found = (getattr(layer, name, None) for name in READOUT_PARAMETERS)
    values = [value for value in found if value is not None]
    return values[0], values[1] if len(values) > 1 else None


def measure(name: str, optimizer: str) -> dict[str, Any]:
    """Test accuracies of the fresh net, after the line, and after an epoch from each start."""
    entry, train, test = load(name)
    start = run_line(name)
    net, report = start.net, start.report
    net.load_state_dict(start.weights)
    size, began = relative_size(*readout_values(net, report)), time.perf_counter()
    loss = train_epoch(entry, net, train, optimizer, report.readout_kind)
    seconds = time.perf_counter() - began
    return {
        "fresh": start.fresh,
        "line": start.line,
        "line_epoch": entry.test(net, entry.loader(test)),
        "fresh_epoch": train_fresh(name, optimizer, report.readout_kind),
        "loss": loss,
        "readout": report.readout_kind,
        "exactness": report.exactness.label,
        "factor": report.factor,
        "relative_size": size,
        "line_seconds": start.seconds,
        "epoch_seconds": seconds,
    }


def summarise(results: dict[str, Any], optimizer: str) -> None:
    """Print medians, numbers of nets that fall, and the nets that fall most; all in percent or points."""
    rows = {name.rpartition(" | ")[0]: row for name, row in results.items() if name.endswith(f" | {optimizer}")}
    columns = ("fresh", "line", "line_epoch", "fresh_epoch")
    falls = {name: 100 * (row["line"] - row["line_epoch"]) for name, row in rows.items()}
    behind = [100 * (row["fresh_epoch"] - row["line_epoch"]) for row in rows.values()]
    medians = ", ".join(f"{key} {100 * statistics.median(row[key] for row in rows.values()):.1f}" for key in columns)
    above = ", ".join(f"{sum(fall > bound for fall in falls.values())} above {bound}" for bound in (3, 5, 10))
    print(f"\n{optimizer}, {len(rows)} nets; medians: {medians}, fall {statistics.median(falls.values()):.1f}")
    counts = f"{sum(b > 0 for b in behind)}, by more than 1: {sum(b > 1 for b in behind)}"
    print(f"nets whose fall is {above}; behind training alone: {counts}")
    for name in sorted(falls, key=falls.__getitem__, reverse=True)[:SHOWN]:
        shown = "  ".join(f"{100 * rows[name][key]:5.1f}" for key in columns)
        print(f"{name:<75} {shown}  {rows[name]['exactness']:<9} {rows[name]['relative_size']:6.1f}  {rows[name]['loss']}")


def main() -> None:
    """Run all cases, write the json and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="nets whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    names = [name for name, (_, entry) in NETS.items() if entry.must == "work" and options.only in name]
    head = {"machine": machine("snntorch", "norse"), "seed": SEED, "train": TRAIN, "batch": BATCH}
    cases = {f"{name} | {optimizer}": partial(measure, name, optimizer) for name in names for optimizer in OPTIMIZERS}
    results = run_all(RESULTS / "own_loops.json", head, cases)["cases"]
    for optimizer in OPTIMIZERS:
        summarise({name: results[name] for name in cases}, optimizer)


if __name__ == "__main__":
    main()
