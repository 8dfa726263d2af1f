"""The paper's tables (arXiv 2605.08022): each method of it and the plugin's own recipe, in snnTorch, by the plugin's public calls.

    python benchmarks/paper.py --root DIR              all cells without a line in benchmarks/results/paper.jsonl; hours
    python benchmarks/paper.py --smoke --results DIR   few samples, narrow layers, no MNIST: tries the machinery, in a minute

A cell is one method on one row with one seed.  Methods that go on from each other's weights are run together.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.common import RESULTS, machine
from benchmarks.paper_methods import Splits, accuracy, convex, gaussian_, surrogate, tune_branching_
from benchmarks.paper_networks import SequenceNet
from benchmarks.paper_ours import forgetful, solve_remembering
from benchmarks.paper_settings import METHODS, Setting, settings, shortened
from benchmarks.store import Store
from snn_recon_plugin import ReconstructionError, Report

RATE, FINE_RATE = 1e-3, 3e-4
STRENGTHS = (0.01, 0.1, 1.0)  # the paper's beta; the program's strength is beta / sqrt(P_last)
Cell = tuple[str, dict[str, Any]]


def result(net: SequenceNet, data: Splits, began: float, report: Report | None = None, **more: Any) -> dict[str, Any]:
    """What a cell keeps: accuracies of the net as it is, and the certificate of the readout that was written last."""
    found: dict[str, Any] = {
        "tests": data.tested(net),
        "validation": accuracy(net, data.validation),
        "train": accuracy(net, data.train),
        "seconds": time.perf_counter() - began,
        **more,
    }
    if report is not None:
        found["certificate"] = {
            "relative_gap": report.certificate.relative_gap,
            "objective": report.certificate.primal,
            "dual": report.certificate.dual,
            "loss": report.loss,
            "penalty": report.penalty,
            "strength": report.strength,
        }
    return found


def paper_net(setting: Setting, **options: Any) -> SequenceNet:
    """The paper's network: two branches, leak 0.99, threshold 1, no biases in hidden layers, signs of membranes."""
    return SequenceNet(setting.inputs, setting.widths, setting.outputs, steps=setting.steps, **options)


def readout_options(setting: Setting) -> dict[str, Any]:
    """How the paper solves its readout: hinge with l1, by HiGHS; or cross-entropy with the path norm of p = 2."""
    if setting.outputs == 1:
        return {"hidden": "keep", "loss": "hinge", "penalty": "l1", "solver": "highs"}
    return {
        **{"hidden": "keep", "loss": "cross_entropy", "penalty": "group_l1"},
        "readout": "linear_per_step" if setting.steps == "each" else "auto",
    }


def strengths(setting: Setting) -> list[float | str]:
    """The paper's."""
    return [beta / setting.widths[-1] ** 0.5 for beta in STRENGTHS]


def surrogate_family(setting: Setting, data: Splits, seed: int) -> Iterator[Cell]:
    """Surrogate gradients from Gaussian weights; the convex readout on what they found; as many epochs again."""
    net, began = paper_net(setting), time.perf_counter()
    gaussian_(net, seed)
    surrogate(net, data, epochs=setting.epochs, rate=RATE, seed=seed)
    yield "SG", result(net, data, began, epochs=setting.epochs)
    other, before = copy.deepcopy(net), time.perf_counter() - began
    try:
        report = convex(other, data, strengths(setting), seed=seed, **readout_options(setting))
    except ReconstructionError as error:  # nothing is written then: the cell is SG's net
        yield "SG-CVX", result(other, data, began, refused=error.found)
    else:
        yield "SG-CVX", result(other, data, began, report, epochs=setting.epochs)
    if "STE from STE" in setting.methods:
        began = time.perf_counter() - before
        surrogate(net, data, epochs=setting.epochs, rate=RATE, seed=seed + 1)
        yield "STE from STE", result(net, data, began, epochs=2 * setting.epochs)


def convex_family(setting: Setting, data: Splits, seed: int) -> Iterator[Cell]:
    """The convex readout on Gaussian witnesses; and surrogate gradients from there."""
    net, began = paper_net(setting), time.perf_counter()
    gaussian_(net, seed)
    report = convex(net, data, strengths(setting), seed=seed, **readout_options(setting))
    yield "CVX", result(net, data, began, report)
    if "STE from CVX" in setting.methods:
        surrogate(net, data, epochs=setting.epochs, rate=RATE, seed=seed)
        yield "STE from CVX", result(net, data, began, epochs=setting.epochs)


