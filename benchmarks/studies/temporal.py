"""Nets on sequences: initialised without a gradient step, or trained by surrogate gradients.

All seeds of a training share the learning rate that was tuned for its net and schedule.  Seconds are those of one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.methods import BATCH, Schedule, train, tune
from benchmarks.nets import SEQUENCE_NETS, SLOPE, accuracy
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.tasks import TASKS, load_task
from snn_recon_plugin import ConvexInitializer, ReconstructionError
from snn_recon_plugin.report.figures import BLUE, GREEN, GREY

STARTS: dict[str, Mapping[str, Any]] = {  # options of ConvexInitializer
    "keep": {"hidden": "keep"},
    "rescale": {"hidden": "rescale"},
    "auto": {"hidden": "auto"},
    "heterogeneous": {"hidden": "auto", "heterogeneous": True},
}
TRAININGS: dict[str, Schedule] = {
    "train": Schedule(epochs=20),
    "train-cycle": Schedule(epochs=20, cycle=True),
    # 20 epochs of the small tasks are fewer than 200 steps, so they get five times as many.
    "train-long": Schedule(epochs=100),
    "train-cycle-long": Schedule(epochs=100, cycle=True),
    "train-sharp": Schedule(epochs=20, cycle=True, slope=SLOPE),
    "train-sharp-long": Schedule(epochs=100, cycle=True, slope=SLOPE),
}
TUNING_SEED, SEEDS = 1000, range(3)  # tuning has a seed of no other run
RECURRENT, FEED_FORWARD, NORSE = "snntorch-recurrent", "snntorch-feedforward", "norse-recurrent"
STARTED = ("rows", "pieces-4", "pieces-14", "speech", "digits", "timing", "match")
TRAINED = {  # the trainings of a task
    "rows": ("train", "train-cycle"),
    "speech": tuple(TRAININGS),
    "digits": ("train-sharp",),
    "timing": ("train-cycle", "train-sharp"),
}
LARGE = [  # other widths and long sequences, one seed
    *((task, RECURRENT, width, "auto", 0) for task, width in product(("rows", "speech"), (128, 512))),
    *((task, RECURRENT, 512, method, 0) for task, method in product(("pixels", "permuted"), ("auto", "heterogeneous"))),
]
Run = tuple[str, str, int]  # task, net, hidden neurons
Results = Sequence[Mapping[str, Any]]


def wanted() -> Iterator[tuple[str, str, int, str, int]]:
    """Yield task, net, hidden neurons, method and seed of all cells, but for tunings."""
    for seed in SEEDS:
        for task, net in product(STARTED, (RECURRENT, FEED_FORWARD)):
            yield from ((task, net, 256, method, seed) for method in (*STARTS, *TRAINED.get(task, ())))
        yield from (("rows", NORSE, 256, method, seed) for method in ("keep", "rescale", "auto"))
    yield from LARGE


def tuning_of(method: str) -> str:
    """Return the name of a training's tuning."""
    return method.removesuffix("-long").replace("train", "tuning")


def cells(bench: Bench) -> Cells:
    """Every start and training, and before it the tuning of its rate."""
    found = {}
    for task, net, hidden, method, seed in wanted():
        if method in TRAININGS:
            tuning = (task, net, hidden, tuning_of(method), TUNING_SEED)
            found["-".join(map(str, tuning))] = partial(measure, bench, *tuning)
        found[f"{task}-{net}-{hidden}-{method}-{seed}"] = partial(measure, bench, task, net, hidden, method, seed)
    return found


def measure(bench: Bench, task: str, net: str, hidden: int, method: str, seed: int) -> dict[str, Any]:
    """Start, tune or train a net."""
    data = load_task(task, bench.places)
    about = {"task": task, "net": net, "hidden": hidden, "method": method, "seed": seed}

    def make() -> Any:
        torch.manual_seed(seed)
        return SEQUENCE_NETS[net](data.train_inputs.shape[2], hidden, int(data.train_labels.max()) + 1)

    if method in STARTS:
        return {**about, **start(make(), data, STARTS[method], seed)}
    if method.startswith("tuning"):
        return {**about, **tune(make, data, TRAININGS[method.replace("tuning", "train")], seed)}
    tuning = (task, net, hidden, tuning_of(method), TUNING_SEED)
    rate = bench.cell("-".join(map(str, tuning)), partial(measure, bench, *tuning))["rate"]
    return {**about, **train(make(), data, TRAININGS[method], float(rate), seed)}


