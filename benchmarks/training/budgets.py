"""Test accuracy that a budget buys: 1, 2, 4 or 8 epochs of training alone in CPU seconds, whatever a start costs included.

    cd benchmarks && python -m training.budgets --root DIR --speech DIR

Every run has one cycle of its own, and the rate that was tuned without the plugin.  The callback trains for as many whole epochs
as its start and refits leave in the budget.  Recurrent nets are trained with both surrogate gradients that users take, since a
damped recurrence helps wide ones: snnTorch's default, an arc tangent, and the steep fast sigmoid of its tutorials.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn
from tqdm.auto import tqdm

from benchmarks.common import RESULTS, machine
from benchmarks.render_docs import markdown_table, replace
from benchmarks.render_networks import machine_line
from benchmarks.store import Store
from benchmarks.temporal.tasks import Places

from .__main__ import PATH as TRAININGS
from .__main__ import TUNING_SEED, rate_of
from .cases import CASES, Parts, split
from .render import EVIDENCE
from .runs import METHODS, Method, run, tune

ROWS = "MNIST by row, recurrent, 60,000 images"
PATH = RESULTS / "training_budgets.json"
BUDGETS, LONGER = (1, 2, 4, 8), (16, 32)  # the longer ones where an epoch takes less than a second
SLACK, EXCEEDED = 1.05, 1.15  # factors by which a plan, and the run, may exceed a budget: seconds vary
STUDIED = {name: case for name, case in CASES.items() if name != "MNIST, convolutions"}
MANY = "MNIST, 60,000 images"
FEW_NEURONS = "MNIST, 60,000 images, 300 neurons"
TUNED_AS = {ROWS: "MNIST by row, recurrent"} | {f"{FEW_NEURONS}, {share} % wrong labels": FEW_NEURONS for share in (20, 40)}
ALONE, CALLBACK, AIDED = METHODS["one cycle, EMA"], METHODS["callback, one cycle"], Method(cycle=True, average=True, aids=True)


def wide(net: nn.Module) -> nn.Module:
    """Give snnTorch's neurons its default surrogate gradient, an arc tangent."""
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.spike_grad = surrogate.atan()
    return net


# Method, and what it changes in a fresh net.
TRIED: dict[str, tuple[Method, Callable[[nn.Module], nn.Module]]] = {
    "alone": (ALONE, lambda net: net),
    "alone, arc tangent": (ALONE, wide),
    "alone, arc tangent, damped": (AIDED, wide),
    "alone, hard samples": (AIDED, lambda net: net),
    "callback": (CALLBACK, lambda net: net),
    "callback, random samples": (Method(cycle=True, options={"hard_samples": False}), lambda net: net),
    "callback, few steps first": (Method(cycle=True, options={}, few=3), lambda net: net),
    "callback, arc tangent": (CALLBACK, wide),
}


def applies(case: str, method: str) -> bool:
    """Return whether a method differs from the plainer one: damping needs recurrence, hard samples many samples."""
    if "arc tangent" in method:
        return "recurrent" in case
    if "wrong labels" in case:
        return method in ("alone", "callback", "callback, random samples")
    if "few steps" in method:
        return case == FEW_NEURONS
    return "samples" not in method or case.startswith(MANY)