def reservoir_family(setting: Setting, data: Splits, seed: int) -> Iterator[Cell]:
    """Reservoirs at a branching ratio of 1: the convex readout on signs of membranes and on membranes, and ridge regression."""
    for method, sees in (("R-CVX", "membrane"), ("R-CVX analog", "analog"), ("LSM ridge", "analog")):
        if method not in setting.methods:
            continue
        ridge = method == "LSM ridge"
        # A score for each class: ridge regression has 0 and 1 as targets.
        net = paper_net(replace(setting, outputs=max(2, setting.outputs)) if ridge else setting, sees=sees)
        began = time.perf_counter()
        gaussian_(net, seed)
        tune_branching_(net, data.train.inputs)
        options = {"hidden": "keep", "loss": "squared", "penalty": "ridge"} if ridge else readout_options(setting)
        if sees == "analog":
            # On membranes HiGHS takes several times as long, and the augmented Lagrangian method more work than an epoch.
            options |= {"solver": "auto", "max_cost": math.inf}
        try:
            report = convex(net, data, ["auto"] if ridge else strengths(setting), seed=seed, **options)
        except ReconstructionError as error:
            yield method, result(net, data, began, refused=error.found)
        else:
            yield method, result(net, data, began, report)


def our_family(setting: Setting, data: Splits, seed: int) -> Iterator[Cell]:
    """Hidden layers and readout by ``hidden="reconstruct"``, no gradient step; on MNIST surrogate gradients from there, too."""
    began, outputs = time.perf_counter(), max(2, setting.outputs)
    if setting.steps == "each":
        torch.manual_seed(seed)
        net = forgetful(setting.inputs, setting.widths, outputs, "each")
        options = {"hidden": "reconstruct", "readout": "linear_per_step", "max_samples": 2000}
        report = convex(net, data, ["auto"], seed=seed, **options)
    else:
        # A pair of strings of different classes differs in the first symbol or the last, so that no boundary half-way between two
        # looks at both; random directions do.
        witnesses = "gaussian" if setting.table == "xor" else "pairs"
        net, report = solve_remembering(data, setting.widths, outputs, seed, witnesses=witnesses)
    yield "ours", result(net, data, began, report)
    if "ours + SG" in setting.methods:
        surrogate(net, data, epochs=setting.epochs, rate=FINE_RATE, seed=seed)
        report = convex(net, data, ["auto"], seed=seed, hidden="keep")
        yield "ours + SG", result(net, data, began, report, epochs=setting.epochs)


FAMILIES: dict[Callable[[Setting, Splits, int], Iterator[Cell]], tuple[str, ...]] = {
    our_family: ("ours", "ours + SG"),
    convex_family: ("CVX", "STE from CVX"),
    reservoir_family: ("R-CVX", "R-CVX analog", "LSM ridge"),
    surrogate_family: ("SG", "SG-CVX", "STE from STE"),
}


def run_all(chosen: list[Setting], methods: tuple[str, ...], seeds: int, store: Store, smoke: bool) -> None:
    """Run every family of which a cell has no result, seed by seed."""
    work = [(seed, setting, family) for seed in range(seeds) for setting in chosen for family in FAMILIES]
    with tqdm(work, disable=None) as bar:
        for seed, setting, family in bar:
            wanted = [method for method in FAMILIES[family] if method in setting.methods and method in methods]
            names = {method: f"{setting.stem}-{method.replace(' ', '-')}-s{seed}" for method in wanted}
            if all(name in store for name in names.values()):
                continue
            bar.set_postfix_str(f"{setting.stem}, {wanted[0]}, seed {seed}")
            torch.manual_seed(seed)
            for method, found in family(setting, setting.make(seed), seed):
                if method in names:
                    head = {"table": setting.table, "setting": setting.name, "method": method, "seed": seed, "smoke": smoke}
                    head |= {"widths": setting.widths, "machine": machine("snntorch")}
                    store.add(names[method], {**head, **found})


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="where torchvision finds MNIST; without it its rows are left out")
    parser.add_argument("--tables", type=lambda text: text.split(","), default=["xor", "mnist", "addition", "carry"])
    parser.add_argument("--methods", type=lambda text: tuple(text.split(",")), default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "paper.jsonl")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke and options.results == RESULTS / "paper.jsonl":
        parser.error("--smoke needs --results: its cells are no results to keep")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    chosen = [setting for setting in settings(options.root) if setting.table in options.tables]
    if options.smoke:
        chosen = [shortened(setting) for setting in chosen if setting.name in ("T=6, L=5", "base 2")]
        options.seeds = 1
    run_all(chosen, options.methods, options.seeds, Store(options.results), options.smoke)


if __name__ == "__main__":
    main()
