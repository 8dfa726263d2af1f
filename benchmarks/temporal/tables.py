"""Tables of docs/temporal.md and docs/evidence/temporal.md, from the results of the study."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.solvers.tables import table

from .cells import TUNINGS, Cell
from .methods import COUNTS, KINDS, STARTS, TRAININGS
from .nets import NETS
from .tasks import TASKS

__all__ = ["NOT_RUN", "by_run", "count_table", "kind_table", "setting", "start_table", "summary_table", "training_table"]

NOT_RUN = "Not run yet."
_COLUMNS = (
    *(("train", epochs) for epochs in ("1", "5", "20")),
    ("train-long", "100"),
    ("train-cycle", "20"),
    ("train-cycle-long", "100"),
    ("train-sharp", "20"),
    ("train-sharp-long", "100"),
)
_KINDS = {"train": "fixed", "train-cycle": "cycle", "train-sharp": "sharp"}
_KINDS |= {"tuning": "fixed", "tuning-cycle": "cycle", "tuning-sharp": "sharp"}

_SUMMARY = ("keep", "auto", "heterogeneous")  # starts of the summary, and its widths, tasks and nets
_SUMMARY_WIDTHS = {"rows": 256, "pixels": 512, "permuted": 512, "speech": 256, "timing": 256}
_TASK_NAMES = {
    "rows": "MNIST, a row a step",
    "pixels": "MNIST, a pixel a step",
    "permuted": "the same pixels in a random order",
    "speech": "spoken digits",
    "timing": "spike timing",
}
_NET_NAMES = {"snntorch-recurrent": "recurrent", "snntorch-feedforward": "feed-forward"}

Results = Mapping[Cell, Mapping[str, Any]]
Run = tuple[str, str, int]  # task, net, hidden neurons


def by_run(cells: Results, methods: Iterable[str]) -> dict[Run, dict[str, list[Mapping[str, Any]]]]:
    """Results of all seeds for each task, net and width, then each method; in the order of tasks and nets."""
    chosen, found = set(methods), dict[Run, dict[str, list[Mapping[str, Any]]]]()
    order = sorted(cells, key=lambda cell: (list(TASKS).index(cell.task), list(NETS).index(cell.net), cell.hidden, cell.seed))
    for cell in order:
        if cell.method in chosen:
            found.setdefault((cell.task, cell.net, cell.hidden), {}).setdefault(cell.method, []).append(cells[cell])
    return found


def start_table(cells: Results) -> str:
    """Test accuracy without a gradient step and seconds of the call, a row a task and net; "auto" also in epochs of training."""
    runs = by_run(cells, [method for method in STARTS if method == "auto" or method not in (*KINDS, *COUNTS)])
    trainings = by_run(cells, TRAININGS)
    methods = [method for method in STARTS if any(method in found for found in runs.values())]
    rows = []
    for run, found in runs.items():
        refused = {method for method, results in found.items() if any("refused" in result for result in results)}
        texts = ["refused" if method in refused else _accuracy(found.get(method, [])) for method in methods]
        epochs = _epochs(found.get("auto", []), [result for results in trainings.get(run, {}).values() for result in results])
        rows.append((*map(str, run), *texts, epochs, _seeds(found.values())))
    return table(("task", "net", "hidden", *methods, "auto, in epochs", "seeds"), rows) if rows else NOT_RUN


def _epochs(starts: Sequence[Mapping[str, Any]], trainings: Sequence[Mapping[str, Any]]) -> str:
    """Seconds of starts over those of an epoch of training."""
    if not starts or not trainings:
        return ""
    epoch = statistics.median(result["cpu_seconds"] / int(list(result["epochs"])[-1]) for result in trainings)
    return f"{statistics.mean(result['cpu_seconds'] for result in starts) / epoch:.1f}"


def summary_table(cells: Results) -> str:
    """Return a row a task and net: a few starts, and the training with the best final accuracy; mean accuracy and CPU seconds."""
    rows = []
    for run, found in by_run(cells, (*_SUMMARY, *TRAININGS)).items():
        if _SUMMARY_WIDTHS.get(run[0]) != run[2] or run[1] not in _NET_NAMES:
            continue
        ends = [[list(result["epochs"].values())[-1] for result in results] for name, results in found.items() if name in TRAININGS]
        best = max(ends, key=lambda results: statistics.mean(result["test"] for result in results), default=[])
        starts = [_accuracy(found.get(method, [])) for method in _SUMMARY]
        rows.append((_TASK_NAMES[run[0]], _NET_NAMES[run[1]], *starts, _accuracy(best)))
    heads = ("data", "net", '`hidden="keep"`', "default", "`heterogeneous=True`", "best training of 20 or 100 epochs")
    return table(heads, rows) if rows else NOT_RUN


def kind_table(cells: Results) -> str:
    """Test accuracy of "auto" and of each kind of candidates alone, and the lead over the best kind on the seeds that both have."""
    rows = []
    for run, found in by_run(cells, ("auto", *KINDS)).items():
        if "auto" not in found or len(found) == 1:
            continue
        tests = {method: {result["seed"]: 100 * result["test"] for result in results} for method, results in found.items()}
        leads = [_lead(tests["auto"], other) for method, other in tests.items() if method != "auto"]
        texts = [f"{statistics.mean(tests[method].values()):.1f}" if method in tests else "" for method in ("auto", *KINDS)]
        rows.append((*map(str, run), *texts, f"{min(leads):+.1f}", _seeds(found.values())))
    return table(("task", "net", "hidden", "auto", *KINDS, "lead of auto", "seeds"), rows) if rows else NOT_RUN


def count_table(cells: Results) -> str:
    """Test accuracy by the number of candidates a neuron, and CPU seconds of the call."""
    runs = {run: found for run, found in by_run(cells, COUNTS).items() if found.keys() == set(COUNTS)}
    rows = [(*map(str, run), *(_accuracy(found[count]) for count in COUNTS), _seeds(found.values())) for run, found in runs.items()]
    return table(("task", "net", "hidden", "one", "two", "three, the default", "six", "seeds"), rows) if rows else NOT_RUN


def _lead(own: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Return the mean difference on the seeds that both have."""
    return statistics.mean(own[seed] - other[seed] for seed in own.keys() & other.keys())