class Cells:
    """Finished runs, kept in a json that is written after each one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, make: Callable[[], dict[str, Any]], **about: Any) -> dict[str, Any]:
        """Return a cell, after running it if there is none; ``about`` says which."""
        key = ", ".join(map(str, about.values()))
        if key not in self.found:
            self.found[key] = {**about, **make(), "machine": machine("snntorch", "norse", "lightning")}
            self.path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        return dict(self.found[key])


def run_case(cells: Cells, name: str, places: Places, budgets: list[int], methods: list[str], seed: int) -> None:
    """Run all methods of a case within all budgets."""
    case = STUDIED[name]
    data = case.load(places)
    parts = split(data, seed)
    budgets = [budget for budget in budgets if budget in BUDGETS or case.epochs >= 12]

    def fresh(change: Callable[[nn.Module], nn.Module]) -> nn.Module:
        return change(case.make(data))

    def train(method: str, epochs: int) -> dict[str, Any]:
        way, change = TRIED[method]
        make = partial(fresh, change)

        def once() -> dict[str, Any]:
            rate = rate_for(cells, name, parts, make, method)
            found = run(make, parts, way, rate, epochs, seed)
            return {"rate": rate, **found["final"]}

        return cells.get(once, case=name, method=method, epochs=epochs, seed=seed)

    for method in tqdm([method for method in methods if applies(name, method)], desc=name, disable=None):
        if not method.startswith("callback"):
            for budget in budgets:
                train(method, budget)
            continue
        reference = train("alone", max(budgets))
        epoch = reference["seconds"] / reference["epochs"]
        least = train(method, 1)["seconds"] / epoch
        for epochs in (planned(budget, least) for budget in budgets):
            if epochs:
                train(method, epochs)


def planned(budget: int, least: float) -> int:
    """Return the whole epochs that a budget leaves, if one epoch with the start costs ``least``; 0 if it is too small."""
    return max(0, 1 + math.floor(SLACK * budget - least))


def rate_for(cells: Cells, name: str, parts: Parts, make: Callable[[], nn.Module], method: str) -> float:
    """Return the rate tuned without the plugin; that of a surrogate gradient which the main study lacks is tuned here."""
    name = TUNED_AS.get(name, name)  # that one must run first
    if "arc tangent" not in method:
        return rate_of(Store(TRAININGS), name, parts, make, ALONE)
    method = method.replace("callback, arc tangent", "alone, arc tangent, damped")
    way, _ = TRIED[method]
    found = cells.get(lambda: tune(make, parts, way, STUDIED[name].epochs, TUNING_SEED), case=name, method=method, seed="rate")
    return float(found["rate"])


def table(cells: Iterable[Mapping[str, Any]]) -> str:
    """Return a row for each case and method: test accuracy in percent within each budget, a dash for none."""
    runs = [cell for cell in cells if "test" in cell]
    rows = []
    for name, method in product(STUDIED, TRIED):
        own = [cell for cell in runs if (cell["case"], cell["method"]) == (name, method)]
        alone = [cell for cell in runs if (cell["case"], cell["method"]) == (name, "alone")]
        if own:
            longest = max(alone, key=lambda cell: cell["epochs"])
            epoch = longest["seconds"] / longest["epochs"]
            rows.append([name, method, *(within(own, budget, epoch) for budget in BUDGETS + LONGER)])
    return markdown_table(["case", "method", *map(str, BUDGETS + LONGER)], rows)


def within(runs: Sequence[Mapping[str, Any]], budget: int, epoch: float) -> str:
    """Return the mean accuracy of the longest runs within a budget, given the seconds of an epoch; a dash if there are none."""
    found = []
    for seed in sorted({cell["seed"] for cell in runs}):
        fits = [cell for cell in runs if cell["seed"] == seed and cell["seconds"] <= EXCEEDED * budget * epoch]
        if runs[0]["method"] == "alone":
            fits = [cell for cell in runs if cell["seed"] == seed and cell["epochs"] == budget]
        longest = max(fits, key=lambda cell: cell["epochs"], default=None)
        if longest is not None and longest["seconds"] > budget * epoch / 2:  # a short run says nothing of a long budget
            found.append(longest["test"])
    if not found:
        return "–"
    seeds = f" ({len(found)} seeds)" if len(found) > 1 else ""
    return f"{100 * sum(found) / len(found):.1f}{seeds}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.budgets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=STUDIED, default=list(STUDIED), metavar="CASE")
    parser.add_argument("--methods", nargs="+", choices=TRIED, default=list(TRIED), metavar="METHOD")
    parser.add_argument("--budgets", nargs="+", type=int, default=[*BUDGETS, *LONGER])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--root", help="where torchvision finds MNIST")
    parser.add_argument("--speech", help="folder of the spoken digits, with ende.npz")
    parser.add_argument("--results", type=Path, default=PATH)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    cells = Cells(options.results)
    for seed, name in product(options.seeds, options.cases):
        run_case(cells, name, Places(options.root, options.speech), options.budgets, options.methods, seed)
    if options.results == PATH:
        last = max((cell["machine"] for cell in cells.found.values()), key=lambda found: found["date"])
        text = f"{table(cells.found.values())}\n\n{machine_line(last)}"
        replace(EVIDENCE, "budgets", text, script="training/budgets.py")


if __name__ == "__main__":
    main()
