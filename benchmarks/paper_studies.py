"""Studies behind the paper's figures: objective against neurons, accuracy against single settings, and against samples.

python benchmarks/paper_studies.py --root DIR        writes benchmarks/results/paper_studies.json
"""

from __future__ import annotations

import argparse
import dataclasses
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import RESULTS, machine, run_all
from benchmarks.paper import RATE, paper_net, readout_options, strengths
from benchmarks.paper_methods import Splits, accuracy, convex, gaussian_, surrogate, tune_branching_
from benchmarks.paper_networks import SequenceNet
from benchmarks.paper_ours import solve_remembering
from benchmarks.paper_settings import Setting, settings
from snn_recon_plugin import ReconstructionError
from snn_recon_plugin.convex import Features, Problem, solve

WIDTHS, LEAKS, THRESHOLDS = (128, 256, 512, 1024, 2048), (0.5, 0.9, 0.99, 0.9999), (0.25, 1.0, 4.0)
BETAS, SAMPLES = (0.001, 0.01, 0.1, 1.0, 10.0), (500, 1000, 2000, 4000, 6000)
POOL, NEURONS, DRAWS = 4096, (2, 4, 8, 16, 24, 32, 48, 64, 96, 128), 5
STRENGTH = 0.003
LENGTHS, SHARES = (1.0, 1.5, 2.0), (None, 0.7, 1.0, 1.4)  # of XOR's Gaussian weights, and of a reservoir's tuned recurrent ones


def zero_gap(seed: int) -> dict[str, Any]:
    """All 64 strings of length 6: the optimum on K neurons of a pool, against the optimum and the lower bound on all of it."""
    strings = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6)
    labels = (strings[:, 0] != strings[:, -1]).long()
    net = SequenceNet(1, (64, POOL), 1, branches=1)
    gaussian_(net, seed)
    features = _seen(net, strings[..., None])
    whole = solve(_problem(features, labels))
    weight = whole.weight[0].abs()
    used = int((weight > 0).sum())
    order = weight.argsort(descending=True)
    generator = torch.Generator().manual_seed(seed)
    curves: dict[str, dict[int, list[float]]] = {"chosen by the solution": {}, "drawn by chance": {}}
    for count in NEURONS:
        curves["chosen by the solution"][count] = [_optimum(features[:, order[:count]], labels)]
        draws = [torch.randperm(POOL, generator=generator)[:count] for _ in range(DRAWS)]
        curves["drawn by chance"][count] = [_optimum(features[:, draw], labels) for draw in draws]
    found = {"n": len(labels), "pool": POOL, "used": used, "strength": STRENGTH}
    return {**found, "optimum": whole.certificate.primal, "dual": whole.certificate.dual, "curves": curves}


def _seen(net: SequenceNet, inputs: Tensor) -> Tensor:
    """What the net's readout gets after the last step."""
    seen: list[Tensor] = []
    handle = net.readout.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    with torch.no_grad():
        net(inputs)
    handle.remove()
    return seen[-1]


def _problem(features: Tensor, labels: Tensor) -> Problem:
    return Problem(Features(features), labels, loss="logistic", penalty="l1", strength=STRENGTH, num_outputs=1)


def _optimum(features: Tensor, labels: Tensor) -> float:
    return solve(_problem(features, labels)).certificate.primal


def one(setting: Setting, method: str, seed: int, samples: int = 6000, **changed: Any) -> dict[str, Any]:
    """Test accuracy of a method with something changed: ``width``, ``leak``, ``threshold`` or ``beta``."""
    data, began = setting.make(seed), time.perf_counter()
    rows = dataclasses.replace(data.train, inputs=data.train.inputs[:samples], targets=data.train.targets[:samples])
    data = Splits(rows, data.validation, data.tests)
    setting = dataclasses.replace(setting, widths=(*setting.widths[:-1], changed.pop("width", setting.widths[-1])))
    beta = changed.pop("beta", None)
    torch.manual_seed(seed)
    if method == "ours":
        options = {"strength": "auto" if beta is None else beta / setting.widths[-1] ** 0.5}
        net, _ = solve_remembering(data, setting.widths, setting.outputs, seed, **changed, **options)
    else:
        net = paper_net(setting, **changed)
        gaussian_(net, seed)
        if method == "CVX":
            chosen = strengths(setting) if beta is None else [beta / setting.widths[-1] ** 0.5]
            try:
                convex(net, data, chosen, seed=seed, **readout_options(setting))
            except ReconstructionError as error:  # nothing is written then: at a high threshold a layer is silent
                return {"test": accuracy(net, data.tests["test"]), "seconds": time.perf_counter() - began, "refused": error.found}
        else:
            surrogate(net, data, epochs=setting.epochs, rate=RATE, seed=seed)
    return {"test": accuracy(net, data.tests["test"]), "seconds": time.perf_counter() - began}


