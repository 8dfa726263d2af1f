"""The finish and the line on nets that were trained for some epochs: test accuracy, reported accuracy and CPU seconds.

Each net is trained by Adam with faster steps.  After some epochs at a fixed rate, and after a tuned cycle with an EMA, copies get

- the finish, ``refit_``, which keeps hidden layers;
- the line, ``convex_init_``, which may rebuild them.

Both are called without validation samples and with them.  Training never sees validation samples.  With ``fit_val=True`` they
choose first and are fitted in the end.  Nothing is chosen by test data.  Seconds are CPU seconds of one thread, without tests.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise, product
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.finish_cases import CASES, Case, train
from benchmarks.methods import RATES, SHORT
from benchmarks.render import WHOLE, machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Places, Study
from benchmarks.tasks import Parts
from snn_recon_plugin import ReconstructionError, convex_init_, fast_steps, refit_
from snn_recon_plugin.report.figures import BLUE, GREEN, ORANGE

SEEDS, TUNING_SEED = 3, 1000
FIXED, CYCLE = SCHEDULES = ("fixed rate", "one cycle")
TRAINED, FINISH, LINE = "trained", "finish", "line"
CHECKED = "with validation"
WAYS = (FINISH, f"{FINISH}, {CHECKED}", LINE, f"{LINE}, {CHECKED}")
NEW, KEPT, OLD = "rebuilt", "kept", "not written"
WARM = 300  # samples of the calls that load and compile code before seconds are counted
Found = Mapping[str, Any]


def cells(bench: Bench) -> Cells:
    """Every net at a fixed rate and in one cycle with three seeds, after the tuning of its rates; the first seed comes first."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for seed, name, schedule in product(range(SEEDS), CASES, SCHEDULES):
        if schedule == CYCLE or CASES[name].rate is None:
            found[f"{name} | {schedule} | rate"] = partial(tune, bench, name, schedule)
        found[f"{name} | {schedule} | seed {seed}"] = partial(measure, bench, name, schedule, seed)
    return found


def tune(bench: Bench, name: str, schedule: str) -> dict[str, Any]:
    """Return the rate with the best validation accuracy after shorter runs."""
    case, validation = CASES[name], dict[str, float]()
    parts, longest = case.parts(bench.places, TUNING_SEED), case.cycle if schedule == CYCLE else case.epochs[-1]
    for rate in RATES:
        net = case.fresh(bench.places, TUNING_SEED)
        epochs = max(1, round(SHORT * longest))
        deque(train(case, net, parts, rate, epochs, TUNING_SEED, cycle=schedule == CYCLE), 0)
        validation[str(rate)] = case.accuracy(net, parts.validation.tensors)
    return {"rate": float(max(validation, key=lambda rate: validation[rate])), "validation": validation}


def measure(bench: Bench, name: str, schedule: str, seed: int) -> dict[str, Any]:
    """Train a net, and call the line and the finish on copies of it after some epochs."""
    case, parts = CASES[name], CASES[name].parts(bench.places, seed)
    warm_up(name, bench.places)
    rate = case.rate if schedule == FIXED else None
    if rate is None:
        rate = float(bench.cell(f"{name} | {schedule} | rate", partial(tune, bench, name, schedule))["rate"])
    moments, wanted = dict[str, Any](), case.epochs if schedule == FIXED else (case.cycle,)
    ways = [way for way in WAYS if way.startswith(FINISH) or seed < case.line_seeds]
    net, tested, spent = case.fresh(bench.places, seed), case.fresh(bench.places, seed), list[float]()
    fast_steps(tested, case.loader(parts.train, seed), step=case.step)  # tests are faster too
    for epoch, seconds in enumerate(train(case, net, parts, rate, wanted[-1], seed, cycle=schedule == CYCLE)):
        spent.append(seconds)
        if epoch in wanted:
            moment = moments[str(epoch)] = {"seconds": seconds, TRAINED: {}}
            for way in (TRAINED, *ways):
                copied = case.fresh(bench.places, seed)  # snnTorch's nets can't be copied after a pass
                copied.load_state_dict(net.state_dict())
                moment |= {} if way == TRAINED else {way: call(case, copied, parts, way, seed)}
                tested.load_state_dict(copied.state_dict())
                moment[way]["test"] = case.accuracy(tested, parts.test)
    steps = [later - earlier for earlier, later in pairwise(spent)]
    return {"rate": rate, "epoch_seconds": statistics.median(steps[1:] or steps), "moments": moments}  # the first one makes plans


def call(case: Case, net: nn.Module, parts: Parts, way: str, seed: int) -> dict[str, Any]:
    """Call the line or the finish; return the reported accuracy, CPU seconds and what was written."""
    options: dict[str, Any] = {"step": case.step, "test": case.test}
    if way.endswith(CHECKED):
        options |= {"val_loader": DataLoader(parts.validation, 500), "fit_val": True}
    function: Callable[..., Any] = refit_ if way.startswith(FINISH) else convex_init_
    loader, began = case.loader(parts.train, seed), time.process_time()
    try:
        report = function(net, loader, **options)
    except ReconstructionError as error:  # a refusal is a result
        return {"seconds": time.process_time() - began, "written": f"refused: {error}"}
    seconds = time.process_time() - began
    written = OLD if report.kept_old else NEW if any(layer.witnesses for layer in report.layers) else KEPT
    reported = (report.before if report.kept_old else report.after).accuracy  # of the weights that are in the net now
    return {"seconds": seconds, "reported": reported, "written": written}


