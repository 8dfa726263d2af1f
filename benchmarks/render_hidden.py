"""Writes what benchmarks/hidden.py found into docs/evidence/hidden.md, a summary into docs/hidden.md, and draws the curves."""

from __future__ import annotations

import json
import statistics
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import RESULTS
from benchmarks.hidden import CASES, EPOCHS, STARTS
from benchmarks.render_docs import EVIDENCE, ROOT, replace

DOC, SUMMARY = EVIDENCE / "hidden.md", ROOT / "docs" / "hidden.md"
HEAD = ("case", "net", "test accuracy, %", "held out, %", "seconds", "epochs' worth", "rate before → after", "dead before → after")
# Net, its case with own weights rescaled (None if it was not run), its rebuilt case.
SHOWN = (
    ("784-1000-10, healthy", "own weights, rescaled", "3000 candidates, 1000 selected"),
    ("784-1000-10, silent", None, "silent net, 3000 candidates"),
    ("784-256x5-10, five hidden layers", None, "5 layers"),
    ("784-256x10-10, ten hidden layers", None, "10 layers"),
    ("12C5-MP2-64C5-MP2-10, convolutions", "conv, rescaled", "conv, 12 candidates a channel"),
    ("784-1000-10 in Norse", None, "Norse"),
)
CHOICES = ("keep", "rescale", "auto")
COLOURS = dict(zip(STARTS, ("#777777", "#E69F00", "#0072B2", "#D55E00"), strict=True))
# Where the label of each start lies: an epoch, points from its line there, and its side.
PLACES = ((0, (10, -3), "left"), (0, (18, -17), "left"), (10, (0, 14), "right"), (10, (0, -16), "right"))
LABELS = dict(zip(STARTS, PLACES, strict=True))


def load(name: str) -> dict[str, Any]:
    """A study's json; empty where it has not run."""
    path = RESULTS / name
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cases": {}}
    return found


def by_name(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Results of all seeds under the name of each case."""
    found: dict[str, list[dict[str, Any]]] = {}
    for key, result in content["cases"].items():
        found.setdefault(key.rsplit(", seed ", maxsplit=1)[0], []).append(result)
    return found


def spread(values: list[float]) -> str:
    """Mean in percent, least and most in brackets."""
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.2f} to {100 * max(values):.2f})"


def setting(content: dict[str, Any]) -> str:
    """What the figures depend on."""
    machine = content["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cores = f"{machine['cores']} cores of {machine['processor']}, {machine['threads']} threads"
    return f"{content['samples']} training images, {cores}, Python {machine['python']}, {versions}, {machine['date']}."


def table(content: dict[str, Any]) -> str:
    """One row a case: test and held-out accuracy, seconds beside those of an epoch, how the last hidden layer fires."""
    rows = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for name, results in by_name(content).items():
        seconds = statistics.mean(result["seconds"] for result in results)
        epochs = [result["seconds"] / result["epoch_seconds"] for result in results if "epoch_seconds" in result]
        layer = results[0]["layers"][-1]
        before, after = layer["before"], layer["stats"]
        cells = [
            name,
            CASES[name][0],
            spread([result["test"] for result in results]),
            f"{100 * statistics.mean(result['heldout'] for result in results):.2f}",
            f"{seconds:.1f}",
            f"{epochs[0]:.1f}" if epochs else "",
            f"{before['firing_rate']:.3f} → {after['firing_rate']:.3f}",
            f"{100 * before['silent']:.0f} % → {100 * after['silent']:.0f} %",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def summary(content: dict[str, Any]) -> str:
    """One row a net: silent neurons of its last hidden layer before, test accuracy rescaled and rebuilt, and the call's cost."""
    accuracies = ('`"rescale"`, test accuracy, %', '`"reconstruct"`, test accuracy, %')
    heads = ("net", "silent neurons before", *accuracies, "call, in epochs")
    rows, cases = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)], by_name(content)
    for name, rescaled, rebuilt in SHOWN:
        results = cases[rebuilt]
        own = f"{100 * statistics.mean(result['test'] for result in cases[rescaled]):.2f}" if rescaled else ""
        epochs = next(result["seconds"] / result["epoch_seconds"] for result in results if "epoch_seconds" in result)
        silent = f"{100 * results[0]['layers'][-1]['before']['silent']:.0f} %"
        test = f"{100 * statistics.mean(result['test'] for result in results):.2f}"
        rows.append(f"| {name} | {silent} | {own} | {test} | {epochs:.1f} |")
    return "\n".join(rows)


