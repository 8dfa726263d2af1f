"""Seconds of a start and of a refit that processes of one thread each share, and whether they write the same bits.

    cd benchmarks && python -m scale.ranks --root DIR --ranks 1 2

writes benchmarks/results/scale/ranks.json.  The net is 784-1000-10 with 25 steps on MNIST, read as mean membrane (exact), maximum
over time (majorised) or spike count (surrogate).  The start has default options; the refit keeps hidden layers.  Each rank is a
Python with one thread, bound to a core of its own; the images are dealt out one by one, and gloo connects the ranks.  Seconds are
wall-clock, of the slowest rank, and of the faster of two runs: the cores must be free.  Every refit is of a network at its
initialisation.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import RESULTS, machine, run_all
from snn_recon_plugin import convex_init_
from snn_recon_plugin.convex import Shards
from snn_recon_plugin.demo import load_mnist_data
from snn_recon_plugin.distributed import SINGLE_PROCESS

from .processes import join_group, run_together

HIDDEN, STEPS, BATCH, SEED = 1000, 25, 128, 0
SAMPLES = 20_000
REPEATS = 2  # other work on the machine makes a run longer, never shorter
KINDS = ("exact", "majorised", "surrogate")
SOLVES: dict[str, dict[str, Any]] = {"start": {}, "refit": {"hidden": "keep", "tol": 1e-4, "max_cost": 0.5}}


class Net(nn.Module):
    """snnTorch's tutorial 5 with one of three decodings."""

    def __init__(self, kind: str) -> None:
        import snntorch as snn

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


def measure_rank(kind: str, solve: str, rank: int, world: int, folder: Path, root: str, samples: int) -> None:
    """Solve on this rank's share, and save its seconds, weights and report."""
    join_group(rank, world, folder)
    options: dict[str, Any] = {**SOLVES[solve], "seed": SEED, "progress": False}
    shards = TimedShards() if world > 1 else SINGLE_PROCESS
    data = load_mnist_data(root, samples)
    own = TensorDataset(data.train_inputs[rank::world], data.train_labels[rank::world])
    torch.manual_seed(SEED)
    net = Net(kind)
    if world > 1:
        dist.barrier()
    began = time.perf_counter()
    report = convex_init_(net, DataLoader(own, BATCH), shards=shards, **options)
    found = {"seconds": time.perf_counter() - began, "weights": dict(net.named_parameters()), "report": report.to_dict()}
    if isinstance(shards, TimedShards):
        found |= {"messages": shards.messages, "messages_seconds": shards.seconds}
    torch.save(found, folder / f"{rank}.pt")


def run_ranks(kind: str, solve: str, world: int, folder: Path, root: str, samples: int) -> list[dict[str, Any]]:
    """Return what each rank saved."""
    words = ["--root", root, "--samples", str(samples), "--cell", kind, solve, str(folder)]
    run_together("scale.ranks", words, world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def run_case(kind: str, solve: str, world: int, root: str, samples: int) -> dict[str, Any]:
    """Return the seconds of a case, by stage, of its fastest run, and what the ranks wrote and reported."""
    return min((run_once(kind, solve, world, root, samples) for _ in range(REPEATS)), key=lambda case: case["seconds"])


def run_once(kind: str, solve: str, world: int, root: str, samples: int) -> dict[str, Any]:
    """Return the same of one run."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = run_ranks(kind, solve, world, Path(folder), root, samples)
    report, weights = ranks[0]["report"], ranks[0]["weights"]
    certificate = report["certificate"]
    return {
        "ranks": world,
        "seconds": max(rank["seconds"] for rank in ranks),
        "stages": report["seconds"],
        "messages": ranks[0].get("messages", 0),  # of rank 0
        "messages_seconds": ranks[0].get("messages_seconds", 0.0),
        "equal_bits": all(torch.equal(weights[name], rank["weights"][name]) for rank in ranks for name in weights),
        "exactness": report["exactness"]["label"],
        "samples": report["samples"],
        "accuracy_after": report["accuracy_after"],
        "loss_after": report["loss_after"],
        "objective": certificate["primal"],
        "relative_gap": certificate["relative_gap"],
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--cell", nargs=5, metavar="WORD", help="one rank of a case; the script passes this to itself")
    options = parser.parse_args()
    if options.cell:
        kind, solve, folder, rank, world = options.cell
        measure_rank(kind, solve, int(rank), int(world), Path(folder), options.root, options.samples)
        return
    cases = {
        f"{kind}, {solve}, {world}": partial(run_case, kind, solve, world, options.root, options.samples)
        for kind, solve, world in product(options.kinds, SOLVES, options.ranks)
    }
    torch.set_num_threads(1)
    path = RESULTS / "scale" / "ranks.json"
    head = {"machine": machine("snntorch"), "seed": SEED, "samples": options.samples, "threads_a_rank": 1}
    content = run_all(path, head, cases)
    for name, case in content["cases"].items():
        print(f"{name}: {case['seconds']:.1f} s, equal bits: {case['equal_bits']}")


if __name__ == "__main__":
    main()
