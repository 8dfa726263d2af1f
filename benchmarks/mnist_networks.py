"""MNIST, no gradient step: the nets of snnTorch's tutorials 5 and 6 and a Norse net, as they stand, decided as their users do.

Figures for docs/evidence/networks.md.  An interrupted run continues.  Run: python benchmarks/mnist_networks.py --root DIR
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import norse.torch as norse
import snntorch as snn
import torch
from torch import Tensor, nn

from benchmarks.common import RESULTS, initialise, machine, run_all
from snn_recon_plugin.demo import load_mnist_data
from tests.user_nets.idioms import LI, NONE_MEAN, OVER, SUBTRACT
from tests.user_nets.record import UserNet

STEPS, NORSE_STEPS = 25, 32
MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's pixels, with which its users normalise


class Tutorial5(nn.Module):
    """snnTorch's tutorial 5: all neurons reset by subtraction, which is their default."""

    def __init__(self, _: str) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(784, 1000), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(1000, 10), snn.Leaky(beta=0.95)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes, membranes = [], []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


class NorseNet(nn.Module):
    """Pixels as constant currents into encoding LIF neurons, a hidden LIF layer, an LI readout."""

    def __init__(self, _: str) -> None:
        super().__init__()
        self.encoder = norse.ConstantCurrentLIFEncoder(NORSE_STEPS)
        self.layers = norse.SequentialState(nn.Linear(784, 400), norse.LIF(), nn.Linear(400, 10), norse.LI())

    def forward(self, x: Tensor) -> Any:
        return self.layers(self.encoder((x - MEAN) / DEVIATION))


def tutorial6(reset: str) -> nn.Module:
    """The convolutional net of snnTorch's tutorial 6."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 5),
        nn.MaxPool2d(2),
        snn.Leaky(beta=0.5, init_hidden=True),
        nn.Conv2d(12, 64, 5),
        nn.MaxPool2d(2),
        snn.Leaky(beta=0.5, init_hidden=True),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 10),
        snn.Leaky(beta=0.5, init_hidden=True, output=True, reset_mechanism=reset),
    )


T5 = UserNet("snnTorch tutorial 5, 784-1000-10", Tutorial5, readings=SUBTRACT[:1], shape=(784,))
T6 = UserNet(
    "snnTorch tutorial 6, 12C5-MP2-64C5-MP2-10", tutorial6, options=OVER, readings=(NONE_MEAN, SUBTRACT[0]), shape=(1, 28, 28)
)
NORSE = UserNet("Norse, 784-400-10, encoded", NorseNet, readings=(LI[0], LI[2], LI[3]), shape=(784,))
NETS = (T5, NORSE, T6)


def main() -> None:
    """Runs all cases and writes the json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", default="", metavar="TEXT", help="run the cases whose name holds this again")
    options = parser.parse_args()
    data = load_mnist_data(options.root, options.samples)
    cases = {
        f"{idiom.name} | {reading.title}": partial(initialise, idiom, reading, data, options.seed)
        for idiom in NETS
        for reading in idiom.readings
    }
    head = {
        "machine": machine("snntorch", "norse", "lightning"),
        "seed": options.seed,
        "samples": len(data.train_inputs),
        "tests": len(data.test_inputs),
    }
    path = RESULTS / "mnist_networks.json"
    again = [name for name in cases if options.again and options.again in name]
    for name, result in run_all(path, head, cases, again)["cases"].items():
        after, linear = 100 * result["test_after"], 100 * result["test_linear"]
        print(f"{name:<80} {100 * result['test_before']:5.1f} % -> {after:.2f} %   linear score {linear:.2f} %")


if __name__ == "__main__":
    main()
