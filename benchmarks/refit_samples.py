"""What a refit may learn from: spikes of the training's own forwards, which cost no pass, or a fresh pass over some of the samples.

    python benchmarks/refit_samples.py --root DIR                       writes benchmarks/results/refit_samples.json

784-1000-10, one epoch of Adam at 5e-4 from the default initialisation, batch 128; then the readout is solved on each.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from common import RESULTS, machine, run_all
from hidden_networks import NETWORKS, STEPS, accuracy, loss_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin.demo import Data, load_mnist_data
from snn_recon_plugin.stages import Context, Options, initialize_network
from snn_recon_plugin.stages.stream import split_samples
from snn_recon_plugin.stages.strength import Samples, choose_strength

SAMPLES, BATCH, RATE, TOL = 10_000, 128, 5e-4, 1e-4
SHARES = (0.1, 0.25, 0.5, 1.0)


def weights_of(net: nn.Module) -> list[float]:
    """What a spike at each step adds to the mean over time of the output membrane, for one unit of weight."""
    beta = float(net.output.beta)  # type: ignore[union-attr, arg-type]
    return [(1 - beta ** (STEPS - step)) / (1 - beta) / STEPS for step in range(STEPS)]


@contextmanager
def listening(net: nn.Module, filtered: list[Tensor]) -> Iterator[list[Tensor]]:
    """Collects what enters the readout, averaged as the mean membrane weighs the steps, batch by batch."""
    weights, seen = weights_of(net), [0]

    def hear(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        step = seen[0] % STEPS
        if step == 0:
            filtered.append(torch.zeros_like(inputs[0]))
        filtered[-1] += weights[step] * inputs[0].detach()
        seen[0] += 1

    hook = net.synapses[-1].register_forward_pre_hook(hear)  # type: ignore[index, union-attr]
    try:
        yield filtered
    finally:
        hook.remove()


def study(data: Data, seed: int) -> dict[str, Any]:
    """One epoch, then all ways to refit from the same net."""
    torch.manual_seed(seed)
    net = NETWORKS["784-1000-10"]()
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    loader = DataLoader(TensorDataset(data.train_inputs, data.train_labels), BATCH, shuffle=True)
    heard: list[Tensor] = []
    labels: list[Tensor] = []
    began = time.perf_counter()
    with listening(net, heard):
        for inputs, targets in loader:
            optimizer.zero_grad()
            torch.autograd.backward(loss_of(net(inputs), targets))
            optimizer.step()
            labels.append(targets)
    result: dict[str, Any] = {"epoch_seconds": time.perf_counter() - began, "trained": accuracy(net, data), "refits": []}
    features, targets = torch.cat(heard), torch.cat(labels)
    for share in SHARES:
        count = int(share * len(features))
        began = time.perf_counter()
        readout = solved(features[-count:], targets[-count:], sum(weights_of(net)))
        seconds = time.perf_counter() - began
        result["refits"].append({"from": "training", "share": share, "seconds": seconds, "test": tested(net, readout, data)})
        began = time.perf_counter()
        other = copy.deepcopy(net)
        options = Options(hidden="keep", fit_loss="same", tol=TOL, max_samples=count, progress=False)
        initialize_network(other, loader, options, Context(warm_start=True))
        seconds = time.perf_counter() - began
        result["refits"].append({"from": "a pass", "share": share, "seconds": seconds, "test": accuracy(other, data)})
    return result


def solved(features: Tensor, labels: Tensor, bias_gain: float) -> tuple[Tensor, Tensor]:
    """Weights and biases of the ridge program, its strength chosen as a refit does."""
    options: dict[str, Any] = {"readout": "fc2", "num_outputs": 10, "loss": "cross_entropy", "penalty": "ridge"}
    options |= {"strength": "auto", "solver": "auto"}
    samples = Samples(features, labels, bias_gain)
    _, _, finish = choose_strength(samples, split_samples(len(labels), 0.2, 0), tol=TOL, **options)
    solution = finish()
    return solution.weight, solution.bias


def tested(net: nn.Module, readout: tuple[Tensor, Tensor], data: Data) -> float:
    """Test accuracy with another readout."""
    other = copy.deepcopy(net)
    layer = other.synapses[-1]  # type: ignore[index, union-attr]
    with torch.no_grad():
        layer.weight.copy_(readout[0])
        layer.bias.copy_(readout[1])
    return accuracy(other, data)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    data = load_mnist_data(options.root, options.samples)
    head = {"machine": machine("snntorch"), "samples": options.samples}
    cases = {f"seed {seed}": lambda seed=seed: study(data, seed) for seed in range(options.seeds)}
    run_all(RESULTS / "refit_samples.json", head, cases)


if __name__ == "__main__":
    main()
