"""Hidden layers rebuilt on MNIST, first 10,000 training images, no gradient step: test accuracy, seconds, and training from there.

    python benchmarks/hidden.py --root DIR             writes benchmarks/results/hidden.json
    python benchmarks/hidden.py --root DIR --training  ten epochs from each initialisation, benchmarks/results/hidden_training.json

Cases run with three seeds, slow and merely
instructive ones with one.  An epoch of surrogate training (Adam, 5e-4, batch 128) is timed beside each case, on a net
like its own, so that seconds compare within one run.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import nn

from benchmarks.common import RESULTS, machine, run_all
from benchmarks.hidden_networks import NETWORKS, accuracy, fluctuation_driven_, loader_of, scores_of
from benchmarks.hidden_samplers import EXTRA_SAMPLERS, own_and_new
from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.demo import Data, load_mnist_data

SAMPLES, BATCH, RATE = 10_000, 128, 5e-4
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "own weights, rescaled": ("784-1000-10", {"hidden": "rescale"}),
    "1000 candidates, all kept": ("784-1000-10", {"n_candidates": 1000}),
    "3000 candidates, 1000 selected": ("784-1000-10", {}),
    "3000 Gaussian candidates, 1000 selected": ("784-1000-10", {"witnesses": "gaussian"}),
    "3000 Gaussian candidates, standard": ("784-1000-10", {"witnesses": "gaussian_standard"}),
    "3000 Gaussian candidates, normalised": ("784-1000-10", {"witnesses": "gaussian_normalised"}),
    "3000 Gaussian candidates, orthogonal": ("784-1000-10", {"witnesses": "gaussian_orthogonal"}),
    "silent net, 3000 candidates": ("784-1000-10, silent", {}),
    "5 layers": ("784-256x5-10", {}),
    "5 layers, pairs only": ("784-256x5-10", {"witnesses": "only pairs"}),
    "5 layers, class codes only": ("784-256x5-10", {"witnesses": "codes"}),
    "5 layers, relays, pairs and codes": ("784-256x5-10", {"witnesses": "a pool of all"}),
    "5 layers, a second pass from what the first one wrote": ("784-256x5-10", {"passes": 2}),
    "10 layers": ("784-256x10-10", {}),
    "conv, rescaled": ("conv", {"hidden": "rescale"}),
    "conv, 12 candidates a channel": ("conv", {"n_candidates": 12.0}),
    "Norse": ("Norse 784-1000-10", {}),
    "recurrent, rescaled": ("recurrent 28-256-10", {"hidden": "rescale"}),
    "recurrent, own or best of 3 draws": ("recurrent 28-256-10", {}),
    "recurrent, own or best of 12 draws": ("recurrent 28-256-10", {"n_candidates": 12.0}),
}
ONCE = (*(name for name in CASES if "Gaussian" in name or name.startswith("5 layers, ")), "conv, rescaled")
EPOCHS = (0, 1, 3, 10)
STARTS = ("Kaiming", "fluctuation-driven", "rescaled, readout solved", "rebuilt, readout solved")


def train_epoch(net: nn.Module, optimizer: torch.optim.Optimizer, data: Data, generator: torch.Generator) -> float:
    """One epoch of surrogate training; its seconds."""
    began = time.perf_counter()
    for index in torch.randperm(len(data.train_labels), generator=generator).split(BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(scores_of(net(data.train_inputs[index])), data.train_labels[index]).backward()
        optimizer.step()
    return time.perf_counter() - began


def run_case(data: Data, name: str, seed: int, epoch: bool) -> dict[str, Any]:
    """One net, rebuilt; and an epoch of training of another like it where asked for."""
    network, options = CASES[name]
    torch.manual_seed(seed)
    net = NETWORKS[network]()
    chosen = {"hidden": "reconstruct", **options}
    passes = chosen.pop("passes", 1)
    if (name_of := chosen.get("witnesses")) in EXTRA_SAMPLERS:
        chosen["witnesses"] = EXTRA_SAMPLERS[name_of]
    began = time.perf_counter()
    report = ConvexInitializer(seed=seed, **chosen).initialize(net, loader_of(data))
    for again in range(1, passes):
        report = ConvexInitializer(seed=seed + again, **chosen, witnesses=own_and_new).initialize(net, loader_of(data))
    seconds = time.perf_counter() - began
    result = {"test": accuracy(net, data), "seconds": seconds, "heldout": report.accuracy_after, "stages": report.seconds}
    result["relative_gap"] = report.certificate.relative_gap
    result["layers"] = report.to_dict()["layers"]
    if epoch:
        torch.manual_seed(seed)
        other = NETWORKS[network]()
        optimizer = torch.optim.Adam(other.parameters(), RATE)
        result["epoch_seconds"] = train_epoch(other, optimizer, data, torch.Generator().manual_seed(seed))
    return result


def run_training(data: Data, start: str, seed: int) -> dict[str, Any]:
    """Test accuracy after some epochs of surrogate training from an initialisation of 784-1000-10."""
    torch.manual_seed(seed)
    net = NETWORKS["784-1000-10"]()
    began = time.perf_counter()
    if start == "fluctuation-driven":
        fluctuation_driven_(net, data.train_inputs[:500])
    elif start != "Kaiming":
        hidden = "reconstruct" if start.startswith("rebuilt") else "rescale"
        ConvexInitializer(hidden=hidden, seed=seed).initialize(net, loader_of(data))
    seconds = time.perf_counter() - began
    optimizer, generator = torch.optim.Adam(net.parameters(), RATE), torch.Generator().manual_seed(seed)
    found = {"0": {"test": accuracy(net, data), "seconds": seconds}}
    for epoch in range(1, EPOCHS[-1] + 1):
        seconds += train_epoch(net, optimizer, data, generator)
        if epoch in EPOCHS:
            found[str(epoch)] = {"test": accuracy(net, data), "seconds": seconds}
    return found


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--training", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_mnist_data(options.root, SAMPLES)
    head = {"machine": machine("snntorch", "norse"), "samples": SAMPLES}
    cases: dict[str, Any] = {}
    for seed in range(options.seeds):
        for name in STARTS if options.training else [case for case in CASES if not seed or case not in ONCE]:

            def case(name: str = name, seed: int = seed) -> dict[str, Any]:
                return run_training(data, name, seed) if options.training else run_case(data, name, seed, seed == 0)

            cases[f"{name}, seed {seed}"] = case
    run_all(RESULTS / ("hidden_training.json" if options.training else "hidden.json"), head, cases)


if __name__ == "__main__":
    main()
