"""Seconds of a start and of a refit that processes of one thread each share, and whether they write the same bits.

The net is 784-1000-10 with 25 steps on MNIST, read as mean membrane (exact), maximum over time (majorised) or spike count
(surrogate).  The start has default options; the refit keeps hidden layers.  Each rank has a core of its own, and gloo connects
them.  Every refit is of a network at its initialisation.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import snntorch as snn
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_
from snn_recon_plugin.convex import Shards
from snn_recon_plugin.demo import load_mnist_data
from snn_recon_plugin.distributed import SINGLE_PROCESS

__all__ = ["KINDS", "SOLVES", "measure_ranks"]

KINDS = ("exact", "majorised", "surrogate")
SOLVES: dict[str, dict[str, Any]] = {"start": {}, "refit": {"hidden": "keep", "tol": 1e-4, "max_cost": 0.5}}
HIDDEN, STEPS, BATCH, SEED, SAMPLES = 1000, 25, 128, 0, 20_000
REPEATS = 2  # other work on the machine makes a run longer, never shorter


class RankNet(nn.Module):
    """snnTorch's tutorial 5 with one of three decodings."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        reset = "subtract" if kind == "surrogate" else "none"
        self.kind = kind
        self.fc1, self.lif1 = nn.Linear(784, HIDDEN), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, 10), snn.Leaky(beta=0.95, reset_mechanism=reset)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, 10)."""
        mem1, mem2, spikes, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), [], []
        for _ in range(STEPS):
            fired, mem1 = self.lif1(self.fc1(x), mem1)
            fired, mem2 = self.lif2(self.fc2(fired), mem2)
            spikes.append(fired)
            membranes.append(mem2)
        if self.kind == "surrogate":
            return torch.stack(spikes).sum(0)
        values = torch.stack(membranes)
        return values.amax(0) if self.kind == "majorised" else values.mean(0)


class TimedShards(Shards):
    """Rows shared by processes, with the number of messages and the seconds in them, in which a rank also waits for others."""

    messages, seconds = 0, 0.0

    def _call(self, exchange: Callable[..., object], *arguments: object) -> None:
        began = time.perf_counter()
        super()._call(exchange, *arguments)
        self.messages, self.seconds = self.messages + 1, self.seconds + time.perf_counter() - began


def run_rank(rank: int, world: int, kind: str, solve: str, root: str, folder: str) -> None:
    """Solve on this rank's share of the images, dealt out one by one, with one thread on one core."""
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    shards = SINGLE_PROCESS
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
        shards = TimedShards()
    data = load_mnist_data(root, SAMPLES)
    own = TensorDataset(data.train_inputs[rank::world], data.train_labels[rank::world])
    torch.manual_seed(SEED)
    net = RankNet(kind)
    if world > 1:
        dist.barrier()
    began = time.perf_counter()
    report = convex_init_(net, DataLoader(own, BATCH), shards=shards, seed=SEED, progress=False, **SOLVES[solve])
    found = {"seconds": time.perf_counter() - began, "weights": dict(net.named_parameters()), "stages": report.to_dict()["seconds"]}
    if isinstance(shards, TimedShards):
        found |= {"messages": shards.messages, "messages_seconds": shards.seconds}
    torch.save(found, f"{folder}/{rank}.pt")


def measure_ranks(kind: str, solve: str, world: int, root: str) -> dict[str, Any]:
    """Return the seconds of the slowest rank in the faster of two runs, and whether all ranks wrote the same bits."""
    runs = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(run_rank, (world, kind, solve, root, folder), world)
            ranks = [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(world)]
        first = ranks[0]
        equal = all(torch.equal(weight, rank["weights"][name]) for rank in ranks for name, weight in first["weights"].items())
        kept = {key: first.get(key, 0) for key in ("stages", "messages", "messages_seconds")}
        runs.append({"seconds": max(rank["seconds"] for rank in ranks), "equal_bits": equal, **kept})
    return {"kind": "ranks", "ranks": world, "threads": 1, "device": "cpu", **min(runs, key=lambda run: run["seconds"])}
