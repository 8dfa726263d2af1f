"""Pairs of averages over time against traces: test accuracy of rebuilt nets where inputs change over time, no gradient step.

    python benchmarks/witness_kinds.py --root DIR        writes benchmarks/results/witness_kinds.json, three minutes

MNIST a row a step; MNIST as random spikes in proportion to the pixels; and four classes that differ in which of two inputs comes
first, among noise.  The net is one layer of 256 snn.Leaky, beta 0.9, and a readout by the mean membrane.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import snntorch as snn
import start_cost
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_
from snn_recon_plugin.demo import load_mnist_data

TRAIN, TEST, HIDDEN = 3000, 2000, 256
KINDS = ("pairs", "traces")
Split = tuple[Tensor, Tensor, Tensor, Tensor]


def rows(root: str, seed: int) -> Split:
    """MNIST, a row of 28 pixels a step."""
    del seed
    data = load_mnist_data(root, TRAIN)
    return data.train_inputs.view(-1, 28, 28), data.train_labels, data.test_inputs.view(-1, 28, 28)[:TEST], data.test_labels[:TEST]


def rate_coded(root: str, seed: int) -> Split:
    """MNIST, 15 steps of independent spikes."""
    data, generator = load_mnist_data(root, TRAIN), torch.Generator().manual_seed(seed)

    def spikes(images: Tensor) -> Tensor:
        return (torch.rand(len(images), 15, 784, generator=generator) < images.view(-1, 1, 784)).float()

    return spikes(data.train_inputs), data.train_labels, spikes(data.test_inputs[:TEST]), data.test_labels[:TEST]


def order(root: str, seed: int) -> Split:
    """Twenty noisy inputs over 40 steps; the class says which of two inputs spikes four steps before the other."""
    del root
    generator = torch.Generator().manual_seed(seed)
    count, pairs = TRAIN + TEST, torch.tensor([(0, 1), (1, 0), (2, 3), (3, 2)])
    inputs = (torch.rand(count, 40, 20, generator=generator) < 0.02).float()
    labels, sample = torch.randint(4, (count,), generator=generator), torch.arange(count)
    step = torch.randint(5, 30, (count,), generator=generator)
    inputs[sample, step, pairs[labels, 0]] = 1
    inputs[sample, step + 4, pairs[labels, 1]] = 1
    return inputs[:TRAIN], labels[:TRAIN], inputs[TRAIN:], labels[TRAIN:]


DATA = {"MNIST, a row a step": rows, "MNIST, rate coded": rate_coded, "which of two comes first": order}


class Net(nn.Module):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.hidden, self.neuron = nn.Linear(inputs, HIDDEN), snn.Leaky(beta=0.9)
        self.readout, self.output = nn.Linear(HIDDEN, classes), snn.Leaky(beta=0.95, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        mem, out, found = self.neuron.init_leaky(), self.output.init_leaky(), []
        for step in range(x.shape[1]):
            spikes, mem = self.neuron(self.hidden(x[:, step]), mem)
            _, out = self.output(self.readout(spikes), out)
            found.append(out)
        return torch.stack(found)


def run(name: str, kind: str, root: str, seed: int) -> dict[str, Any]:
    """Test accuracy of one net."""
    train, labels, test, test_labels = DATA[name](root, seed)
    torch.manual_seed(seed)
    net = Net(train.shape[2], int(labels.max()) + 1)
    loader = DataLoader(TensorDataset(train, labels), 250, shuffle=True)
    convex_init_(net, loader, hidden="reconstruct", witnesses=kind, seed=seed, progress=False)
    with torch.no_grad():
        right = net(test).mean(0).argmax(1) == test_labels
    return {"data": name, "witnesses": kind, "test": float(right.float().mean())}


def main() -> None:
    """Reads the command line."""
    parser = start_cost.make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    cases = {
        f"{name}, {kind}, seed {seed}": partial(run, name, kind, options.root, seed)
        for name, kind, seed in product(DATA, KINDS, range(options.seeds))
    }
    content = start_cost.measure("witness_kinds", {"train": TRAIN, "test": TEST, "seeds": options.seeds}, cases)
    for name, kind in product(DATA, KINDS):
        found = [case["test"] for case in content["cases"].values() if (case["data"], case["witnesses"]) == (name, kind)]
        print(f"{name:26} {kind:8} {100 * sum(found) / len(found):.1f} %")


if __name__ == "__main__":
    main()
