"""Runs the cases and methods named, all by default, into benchmarks/results/training/; a run that has its json is not repeated.

    cd benchmarks && python -m training --root DIR --speech DIR --cases digits "spoken digits" --methods "one cycle, EMA"

Learning rates are tuned once for each case and schedule, on the net without the plugin, by validation data; the runs with the
plugin use the same.  Seconds are CPU seconds of one thread, without those of tests.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine
from temporal.tasks import Places
from tqdm.auto import tqdm

from .cases import CASES, Parts, split
from .runs import METHODS, Method, run, tune

FOLDER = RESULTS / "training"
TUNING_SEED = 1000  # of no other run


def path_of(folder: Path, case: str, what: str, seed: int) -> Path:
    """Return the json of a run."""
    return folder / f"{case}-{what}-{seed}.json".replace(" ", "_").replace(",", "")


def write(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write a result, with what the figures depend on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({**content, "machine": machine("snntorch", "norse", "lightning")}, indent=1) + "\n", encoding="utf-8"
    )
    return content


def rate_of(folder: Path, name: str, parts: Parts, make: Any, method: Method) -> float:
    """Return the rate that was tuned for a method's schedule without the plugin; tune it if it was not."""
    if method.rate is not None:
        return method.rate
    bare = replace(method, options=None, start=None, average=method.cycle)
    what = "tuning cycle" if method.cycle else "tuning fixed"
    path = path_of(folder, name, what, TUNING_SEED)
    if not path.exists():
        about = {"case": name, "method": what, "seed": TUNING_SEED}
        write(path, {**about, **tune(make, parts, bare, CASES[name].epochs, TUNING_SEED)})
    return float(json.loads(path.read_text(encoding="utf-8"))["rate"])


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
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--again", action="store_true", help="repeat runs that have a result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    places = Places(options.root, options.speech)
    for name in options.cases:
        case = CASES[name]
        data = case.load(places)
        with tqdm(list(product(options.seeds, options.methods)), disable=None, desc=name) as bar:
            for seed, label in bar:
                path = path_of(options.results, name, label, seed)
                if path.exists() and not options.again:
                    continue
                parts, method, make = split(data, seed), METHODS[label], partial(case.make, data)
                rate = rate_of(options.results, name, parts, make, method)
                about = {"case": name, "method": label, "seed": seed, "samples": len(parts.train)}
                found = write(path, {**about, **run(make, parts, method, rate, case.epochs, seed)})
                final = found["final"]
                print(f"{name:<28} {label:<24} {seed} {100 * final['test']:6.2f} % {final['seconds']:7.1f} CPU s", flush=True)


if __name__ == "__main__":
    main()
