"""Rows of convolutions made of patches, of commit 103d87f, against a gain and offsets, on two nets and two sets of images.

``python benchmarks/patches.py start WAY DIR ROOT`` runs the line of the checkout on ``PYTHONPATH``, and keeps its nets in DIR.  WAY
is its name: "gains", or in commit 103d87f "patches", or "all patches", whose ``max_cost`` lets all convolutions have them.
``python benchmarks/patches.py train DIR`` then trains from them with faster steps: from the gains for as many CPU seconds as all
patches cost more, and from each for three epochs of one cycle with an EMA.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
import warnings
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import tasks
from benchmarks.image_nets import DEEP_NETS
from benchmarks.nets import accuracy, loss_of
from benchmarks.study import Places
from snn_recon_plugin import convex_init_
from snn_recon_plugin.demo import build_network

NETS, IMAGES, SEEDS, COUNT, TESTS, BATCH = ("tutorial 6", "four convolutions"), ("MNIST", "hard images"), (0, 1), 3_000, 2_000, 64
RATES, CYCLE, EPOCHS = (1e-3, 5e-3), 1e-2, 3
RESULTS = Path(__file__).parent / "results" / "patches.jsonl"
CASES = tuple(itertools.product(NETS, IMAGES, SEEDS))


def load(images, root):
    """Return training and test images and labels."""
    if images == "MNIST":
        data = tasks.load_mnist_data(root, COUNT)
        test = data.test_inputs[:TESTS].view(-1, 1, 28, 28), data.test_labels[:TESTS]
        return data.train_inputs.view(-1, 1, 28, 28), data.train_labels, *test
    tasks.HARD = COUNT
    data = tasks.hard_images(Places(mnist=root), colour=False)
    return data.train_inputs, data.train_labels, data.test_inputs, data.test_labels


def loader_of(data, seed):
    return DataLoader(TensorDataset(*data[:2]), BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed))


def fresh(net, seed):
    torch.manual_seed(seed)
    return DEEP_NETS[net]()


def restored(net, kept):
    """Return a net with the weights that were kept; its layers may have other names, but the same order."""
    made = DEEP_NETS[net]()
    values = [value for name, value in kept["state"].items() if name.endswith((".weight", ".bias"))]
    with torch.no_grad():
        for parameter, value in zip(made.parameters(), values, strict=True):
            parameter.copy_(value)
    assert abs(accuracy(made, *kept["data"][2:]) - kept["test"]) < 2e-3
    return made


def keep(**line):
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(line, flush=True)


def start(way, folder, root):
    """Run the line on each case."""
    for net, images, seed in CASES:
        data = load(images, root)
        convex_init_(build_network(64, 8, 10, 2), [(torch.rand(64, 64), torch.arange(64) % 10)], progress=False)  # imports
        made = fresh(net, seed)
        began = time.process_time()
        convex_init_(made, loader_of(data, seed), seed=seed, progress=False, max_cost=10.0 if way == "all patches" else 1.0)
        seconds = time.process_time() - began
        found = {"seconds": seconds, "test": accuracy(made, *data[2:])}
        torch.save({"state": made.state_dict(), "data": data, **found}, f"{folder}/{way}, {net}, {images}, {seed}.pt")
        optimizer = torch.optim.Adam((other := fresh(net, seed)).parameters())
        began = time.process_time()
        for inputs, labels in loader_of(data, seed):
            step(other, optimizer, inputs, labels)
        keep(way=way, net=net, images=images, seed=seed, **found, plain_epoch=time.process_time() - began)


def step(net, optimizer, inputs, labels):
    optimizer.zero_grad()
    loss_of(net(inputs), labels).backward()
    optimizer.step()


def train(folder):
    """Train from the nets that were kept."""
    from benchmarks.methods import Average
    from snn_recon_plugin import fast_steps

    for net, images, seed in CASES:
        kept = {way: torch.load(f"{folder}/{way}, {net}, {images}, {seed}.pt") for way in ("gains", "patches", "all patches")}
        gains, patches = kept["gains"], kept["all patches"]
        assert all(map(torch.equal, gains["data"], patches["data"]))
        more, case = patches["seconds"] - gains["seconds"], {"net": net, "images": images, "seed": seed}
        for rate in RATES:
            made = restored(net, gains)
            optimizer, steps, began = torch.optim.Adam(made.parameters(), rate), 0, time.process_time()
            with fast_steps(made, loader_of(gains["data"], seed)):
                for inputs, labels in itertools.chain.from_iterable(itertools.repeat(loader_of(gains["data"], seed))):
                    if time.process_time() - began > more:
                        break
                    step(made, optimizer, inputs, labels)
                    steps += 1
            test = accuracy(made, *gains["data"][2:])
            keep(
                way=f"gains, then Adam at {rate} for the seconds that all patches cost more",
                **case,
                seconds=more,
                steps=steps,
                test=test,
            )
        for way, start in kept.items():
            made = restored(net, start)
            batches = loader_of(start["data"], seed)
            total = EPOCHS * len(batches)
            optimizer = torch.optim.Adam(made.parameters(), CYCLE)
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, CYCLE, total_steps=total)
            average, began = Average(made, 0.05 * total), time.process_time()
            with fast_steps(made, batches):
                for inputs, labels in itertools.chain.from_iterable(itertools.repeat(batches, EPOCHS)):
                    step(made, optimizer, inputs, labels)
                    cycle.step()
                    average.update()
            seconds = time.process_time() - began
            average.exchange()
            test = accuracy(made, *start["data"][2:])
            keep(way=f"{way}, then {EPOCHS} epochs of one cycle", **case, seconds=seconds, test=test)


warnings.filterwarnings("ignore")
torch.set_num_threads(1)
{"start": start, "train": train}[sys.argv[1]](*sys.argv[2:])
