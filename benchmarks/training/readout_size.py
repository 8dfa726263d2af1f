"""Size of the readout that training begins from: test accuracy after the one line and training, for several sizes.

    cd benchmarks && python -m training.readout_size --root DIR --speech DIR

The line runs, then its readout is halved until it is at most so many times as large as a fresh one, then training by one cycle
with an EMA.  Rates are those tuned without the plugin.
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import RESULTS, machine, run_all
from render_docs import EVIDENCE, markdown_table, replace
from temporal.tasks import Places
from temporal.training import BATCH
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.training.shrink import LARGEST, relative_size, shrink_readout

from .__main__ import FOLDER, rate_of
from .cases import CASES, split
from .runs import Method, run

SIZES = (math.inf, LARGEST, 3.0)
NAMES = tuple(name for name in CASES if name != "MNIST, spiking outputs")  # no factor leaves what its outputs decide


class Started:
    """The one line before a run, which then shrinks the readout, and remembers its size."""

    def __init__(self, largest: float) -> None:
        self.largest, self.factor, self.solved = largest, 1.0, 0.0
        self.readout: tuple[nn.Parameter, ...] = ()

    def __call__(self, net: nn.Module, train: TensorDataset, seed: int) -> None:
        """Start a network."""
        initializer = ConvexInitializer(seed=seed, progress=False)
        report = initializer.initialize(net, DataLoader(train, BATCH, shuffle=True))
        self.readout = report.sample.rescalable
        self.solved = relative_size(self.readout)
        self.factor = shrink_readout(report, self.largest)

    def sizes(self) -> dict[str, float]:
        """Return the factor, and the size of the readout as solved and at present."""
        return {"factor": self.factor, "solved": self.solved, "end": relative_size(self.readout)}


def collect(name: str, largest: float, places: Places, seed: int, whole: dict[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
    """Train once from a readout of such a size; ``whole`` are the runs from readouts as solved, which are not repeated."""
    if (name, seed) in whole and whole[name, seed]["solved"] <= largest:
        return {**whole[name, seed], "largest": str(largest)}
    case, started = CASES[name], Started(largest)
    data = case.load(places)
    parts, make = split(data, seed), partial(case.make, data)
    method = Method(cycle=True, average=True, start=started)
    found = run(make, parts, method, rate_of(FOLDER, name, parts, make, method), case.epochs, seed)
    content = {"task": name, "largest": str(largest), "seed": seed, **started.sizes(), **found}
    if largest == math.inf:
        whole[name, seed] = content
    return content


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.readout_size", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--speech", required=True, help="folder of the spoken digits, with ende.npz")
    parser.add_argument("--cases", nargs="+", choices=NAMES, default=NAMES, metavar="CASE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "readout_size.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    places, whole = Places(options.root, options.speech), dict[tuple[str, int], dict[str, Any]]()
    cases = {
        f"{name}, {largest:g}, seed {seed}": partial(collect, name, largest, places, seed, whole)
        for name, seed, largest in product(options.cases, options.seeds, SIZES)
    }
    found = run_all(options.results, {"machine": machine("snntorch", "norse", "lightning")}, cases)["cases"]
    replace(EVIDENCE / "training.md", "readout size", table(list(found.values())), script="training/readout_size.py")


def table(cases: Iterable[Mapping[str, Any]]) -> str:
    """Return a row a task: the solved readout's size, the start's accuracy, and accuracies and sizes for each limit."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for case in cases:
        found.setdefault(case["task"], {}).setdefault(case["largest"], []).append(case)
    rows = []
    for task, limits in found.items():
        if set(limits) != {str(size) for size in SIZES}:
            continue
        solved = limits[str(math.inf)]
        cells = [
            task,
            f"{mean(case['solved'] for case in solved):.1f}",
            f"{mean(100 * case['started']['test'] for case in solved):.1f}",
        ]
        for size in SIZES:
            runs = limits[str(size)]
            first = mean(100 * case["epochs"][0]["test"] for case in runs)
            last = mean(100 * case["final"]["test"] for case in runs)
            begun, end = mean(case["solved"] * case["factor"] for case in runs), mean(case["end"] for case in runs)
            cells.append(f"{first:.1f}, {last:.1f} ({begun:.1f}, {end:.1f})")
        rows.append((*cells, str(len(solved))))
    sizes = (f"at most {size:g}" for size in SIZES[1:])
    return markdown_table(("task", "size as solved", "accuracy of the start", "as solved", *sizes, "seeds"), rows)


if __name__ == "__main__":
    main()
