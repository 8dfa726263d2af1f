"""Every idiom of the libraries with every readout of its users on scikit-learn's digits, and tutorials' nets on MNIST.

No gradient step.  A cell is a net of its default initialisation, initialised in place.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import norse.torch as norse
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.nets import accuracy, sequential, tutorial_5
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.tasks import load_task
from snn_recon_plugin import ConvexInitializer, ReconstructionError
from tests.user_nets.idioms import IDIOMS, LI, NONE_MEAN, OVER, SUBTRACT
from tests.user_nets.record import Reading, UserNet

SEED = 0
NORSE_STEPS = 32
MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's pixels, with which its users normalise
LABELS = {"exact": "exact", "majorised": "mean over time, then refined", "surrogate": "surrogate"}
DIGITS = """Data: scikit-learn's digits, 1347 images for training, 450 for test. Nets: one net a row at its default
initialisation. No gradient step; all options but `fit_loss` have their defaults. Accuracies are of test images, in percent.

- *Before* and *written net*: the accuracy of the net's own output, decided as its user decides.
- *Linear score*: the accuracy of the same weights under an output neuron without threshold and reset.
- *Difference*: the largest difference between the net's scores and the program's. It is rounding if the readout is exact. Elsewhere
  it only shows that the two scores differ.
- The nets' widths and kernels were chosen while looking at these accuracies; narrower nets lose a few points.
"""
MNIST = """Nets of snnTorch's tutorials 5 and 6, unchanged, and a Norse net behind a constant-current encoder. Their default
initialisation (seed 0), the first 10000 training images, 10000 test images, no gradient step.
*Linear score*: the same weights under an output neuron without threshold and reset.
"""


class NorseNet(nn.Module):
    """Pixels as constant currents into encoding LIF neurons, a hidden LIF layer, an LI readout."""

    def __init__(self, _: str) -> None:
        super().__init__()
        self.encoder = norse.ConstantCurrentLIFEncoder(NORSE_STEPS)
        self.layers = norse.SequentialState(nn.Linear(784, 400), norse.LIF(), nn.Linear(400, 10), norse.LI())

    def forward(self, x: Tensor) -> Any:
        return self.layers(self.encoder((x - MEAN) / DEVIATION))


LARGE = [
    UserNet("snnTorch tutorial 5, 784-1000-10", lambda _: tutorial_5(), readings=SUBTRACT[:1], shape=(784,)),
    UserNet("Norse, 784-400-10, encoded", NorseNet, readings=(LI[0], LI[2], LI[3]), shape=(784,)),
    UserNet(
        "snnTorch tutorial 6, 12C5-MP2-64C5-MP2-10",
        lambda reset: sequential(reset_mechanism=reset),
        options=OVER,
        readings=(NONE_MEAN, SUBTRACT[0]),
        shape=(1, 28, 28),
    ),
]


def measure(bench: Bench, idiom: UserNet, reading: Reading, task: str) -> dict[str, Any]:
    """Return test accuracies by the net's own output before and after, and what the report says; or why it was refused."""
    data = load_task(task, bench.places)
    torch.manual_seed(SEED)
    net = idiom.build(reading.output).eval()
    inputs, tests = (part.reshape(-1, *idiom.shape) for part in (data.train_inputs, data.test_inputs))
    before = accuracy(net, tests, data.test_labels, partial(idiom.scores, net, reading))
    initializer = ConvexInitializer(forward=idiom.forward, readout=reading.kind, seed=SEED)
    try:
        report = initializer.initialize(net, DataLoader(TensorDataset(inputs, data.train_labels), 128))
    except ReconstructionError as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {
        "before": before,
        "linear": accuracy(net, tests, data.test_labels, partial(idiom.linear_scores, net, reading)),
        "after": accuracy(net, tests, data.test_labels, partial(idiom.scores, net, reading)),
        "label": report.exactness.label,
        "difference": report.exactness.max_difference,
        "rates": [(layer["before"]["firing_rate"], layer["stats"]["firing_rate"]) for layer in report.to_dict()["layers"]],
        "seconds": sum(report.seconds.values()),
    }


