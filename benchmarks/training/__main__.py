"""Runs the cases and methods named, all by default, into benchmarks/results/training.jsonl; a run that has a line is not repeated.

    cd benchmarks && python -m training --root DIR --speech DIR --cases digits "spoken digits" --methods "one cycle, EMA"

Learning rates are tuned once for each case and schedule, on the net without the plugin, by validation data; the runs with the
plugin use the same.  Seconds are CPU seconds of one thread, without those of tests.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.common import RESULTS, machine
from benchmarks.store import Store
from benchmarks.temporal.tasks import Places

from .cases import CASES, Parts, split
from .runs import METHODS, Method, run, tune

PATH = RESULTS / "training.jsonl"
TUNING_SEED = 1000  # of no other run


def name_of(case: str, what: str, seed: int) -> str:
    """Return the name of a run."""
    return f"{case}-{what}-{seed}".replace(" ", "_").replace(",", "")


def keep(store: Store, name: str, content: dict[str, Any]) -> dict[str, Any]:
    """Keep a result, with what the figures depend on."""
    return store.add(name, {**content, "machine": machine("snntorch", "norse", "lightning")})


def rate_of(store: Store, name: str, parts: Parts, make: Any, method: Method) -> float:
    """Return the rate that was tuned for a method's schedule without the plugin; tune it if it was not."""
    if method.rate is not None:
        return method.rate
    bare = replace(method, options=None, start=None, average=method.cycle)
    what = "tuning cycle" if method.cycle else "tuning fixed"
    tuning = name_of(name, what, TUNING_SEED)
    if tuning not in store:
        about = {"case": name, "method": what, "seed": TUNING_SEED}
        keep(store, tuning, {**about, **tune(make, parts, bare, CASES[name].epochs, TUNING_SEED)})
    return float(store[tuning]["rate"])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--root", help="where torchvision finds MNIST")
    parser.add_argument("--speech", help="folder of the spoken digits, with ende.npz")
    parser.add_argument("--results", type=Path, default=PATH)
    parser.add_argument("--again", action="store_true", help="repeat runs that have a result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    places, store = Places(options.root, options.speech), Store(options.results)
    for name in options.cases:
        case = CASES[name]
        data = case.load(places)
        with tqdm(list(product(options.seeds, options.methods)), disable=None, desc=name) as bar:
            for seed, label in bar:
                cell = name_of(name, label, seed)
                if cell in store and not options.again:
                    continue
                parts, method, make = split(data, seed), METHODS[label], partial(case.make, data)
                rate = rate_of(store, name, parts, make, method)
                about = {"case": name, "method": label, "seed": seed, "samples": len(parts.train)}
                found = keep(store, cell, {**about, **run(make, parts, method, rate, case.epochs, seed)})
                final = found["final"]
                print(f"{name:<28} {label:<24} {seed} {100 * final['test']:6.2f} % {final['seconds']:7.1f} CPU s", flush=True)


if __name__ == "__main__":
    main()
