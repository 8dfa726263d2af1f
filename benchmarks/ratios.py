"""Check in a minute that nothing became slower or larger: ratios to work of the same machine, against stored ones.

    python -m benchmarks.ratios            print what grew by more than a fifth; exit status 1 if anything did
    python -m benchmarks.ratios --store    write the ratios of this checkout to benchmarks/results/ratios.json

Seconds differ between machines, ratios hardly do: of a start and a refit to an epoch of training of the same net, of a solve to the
pairs of products that it must at least take, and of a start's memory to a training step's.  Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.nets import train_epochs
from benchmarks.process import Meter
from benchmarks.render import markdown_table
from benchmarks.store import RESULTS
from benchmarks.study import machine
from snn_recon_plugin import convex_init_, refit_
from snn_recon_plugin.convex import Features, Problem, solve
from snn_recon_plugin.demo import build_network, load_digits_data

PATH = RESULTS / "ratios.json"
TOLERANCE = 1.2  # factor by which a ratio may grow: medians of five vary by a tenth
REPEATS, BATCH = 5, 64
ROWS, COLUMNS, CLASSES, STRENGTH = 4000, 500, 10, 1e-3


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of a piece of work."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measure_net() -> dict[str, float]:
    """Return seconds of a start and a refit over an epoch's, and the start's memory over a training step's."""
    data = load_digits_data()
    batches = list(zip(data.train_inputs.split(BATCH), data.train_labels.split(BATCH), strict=True))
    net = build_network(inputs=64, hidden=256, outputs=10, steps=25)
    with Meter() as step:
        train_epochs(copy.deepcopy(net), batches[:1])
    epoch = cpu_seconds(lambda: train_epochs(copy.deepcopy(net), batches))
    with Meter() as start:
        convex_init_(net, batches, progress=False)
    refit = cpu_seconds(lambda: refit_(net, batches))
    return {
        "start, epochs": start.cpu_seconds / epoch,
        "refit, epochs": refit / epoch,
        "memory of a start, training steps": start.added / max(1, step.added),
    }


def measure_solver() -> dict[str, float]:
    """Return seconds of solves to a gap of 1e-6 over a product with all features and one with their transpose."""
    generator = torch.Generator().manual_seed(0)
    spikes = (torch.rand(ROWS, COLUMNS, generator=generator) < torch.rand(COLUMNS, generator=generator)).float()
    labels = (spikes @ torch.randn(COLUMNS, CLASSES, generator=generator)).argmax(1)
    weight = torch.randn(COLUMNS, CLASSES, generator=generator)
    pair = min(cpu_seconds(lambda: spikes.T @ (spikes @ weight)) for _ in range(20))
    found = {}
    for loss, penalty in (("squared_hinge", "ridge"), ("cross_entropy", "ridge"), ("squared_hinge", "group_l1")):
        problem = Problem(Features(spikes), labels, loss=loss, penalty=penalty, strength=STRENGTH, num_outputs=CLASSES)
        found[f"{loss}, {penalty}, pairs of products"] = cpu_seconds(lambda problem=problem: solve(problem, tol=1e-6)) / pair
    return found


def measure() -> dict[str, float]:
    """Return the median of each ratio."""
    measure_net()  # imports, which take seconds, and first use of the memory
    found = [{**measure_net(), **measure_solver()} for _ in tqdm(range(REPEATS), disable=None)]
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def compare(stored: dict[str, float], now: dict[str, float]) -> tuple[str, list[str]]:
    """Return a table of both, and the names of what grew."""
    grown = [name for name, value in now.items() if name in stored and value > TOLERANCE * stored[name]]
    rows = [
        (name, f"{stored[name]:.3g}" if name in stored else "not stored", f"{value:.3g}", "GREW" if name in grown else "")
        for name, value in now.items()
    ]
    return markdown_table(["ratio", "stored", "now", ""], rows), grown


def main(arguments: list[str] | None = None) -> int:
    """Measure, and store or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="store_true", help=f"write {PATH.name}")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    now = measure()
    if options.store:
        content: dict[str, Any] = {"machine": machine("snntorch"), "seed": 0, "repeats": REPEATS, "ratios": now}
        PATH.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if not PATH.exists():
        sys.exit(f"no {PATH}: pass --store, in a checkout that is as fast as it should be")
    text, grown = compare(json.loads(PATH.read_text(encoding="utf-8"))["ratios"], now)
    print(text)
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
