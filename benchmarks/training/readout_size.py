"""Size of the readout that training begins from: test accuracy after the one line and training, for several sizes.

    cd benchmarks && python -m training.readout_size --root DIR --speech DIR

The line runs, then its readout is halved until it is at most so many times as large as the network's own, then training by one
cycle with an EMA.  Rates are those tuned without the plugin.
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from collections.abc import Mapping
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
from snn_recon_plugin.training.shrink import LARGEST, shrink_readout

from .__main__ import FOLDER, rate_of
from .cases import CASES, split
from .runs import Method, run

SIZES = (math.inf, LARGEST, 1.0)
NAMES = tuple(name for name in CASES if name not in ("MNIST, spiking outputs", "MNIST, convolutions", "MNIST, Norse"))


def start(net: nn.Module, train: TensorDataset, seed: int, *, largest: float, factors: list[float]) -> None:
    """Run the one line, and shrink its readout."""
    initializer = ConvexInitializer(seed=seed, progress=False)
    report = initializer.initialize(net, DataLoader(train, BATCH, shuffle=True))
    factors.append(shrink_readout(report, largest))


def collect(name: str, largest: float, places: Places, seed: int) -> dict[str, Any]:
    """Train once from a readout of such a size."""
    case, factors = CASES[name], list[float]()
    data = case.load(places)
    parts, make = split(data, seed), partial(case.make, data)
    method = Method(cycle=True, average=True, start=partial(start, largest=largest, factors=factors))
    found = run(make, parts, method, rate_of(FOLDER, name, parts, make, method), case.epochs, seed)
    return {"task": name, "largest": str(largest), "seed": seed, "factor": factors[0], **found}


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
    places = Places(options.root, options.speech)
    cases = {
        f"{name}, {largest:g}, seed {seed}": partial(collect, name, largest, places, seed)
        for name, seed, largest in product(options.cases, options.seeds, SIZES)
    }
    found = run_all(options.results, {"machine": machine("snntorch", "norse", "lightning")}, cases)["cases"]
    replace(EVIDENCE / "training.md", "readout size", table(found.values()), script="training/readout_size.py")


def table(cases: Any) -> str:
    """Return a row a task: the start's accuracy, and for each size the factor, the accuracies after an epoch and at the end."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for case in cases:
        found.setdefault(case["task"], {}).setdefault(case["largest"], []).append(case)
    rows = []
    for task, sizes in found.items():
        if set(sizes) != {str(size) for size in SIZES}:
            continue
        cells = [task, f"{100 * mean(case['started']['test'] for case in sizes[str(math.inf)]):.1f}"]
        for size in SIZES:
            some = sizes[str(size)]
            after, final = (
                100 * mean(value) for value in zip(*((c["epochs"][0]["test"], c["final"]["test"]) for c in some), strict=True)
            )
            cells.append(f"{mean(case['factor'] for case in some):.2g}: {after:.1f}, {final:.1f}")
        rows.append((*cells, str(len(sizes[str(math.inf)]))))
    return markdown_table(
        ("task", "start", "as solved", *(f"at most {size:g} times its old size" for size in SIZES[1:]), "seeds"), rows
    )


if __name__ == "__main__":
    main()