@cache
def warm_up(name: str, places: Places) -> None:
    """Call everything once on a few samples, so that imports and compilations cost no cell."""
    case, parts = CASES[name], CASES[name].parts(places, TUNING_SEED)
    parts.train = TensorDataset(*parts.train[:WARM])
    for way in WAYS[1::2]:
        call(case, case.fresh(places, TUNING_SEED), parts, way, TUNING_SEED)


# -- tables ---------------------------------------------------------------------------------------------------------------


def moments_of(store: Store, name: str, schedule: str) -> dict[int, list[Found]]:
    """Return what was found after each number of epochs, a seed each."""
    runs = store.cells(f"{name} | {schedule} | seed *")
    return {int(epochs): [run["moments"][epochs] for run in runs] for epochs in (runs[0]["moments"] if runs else ())}


def rows_of(store: Store) -> Iterator[tuple[str, str, list[Found]]]:
    """Yield net, label of the moment, and what was found with each seed."""
    for name, schedule in product(CASES, SCHEDULES):
        for epochs, found in moments_of(store, name, schedule).items():
            yield name, f"{epochs}, one cycle with EMA" if schedule == CYCLE else str(epochs), found


def values(found: Iterable[Found], way: str, key: str = "test") -> list[float]:
    """Return a value of a way with each seed that has it."""
    return [float(moment[way][key]) for moment in found if key in moment.get(way, {})]


def gains(found: Iterable[Found], way: str) -> list[float]:
    """Return what a way adds to the test accuracy of the trained net, in points, with each seed."""
    return [100 * (moment[way]["test"] - moment[TRAINED]["test"]) for moment in found if way in moment]


def accuracy_table(store: Store) -> str:
    """Return mean test accuracies of the trained net and of each way; notes say with how many seeds something else was done."""
    rows = []
    for name, label, found in rows_of(store):
        texts = [f"{100 * statistics.mean(values(found, TRAINED)):.1f}", *(accuracy_text(found, way) for way in WAYS)]
        rows.append((name, label, *texts, str(len(found))))
    return markdown_table(("net", "epochs", "trained", *map(head_of, WAYS), "seeds"), rows)


def head_of(way: str) -> str:
    """Return the head of a column: the way and its function."""
    return f"{way} (`{'refit_' if way.startswith(FINISH) else 'convex_init_'}`)"


def accuracy_text(found: Sequence[Found], way: str) -> str:
    """Return the mean over the seeds, and how many calls rebuilt hidden layers, wrote nothing or were refused."""
    tests, done = values(found, way), [str(moment[way]["written"]).split(":")[0] for moment in found if way in moment]
    notes = [f"{done.count(what)} {what}" for what in (NEW, OLD, "refused") if what in done]
    notes += [f"{len(tests)} seed{'s' * (len(tests) > 1)}"] if tests and len(tests) < len(found) else []
    text = f"{100 * statistics.mean(tests):.1f}" if tests else ""
    return f"{text} ({', '.join(notes)})" if notes else text


def summary(store: Store) -> str:
    """Return the median gain over the nets and the lowest one, at each moment."""
    moments: dict[str, list[list[Found]]] = {}
    for _, label, found in rows_of(store):
        moments.setdefault("one cycle with EMA" if "cycle" in label else label, []).append(found)
    rows = []
    for label, nets in moments.items():
        means = [[statistics.mean(gains(found, way)) for found in nets if gains(found, way)] for way in WAYS]
        texts = (f"{statistics.median(some):+.1f} ({min(some):+.1f})" if some else "" for some in means)
        rows.append((label, str(len(nets)), *texts))
    return markdown_table(("epochs", "nets", *map(head_of, WAYS)), rows)


def report_table(store: Store) -> str:
    """Return reported minus test accuracy in points, the mean over the seeds."""
    rows = []
    for name, label, found in rows_of(store):
        pairs = [[100 * (m[way]["reported"] - m[way]["test"]) for m in found if "reported" in m.get(way, {})] for way in WAYS]
        rows.append((name, label, *(f"{statistics.mean(some):+.1f}" if some else "" for some in pairs)))
    return markdown_table(("net", "epochs", *map(head_of, WAYS)), rows)


def seconds_table(store: Store) -> str:
    """Return the seconds of a call on a trained net in epochs, the mean over moments and seeds."""
    rows = []
    for name in CASES:
        runs = store.cells(f"{name} | * | seed *")
        shares = [[share for run in runs for share in epochs_of(run, way)] for way in WAYS]
        if runs:
            texts = (f"{statistics.mean(some):.2f}" if some else "" for some in shares)
            rows.append((name, f"{statistics.mean(run['epoch_seconds'] for run in runs):.1f}", *texts))
    return markdown_table(("net", "s, an epoch", *map(head_of, WAYS)), rows)


