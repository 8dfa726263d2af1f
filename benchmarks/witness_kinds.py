"""Kinds of candidates and pools of them: test accuracy of rebuilt nets on static images, sequences and few samples, no gradient step.

    python benchmarks/witness_kinds.py --root DIR        writes benchmarks/results/witness_kinds.json

DIR holds MNIST as torchvision has it, and ``speech/ende.npz``.  Tasks and nets are those of ``witness_tasks.py``.  All readouts
solve the squared hinge, so that kinds are compared by one loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import start_cost
import torch
from torch.utils.data import DataLoader, TensorDataset
from witness_tasks import TASKS, TRAIN, test_accuracy

from snn_recon_plugin import convex_init_
from snn_recon_plugin.witnesses import Candidates, LayerSite, Sampler
from snn_recon_plugin.witnesses.samplers import separate

STUDIED = tuple(TASKS)[:12]


def boundaries(
    site: LayerSite,
    count: int,
    generator: torch.Generator,
    *,
    among: int = 32,
    at_steps: bool = True,
    weighed: bool = True,
    steepness: float = 1.0,
) -> Candidates:
    """Traces whose partner is the nearest among some, at the step or by average; steps weighed by the readout, or uniform."""
    if not weighed:
        site = replace(site, step_weights=None)
    first, second, steps = site.draw_pairs(count, generator, at_steps, among)
    if not at_steps:
        steps = site.draw_steps(len(first), generator)
    return separate(site, site.take_traces(first, steps), site.take_traces(second, steps), generator, steepness)


def mixture(*parts: tuple[float, Sampler]) -> Sampler:
    """A pool of samplers by their shares."""

    def draw(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
        return Candidates.join([sampler(site, max(1, round(share * count)), generator) for share, sampler in parts])

    return draw


near = boundaries
KINDS: dict[str, str | Sampler] = {
    "pairs": "pairs",
    "traces, nearest of 32 by average": partial(boundaries, at_steps=False, weighed=False),
    "traces, nearest of 8 at the step": partial(boundaries, among=8, weighed=False),
    "traces, nearest of 32 at the step": partial(boundaries, weighed=False),
    "traces, steps by the readout": boundaries,
    "traces, half of them 4 times as steep": mixture((0.5, boundaries), (0.5, partial(boundaries, steepness=4.0))),
}


def run(task: str, kind: str, root: str, seed: int) -> dict[str, Any]:
    """Test accuracy of one net."""
    train, labels, test, test_labels = TASKS[task].load(root, seed)
    torch.manual_seed(seed)
    net = TASKS[task].build()
    loader = DataLoader(TensorDataset(train, labels), 250, shuffle=True)
    options = {"hidden": kind} if kind in ("keep", "rescale") else {"hidden": "reconstruct", "witnesses": KINDS[kind]}
    report = convex_init_(net, loader, seed=seed, fit_loss="squared_hinge", tol=1e-3, progress=False, **options)
    found = {"task": task, "witnesses": kind, "test": test_accuracy(net, test, test_labels), "heldout": report.accuracy_after}
    print(f"{task}, {kind}, {seed}: {100 * found['test']:.2f}", flush=True)
    return found


def main() -> None:
    """Reads the command line."""
    parser = start_cost.make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(STUDIED))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    cases: dict[str, Callable[[], dict[str, Any]]] = {
        f"{task}, {kind}, seed {seed}": partial(run, task, kind, options.root, seed)
        for seed in range(options.seeds)
        for task in options.tasks
        for kind in options.kinds
    }
    start_cost.measure("witness_kinds", {"train": TRAIN}, cases)


if __name__ == "__main__":
    main()
