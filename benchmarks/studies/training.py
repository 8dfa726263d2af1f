"""Training with the callback, and with the strongest baselines that a user would have.

Learning rates are tuned once for each case and schedule, on the net without the plugin, by validation data; the runs with the
plugin use the same.  Seconds are CPU seconds of one thread, without those of tests.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import nn

from benchmarks import starts
from benchmarks.methods import Method, run, tune_method
from benchmarks.nets import IMAGE_NETS, SEQUENCE_NETS, steep
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.tasks import Parts, load_task
from snn_recon_plugin.demo import Data, build_network
from snn_recon_plugin.report.figures import BLUE, ORANGE

TUNING_SEED = 1000  # of no other run
HIDDEN = 256


@dataclass(frozen=True)
class Case:
    """A net on a task.

    Args:
        task: of tasks.py.
        net: of nets.py, or the demo's.
        epochs: of a run.
    """

    task: str
    net: str
    epochs: int

    def make(self, data: Data) -> nn.Module:
        """Return a fresh net; snnTorch's nets have the surrogate gradient of its tutorials."""
        if self.net == "demo":
            return steep(build_network(64, HIDDEN, 10, 10))
        if self.net in IMAGE_NETS:
            return steep(IMAGE_NETS[self.net]())
        return steep(SEQUENCE_NETS[self.net](data.train_inputs.shape[2], HIDDEN, int(data.train_labels.max()) + 1))


CASES = {
    "digits": Case("whole digits", "demo", 20),
    "digits by row, recurrent": Case("digits", "snntorch-recurrent", 20),
    "spoken digits": Case("speech", "snntorch-feedforward", 20),
    "spoken digits, recurrent": Case("speech", "snntorch-recurrent", 20),
    "spike timing": Case("timing", "snntorch-feedforward", 12),
    "delayed match, recurrent": Case("match", "snntorch-recurrent", 12),
    "MNIST": Case("images", "784-1000-10", 8),
    "MNIST, heavy noise": Case("noisy images", "784-1000-10", 8),
    "MNIST, mixed labels": Case("mixed labels", "784-1000-10", 8),
    "MNIST, five layers": Case("images", "784-256x5-10", 8),
    "MNIST, spiking outputs": Case("images", "784-1000-10 spiking", 8),
    "MNIST, Norse": Case("images", "Norse 784-1000-10", 8),
    "MNIST by row": Case("rows", "snntorch-feedforward", 8),
    "MNIST by row, recurrent": Case("rows", "snntorch-recurrent", 8),
}
BASELINES: dict[str, Method] = {
    "fixed rate": Method(),
    "one cycle, EMA": Method(cycle=True, average=True),
}
PLUGIN: dict[str, Method] = {
    "line, one cycle, EMA": Method(cycle=True, average=True, start=starts.line),
    "callback, one cycle": Method(cycle=True, options={}),
    "callback, no start": Method(cycle=True, options={"at_start": False}),
    "callback, start": Method(cycle=True, options={"at_start": True}),
}
HIGH_RATE: dict[str, Method] = {
    "SGD 0.05": Method(optimizer=torch.optim.SGD, rate=0.05),
    "callback, SGD 0.05": Method(optimizer=torch.optim.SGD, rate=0.05, options={}),
}
CALLBACK = "callback, one cycle"
SHARES = {"a quarter": 0.25, "half": 0.5, "": 1.0}  # of a case's epochs
BUDGETED = ("one cycle, EMA", "callback, no start", CALLBACK)  # CALLBACK decides by its own rule whether it makes a start
SHORTER = {(label, share): f"{label}, {share}".removesuffix(", ") for label in BUDGETED for share in SHARES}
METHODS = BASELINES | PLUGIN | HIGH_RATE
METHODS |= {name: METHODS[label] for (label, _), name in SHORTER.items()}
LENGTHS = {name: SHARES[share] for (_, share), name in SHORTER.items()}
Runs = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]


