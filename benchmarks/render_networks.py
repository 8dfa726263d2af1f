"""The tables of docs/networks.md and docs/evidence/networks*.md, from benchmarks/results; render_docs.py puts them there."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common import RESULTS
from tests.user_nets.idioms import IDIOMS

DIGITS = """Data: scikit-learn's digits, {train} images for training, {test} for test. Nets: {nets} at {their} default
initialisation. No gradient step; all options but `fit_loss` have their defaults. Accuracies are of test images, in percent{spread}.

- *Before* and *written net*: the accuracy of the net's own output, decided as its user decides.
- *Linear score*: the accuracy of the same weights under an output neuron without threshold and reset.
- *Difference*: the largest difference between the net's scores and the program's. It is rounding if the readout is exact. Elsewhere
  it only shows that the two scores differ.
- The nets' widths and kernels were chosen while looking at these accuracies; narrower nets lose a few points.
"""
MNIST = """Nets of snnTorch's tutorials 5 and 6, unchanged, and a Norse net behind a constant-current encoder. Their default
initialisation (seed {seed}), the first {samples} training images, {tests} test images, no gradient step.
*Linear score*: the same weights under an output neuron without threshold and reset.
"""
LABELS = ("exact", "majorised", "surrogate")


def how_to() -> str:
    """The call and what is special, for each idiom."""
    rows = ["| idiom | call | |", "|---|---|---|"]
    rows += [f"| {idiom.name} | `{idiom.typed}` | {idiom.about} |" for idiom in IDIOMS]
    return "\n".join(rows)


def digits_table(cases: list[dict[str, Any]]) -> str:
    """One row an idiom and readout, over all seeds that were run."""
    rows = ["| idiom | readout | exactness | difference | before | linear score | written net |", "|---|---|---|---|---|---|---|"]
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for case in cases:
        grouped.setdefault((case["idiom"], case["reading"]), []).append(case)
    order = {idiom.name: number for number, idiom in enumerate(IDIOMS)}
    last = ""
    for (idiom, reading), runs in sorted(grouped.items(), key=lambda item: order[item[0][0]]):
        shown, last = (idiom if idiom != last else ""), idiom
        errors = [run["error"].splitlines()[0] for run in runs if "error" in run]
        if errors:
            rows.append(f"| {shown} | {reading} | {errors[0]} | | | | |")
            continue
        labels = sorted({run["report"]["exactness"]["label"] for run in runs})
        difference = max(run["report"]["exactness"]["max_difference"] for run in runs)
        columns = [_spread([run[key] for run in runs]) for key in ("test_before", "test_linear", "test_after")]
        rows.append(f"| {shown} | {reading} | {', '.join(labels)} | {difference:.1e} | {' | '.join(columns)} |")
    return "\n".join(rows)


def _spread(values: list[float]) -> str:
    mean = f"{100 * sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.1f})"


def _before(layer: dict[str, Any]) -> float:
    """The firing rate before; results of 2026-11-24 hold it by itself."""
    return float(layer["before"]["firing_rate"] if "before" in layer else layer["rate_before"])


def mnist_table(cases: dict[str, Any]) -> str:
    """One row a net and readout."""
    head = "| net | readout | exactness | before | linear score | written net | firing rates before → after | seconds |"
    rows = [head, "|---|---|---|---|---|---|---|---|"]
    for name, result in cases.items():
        net, reading = name.split(" | ")
        report = result["report"]
        rates = ", ".join(f"{_before(layer):.3f} → {layer['stats']['firing_rate']:.3f}" for layer in report["layers"])
        accuracies = " | ".join(f"{100 * result[key]:.2f}" for key in ("test_before", "test_linear", "test_after"))
        label, seconds = report["exactness"]["label"], sum(report["seconds"].values())
        rows.append(f"| {net} | {reading} | {label} | {accuracies} | {rates} | {seconds:.0f} |")
    return "\n".join(rows)


def exactness_table() -> str:
    """One row a label of exactness: accuracy of the linear score that is solved, and of the net as it is written."""
    cases = json.loads((RESULTS / "networks.json").read_text(encoding="utf-8"))["cases"].values()
    head = ("label", "nets and readouts", "solved score, test accuracy, %", "written net, test accuracy, %", "largest drop, points")
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for label in LABELS:
        found = [case for case in cases if "report" in case and case["report"]["exactness"]["label"] == label]
        solved, written = ([case[key] for case in found] for key in ("test_linear", "test_after"))
        drop = 100 * max(before - after for before, after in zip(solved, written, strict=True))
        rows.append(f"| {label} | {len(found)} | {_spread(solved)} | {_spread(written)} | {max(drop, 0.0):.1f} |")
    return "\n".join(rows)


def handover_table(cases: dict[str, Any]) -> str:
    """One row a loss: the gradient that is left, at the strength chosen and at a small one."""
    rows = ["| `loss=` | readout | gradient left | at strength 1e-6 | test accuracy |", "|---|---|---|---|---|"]
    for name, runs in cases.items():
        left = [f"{run['gradient_after'] / run['gradient_before']:.1e}" for run in (runs["auto"], runs["1e-06"])]
        rows.append(f"| `{name}` | {runs['auto']['readout']} | {' | '.join(left)} | {100 * runs['auto']['test_after']:.1f} |")
    return "\n".join(rows)


def machine_line(machine: dict[str, Any]) -> str:
    """What the figures above it depend on."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    place = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, Python {machine['python']}"
    return f"{machine['date']}: {place}, {versions}."


def blocks() -> dict[str, str]:
    """The blocks of the pages of evidence, by their names."""
    names = ("networks.json", "mnist_networks.json", "handover.json")
    digits, mnist, handover = (json.loads((RESULTS / name).read_text(encoding="utf-8")) for name in names)
    seeds = len({name.rpartition(" ")[2] for name in digits["cases"]})
    spread = ", the mean over the nets and in brackets the lowest"
    several = {"nets": f"{seeds} nets a row, each", "their": "its own", "spread": spread}
    one = {"nets": "one net a row", "their": "its", "spread": ""}
    intro = DIGITS.format(**(several if seeds > 1 else one), train=digits["train"], test=digits["test"])
    return {
        "calls": how_to(),
        "digits": f"{intro}\n{digits_table(list(digits['cases'].values()))}\n\n{machine_line(digits['machine'])}",
        "handover": f"{handover_table(handover['cases'])}\n\n{machine_line(handover['machine'])}",
        "mnist": f"{MNIST.format(**mnist)}\n{mnist_table(mnist['cases'])}\n\n{machine_line(mnist['machine'])}",
    }
