"""Rules by which the callback could rank weights: which of them finds those that test best?

    cd benchmarks && python -m training.ranking --root DIR --speech DIR

Every state that the callback judges is scored on validation and test data.  A rule keeps the best state so far.  Its regret is the
test accuracy of the best state so far minus that of the state it keeps, at the end of the run.
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, run_all
from hidden_networks import scores_of
from render_docs import EVIDENCE, markdown_table, replace
from store import Store
from temporal.tasks import Places
from torch import Tensor, nn
from torch.nn import functional

from snn_recon_plugin.training.judge import Judge

from .__main__ import PATH, rate_of
from .cases import CASES, Parts, split
from .runs import METHODS, run

METHOD = "callback, one cycle"
TEMPERATURES = torch.logspace(-2, 2, 81, dtype=torch.float64)

State = dict[str, float]


@torch.no_grad()
def measure(net: nn.Module, inputs: Tensor, labels: Tensor) -> State:
    """Return accuracy, loss, and loss at the best temperature of the net's scores."""
    scores = torch.cat([scores_of(net(part)) for part in inputs.split(500)]).double()
    losses = [float(functional.cross_entropy(scores / temperature, labels)) for temperature in TEMPERATURES]
    right = (scores.argmax(1) == labels).double()
    return {
        "accuracy": float(right.mean()),
        "loss": float(functional.cross_entropy(scores, labels)),
        "calibrated": min(losses),
        "error": float(right.std() / math.sqrt(len(right))),
    }


@contextmanager
def watched(parts: Parts) -> Iterator[list[State]]:
    """Note every state that a run's judge measures on all of its data."""
    states: list[State] = []
    own = Judge.measure

    def measured(self: Judge, trainer: Any, **options: Any) -> Any:
        if options.get("limit", math.inf) == math.inf:
            rng = torch.get_rng_state()
            test = measure(self.net, *parts.test)
            states.append({**measure(self.net, *parts.validation.tensors), "test": test["accuracy"]})
            torch.set_rng_state(rng)
        return own(self, trainer, **options)

    Judge.measure = measured  # type: ignore[method-assign]
    try:
        yield states
    finally:
        Judge.measure = own  # type: ignore[method-assign]


def beyond_noise(new: State, best: State) -> bool:
    """Return whether the accuracy is higher by half a standard error, or about equal and the loss at the best temperature lower."""
    if abs(new["accuracy"] - best["accuracy"]) > 0.5 * best["error"]:
        return new["accuracy"] > best["accuracy"]
    return new["calibrated"] < best["calibrated"]


# Whether a new state replaces the best one so far.
RULES: dict[str, Callable[[State, State], bool]] = {
    "accuracy, ties by the loss": lambda new, best: (new["accuracy"], -new["loss"]) > (best["accuracy"], -best["loss"]),
    "loss": lambda new, best: new["loss"] < best["loss"],
    "loss at the best temperature": lambda new, best: new["calibrated"] < best["calibrated"],
    "accuracy beyond half a standard error, else that loss": beyond_noise,
    "both accuracy and that loss": lambda new, best: new["accuracy"] >= best["accuracy"] and new["calibrated"] < best["calibrated"],
}


def regret(states: list[State], replaces: Callable[[State, State], bool]) -> float:
    """Return the test accuracy that a rule misses at the end of a run."""
    best = states[0]
    for state in states[1:]:
        best = state if replaces(state, best) else best
    return max(state["test"] for state in states) - best["test"]


def collect(name: str, places: Places, seed: int) -> dict[str, Any]:
    """Return the judged states of one run."""
    case = CASES[name]
    data = case.load(places)
    parts, make = split(data, seed), partial(case.make, data)
    rate = rate_of(Store(PATH), name, parts, make, METHODS[METHOD])
    with watched(parts) as states:
        run(make, parts, METHODS[METHOD], rate, case.epochs, seed)
    return {"states": states}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.ranking", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--speech", required=True, help="folder of the spoken digits, with ende.npz")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "training_ranking.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    places = Places(options.root, options.speech)
    cases = {f"{name}/{seed}": partial(collect, name, places, seed) for name in options.cases for seed in options.seeds}
    found = run_all(options.results, {"machine": machine("snntorch", "norse", "lightning")}, cases)["cases"]
    replace(EVIDENCE / "training.md", "ranking", table(found), script="training/ranking.py")


def table(cases: Mapping[str, Any]) -> str:
    """Return a row a run: the points of test accuracy that each rule misses; their mean last."""
    rows = [
        [name.rpartition("/")[0], *(100 * regret(case["states"], rule) for rule in RULES.values())] for name, case in cases.items()
    ]
    means = ["mean", *(sum(column) / len(column) for column in zip(*(row[1:] for row in rows), strict=True))]
    shown = [[row[0], *(f"{value:.2f}" for value in row[1:])] for row in (*rows, means)]
    return markdown_table(["case", *RULES], shown)


if __name__ == "__main__":
    main()