def epochs_of(run: Found, way: str) -> list[float]:
    """Return the seconds of a run's calls after at least one epoch, in units of its epochs."""
    later = [moment for epochs, moment in run["moments"].items() if epochs != "0"]
    return [seconds / run["epoch_seconds"] for seconds in values(later, way, "seconds")]


SHOWN = {  # nets of the headline, and after how many epochs
    "tutorial 5": 1,
    "784-500-10, membranes trained, spikes counted": 4,
    "784-500-10, mean membrane, 2,000 images": 8,
    "SEW, hard images": 2,
}


def headline(store: Store) -> str:
    """Return four rows: trained alone, with the finish behind it, and the seconds of the finish in epochs."""
    way, rows = f"{FINISH}, {CHECKED}", []
    for name, epochs in SHOWN.items():
        found, runs = moments_of(store, name, FIXED).get(epochs), store.cells(f"{name} | {FIXED} | seed *")
        if found:
            tests = [f"{100 * statistics.mean(values(found, each)):.1f}" for each in (TRAINED, way)]
            seconds = statistics.mean(share for run in runs for share in epochs_of(run, way))
            rows.append((f"{name}, {epochs} epoch{'s' * (epochs > 1)}", *tests, f"{seconds:.1f}"))
    head = ("net", "trained alone, %", "with the finish, %", "seconds of the finish, in epochs")
    return markdown_table(head, rows) if rows else "Not measured yet."


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Figure and four rows for users, and all tables."""
    made = {"finish summary": summary, "finish": accuracy_table, "finish reports": report_table, "finish seconds": seconds_table}
    texts = {section: write(store) if list(rows_of(store)) else "Not measured yet." for section, write in made.items()}
    line = machines_line(store.cells()) if store.cells() else "Not measured yet."
    rows = headline(store)
    return {
        "../README.md": {"figure": picture(store, "docs/finish.png"), "finish headline": rows},
        "index.md": {"figure": picture(store, "finish.png")},
        "training.md": {"finish headline": rows},
        "evidence/finish.md": {**texts, "finish setting": line},
    }


class Curve(NamedTuple):
    """A line of the figure: means over the seeds, after each number of epochs."""

    label: str
    colour: str
    seconds: list[float]  # CPU seconds of training and call
    tests: list[float]  # test accuracy, in percent


PANELS = {
    "784-500-10, membranes trained, spikes counted": "MNIST, 784-500-10",
    "four convolutions, batch norm, hard images": "hard images, four convolutions",
    "MNIST by row, recurrent": "MNIST by row, recurrent",
}


def curves(store: Store, name: str) -> list[Curve]:
    """Return training alone, the finish behind it, and a start without training where it is above the first finish."""
    moments = moments_of(store, name, FIXED)
    if not moments:
        return []
    later = [found for epochs, found in moments.items() if epochs]
    alone = curve("training alone", ORANGE, later, TRAINED)
    finish = curve("with the finish", BLUE, later, f"{FINISH}, {CHECKED}")
    start = curve("a start, no training", GREEN, [moments[0]], f"{LINE}, {CHECKED}")
    return [alone, finish, start] if start.tests[0] > finish.tests[0] else [alone, finish]


def curve(label: str, colour: str, moments: Sequence[Sequence[Found]], way: str) -> Curve:
    """Return a way's means."""
    seconds = [statistics.mean(moment["seconds"] + moment[way].get("seconds", 0.0) for moment in found) for found in moments]
    return Curve(label, colour, seconds, [100 * statistics.mean(values(found, way)) for found in moments])


def picture(store: Store, path: str) -> str:
    """Return the figure with a text for readers who can't see it."""
    parts = []
    for name, title in PANELS.items():
        if found := curves(store, name):
            shown = (f"{each.label} {each.tests[0]:.1f} % in {each.seconds[0]:.0f} s" for each in found)
            parts.append(f"{title}: {', '.join(shown)}")
    return f"![Test accuracy after one epoch. {'; '.join(parts)}]({path})" if parts else "Not measured yet."


def figures(store: Store) -> dict[str, Figure]:
    """Test accuracy against CPU seconds, a panel a net."""
    panels = {title: found for name, title in PANELS.items() if (found := curves(store, name))}
    if not panels:
        return {}
    figure = Figure(figsize=(3.6 * len(panels), 3.2), dpi=150, layout="constrained")
    figure.set_label(WHOLE)
    for axes, (title, found) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for each in found:
            axes.plot(each.seconds, each.tests, color=each.colour, marker="o", ms=4, label=each.label)
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="CPU seconds", ylabel="test accuracy, %")
        axes.legend(loc="lower right", frameon=False, fontsize=9)
    return {"finish.png": figure}


STUDY = Study(
    title="the finish and the line on nets that were trained for some epochs",
    minutes=450,
    cells=cells,
    pages=pages,
    figures=figures,
    fields=("rate", "validation", "epoch_seconds", "moments"),
    packages=("snntorch", "norse", "spikingjelly"),
    needs=("mnist", "speech"),
)