def training_table(cells: Results) -> str:
    """Test accuracy after epochs of training and seconds up to there, a row a task and net."""
    runs, tunings = by_run(cells, TRAININGS), by_run(cells, TUNINGS)
    columns = [(method, epoch) for method, epoch in _COLUMNS if any(method in found for found in runs.values())]
    rows = []
    for run, found in runs.items():
        texts = [_accuracy([result["epochs"][epoch] for result in found.get(method, [])]) for method, epoch in columns]
        tuned = {name: results[0] for name, results in tunings[run].items()}
        rates = ", ".join(f"{_KINDS[name]} {result['rate']:g}" for name, result in tuned.items())
        rows.append((*map(str, run), *texts, rates, f"{sum(r['cpu_seconds'] for r in tuned.values()):.0f}", _seeds(found.values())))
    epochs = [f"{_KINDS[method.removesuffix('-long')]}, {epoch}" for method, epoch in columns]
    return table(("task", "net", "hidden", *epochs, "tuned rates", "s of tuning", "seeds"), rows) if rows else NOT_RUN


def setting(cells: Results) -> str:
    """Processors with their numbers of results, versions and dates."""
    if not cells:
        return NOT_RUN
    machines = [content["machine"] for content in cells.values()]
    versions: dict[str, set[str]] = {}
    for machine in machines:
        for name, version in machine["versions"].items():
            versions.setdefault(name, set()).add(version)
    packages = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in versions.items())
    dates = sorted({machine["date"] for machine in machines})
    threads = sorted({machine["threads"] for machine in machines})
    first, counts = machines[0], Counter(machine["processor"] for machine in machines)
    places = ", ".join(f"{processor} ({count} results)" for processor, count in counts.most_common())
    text = f"{places}; {first['cores']} cores, threads: {', '.join(map(str, threads))}, Python {first['python']}, "
    return f"{text}{packages}; {dates[0] if len(dates) == 1 else f'{dates[0]} to {dates[-1]}'}."


def _accuracy(results: Sequence[Mapping[str, float]]) -> str:
    """Mean accuracy over the seeds in percent, and mean CPU seconds."""
    if not results:
        return ""
    test, seconds = (statistics.mean(result[key] for result in results) for key in ("test", "cpu_seconds"))
    return f"{100 * test:.1f} ({seconds:.0f} s)"


def _seeds(results: Iterable[Sequence[Any]]) -> str:
    """Least and most seeds of a row."""
    counts = sorted({len(found) for found in results})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
