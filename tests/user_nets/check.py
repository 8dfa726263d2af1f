"""Run a user net's line and compare the report with the user's own test."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from snn_recon_plugin import Report
from snn_recon_plugin.errors import ReconstructionError
from snn_recon_plugin.stages.stream import split_samples

from .data import Samples
from .record import UserNet

SEED = 0


def run_net(entry: UserNet, train: Samples, fresh: Samples, extra: str = "") -> dict[str, Any]:
    """Type a net's line on ``train``: what must happen, and what did: accuracies 0 to 1, the refusal, or an error of another kind.

    The report is compared with the user's own test, also on samples ``fresh`` that no call has seen.
    """
    result: dict[str, Any] = {"typed": entry.line(extra), "must": entry.must, "alike": entry.alike}
    result["measure"] = "loss" if entry.regression else "accuracy"
    torch.manual_seed(SEED)
    net, began = entry.build(), time.perf_counter()
    frozen = {name: tensor.clone() for name, tensor in net.named_parameters() if not tensor.requires_grad}
    try:
        report = entry.run(net, train, extra)
        result["seconds"] = time.perf_counter() - began
        result["frozen_written"] = [name for name, tensor in frozen.items() if not torch.equal(net.get_parameter(name), tensor)]
        found = {"written": report.readout.kind} if entry.must == "be refused" else compare(entry, net, report, train, fresh)
        return {**result, **found}
    except ReconstructionError as error:
        refusal = {"kind": type(error).__name__, "found": error.found, "needed": error.needed, "fix": error.fix}
        missing = [word for word in entry.refused if word.lower() not in str(error).lower()]
        return {"seconds": time.perf_counter() - began, **result, "refused": refusal, "words_missing": missing}
    except Exception as error:  # any other is a defect of the package, and is listed as one
        failed = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"seconds": time.perf_counter() - began, **result, "crashed": failed}


def compare(entry: UserNet, net: nn.Module, report: Report, train: Samples, fresh: Samples) -> dict[str, Any]:
    """Return accuracies of the report beside those of the user's own test; the net is as before afterwards.

    Returns:
        ``fitted``: the written net on all samples that the line got; ``heldout``: the same on samples that no fit has seen;
        ``estimate``: the report's held-out accuracy, of a readout that was fitted without them, beside the own test on fresh ones;
        ``before``: the own test on these before.
    """
    if report.exactness.samples != len(train.labels):
        raise RuntimeError(f"compared on {report.exactness.samples} samples, not on all {len(train.labels)}")
    if any(hint.name == "unscaled_inputs" for hint in report.hints):
        raise RuntimeError("inputs in 0 to 1 are called not scaled")
    fitted, on_fresh = (entry.test(net, entry.loader(samples)) for samples in (train, fresh))
    after = report.after.loss if entry.regression else report.accuracy_after
    known = {"report": report.accuracy_written, "own": fitted, "samples": report.exactness.samples}
    pairs = {
        "fitted": heldout(entry, net, train) if entry.regression else known,
        "estimate": {"report": after, "samples": report.after.samples, "own": on_fresh, "fresh": len(fresh.labels)},
        "heldout": heldout(entry, net, fresh),
    }
    report.undo()
    return {
        "readout": report.readout.kind,
        "exactness": report.exactness.label,
        **pairs,
        "before": entry.test(net, entry.loader(fresh)),
        "layers_kept": [layer.name for layer in report.layers if layer.reason],
    }


def heldout(entry: UserNet, net: nn.Module, fresh: Samples) -> dict[str, Any]:
    """Return what a report says of the written net on samples that no fit has seen, and the user's own test on the same ones.

    A second call on fresh samples reports the accuracy of the net as it finds it, on the half of them that it holds out.
    """
    report = entry.run(net, fresh, 'hidden="keep", holdout=0.5, strength=1.0, tol=1e-2')
    report.undo()
    rows = split_samples(len(fresh.labels), 0.5, SEED).heldout
    if report.before.samples != len(rows):
        raise RuntimeError(f"{entry.name}: {report.before.samples} samples held out, not {len(rows)}")
    own, before = entry.test(net, entry.loader(fresh.of(rows))), report.before.loss if entry.regression else report.accuracy_before
    return {"report": before, "own": own, "samples": len(rows), "unit": own if entry.regression else 1.0}


def as_it_must_be(result: dict[str, Any]) -> bool:
    """Return whether a net works with the user's own accuracy, or is refused with its true reason."""
    refused = "refused" in result and not result["words_missing"]
    works = "fitted" in result and difference(result) <= result["alike"] and not result["frozen_written"]
    return {"work": works, "be refused": refused, "work or be refused": works or refused}[result["must"]]


def difference(result: dict[str, Any]) -> float:
    """Return the larger of the differences between report and own test on the same samples."""
    return max(abs(pair["report"] - pair["own"]) / pair.get("unit", 1.0) for pair in (result["fitted"], result["heldout"]))


def verdict(result: dict[str, Any]) -> str:
    """Return a line for the terminal."""
    right = "  " if as_it_must_be(result) else "! "
    if "fitted" not in result:
        refused = f"refused: {result['refused']['found']}. To fix: {result['refused']['fix']}" if "refused" in result else None
        return right + (refused or f"crashed: {result.get('crashed')}; written: {result.get('written')}")
    pairs = (result[key] for key in ("fitted", "heldout", "estimate"))
    shown = ", ".join(f"{100 * pair['report']:.1f} and {100 * pair['own']:.1f}" for pair in pairs)
    return f"{right}{result['readout']}: {shown}; before {100 * result['before']:.1f}; {result['seconds']:.1f} s"