def name_of(case: str, what: str, seed: int) -> str:
    """Return the name of a cell."""
    return f"{case}-{what}-{seed}".replace(" ", "_").replace(",", "")


def cells(bench: Bench) -> Cells:
    """Every method on every case with three seeds, after the tuning of its rate."""
    found = {}
    for (case, seed), (label, method) in itertools.product(itertools.product(CASES, range(3)), METHODS.items()):
        if method.rate is None:
            found[tuning_of(case, method)] = partial(measure_tuning, bench, case, method)
        found[name_of(case, label, seed)] = partial(measure, bench, case, label, seed)
    return found


def tuning_of(case: str, method: Method) -> str:
    """Return the name of the cell that tunes a method's rate."""
    return name_of(case, "tuning cycle" if method.cycle else "tuning fixed", TUNING_SEED)


def measure_tuning(bench: Bench, case: str, method: Method) -> dict[str, Any]:
    """Tune the rate of a method's schedule without the plugin."""
    data = load_task(CASES[case].task, bench.places)
    make = partial(CASES[case].make, data)
    return tune_method(make, Parts(data, TUNING_SEED), method, CASES[case].epochs, TUNING_SEED)


def measure(bench: Bench, case: str, label: str, seed: int) -> dict[str, Any]:
    """Train a case by a method."""
    method, rate = METHODS[label], METHODS[label].rate
    if rate is None:
        rate = float(bench.cell(tuning_of(case, method), partial(measure_tuning, bench, case, method))["rate"])
    data = load_task(CASES[case].task, bench.places)
    epochs = round(LENGTHS.get(label, 1.0) * CASES[case].epochs)
    found = run(partial(CASES[case].make, data), Parts(data, seed), method, rate, epochs, seed)
    return {"case": case, "method": label, "seed": seed, "tests": len(data.test_labels), **found}


# -- tables ---------------------------------------------------------------------------------------------------------------