def pairs(nets: Iterable[UserNet]) -> dict[str, tuple[UserNet, Reading]]:
    """Return nets with their readings, by the name of their cell."""
    return {f"{net.name} | {reading.title}": (net, reading) for net in nets for reading in net.readings}


def cells(bench: Bench) -> Cells:
    """Every idiom on the digits, and the large nets on MNIST."""
    tasks = {"whole digits": pairs(IDIOMS), "10,000 images": pairs(LARGE)}
    return {name: partial(measure, bench, *pair, task) for task, found in tasks.items() for name, pair in found.items()}


def how_to() -> str:
    """The call and what is special, for each idiom."""
    return markdown_table(("idiom", "call", ""), [(idiom.name, f"`{idiom.typed}`", idiom.about) for idiom in IDIOMS])


def digits_table(store: Store) -> str:
    """One row an idiom and readout."""
    rows, last = [], ""
    for name, (idiom, reading) in pairs(IDIOMS).items():
        cell, shown = store[name], "" if idiom.name == last else idiom.name
        last = idiom.name
        if "error" in cell:
            rows.append((shown, reading.title, cell["error"], "", "", "", ""))
        else:
            accuracies = (f"{100 * cell[key]:.1f}" for key in ("before", "linear", "after"))
            rows.append((shown, reading.title, cell["label"], f"{cell['difference']:.1e}", *accuracies))
    return markdown_table(("idiom", "readout", "exactness", "difference", "before", "linear score", "written net"), rows)


def mnist_table(store: Store) -> str:
    """One row a net and readout."""
    rows = []
    for name, (net, reading) in pairs(LARGE).items():
        cell = store[name]
        rates = ", ".join(f"{before:.3f} → {after:.3f}" for before, after in cell["rates"])
        accuracies = (f"{100 * cell[key]:.2f}" for key in ("before", "linear", "after"))
        rows.append((net.name, reading.title, cell["label"], *accuracies, rates, f"{cell['seconds']:.0f}"))
    heads = ("before", "linear score", "written net", "firing rates before → after", "seconds")
    return markdown_table(("net", "readout", "exactness", *heads), rows)


def exactness_table(store: Store) -> str:
    """One row a label of exactness: accuracy of the linear score that is solved, and of the net as it is written, on the digits."""
    rows = []
    for label, title in LABELS.items():
        found = [store[name] for name in pairs(IDIOMS) if store[name].get("label") == label]
        solved, written = ([cell[key] for cell in found] for key in ("linear", "after"))
        drop = 100 * max(before - after for before, after in zip(solved, written, strict=True))
        rows.append((title, str(len(found)), _spread(solved), _spread(written), f"{max(drop, 0.0):.1f}"))
    heads = ("solved score, test accuracy, %", "written net, test accuracy, %", "largest drop, points")
    return markdown_table(("label", "nets and readouts", *heads), rows)


def _spread(values: list[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f} ({100 * min(values):.1f})"


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Full tables as evidence, a summary for users."""
    digits, mnist = (machines_line([store[name] for name in pairs(nets) if name in store]) for nets in (IDIOMS, LARGE))
    return {
        "evidence/networks.md": {
            "calls": how_to(),
            "mnist": f"{MNIST}\n{mnist_table(store)}\n\n{mnist}",
            "digits": f"{DIGITS}\n{digits_table(store)}\n\n{digits}",
        },
        "networks.md": {"exactness": exactness_table(store)},
    }


STUDY = Study(
    title="every idiom with every readout on the digits, tutorials' nets on MNIST",
    minutes=15,
    cells=cells,
    pages=pages,
    fields=("before", "linear", "after", "label", "difference", "rates", "seconds", "error"),
    packages=("snntorch", "norse", "lightning"),
    needs=("mnist",),
)
