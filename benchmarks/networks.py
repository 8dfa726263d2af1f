"""Every idiom of snnTorch and Norse with every readout that its users decide by, on scikit-learn's digits, no gradient step.

Figures for docs/evidence/networks_digits.md.  A run that is interrupted goes on where it was.  Run: python benchmarks/networks.py
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from typing import Any

from benchmarks.common import RESULTS, initialise, machine, run_all
from snn_recon_plugin import ReconstructionError
from snn_recon_plugin.demo import Data, load_digits_data
from tests.user_nets.idioms import IDIOMS
from tests.user_nets.record import Reading, UserNet


def run_case(idiom: UserNet, reading: Reading, data: Data, seed: int) -> dict[str, Any]:
    """The figures that the table needs, or why there are none."""
    case = {"idiom": idiom.name, "reading": reading.title}
    try:
        result = initialise(idiom, reading, data, seed)
    except ReconstructionError as error:
        return {**case, "error": f"{type(error).__name__}: {error}"}
    report = result.pop("report")
    kept = ("readout_kind", "exactness", "certificate", "accuracy_written", "layers", "seconds", "num_steps")
    return {**case, **result, "report": {key: report[key] for key in kept}}


def main() -> None:
    """Runs all cases and writes the json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="nets for each case")
    parser.add_argument("--again", default="", metavar="TEXT", help="run the cases whose name holds this again")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
    data = load_digits_data()
    cases = {
        f"{idiom.name} | {reading.title} | seed {seed}": partial(run_case, idiom, reading, data, seed)
        for seed in range(options.seeds)
        for idiom in IDIOMS
        for reading in idiom.readings
    }
    again = [name for name in cases if options.again and options.again in name]
    head = {
        "machine": machine("snntorch", "norse", "lightning"),
        "train": len(data.train_inputs),
        "test": len(data.test_inputs),
    }
    for name, result in run_all(RESULTS / "networks.json", head, cases, again)["cases"].items():
        print(f"{name:<80} {summary(result)}")


def summary(result: dict[str, Any]) -> str:
    """A line for the terminal."""
    if "error" in result:
        return str(result["error"])
    exactness = result["report"]["exactness"]
    accuracies = f"linear score {100 * result['test_linear']:.1f} %, written net {100 * result['test_after']:.1f} %"
    return f"{exactness['label']:<10} {exactness['max_difference']:.1e}   {accuracies}"


if __name__ == "__main__":
    main()