def runs_of(store: Store) -> Runs:
    """Return all runs of a case by a method, a seed each; tunings are left out."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for content in store.cells():
        if "final" in content:
            found.setdefault((content["case"], content["method"]), []).append(content)
    return found


def mean(runs: Sequence[Mapping[str, Any]], *keys: str) -> float:
    """Return the mean of a value over the seeds."""
    return statistics.mean(float(reduce(lambda value, key: value[key], keys, run)) for run in runs)


def seconds_to(runs: Sequence[Mapping[str, Any]], accuracy: float) -> float | None:
    """Return the CPU seconds until the start or evaluated weights have an accuracy, the mean over seeds; None if one never has."""
    tests = [[*filter(None, [run.get("started")]), *run["epochs"], run["final"]] for run in runs]
    found = [next((e["seconds"] for e in of_run if e["test"] >= accuracy), None) for of_run in tests]
    reached = [seconds for seconds in found if seconds is not None]
    return statistics.mean(reached) if len(reached) == len(runs) else None


def least_step(runs: Sequence[Mapping[str, Any]]) -> float:
    """Return the largest fall of the evaluated test accuracy from one epoch to the next, the mean over the seeds."""
    steps = [[later["test"] - earlier["test"] for earlier, later in itertools.pairwise(run["epochs"])] for run in runs]
    return min((statistics.mean(some) for some in zip(*steps, strict=True)), default=0.0)


class Compared(NamedTuple):
    """The callback beside the best baseline."""

    goal: float  # accuracy of the best baseline, 0 to 1
    alone: float  # its CPU seconds
    test: float  # accuracy with the callback
    seconds: float  # of the callback
    reached: float | None  # seconds until the callback has as much; None if it never has
    gains: tuple[float, ...]  # of the callback, of each seed

    @property
    def spread(self) -> str:
        """Text for ``gains``, in points."""
        return " to ".join(f"{100 * gain:+.1f}" for gain in sorted({min(self.gains), max(self.gains)}))

    @property
    def sooner(self) -> str:
        """Text for ``reached``."""
        return "not reached" if self.reached is None else f"{self.reached:.0f}"


def compare(runs: Runs) -> dict[str, Compared]:
    """Return the comparison of every case that has the callback and a baseline."""
    found = {}
    for case in CASES:
        bases, own = [runs[case, name] for name in BASELINES if (case, name) in runs], runs.get((case, CALLBACK))
        if bases and own:
            best = max(bases, key=lambda base: mean(base, "final", "test"))
            goal, ends = mean(best, "final", "test"), (mean(own, "final", "test"), mean(own, "final", "seconds"))
            of_seed = {run["seed"]: run["final"]["test"] for run in best}  # of the fixed rate there is one
            gains = tuple(run["final"]["test"] - of_seed.get(run["seed"], goal) for run in own)
            found[case] = Compared(goal, mean(best, "final", "seconds"), *ends, seconds_to(own, goal), gains)
    return found


def summary(runs: Runs) -> str:
    """Return the short table."""
    found = compare(runs)
    rows = [
        (
            case,
            f"{100 * c.goal:.1f}",
            f"{100 * c.test:.1f}",
            c.spread,
            str(len(c.gains)),
            f"{c.alone:.0f}",
            c.sooner,
            f"{c.seconds:.0f}",
        )
        for case, c in found.items()
    ]
    sooner = "with the callback, to the same accuracy"
    head = ("task", "training alone, tuned", "with the callback", "gain of each seed", "seeds", "seconds alone", sooner, "in all")
    return markdown_table(head, rows)


def headline(runs: Runs) -> str:
    """Return the medians and extremes of the short table."""
    found = compare(runs)
    gains = [100 * (c.test - c.goal) for c in found.values()]
    shares = [(c.reached or math.inf) / c.alone for c in found.values()]
    accuracy = f"{min(gains):+.1f} to {max(gains):+.1f} points from tuned training's, {statistics.median(gains):+.1f} at the median"
    faster = f"sooner in {sum(share <= 1 for share in shares)} of {len(shares)} tasks"
    reached = f"{statistics.median(shares):.2f} of its seconds at the median, and {faster}"
    return f"The callback's accuracy is {accuracy}. It has tuned training's accuracy after {reached}."


def table(runs: Runs) -> str:
    """Return final accuracies by all methods, and the seconds to the best baseline's."""
    rows = []
    for case, c in compare(runs).items():
        finals = [_percent(runs.get((case, name), [])) for name in (*BASELINES, *PLUGIN)]
        own = runs[case, CALLBACK]
        ends = (f"{c.alone:.0f}", c.sooner, f"{c.seconds:.0f}", f"{100 * least_step(own):+.1f}", str(len(own)))
        rows.append((case, str(CASES[case].epochs), *finals, f"{100 * (c.test - c.goal):+.1f}", *ends))
    ends = ("its seconds", "until the callback has as much", "callback, all", "largest fall", "seeds")
    return markdown_table(("case", "epochs", *BASELINES, *PLUGIN, f"{CALLBACK}, against the best baseline", *ends), rows)


def budget(runs: Runs, share: str) -> str:
    """Return what the callback and its default rule gain in a share of the epochs."""
    ends = [[100 * mean(runs[case, SHORTER[label, share]], "final", "test") for label in BUDGETED] for case in CASES]
    found = [sorted(own - other[number] for *other, own in ends) for number in (0, 1)]
    above, added = ([f"{gains[0]:+.1f} to {gains[-1]:+.1f}", f"{statistics.median(gains):+.1f} at the median"] for gains in found)
    return (
        f"Where both take {share or 'all'} of the epochs, its accuracy is {above[0]} points from one cycle's, {above[1]}; "
        f"it is {added[0]} points from the callback's without a start, {added[1]}."
    )


