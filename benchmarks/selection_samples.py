"""Samples that choose the rows of hidden layers: test accuracy and CPU seconds of a start, for several numbers of them.

    python benchmarks/selection_samples.py --root DIR --speech DIR     writes benchmarks/results/selection_samples.json, an hour

Nets and data are those of the study of time; long sequences are MNIST pixel by pixel, 784 steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import torch
from common import RESULTS, machine, run_all
from render_docs import EVIDENCE, markdown_table, replace
from temporal.methods import start
from temporal.nets import NETS
from temporal.tasks import Places, load_task

from snn_recon_plugin.stages import build

NET, OPTIONS = "snntorch-recurrent", {"hidden": "auto", "heterogeneous": True}
TASKS = {"rows": 256, "speech": 256, "permuted": 512, "pixels": 512}  # and hidden neurons
SAMPLES = (670, 1340, 3000)
DOC = EVIDENCE / "decisions_speed.md"
_load = cache(load_task)


def run(task: str, samples: int, places: Places, seed: int) -> dict[str, Any]:
    """One start whose rows are chosen on so many samples."""
    data = _load(task, places)
    torch.manual_seed(seed)
    net = NETS[NET](data.train_inputs.shape[2], TASKS[task], int(data.train_labels.max()) + 1)
    with patch.object(build, "_SELECT_SAMPLES", samples), patch.object(build, "_SELECT_STEPS", 2**62):
        found = start(net, data, OPTIONS, seed)
    return {"task": task, "samples": samples, "seed": seed, "steps": data.train_inputs.shape[1], **found}


def make_table(cases: Iterable[dict[str, Any]]) -> str:
    """Return test accuracy and CPU seconds of a start, a row a task and seed."""
    found: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for case in cases:
        found.setdefault((case["task"], case["seed"]), {})[case["samples"]] = case
    rows = []
    for (task, seed), each in found.items():
        if all(samples in each for samples in SAMPLES):
            texts = [f"{100 * each[samples]['test']:.2f} ({each[samples]['cpu_seconds']:.0f} s)" for samples in SAMPLES]
            rows.append((task, str(each[SAMPLES[0]]["steps"]), str(seed), *texts))
    return markdown_table(("data", "steps", "seed", *(f"{samples:,} samples" for samples in SAMPLES)), rows)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder where torchvision finds MNIST")
    parser.add_argument("--speech", required=True, help="folder of ende.npz")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    options = parser.parse_args()
    torch.set_num_threads(1)
    places = Places(options.root, options.speech)
    cases = {
        f"{task}, {samples} samples, seed {seed}": partial(run, task, samples, places, seed)
        for task in options.tasks
        for seed in options.seeds
        for samples in SAMPLES
    }
    content = run_all(RESULTS / "selection_samples.json", {"machine": machine("snntorch")}, cases)
    replace(DOC, "selection samples", make_table(content["cases"].values()), script="selection_samples.py")


if __name__ == "__main__":
    main()
