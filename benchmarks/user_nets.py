"""Nets as users write them, each with its own one line and its own test: which work, and what the report says of them.

Figures for docs/evidence/user_nets.md.  A run that is interrupted goes on where it was.  Run: python benchmarks/user_nets.py
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from typing import Any

from benchmarks.common import RESULTS, machine, run_all
from tests.user_nets.catalogue import GROUPS
from tests.user_nets.check import SEED, as_it_must_be, run_net, verdict
from tests.user_nets.data import digits


def cases() -> dict[str, Any]:
    """All cases by their names, in the table's order: as typed, and with hidden layers rebuilt. Each net has other images."""
    lines: dict[str, Any] = {}
    entries = [(group, entry) for group, nets in GROUPS.items() for entry in nets]
    for number, (group, entry) in enumerate(entries):
        samples = [entry.order(part) for part in digits(number)]
        for extra in entry.extras:
            lines[f"{group} | {entry.name} | {'rebuilt' if extra else 'typed'}"] = partial(run_net, entry, *samples, extra)
    return lines


def main() -> None:
    """Runs all cases and writes the json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", default=None, metavar="TEXT", help="run the cases whose name holds this again; '' for all")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
    train, fresh = digits()
    lines = cases()
    again = [name for name in lines if options.again is not None and options.again in name]
    head = {
        "machine": machine("snntorch", "norse", "lightning", "pytorch-lightning"),
        "seed": SEED,
        "train": len(train.labels),
        "fresh": len(fresh.labels),
    }
    results = run_all(RESULTS / "user_nets.json", head, lines, again)["cases"]
    for name, result in results.items():
        print(f"{name:<70} {verdict(result)}")
    print(f"{sum(map(as_it_must_be, results.values()))} of {len(results)} are as they must be")


if __name__ == "__main__":
    main()
