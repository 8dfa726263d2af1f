"""Nets as users write them, each with its own one line and its own test: which work, and what the report says of them.

Figures for docs/evidence/user_nets.md.  A run that is interrupted goes on where it was.  Run: python benchmarks/user_nets.py
"""

from __future__ import annotations

import argparse
import time
import warnings
from functools import partial
from typing import Any

import snntorch.functional as SF
import torch
from torch import nn

from benchmarks.common import RESULTS, machine, run_all
from benchmarks.user_nets_common import Samples, UserNet, digits
from benchmarks.user_nets_norse import NETS as NORSE
from benchmarks.user_nets_refused import NETS as REFUSED
from benchmarks.user_nets_refused import UNUSUAL
from benchmarks.user_nets_shapes import NETS as SHAPES
from benchmarks.user_nets_snntorch import NETS as DENSE
from snn_recon_plugin import Report, convex_init_, over_time
from snn_recon_plugin.errors import ReconstructionError
from snn_recon_plugin.stages.stream import split_samples

SEED = 0
TYPED = {"convex_init_": convex_init_, "over_time": over_time, "SF": SF, "nn": nn, "torch": torch}
GROUPS = {
    "snnTorch": DENSE,
    "snnTorch, other layers and data": SHAPES,
    "Norse": NORSE,
    "unusual": UNUSUAL,
    "no convex readout": REFUSED,
}


def run_net(entry: UserNet, train: Samples, fresh: Samples, extra: str = "") -> dict[str, Any]:
    """Type one net's line, and compare the report with the user's own test.

    Args:
        entry: the net.
        train: samples that the line gets.
        fresh: samples that no call sees.
        extra: options added to the line.

    Returns:
        What must happen, and what happened: accuracies 0 to 1, the refusal, or the error of whatever kind.
    """
    line = with_options(entry.typed, extra)
    result: dict[str, Any] = {"typed": line, "must": entry.must, "alike": entry.alike}
    torch.manual_seed(SEED)
    net, began = entry.make(), time.perf_counter()
    frozen = {name: tensor.clone() for name, tensor in net.named_parameters() if not tensor.requires_grad}
    try:
        report = type_line(line, entry, net, train)
        result["seconds"] = time.perf_counter() - began
        result["frozen_written"] = [name for name, tensor in frozen.items() if not torch.equal(net.get_parameter(name), tensor)]
        return {
            **result,
            **({"written": report.readout_kind} if entry.must == "be refused" else compare(entry, net, report, train, fresh)),
        }
    except ReconstructionError as error:
        refusal = {"kind": type(error).__name__, "found": error.found, "needed": error.needed, "fix": error.fix}
        missing = [word for word in entry.refused if word.lower() not in str(error).lower()]
        return {"seconds": time.perf_counter() - began, **result, "refused": refusal, "words_missing": missing}
    except Exception as error:  # any other is a defect of the package, and is listed as one
        failed = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"seconds": time.perf_counter() - began, **result, "crashed": failed}


def compare(entry: UserNet, net: nn.Module, report: Report, train: Samples, fresh: Samples) -> dict[str, Any]:
    """Accuracies of the report beside those of the user's own test; the net is as before afterwards.

    Returns:
        ``fitted``: the written net on all samples that the line got; ``heldout``: the same on samples that no fit has seen;
        ``estimate``: the report's held-out accuracy, of a readout that was fitted without them, beside the own test on fresh ones;
        ``before``: the own test on these before.
    """
    if report.exactness.samples != len(train.labels):
        raise RuntimeError(f"compared on {report.exactness.samples} samples, not on all {len(train.labels)}")
    fitted, on_fresh = (entry.test(net, entry.loader(samples)) for samples in (train, fresh))
    pairs = {
        "fitted": {"report": report.accuracy_written, "own": fitted, "samples": report.exactness.samples},
        "estimate": {"report": report.accuracy_after, "samples": report.heldout, "own": on_fresh, "fresh": len(fresh.labels)},
        "heldout": heldout(entry, net, fresh),
    }
    report.undo()
    kept = [layer.name for layer in report.layers if layer.reason]
    return {
        "readout": report.readout_kind,
        "exactness": report.exactness.label,
        **pairs,
        "before": entry.test(net, entry.loader(fresh)),
        "layers_kept": kept,
    }


