"""Test accuracy of readouts solved with cross-entropy and with the squared hinge in its place, for docs/evidence/decisions.md.

    python benchmarks/fit_losses.py --root DIR     writes benchmarks/results/fit_losses.json and the table

The net is 784-1000-10 with 25 steps, its hidden layer rebuilt, 10,000 training images, without a gradient step.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from statistics import fmean
from typing import Any

import torch
from common import RESULTS, machine, run_all
from hidden_networks import NETWORKS, accuracy, loader_of
from render_docs import EVIDENCE, replace
from render_networks import machine_line
from start_cost import NETWORK, SAMPLES, data_of

from snn_recon_plugin import ConvexInitializer

DATA = ("MNIST", "labels mixed, 85 % reachable", "heavy noise", "two images averaged")
LOSSES = {"same": "cross-entropy", "squared_hinge": "squared hinge", "auto": "auto"}


def run_case(name: str, fit_loss: str, seed: int, root: str) -> dict[str, Any]:
    """Initialise one net, and test it."""
    data, _ = data_of(name, root, seed)
    torch.manual_seed(seed)
    net = NETWORKS[NETWORK]()
    initializer = ConvexInitializer(hidden="reconstruct", fit_loss=fit_loss, seed=seed, progress=False)
    report = initializer.initialize(net, loader_of(data))
    return {
        "data": name,
        "fit_loss": fit_loss,
        "test": accuracy(net, data),
        "heldout_loss": report.loss_after,
        "heldout": report.accuracy_after,
        "solved": report.fit_loss,
        "seconds": report.seconds["solve"],
    }


def table(content: dict[str, Any]) -> str:
    """Test accuracies and held-out losses, means over seeds."""
    cases = list(content["cases"].values())
    rows = [f"| images | {' | '.join(LOSSES.values())} |", "|" + "---|" * (1 + len(LOSSES))]
    for name in DATA:
        cells = []
        for fit_loss in LOSSES:
            found = [case for case in cases if (case["data"], case["fit_loss"]) == (name, fit_loss)]
            test, loss = fmean(case["test"] for case in found), fmean(case["heldout_loss"] for case in found)
            cells.append(f"{100 * test:.2f} % ({loss:.3f})")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    about = f"test accuracy (held-out cross-entropy), {SAMPLES:,} images, {content['seeds']} seed(s)"
    return "\n".join([*rows, "", f"{about}; {machine_line(content['machine'])}"])


def main() -> None:
    """Runs all cases and writes json and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of torchvision's MNIST")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
    cases = {
        f"{name} | {fit_loss} | seed {seed}": partial(run_case, name, fit_loss, seed, options.root)
        for seed in range(options.seeds)
        for name in DATA
        for fit_loss in LOSSES
    }
    head = {"machine": machine("snntorch"), "seeds": options.seeds, "samples": SAMPLES}
    content = run_all(RESULTS / "fit_losses.json", head, cases)
    replace(EVIDENCE / "decisions.md", "fit losses", table(content), script="fit_losses.py")


if __name__ == "__main__":
    main()