def surrogate_from(setting: Setting, length: float, seed: int) -> dict[str, Any]:
    """Test accuracy of SG from Gaussian weights of another length."""
    torch.manual_seed(seed)
    data, net, began = setting.make(seed), paper_net(setting), time.perf_counter()
    gaussian_(net, seed, length)
    surrogate(net, data, epochs=setting.epochs, rate=RATE, seed=seed)
    return {"test": accuracy(net, data.tests["test"]), "seconds": time.perf_counter() - began}


def reservoir(setting: Setting, share: float | None, seed: int) -> dict[str, Any]:
    """Test accuracy of LSM ridge on a reservoir with so much of the tuned recurrent weights; None for Gaussian ones, not tuned."""
    torch.manual_seed(seed)
    data, began = setting.make(seed), time.perf_counter()
    net = paper_net(dataclasses.replace(setting, outputs=2), sees="analog")
    gaussian_(net, seed)
    if share is not None:
        tune_branching_(net, data.train.inputs)
        with torch.no_grad():
            for name, weight in net.branches.named_parameters():
                if ".recurrent." in name:
                    weight.mul_(share)
    convex(net, data, ["auto"], seed=seed, hidden="keep", loss="squared", penalty="ridge")
    return {"test": accuracy(net, data.tests["test"]), "seconds": time.perf_counter() - began}


def on_xor(root: str, seed: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """What two settings decide that are not on record: how long SG's first weights are, and what a reservoir is tuned to."""
    rows = {found.name: found for found in settings(root) if found.table == "xor"}
    cases: dict[str, Callable[[], dict[str, Any]]] = {}
    for row in ("T=6, L=5", "T=8, L=5"):
        for length in LENGTHS:
            cases[f"SG from length {length:g}, {row}, seed {seed}"] = lambda row=row, length=length: {  # type: ignore[misc]
                **{"first": length, "row": row, "published": rows[row].published["SG"][0]},
                **surrogate_from(rows[row], length, seed),
            }
    for row in ("T=6, L=15", "T=8, L=15"):
        for share in SHARES:
            name = "untuned" if share is None else f"tuned by {share:g}"
            cases[f"LSM ridge {name}, {row}, seed {seed}"] = lambda row=row, share=share: {  # type: ignore[misc]
                **{"recurrent": share, "row": row, "published": rows[row].published["LSM ridge"][0]},
                **reservoir(rows[row], share, seed),
            }
    return cases


def studies(root: str, seed: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """All cases."""
    setting = next(found for found in settings(root) if found.stem == "mnist-T4-L3")
    cases: dict[str, Callable[[], dict[str, Any]]] = {f"zero gap, seed {seed}": lambda: zero_gap(seed)}
    changes: list[tuple[str, str, float]] = [
        *[("CVX", "leak", leak) for leak in LEAKS],
        *[(method, "width", width) for method in ("CVX", "ours") for width in WIDTHS],
        *[(method, "threshold", threshold) for method in ("CVX", "ours") for threshold in THRESHOLDS],
        *[(method, "beta", beta) for method in ("CVX", "ours") for beta in BETAS],
        *[(method, "samples", samples) for method in ("CVX", "SG", "ours") for samples in SAMPLES],
    ]
    for method, what, value in changes:
        cases[f"{method}, {what} {value:g}, seed {seed}"] = lambda method=method, what=what, value=value: {  # type: ignore[misc]
            **{"method": method, "what": what, "value": value},
            **one(setting, method, seed, **{what: value}),
        }
    return cases | on_xor(root, seed)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    run_all(options.results / "paper_studies.json", {"machine": machine("snntorch"), "seed": 0}, studies(options.root, 0))


if __name__ == "__main__":
    main()
