"""Accuracy of the group lasso that selects candidates: CPU seconds and test accuracy of a start, for tolerances and strengths.

    python benchmarks/selection_steps.py --root DIR --speech DIR     writes benchmarks/results/selection_steps.json, an hour

Nets and data are those of the training study.  A solve stops once its objective falls by less than ``settled``, relative, in ten
proximal steps, or after ``MAX_STEPS``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from functools import partial
from itertools import product
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch
from common import RESULTS, machine, run_all
from render_docs import EVIDENCE, markdown_table, replace
from temporal.tasks import Places
from torch.utils.data import DataLoader
from training.cases import CASES, split
from training.runs import accuracy

from snn_recon_plugin import convex_init_
from snn_recon_plugin.hidden import rebuild, select
from snn_recon_plugin.hidden.select import SelectionProgram

# Tolerance, and strength as a share of the critical one.
WAYS: dict[str, tuple[float, float]] = {
    "0.003": (3e-3, 3e-3),
    "0.0009": (3e-3, 9e-4),
    "0.00027": (3e-3, 2.7e-4),
    "0.003, settled 0.001": (1e-3, 3e-3),
    "0.003, settled 0.01": (1e-2, 3e-3),
}
EARLIER = "all three in turn"  # code that lowered the strength until enough candidates were used; its runs are kept
DOC = EVIDENCE / "decisions_speed.md"
NAMES = (
    "digits",
    "digits by row, recurrent",
    "spoken digits",
    "spoken digits, recurrent",
    "spike timing",
    "delayed match, recurrent",
    "MNIST",
    "MNIST, heavy noise",
    "MNIST, mixed labels",
    "MNIST, five layers",
    "MNIST by row",
    "MNIST by row, recurrent",
    "MNIST, convolutions",
)


def run(name: str, way: str, places: Places, seed: int) -> dict[str, Any]:
    """One start with such a selection."""
    settled, strength = WAYS[way]
    data = CASES[name].load(places)
    parts = split(data, seed)
    torch.manual_seed(seed)
    net, began = CASES[name].make(data), time.process_time()
    program = partial(SelectionProgram, settled=settled)
    with patch.object(rebuild, "SelectionProgram", program), patch.object(select, "STRENGTH", strength):
        report = convex_init_(net, DataLoader(parts.train, 128, shuffle=True), seed=seed, progress=False)
    spent = time.process_time() - began
    with torch.no_grad():
        test = accuracy(net, *parts.test)
    return {"task": name, "way": way, "seed": seed, "start": spent, "test": test, "heldout": report.accuracy_after}


def make_table(cases: Iterable[dict[str, Any]]) -> str:
    """Return test accuracy and CPU seconds of a start, a row a task, over the seeds that all ways have; at the end the means."""
    found: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for case in cases:
        found.setdefault(case["task"], {}).setdefault(case["way"], {})[case["seed"]] = case
    columns = [EARLIER, *(way for way in WAYS if "settled" not in way)]
    values, rows = list[list[tuple[float, float]]](), list[tuple[str, ...]]()
    for task, ways in found.items():
        if not all(way in ways for way in columns):
            continue
        seeds = set.intersection(*(set(ways[way]) for way in columns))
        each = [[(100 * ways[way][seed]["test"], ways[way][seed]["start"]) for seed in seeds] for way in columns]
        values.append([(mean(test for test, _ in one), mean(seconds for _, seconds in one)) for one in each])
        rows.append((task, *map(_text, values[-1]), str(len(seeds))))
    means = [(mean(test for test, _ in one), mean(seconds for _, seconds in one)) for one in zip(*values, strict=True)]
    return markdown_table(("data", *columns, "seeds"), [*rows, ("mean", *map(_text, means), "")])


def _text(value: tuple[float, float]) -> str:
    return f"{value[0]:.2f} ({value[1]:.1f} s)"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder where torchvision finds MNIST")
    parser.add_argument("--speech", required=True, help="folder of ende.npz")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tasks", nargs="+", choices=NAMES, default=NAMES, metavar="TASK")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    options = parser.parse_args()
    torch.set_num_threads(1)
    places = Places(options.root, options.speech)
    cases = {
        f"{name}, {way}, seed {seed}": partial(run, name, way, places, seed)
        for seed, name, way in product(range(options.seeds), options.tasks, options.ways)
    }
    content = run_all(RESULTS / "selection_steps.json", {"machine": machine(), "seeds": options.seeds}, cases)
    replace(DOC, "selection", make_table(content["cases"].values()), script="selection_steps.py")


if __name__ == "__main__":
    main()
