"""Time that one comparison per step, in place of a library's two, saves of a start and of a refit.

    python benchmarks/fast_passes.py --root DIR       writes benchmarks/results/fast_passes.json and the table

The net is 784-1000-10 with 25 steps, 10,000 MNIST images.  Each seed runs with and without, in turns, in the same process; the
test accuracies of both must be equal.  Seconds are CPU seconds of one thread (``time.process_time``).
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

from render_docs import EVIDENCE, replace
from render_networks import machine_line
from start_cost import NETWORK, SAMPLES, Timed, data_of, fit, make_parser, measure

from snn_recon_plugin.networks.libraries import SnnTorch


def run(root: str, seed: int, fast: bool) -> dict[str, Any]:
    """An epoch in Lightning's loop with a start and a refit."""
    data, validation = data_of("MNIST", root, seed)
    timed = Timed(seed, data)
    slow = mock.patch.object(SnnTorch, "fast_passes", return_value=nullcontext())
    with nullcontext() if fast else slow:
        fit(data, validation, seed, timed)
    return {"seed": seed, "fast": fast, **timed.spent, "tests": timed.tests}


def main() -> None:
    """Read the command line, run, and write json and table."""
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    cases = {
        f"seed {seed}, {'one comparison' if fast else 'two comparisons'}": partial(run, options.root, seed, fast)
        for seed in range(options.seeds)
        for fast in ((True, False) if seed % 2 else (False, True))
    }
    content = measure("fast_passes", {"network": NETWORK, "samples": SAMPLES}, cases, "lightning")
    replace(EVIDENCE / "decisions_speed.md", "fast passes", table(content), script="fast_passes.py")


def table(content: dict[str, Any]) -> str:
    """Return the savings of start and refit, over pairs with equal test accuracies."""
    found = list(content["cases"].values())
    rows = ["| | CPU time saved, median | least | most |", "|---|---|---|---|"]
    for stage in ("start", "refit"):
        saved = [
            100 * (1 - one[stage] / two[stage])
            for one in found
            for two in found
            if one["fast"] and not two["fast"] and one["seed"] == two["seed"] and one["tests"] == two["tests"]
        ]
        rows.append(f"| {stage} | {median(saved):.0f} % | {min(saved):.0f} % | {max(saved):.0f} % |")
    return "\n".join([*rows, "", f"{len(found) // 2} pairs; {machine_line(content['machine'])}"])


if __name__ == "__main__":
    main()
