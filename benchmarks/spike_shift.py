"""What a shift of the biases of a spiking readout does: accuracy of the start, and after steps of training.

    python benchmarks/spike_shift.py --root DIR      writes benchmarks/results/spike_shift.json, and docs/evidence/decisions.md

A shift of all biases by the same amount changes no linear decision, but the spikes of the output neurons.  Each start is shifted to
the means given, in thresholds, and trained on.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from typing import Any

import snntorch as snn
import snntorch.functional as SF
import torch
from common import RESULTS, machine, run_all
from readme import Net, loss_of
from render_docs import ROOT, markdown_table, replace
from render_networks import machine_line
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_
from snn_recon_plugin.demo import Data, load_digits_data, load_mnist_data

SHIFTS, SEEDS, STEPS = (-0.5, 0.0, 0.25, 0.75), (0, 1, 2), (20, 60)
LOSSES: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "cross-entropy of membranes": loss_of,
    "ce_rate_loss": lambda net, inputs, labels: SF.ce_rate_loss()(net(inputs)[0], labels),
    "mse_count_loss": lambda net, inputs, labels: SF.mse_count_loss(0.8, 0.2)(net(inputs)[0], labels),
}


def small() -> nn.Module:
    """The tutorial's net for the digits."""
    net = Net()
    net.fc1, net.fc2 = nn.Linear(64, 256), nn.Linear(256, 10)
    return net


def convolutional() -> nn.Module:
    """The tutorial's net with two convolutions before the readout."""

    class Convolutional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.lif1 = nn.Conv2d(1, 8, 3), snn.Leaky(beta=0.9)
            self.conv2, self.lif2 = nn.Conv2d(8, 16, 3), snn.Leaky(beta=0.9)
            self.fc, self.lif3 = nn.Linear(256, 10), snn.Leaky(beta=0.9)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first, second, third = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
            spikes, membranes = [], []
            for _ in range(20):
                below, first = self.lif1(self.conv1(x.reshape(-1, 1, 8, 8)), first)
                below, second = self.lif2(self.conv2(below), second)
                spike, third = self.lif3(self.fc(below.flatten(1)), third)
                spikes.append(spike)
                membranes.append(third)
            return torch.stack(spikes), torch.stack(membranes)

    return Convolutional()


NETS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "digits, 64-256-10": (small, "digits"),
    "digits, convolutions": (convolutional, "digits"),
    "MNIST, 784-1000-10": (Net, "mnist"),
}


@torch.no_grad()
def accuracy(net: nn.Module, data: Data) -> float:
    """Return the test accuracy by spike counts, of at most 2,000 images."""
    predicted = torch.cat([net(part)[0].sum(0).argmax(1) for part in data.test_inputs[:2000].split(500)])
    return float((predicted == data.test_labels[:2000]).double().mean())


def measure(name: str, shift: float, data: Data) -> dict[str, Any]:
    """Return the firing rate of the outputs, and accuracies of the start and after training by each loss; means over the seeds."""
    found: dict[str, list[float]] = {}
    for seed in SEEDS if len(data.train_labels) < 5000 else SEEDS[:1]:
        torch.manual_seed(seed)
        net = NETS[name][0]()
        order = torch.Generator().manual_seed(seed)
        loader = DataLoader(TensorDataset(data.train_inputs, data.train_labels), 128, shuffle=True, generator=order)
        convex_init_(net, loader, seed=seed, progress=False)
        with torch.no_grad():
            bias = [module for module in net.modules() if isinstance(module, nn.Linear)][-1].bias
            bias += shift - bias.mean()
            rate = float(net(data.test_inputs[:500])[0].mean())
        found.setdefault("output rate", []).append(rate)
        found.setdefault("start", []).append(accuracy(net, data))
        start = {key: value.clone() for key, value in net.state_dict().items()}
        for label, loss in LOSSES.items():
            net.load_state_dict(start)
            for count, value in zip(STEPS, train(net, data, loss, seed), strict=True):
                found.setdefault(f"{label}, {count} steps", []).append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}


def train(net: nn.Module, data: Data, loss: Callable[[nn.Module, Tensor, Tensor], Tensor], seed: int) -> list[float]:
    """Train with Adam, and return the test accuracies after each of STEPS."""
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4)
    draw = torch.Generator().manual_seed(seed)
    found = []
    for step in range(1, max(STEPS) + 1):
        rows = torch.randint(len(data.train_labels), (128,), generator=draw)
        optimizer.zero_grad()
        loss(net, data.train_inputs[rows], data.train_labels[rows]).backward()
        optimizer.step()
        if step in STEPS:
            found.append(accuracy(net, data))
    return found


def table(content: dict[str, Any]) -> str:
    """Return a row for each net and shift."""
    cases = content["cases"]
    names = list(next(iter(cases.values())))
    rows = [[*key.split(" | "), *(f"{100 * case[name]:.1f}" for name in names)] for key, case in cases.items()]
    return f"{markdown_table(['net', 'mean bias', *names], rows)}\n\n{machine_line(content['machine'])}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="where torchvision finds MNIST; without it only what is kept is written")
    options = parser.parse_args()
    path = RESULTS / "spike_shift.json"
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if options.root:
        data = {"digits": load_digits_data(), "mnist": load_mnist_data(options.root, 20_000)}
        cases = {
            f"{name} | {shift:g}": lambda name=name, shift=shift: measure(name, shift, data[NETS[name][1]])
            for name in NETS
            for shift in SHIFTS
        }
        run_all(path, {"machine": machine("snntorch"), "seeds": list(SEEDS)}, cases)
    content = json.loads(path.read_text(encoding="utf-8"))
    replace(ROOT / "docs" / "evidence" / "decisions.md", "spike shift", table(content), script="spike_shift.py")


if __name__ == "__main__":
    main()