def budget_table(runs: Runs) -> str:
    """Return accuracies and seconds of shorter runs: training alone, the callback without a start, and by its default rule."""
    rows = []
    for case, share in itertools.product(CASES, SHARES):
        found = [runs.get((case, SHORTER[label, share]), []) for label in BUDGETED]
        if all(found):
            texts = [f"{_percent(some)} ({mean(some, 'final', 'seconds'):.0f} s)" for some in found]
            rows.append((case, str(round(SHARES[share] * CASES[case].epochs)), *texts, str(len(found[0]))))
    sentences = "\n".join(f"- {budget(runs, share)}" for share in SHARES)
    return (
        f"{markdown_table(('case', 'epochs', *BUDGETED, 'seeds'), rows)}\n\nOf the callback with its default rule:\n\n{sentences}"
    )


class Difference(NamedTuple):
    """Mean of paired differences of test accuracy, and its 95 % interval, in points."""

    mean: float
    half: float  # half of the interval's width

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ({self.mean - self.half:+.1f} to {self.mean + self.half:+.1f})"


def differ(own: Sequence[float], other: Sequence[float], tests: int) -> Difference:
    """Return the mean difference of accuracies p and q (0 to 1), a pair a seed, with its 95 % interval.

    The variance of the mean is

        V = s^2 / S + (p (1 - p) + q (1 - q)) / n

    with s^2 the variance of the S paired differences, p and q the mean accuracies, and n the number of test samples, which all
    seeds share.  The second term takes errors of both as independent.  That is an upper bound if they err on the same samples.  The
    interval is the mean plus and minus t sqrt(V), with Student's t of V^2 (S - 1) / (s^2 / S)^2 degrees of freedom (Satterthwaite).
    """
    pairs = [one - two for one, two in zip(own, other, strict=True)]
    seeds = statistics.variance(pairs) / len(pairs)
    variance = seeds + sum(p * (1 - p) for p in map(statistics.mean, (own, other))) / tests
    freedom = variance**2 * (len(pairs) - 1) / seeds**2 if seeds else math.inf
    return Difference(100 * statistics.mean(pairs), 100 * float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance))


def against_better(runs: Runs, case: str, share: str) -> tuple[str, Difference] | None:
    """Return the better of training alone and the callback without a start, and how the default differs from it.

    None if there are fewer than two seeds of each.
    """
    *others, own = (runs.get((case, SHORTER[label, share]), ()) for label in BUDGETED)
    seeds = set.intersection(*({run["seed"] for run in some} for some in (*others, own)))
    tests = max((run.get("tests", 0) for run in own), default=0)  # runs of earlier versions do not have it
    if len(seeds) < 2 or not tests:
        return None
    finals = [[run["final"]["test"] for run in some if run["seed"] in seeds] for some in (*others, own)]
    best = max(range(len(others)), key=lambda place: statistics.mean(finals[place]))
    return BUDGETED[best], differ(finals[-1], finals[best], tests)


def rule_table(runs: Runs) -> str:
    """Return the default's differences from the better other way at each budget, and its seconds at the full one."""
    rows, shares = [], []
    for case in CASES:
        found = [against_better(runs, case, share) for share in SHARES]
        if all(found):
            alone, own = (mean(runs[case, label], "final", "seconds") for label in (BUDGETED[0], CALLBACK))
            shares.append(own / alone)
            rows.append((case, *(f"{pair[1]}, {pair[0]}" for pair in found if pair), f"{shares[-1]:.2f}"))
    if not rows:
        return "Not measured yet."
    heads = (f"{share or 'all'} of the epochs" for share in SHARES)
    median = f"The median of the seconds is {statistics.median(shares):.2f} times those of one cycle with EMA. {in_half(runs)}"
    return f"{markdown_table(('case', *heads, 'seconds, times one cycle'), rows)}\n\n{median}"


