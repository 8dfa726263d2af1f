"""Run the demo: an untrained snnTorch classifier before and after one line, then an epoch of surrogate gradients from both."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from .errors import OptionError, ReconstructionError, installed
from .initializer import convex_init_
from .report.content import Report


@dataclass(frozen=True)
class Data:
    """Images as rows of pixels in 0 to 1, (n, D) float32, and labels (n,) int64, for training and for test."""

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


def load_digits_data() -> Data:
    """Return scikit-learn's digits, 8 x 8 pixels: 1,347 for training and 450 for test, drawn with a fixed seed."""
    with installed("scikit-learn", "the demo"):
        from sklearn.datasets import load_digits
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1347], order[1347:]
    return Data(inputs[train], labels[train], inputs[test], labels[test])


def build_network(inputs: int, hidden: int, outputs: int, steps: int) -> nn.Module:
    """Return the network of snnTorch's tutorial 5 with a membrane readout: Linear, Leaky, Linear, Leaky without reset."""
    with installed("snntorch", "the demo"):
        import snntorch

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(inputs, hidden), snntorch.Leaky(beta=0.95)
            self.fc2, self.lif2 = nn.Linear(hidden, outputs), snntorch.Leaky(beta=0.95, reset_mechanism="none")

        def forward(self, x: Tensor) -> Tensor:
            mem1 = self.lif1.reset_mem()
            mem2 = self.lif2.reset_mem()
            membranes = []
            for _ in range(steps):
                spikes, mem1 = self.lif1(self.fc1(x), mem1)
                _, mem2 = self.lif2(self.fc2(spikes), mem2)
                membranes.append(mem2)
            return torch.stack(membranes)

    return Net()


def test_accuracy(net: nn.Module, data: Data) -> float:
    """Return the share of test images whose largest mean membrane belongs to the right class."""
    with torch.no_grad():
        parts = torch.split(data.test_inputs, 1000)
        predicted = torch.cat([net(inputs).mean(0).argmax(1) for inputs in parts])
    return float((predicted == data.test_labels).double().mean())


def train_epoch(net: nn.Module, data: Data, learning_rate: float, batch: int, report: Report | None = None) -> float:
    """Train for one epoch of surrogate gradients with Adam, under the report's guard if given; return its seconds."""
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(data.train_inputs, data.train_labels), batch, shuffle=True, generator=generator)
    optimizer = torch.optim.Adam(net.parameters(), learning_rate)
    guard = None if report is None else report.protect(optimizer)
    for inputs, labels in tqdm(loader, desc="surrogate epoch", leave=False, disable=None):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(net(inputs).mean(0), labels))
        optimizer.step()
    if guard is not None:
        guard.close()
    return time.perf_counter() - began


def run_demo(figure: str) -> dict[str, Any]:
    """Run the demo's steps, and return the figures that it printed; ``figure`` is the file of the report's figure."""
    folder = Path(figure).resolve().parent
    if not folder.is_dir():
        raise OptionError(f"no folder {str(folder)!r} for the figure", "a folder that exists", "pass --figure FILE")
    torch.manual_seed(0)
    data = load_digits_data()
    net = build_network(data.train_inputs.shape[1], hidden=256, outputs=10, steps=20)
    print(f"digits: {len(data.train_inputs)} training images, {len(data.test_inputs)} test images\n")
    plain = copy.deepcopy(net)
    few = Data(data.train_inputs[:8], data.train_labels[:8], data.test_inputs, data.test_labels)
    train_epoch(copy.deepcopy(net), few, 1e-3, 8)  # the first step of a program imports modules for seconds
    result: dict[str, Any] = {"before": test_accuracy(net, data)}
    print(">>> report = convex_init_(net, loader)")
    loader = DataLoader(TensorDataset(data.train_inputs, data.train_labels), 128)
    began = time.perf_counter()
    report = convex_init_(net, loader)
    seconds = time.perf_counter() - began
    print(f"{report}\n")
    result |= {"after": test_accuracy(net, data), "certificate": report.certificate, "exactness": report.exactness.label}
    result["details"] = report.details()
    print(f"test accuracy   before {100 * result['before']:.1f} %   after {100 * result['after']:.1f} %   ({seconds:.1f} s)")
    print(f"certificate     {report.certificate}")
    for name, start, guarded in (("default", plain, None), ("convex", net, report)):
        seconds = train_epoch(start, data, 1e-3, 32, guarded)
        result[f"epoch_from_{name}"] = test_accuracy(start, data)
        print(f"one surrogate epoch from the {name + ' start':<14} {100 * result[f'epoch_from_{name}']:.1f} %   ({seconds:.1f} s)")
    report.plot(figure)
    print(f"figure          {figure}")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo with command-line arguments, by default ``sys.argv[1:]``; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m snn_recon_plugin", description=__doc__)
    parser.add_argument("--figure", metavar="FILE", default="snn_recon_demo.png", help="file of the figure (default: %(default)s)")
    try:
        run_demo(parser.parse_args(arguments).figure)
    except ReconstructionError as error:
        print(error)
        return 2
    return 0
