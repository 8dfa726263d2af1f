"""Proximal steps of the selection: CPU seconds and test accuracy of a start with fewer and more of them.

    python benchmarks/selection_steps.py --root DIR        writes benchmarks/results/selection_steps.json, five minutes

The net is that of start_cost.py, on 3,000 images, its hidden layer rebuilt.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import start_cost
from hidden import accuracy

from snn_recon_plugin.demo import Data
from snn_recon_plugin.witnesses import rebuild
from snn_recon_plugin.witnesses.select import SelectionProgram

SAMPLES, STEPS = 3000, (25, 50, 200, 400)
IMAGES = ("MNIST", "labels mixed, 85 % reachable", "two images averaged", "blurred")


def run(name: str, steps: int, root: str, seed: int) -> dict[str, Any]:
    """One start, with so many steps at most."""
    data, _ = start_cost.data_of(name, root, seed)
    data = Data(data.train_inputs[:SAMPLES], data.train_labels[:SAMPLES], data.test_inputs, data.test_labels)
    with patch.object(rebuild, "SelectionProgram", partial(SelectionProgram, max_steps=steps)):
        net, report, spent = start_cost.start(data, "reconstruct", seed)
    return {"data": name, "steps": steps, "start": spent, "test": accuracy(net, data), "gap": report.certificate.relative_gap}


def main() -> None:
    """Reads the command line."""
    parser = start_cost.make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    cases = {
        f"{name}, {steps} steps, seed {seed}": partial(run, name, steps, options.root, seed)
        for name, steps, seed in product(IMAGES, STEPS, range(options.seeds))
    }
    content = start_cost.measure("selection_steps", {"samples": SAMPLES, "seeds": options.seeds}, cases)
    for name, steps in product(IMAGES, STEPS):
        found = [case for case in content["cases"].values() if (case["data"], case["steps"]) == (name, steps)]
        mean = {key: sum(case[key] for case in found) / len(found) for key in ("start", "test")}
        print(f"{name:30} {steps:4} steps  {mean['start']:6.1f} s  {100 * mean['test']:.2f} %")


if __name__ == "__main__":
    main()