def in_half(runs: Runs) -> str:
    """Return how the callback in half of the epochs compares with one cycle in all of them, which takes about as long."""
    labels = SHORTER[CALLBACK, "half"], BUDGETED[0]
    pairs = [(runs[case, labels[0]], runs[case, labels[1]]) for case in CASES if all((case, label) in runs for label in labels)]
    gains = sorted(100 * (mean(own, "final", "test") - mean(alone, "final", "test")) for own, alone in pairs)
    shares = sorted(mean(own, "final", "seconds") / mean(alone, "final", "seconds") for own, alone in pairs)
    seconds = f"{shares[0]:.2f} to {shares[-1]:.2f} times the seconds of one cycle in all of them"
    accuracy = f"{gains[0]:+.1f} to {gains[-1]:+.1f} points from it, {statistics.median(gains):+.1f} at the median"
    return (
        f"In half of the epochs the callback takes {seconds}, {statistics.median(shares):.2f} at the median. "
        f"Its accuracy is {accuracy}."
    )


def sgd_table(runs: Runs) -> str:
    """Return the table of a rate that is far too high for a solved net."""
    rows = []
    for case in CASES:
        if all((case, name) in runs for name in HIGH_RATE):
            shares = [run["metrics"].get("recon/step_share", 1.0) for run in runs[case, "callback, SGD 0.05"]]
            rows.append((case, *(_percent(runs[case, name]) for name in HIGH_RATE), f"{min(shares):g}"))
    return markdown_table(("case", *HIGH_RATE, "step length at the end"), rows)


def _percent(runs: Sequence[Mapping[str, Any]]) -> str:
    return f"{100 * mean(runs, 'final', 'test'):.1f}" if runs else ""


def setting(runs: Runs) -> str:
    """Return the machines of all runs, with their versions and dates."""
    return machines_line([run for cell in runs.values() for run in cell])


def pages(store: Store) -> dict[str, dict[str, str]]:
    """A summary for users, and all methods."""
    runs = runs_of(store)
    return {
        "training.md": {"training headline": f"{headline(runs)} {budget(runs, 'a quarter')}"},
        "evidence/training.md": {
            "training summary": f"{summary(runs)}\n\n{headline(runs)}",
            "training setting": setting(runs),
            "training table": table(runs),
            "budgets": budget_table(runs),
            "default rule": rule_table(runs),
            "high rate": sgd_table(runs),
        },
    }


PANELS = {
    "MNIST": "MNIST, 784-1000-10",
    "spoken digits": "spoken digits, feed-forward",
    "delayed match, recurrent": "delayed match, recurrent",
}
# Label, colour, and its offset in points from the end of the line.
LINES = {"one cycle, EMA": ("without", ORANGE, (7, -3)), CALLBACK: ("with the callback", BLUE, (0, 7))}


def figures(store: Store) -> dict[str, Figure]:
    """Test accuracy against CPU seconds, a panel a case, the first seed."""
    runs, figure = runs_of(store), Figure(figsize=(4.2 * len(PANELS), 3.4), layout="constrained")
    for axes, (case, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for method, (label, colour, offset) in LINES.items():
            epochs = runs[case, method][0]["epochs"]
            seconds, tests = [epoch["seconds"] for epoch in epochs], [100 * epoch["test"] for epoch in epochs]
            axes.plot(seconds, tests, color=colour, marker="o", ms=3)
            place = {"xytext": offset, "textcoords": "offset points", "ha": "left" if offset[0] else "right", "fontsize": 9}
            height = tests[-1] if offset[0] else max(tests[len(tests) // 2 :])  # a label above its line touches no part of it
            axes.annotate(label, (seconds[-1], height), color=colour, **place)
        axes.set_title(title, fontsize=10)
        axes.margins(y=0.12)
        axes.set(xlabel="CPU seconds, one thread", ylabel="test accuracy, %")
    return {"training.png": figure}


STUDY = Study(
    title="training with the callback against tuned training",
    minutes=320,
    cells=cells,
    pages=pages,
    figures=figures,
    fields=("case", "method", "seed", "tests", "epochs", "final", "rate", "started", "start", "metrics", "validation", "seconds"),
    packages=("snntorch", "norse", "lightning"),
    needs=("mnist", "speech"),
)