def heldout(entry: UserNet, net: nn.Module, fresh: Samples) -> dict[str, Any]:
    """What a report says of the written net on samples that no fit has seen, and the user's own test on the same ones.

    A second call on fresh samples reports the accuracy of the net as it finds it, on the half of them that it holds out.
    """
    line = with_options(entry.typed, 'hidden="keep", holdout=0.5, strength=1.0, tol=1e-2')
    report = type_line(line, entry, net, fresh)
    report.undo()
    rows = split_samples(len(fresh.labels), 0.5, SEED).heldout
    if report.heldout_before != len(rows):
        raise RuntimeError(f"{entry.name}: {report.heldout_before} samples held out, not {len(rows)}")
    return {"report": report.accuracy_before, "own": entry.test(net, entry.loader(fresh.of(rows))), "samples": len(rows)}


def type_line(line: str, entry: UserNet, net: nn.Module, samples: Samples) -> Report:
    """Run the line that the table shows, and no other."""
    names = {**TYPED, **entry.names, "net": net, "loader": entry.loader(samples)}
    return eval(line, names)


def with_options(line: str, extra: str) -> str:
    """The line with options at its end; those that it has already stay as they are."""
    new = [option for option in extra.split(", ") if option and f"{option.partition('=')[0]}=" not in line]
    return f"{line[:-1]}{''.join(f', {option}' for option in new)})"


def cases() -> dict[str, Any]:
    """All cases by their names, in the table's order: as typed, and with hidden layers rebuilt. Each net has other images."""
    lines: dict[str, Any] = {}
    entries = [(group, entry) for group, nets in GROUPS.items() for entry in nets]
    for number, (group, entry) in enumerate(entries):
        samples = [entry.order(part) for part in digits(number)]
        lines[f"{group} | {entry.name} | typed"] = partial(run_net, entry, *samples)
        if entry.rebuilds and not entry.refused:
            lines[f"{group} | {entry.name} | rebuilt"] = partial(run_net, entry, *samples, 'hidden="reconstruct"')
    return lines


def as_it_must_be(result: dict[str, Any]) -> bool:
    """Whether a net works with the user's own accuracy, or is refused with its true reason."""
    refused = "refused" in result and not result["words_missing"]
    works = "fitted" in result and difference(result) <= result["alike"] and not result["frozen_written"]
    return {"work": works, "be refused": refused, "work or be refused": works or refused}[result["must"]]


def difference(result: dict[str, Any]) -> float:
    """The larger of the differences between report and own test on the same samples."""
    return max(abs(pair["report"] - pair["own"]) for pair in (result["fitted"], result["heldout"]))


def verdict(result: dict[str, Any]) -> str:
    """A line for the terminal."""
    right = "  " if as_it_must_be(result) else "! "
    if "fitted" not in result:
        refused = f"refused: {result['refused']['found']}. To fix: {result['refused']['fix']}" if "refused" in result else None
        return right + (refused or f"crashed: {result.get('crashed')}; written: {result.get('written')}")
    pairs = (result[key] for key in ("fitted", "heldout", "estimate"))
    shown = ", ".join(f"{100 * pair['report']:.1f} and {100 * pair['own']:.1f}" for pair in pairs)
    return f"{right}{result['readout']}: {shown}; before {100 * result['before']:.1f}; {result['seconds']:.1f} s"


def main() -> None:
    """Runs all cases and writes the json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", default=None, metavar="TEXT", help="run the cases whose name holds this again; '' for all")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
    train, fresh = digits()
    lines = cases()
    again = [name for name in lines if options.again is not None and options.again in name]
    head = {
        "machine": machine("snntorch", "norse", "lightning", "pytorch-lightning"),
        "seed": SEED,
        "train": len(train.labels),
        "fresh": len(fresh.labels),
    }
    results = run_all(RESULTS / "user_nets.json", head, lines, again)["cases"]
    for name, result in results.items():
        print(f"{name:<70} {verdict(result)}")
    print(f"{sum(map(as_it_must_be, results.values()))} of {len(results)} are as they must be")


if __name__ == "__main__":
    main()