def start(net: Any, data: Any, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Initialise a net in place; test accuracy after it, and seconds of the call; a refused net is as before."""
    loader = DataLoader(TensorDataset(data.train_inputs, data.train_labels), BATCH, shuffle=True)
    found, began = dict[str, Any](), time.process_time()
    try:
        found["heldout"] = ConvexInitializer(seed=seed, progress=False, **options).initialize(net, loader).accuracy_after
    except ReconstructionError as error:
        found["refused"] = str(error)
    found["cpu_seconds"] = time.process_time() - began
    return {**found, "test": accuracy(net, data.test_inputs, data.test_labels)}


# -- tables ---------------------------------------------------------------------------------------------------------------

COLUMNS = [*(("train", epochs) for epochs in ("1", "5", "20")), ("train-long", "100"), ("train-cycle", "20")]
COLUMNS += [("train-cycle-long", "100"), ("train-sharp", "20"), ("train-sharp-long", "100")]
KINDS = {"train": "fixed", "train-cycle": "cycle", "train-sharp": "sharp"}
SUMMARY = ("keep", "auto", "heterogeneous")
SUMMARY_TASKS = {  # name and width
    "rows": ("MNIST, a row a step", 256),
    "pixels": ("MNIST, a pixel a step", 512),
    "permuted": ("the same pixels in a random order", 512),
    "speech": ("spoken digits", 256),
    "timing": ("spike timing", 256),
}
SUMMARY_NETS = {RECURRENT: "recurrent", FEED_FORWARD: "feed-forward"}


def by_run(store: Store, methods: Iterable[str]) -> dict[Run, dict[str, list[Mapping[str, Any]]]]:
    """Results of all seeds for each task, net and width, then each method; in the order of tasks and nets."""
    chosen, found = set(methods), dict[Run, dict[str, list[Mapping[str, Any]]]]()
    tasks, nets = list(TASKS), list(SEQUENCE_NETS)

    def order(cell: Mapping[str, Any]) -> tuple[int, ...]:
        return tasks.index(cell["task"]), nets.index(cell["net"]), cell["hidden"], cell["seed"]

    for cell in sorted(store.cells(), key=order):
        if cell["method"] in chosen:
            run = cell["task"], cell["net"], cell["hidden"]
            found.setdefault(run, {}).setdefault(cell["method"], []).append(cell)
    return found


def start_table(store: Store) -> str:
    """Test accuracy without a gradient step and seconds of the call, a row a task and net; "auto" also in epochs of training."""
    trainings, rows = by_run(store, TRAININGS), []
    for run, found in by_run(store, STARTS).items():
        texts = [
            "refused" if any("refused" in cell for cell in found.get(method, [])) else _accuracy(found.get(method, []))
            for method in STARTS
        ]
        trained = [cell["cpu_seconds"] / int(list(cell["epochs"])[-1]) for some in trainings.get(run, {}).values() for cell in some]
        spent = statistics.mean(cell["cpu_seconds"] for cell in found["auto"])
        epochs = f"{spent / statistics.median(trained):.1f}" if trained else ""
        rows.append((*map(str, run), *texts, epochs, _seeds(found.values())))
    return markdown_table(("task", "net", "hidden", *STARTS, "auto, in epochs", "seeds"), rows)


def summary_table(store: Store) -> str:
    """A row a task and net: a few starts, and the training with the best final accuracy; mean accuracy and CPU seconds."""
    rows = []
    for (task, net, width), found in by_run(store, (*SUMMARY, *TRAININGS)).items():
        name, shown = SUMMARY_TASKS.get(task, ("", 0))
        if width != shown or net not in SUMMARY_NETS:
            continue
        ends = [[list(cell["epochs"].values())[-1] for cell in some] for method, some in found.items() if method in TRAININGS]
        best = max(ends, key=lambda some: statistics.mean(cell["test"] for cell in some), default=[])
        starts = [_accuracy(found.get(method, [])) for method in SUMMARY]
        rows.append((name, SUMMARY_NETS[net], *starts, _accuracy(best)))
    heads = ("data", "net", '`hidden="keep"`', "default", "`heterogeneous=True`", "best training of 20 or 100 epochs")
    return markdown_table(heads, rows)


def training_table(store: Store) -> str:
    """Test accuracy after epochs of training and seconds up to there, a row a task and net."""
    tunings, rows = by_run(store, [tuning_of(method) for method in KINDS]), []
    for run, found in by_run(store, TRAININGS).items():
        texts = [_accuracy([cell["epochs"][epoch] for cell in found.get(method, [])]) for method, epoch in COLUMNS]
        tuned = {kind: tunings[run][tuning_of(name)][0] for name, kind in KINDS.items() if tuning_of(name) in tunings[run]}
        rates = ", ".join(f"{kind} {cell['rate']:g}" for kind, cell in tuned.items())
        seconds = f"{sum(cell['cpu_seconds'] for cell in tuned.values()):.0f}"
        rows.append((*map(str, run), *texts, rates, seconds, _seeds(found.values())))
    epochs = [f"{KINDS[method.removesuffix('-long')]}, {epoch}" for method, epoch in COLUMNS]
    return markdown_table(("task", "net", "hidden", *epochs, "tuned rates", "s of tuning", "seeds"), rows)


def _accuracy(results: Sequence[Mapping[str, float]]) -> str:
    """Mean accuracy over the seeds in percent, and mean CPU seconds."""
    if not results:
        return ""
    test, seconds = (statistics.mean(cell[key] for cell in results) for key in ("test", "cpu_seconds"))
    return f"{100 * test:.1f} ({seconds:.0f} s)"


def _seeds(results: Iterable[Sequence[Any]]) -> str:
    """Least and most seeds of a row."""
    counts = sorted({len(found) for found in results})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def pages(store: Store) -> dict[str, dict[str, str]]:
    """A summary for users, and all measurements."""
    tables = {"temporal starts": start_table(store), "temporal trainings": training_table(store)}
    return {
        "evidence/temporal.md": {**tables, "temporal setting": machines_line(store.cells())},
        "temporal.md": {"temporal summary": summary_table(store)},
    }


# -- figure ---------------------------------------------------------------------------------------------------------------

PANELS: dict[Run, str] = {
    ("rows", RECURRENT, 256): "MNIST by row, recurrent",
    ("speech", RECURRENT, 256): "spoken digits, recurrent",
    ("timing", FEED_FORWARD, 256): "spike timing, feed-forward",
}
# Starts that are shown: colour, label, where the label lies in points from the dot, and its side.
DOTS = {
    "keep": (GREY, "keep", (0, -18), "center"),
    "auto": (BLUE, "the one line", (-9, -8), "right"),
    "heterogeneous": (BLUE, "heterogeneous=True", (0, 9), "center"),
}


def curve(results: Results) -> tuple[list[float], list[float]]:
    """Return CPU seconds and test accuracies in percent, means over the seeds: a point, or one for each epoch tested."""
    points = list(zip(*(list(cell.get("epochs", {"": cell}).values()) for cell in results), strict=True))
    seconds, tests = ([statistics.mean(each[key] for each in point) for point in points] for key in ("cpu_seconds", "test"))
    return seconds, [100 * test for test in tests]


def figures(store: Store) -> dict[str, Figure]:
    """Test accuracy against CPU seconds, a panel a task; lines are trainings, dots are starts."""
    runs, figure = by_run(store, (*STARTS, *TRAININGS)), Figure(figsize=(4.0 * len(PANELS), 3.4), layout="constrained")
    for axes, (run, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        curves = {method: curve(found) for method, found in runs[run].items()}
        if "train-long" in curves:  # it continues the short one
            curves.pop("train", None)
        _draw_trainings(axes, [line for method, line in curves.items() if method in TRAININGS])
        for method, (colour, label, offset, side) in DOTS.items():
            seconds, tests = curves[method]
            axes.plot(seconds, tests, color=colour, marker="o", ms=8)
            axes.annotate(label, (seconds[0], tests[0]), color=colour, xytext=offset, textcoords="offset points", ha=side)
        axes.set_xscale("log")
        axes.margins(x=0.28, y=0.14)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(title=title, xlabel="CPU seconds, one thread", ylabel="test accuracy, %")
    return {"temporal.png": figure}


def _draw_trainings(axes: Axes, lines: Sequence[tuple[list[float], list[float]]]) -> None:
    """Draw the trainings; the label is at the first stretch of the one that ends highest."""
    for seconds, tests in lines:
        axes.plot(seconds, tests, color=GREEN, marker="o", ms=4, lw=1.2)
    seconds, tests = max(lines, key=lambda line: line[1][-1])
    middle = (statistics.geometric_mean(seconds[:2]), statistics.mean(tests[:2]))
    axes.annotate("training", middle, xytext=(-6, 3), textcoords="offset points", ha="right", color=GREEN)


STUDY = Study(
    title="sequences: starts without a gradient step against training",
    minutes=240,
    cells=cells,
    pages=pages,
    figures=figures,
    fields=(
        *("task", "net", "hidden", "method", "seed", "test", "seconds", "cpu_seconds", "heldout", "refused"),
        *("rate", "epochs", "validation"),
    ),
    packages=("snntorch", "norse"),
    needs=("mnist", "speech"),
)