def training_table(content: dict[str, Any]) -> str:
    """Test accuracy by epoch and start."""
    rows = [f"| start | {' | '.join(f'epoch {epoch}' for epoch in EPOCHS)} |", "|" + "---|" * (len(EPOCHS) + 1)]
    for name, results in by_name(content).items():
        cells = [spread([result[str(epoch)]["test"] for result in results]) for epoch in EPOCHS]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def leaks_table(content: dict[str, Any]) -> str:
    """Test accuracy with one leak for all neurons and with one each."""
    machine, cases = content["machine"], content["cases"].values()
    rows = ["| data | one leak, test accuracy, % | a leak each, test accuracy, % | CPU seconds of the call |", "|---|---|---|---|"]
    for name in dict.fromkeys(case["data"] for case in cases):
        found = [[case for case in cases if (case["data"], case["heterogeneous"]) == (name, on)] for on in (False, True)]
        accuracies = " | ".join(spread([case["test"] for case in some]) for some in found)
        seconds = " → ".join(f"{statistics.mean(case['cpu_seconds'] for case in some):.1f}" for some in found)
        rows.append(f"| {name} | {accuracies} | {seconds} |")
    setting = f"{content['seeds']} seeds, {machine['threads']} thread, {machine['date']}: `benchmarks/leaks.py`."
    return "\n".join([*rows, "", setting])


def draw(content: dict[str, Any]) -> None:
    """Test error against epochs, one line a start, a band over the seeds."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, results in by_name(content).items():
        errors = [[100 * (1 - result[str(epoch)]["test"]) for result in results] for epoch in EPOCHS]
        means = [statistics.mean(part) for part in errors]
        axes.plot(EPOCHS, means, "o-", color=COLOURS[name], markersize=4)
        epoch, offset, side = LABELS[name]
        place = {"xytext": offset, "textcoords": "offset points", "ha": side}
        axes.annotate(name, (epoch, means[EPOCHS.index(epoch)]), color=COLOURS[name], **place)
        axes.fill_between(EPOCHS, [min(part) for part in errors], [max(part) for part in errors], color=COLOURS[name], alpha=0.2)
    axes.set_yscale("log")
    axes.set_ylim(2.2, 100)
    axes.set_yticks([3, 5, 10, 20, 50, 90], ["3", "5", "10", "20", "50", "90"])
    axes.minorticks_off()
    axes.set_xlabel("epochs of surrogate training")
    axes.set_ylabel("test error, %")
    axes.set_title("784-1000-10 from four initialisations, MNIST, 10,000 images", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(ROOT / "docs" / "hidden_training.png", dpi=150)


def cost_table(content: dict[str, Any]) -> str:
    """Return a row a net and code: epochs and test accuracy of each choice of hidden layers."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for case in content["cases"].values():
        found.setdefault((case["task"], case["code"]), {})[case["hidden"]] = case
    heads = [f"{hidden}, {what}" for hidden in CHOICES for what in ("epochs", "test, %")]
    rows = [f"| net and data | code | an epoch, s | {' | '.join(heads)} |", "|" + "---|" * (3 + len(heads))]
    for (task, code), results in found.items():
        cells = []
        for hidden in CHOICES:
            case = results.get(hidden)
            cells += ["", ""] if case is None else [f"{case['seconds'] / case['epoch']:.1f}", f"{100 * case['test']:.2f}"]
        epoch = statistics.mean(case["epoch"] for case in results.values())
        rows.append(f"| {task} | {code} | {epoch:.2f} | {' | '.join(cells)} |")
    return "\n".join(rows)


def render() -> None:
    """All blocks and the figure."""
    content, training = load("hidden.json"), load("hidden_training.json")
    replace(DOC, "hidden setting", setting(content), script="render_hidden.py")
    replace(DOC, "hidden table", table(content), script="render_hidden.py")
    replace(SUMMARY, "hidden summary", summary(content), script="render_hidden.py")
    replace(DOC, "hidden leaks", leaks_table(load("leaks.json")), script="render_hidden.py")
    replace(DOC, "hidden cost", cost_table(load("hidden_cost.json")), script="render_hidden.py")
    if training["cases"]:
        replace(DOC, "hidden training", training_table(training), script="render_hidden.py")
        draw(training)


if __name__ == "__main__":
    render()
