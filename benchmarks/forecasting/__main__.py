"""Runs the cells named, all by default, into benchmarks/results/forecasting.jsonl; a cell that has a line is not run again.

    cd benchmarks && python -m forecasting --tasks Lorenz --methods keep "echo state" --seeds 0

The learning rate of surrogate training is tuned once for each series and net, by validation data, on the net without the plugin.
Seconds are CPU seconds of one thread, without those of tuning and tests.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.common import RESULTS, machine
from benchmarks.store import Store

from .methods import METHODS, TRAININGS, TUNING_SEED, applies, run_method, tune_rate
from .nets import NETS
from .series import SERIES, split

PATH = RESULTS / "forecasting.jsonl"
WIDTH = 256


def name_of(task: str, net: str, method: str, seed: int) -> str:
    """Return the name of a cell."""
    return "-".join(filter(None, (task, net, method, str(seed)))).replace(",", "").replace(" ", "_")


def keep(store: Store, name: str, content: dict[str, Any]) -> dict[str, Any]:
    """Keep a result, with what the figures depend on."""
    return store.add(name, {**content, "machine": machine("snntorch", "norse", "lightning")})


def rate_of(store: Store, task: str, net: str, width: int) -> float:
    """Return the learning rate of a net's training on a series; tune it if it was not."""
    tuning = name_of(task, net, "tuning", TUNING_SEED)
    if tuning not in store:
        about = {"task": task, "net": net, "method": "tuning", "seed": TUNING_SEED}
        keep(store, tuning, {**about, **tune_rate(net, width, split(SERIES[task], TUNING_SEED))})
    return float(store[tuning]["rate"])


def main(arguments: list[str] | None = None) -> None:
    """Run the cells of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m forecasting", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=SERIES, default=list(SERIES), metavar="TASK")
    parser.add_argument("--nets", nargs="+", choices=["", *NETS], default=["", *NETS], metavar="NET")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--width", type=int, default=WIDTH, help="hidden neurons")
    parser.add_argument("--results", type=Path, default=PATH)
    parser.add_argument("--again", action="store_true", help="repeat cells that have a result")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    cells = list(product(options.seeds, options.tasks, options.nets, options.methods))
    wanted = [cell for cell in cells if applies(cell[3], cell[2], SERIES[cell[1]].outliers > 0)]
    store = Store(options.results)
    for seed, task, net, method in tqdm(wanted, disable=None):
        cell = name_of(task, net, method, seed)
        if cell in store and not options.again:
            continue
        rate = rate_of(store, task, net, options.width) if method in TRAININGS else None
        about = {"task": task, "net": net, "method": method, "width": options.width, "seed": seed}
        measured = run_method(method, net, options.width, SERIES[task], split(SERIES[task], seed), seed, rate)
        found = keep(store, cell, {**about, **measured})
        shown = f"{found['one_step']:.4f}  valid {found['valid']:7.2f}  {found['cpu_seconds']:6.1f} CPU s"
        print(f"{task:<24} {net:<13} {method:<15} {seed}  one step {shown}", flush=True)


if __name__ == "__main__":
    main()
