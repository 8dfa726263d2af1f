"""Accuracy of the group lasso that selects candidates: CPU seconds and test accuracy of a start for several tolerances.

    python benchmarks/selection_steps.py --root DIR --speech DIR     writes benchmarks/results/selection_steps.json, half an hour

Nets and data are those of the training study.  A solve stops once its objective falls by less than ``settled``, relative, in ten
proximal steps, or after ``MAX_STEPS``.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from common import RESULTS, machine, run_all
from temporal.tasks import Places
from torch.utils.data import DataLoader
from training.cases import CASES, split
from training.runs import accuracy

from snn_recon_plugin import convex_init_
from snn_recon_plugin.witnesses import rebuild
from snn_recon_plugin.witnesses.select import SelectionProgram

SETTLED = (1e-3, 3e-3, 1e-2)
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


def run(name: str, settled: float, places: Places, seed: int) -> dict[str, Any]:
    """One start with such a tolerance of the selection."""
    data = CASES[name].load(places)
    parts = split(data, seed)
    torch.manual_seed(seed)
    net, began = CASES[name].make(data), time.process_time()
    with patch.object(rebuild, "SelectionProgram", partial(SelectionProgram, settled=settled)):
        report = convex_init_(net, DataLoader(parts.train, 128, shuffle=True), seed=seed, progress=False)
    spent = time.process_time() - began
    with torch.no_grad():
        test = accuracy(net, *parts.test)
    return {"task": name, "settled": settled, "seed": seed, "start": spent, "test": test, "heldout": report.accuracy_after}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder where torchvision finds MNIST")
    parser.add_argument("--speech", required=True, help="folder of ende.npz")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    places = Places(options.root, options.speech)
    cases = {
        f"{name}, settled {settled}, seed {seed}": partial(run, name, settled, places, seed)
        for seed, name, settled in product(range(options.seeds), NAMES, SETTLED)
    }
    content = run_all(RESULTS / "selection_steps.json", {"machine": machine(), "seeds": options.seeds}, cases)
    done = content["cases"].values()
    tried = [{(case["task"], case["seed"]) for case in done if case["settled"] == settled} for settled in SETTLED]
    common = set.intersection(*tried)
    for settled in SETTLED:
        found = [case for case in done if case["settled"] == settled and (case["task"], case["seed"]) in common]
        seconds, test = (sum(case[key] for case in found) / len(found) for key in ("start", "test"))
        print(f"settled {settled:g}: {seconds:.2f} s, test {100 * test:.2f} %, mean of {len(found)} starts")


if __name__ == "__main__":
    main()
