"""What the callback adds to one cycle of training of convolutional nets: averages, best weights and refits, one by one; a start.

All runs have the same rate, which was not tuned for any of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from typing import Any
from unittest import mock

from benchmarks import methods
from benchmarks.image_nets import DEEP_NETS
from benchmarks.methods import Method, run
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from benchmarks.tasks import Parts, load_task
from snn_recon_plugin.training.watch import Watch

NETS, SEEDS, EPOCHS, RATE = ("tutorial 6", "four convolutions, batch norm"), range(3), 4, 0.01
STARTED, BUDGETS = ("tutorial 6", "four convolutions", "four convolutions, batch norm", "SEW"), (2, 4, 8)  # epochs
choose = Watch.choose


@dataclass(frozen=True)
class Way:
    """A method, and what is switched off in it.

    Args:
        method: with or without the callback.
        off: functions that are replaced, each by its owner, its name and another.
    """

    method: Method
    off: tuple[tuple[Any, str, Callable[..., Any]], ...] = ()


def no_refit(watch: Watch, refit: Any = None) -> Any:
    """Choose weights without a refit."""
    return choose(watch)


def last_weights(watch: Watch, judged: Any) -> Any:
    """Keep no best weights."""
    return judged


CALLBACK, REFITS = Method(cycle=True, options={"at_start": False}), (Watch, "choose", no_refit)
UNTESTED = (methods.Timed, "on_validation_epoch_end", lambda module: None)  # epochs but the last
PARAMETERS, STATISTICS = "average of the parameters", "average with batch-norm statistics"
WAYS = {
    "trained weights": Way(Method(cycle=True)),
    PARAMETERS: Way(Method(cycle=True, average=True), ((methods, "Average", partial(methods.Average, norms=False)),)),
    STATISTICS: Way(Method(cycle=True, average=True)),
    "callback, average alone": Way(CALLBACK, (REFITS, (Watch, "_choose_best", last_weights))),
    "callback, average and best weights": Way(CALLBACK, (REFITS,)),
    "callback, refits alone": Way(Method(cycle=True, options={"at_start": False, "average": None})),
    "callback, all three": Way(CALLBACK),
}
# With and without a start.
STARTS = {
    "one cycle, EMA": WAYS[STATISTICS],
    "callback, no start": WAYS["callback, all three"],
    "callback, start": Way(Method(cycle=True, options={})),
}


def measure(bench: Bench, net: str, way: Way, epochs: int, seed: int) -> dict[str, Any]:
    """Train a net; test accuracy and CPU seconds in the end."""
    parts = Parts(load_task("hard images", bench.places), seed)
    with ExitStack() as stack:
        for replaced in (UNTESTED, *way.off):
            stack.enter_context(mock.patch.object(*replaced))
        final = run(DEEP_NETS[net], parts, way.method, RATE, epochs, seed)["final"]
    return {"test": final["test"], "seconds": final["seconds"]}


def cells(bench: Bench) -> Cells:
    """Both nets in every way, and all with and without a start, with three seeds."""
    ways = {
        f"{net} | {name} | seed {seed}": partial(measure, bench, net, way, EPOCHS, seed)
        for seed, net, (name, way) in product(SEEDS, NETS, WAYS.items())
    }
    starts = {
        f"{net} | {name}, {epochs} epochs | seed {seed}": partial(measure, bench, net, way, epochs, seed)
        for seed, net, epochs, (name, way) in product(SEEDS, STARTED, BUDGETS, STARTS.items())
    }
    return ways | starts


def pages(store: Store) -> dict[str, dict[str, str]]:
    """One row a way, with the mean over seeds and the difference from the average of the parameters."""
    rows, shown = [], []
    for way in WAYS:
        row = [way]
        for net in NETS:
            found, base = (store.cells(f"{net} | {each} | *") for each in (way, PARAMETERS))
            gain = 100 * statistics.mean(one["test"] - other["test"] for one, other in zip(found, base, strict=True))
            tests = 100 * statistics.mean(one["test"] for one in found)
            share = statistics.mean(one["seconds"] for one in found) / statistics.mean(one["seconds"] for one in base)
            row += [f"{tests:.1f}", f"{gain:+.1f}", f"{share:.2f}"]
            shown += found
        rows.append(row)
    line = f"Seeds: {len(shown) // (len(WAYS) * len(NETS))}. {machines_line(shown)}"
    heads = chain.from_iterable((f"{net}, %", "gain", "seconds, times") for net in NETS)
    texts = {"refits": f"{markdown_table(('one cycle', *heads), rows)}\n\n{line}", "starts of convolutions": start_table(store)}
    return {"evidence/training.md": texts}


def start_table(store: Store) -> str:
    """One row a net and a number of epochs: test accuracy and seconds, means over seeds."""
    rows, found = [], []
    for net, epochs in product(STARTED, BUDGETS):
        runs = [store.cells(f"{net} | {way}, {epochs} epochs | *") for way in STARTS]
        texts = (
            f"{100 * statistics.mean(c['test'] for c in run):.1f} % ({statistics.mean(c['seconds'] for c in run):.0f} s)"
            for run in runs
        )
        rows.append((net, str(epochs), *texts))
        found += runs[-1]
    seeds = len(found) // len(rows)
    return f"{markdown_table(('net', 'epochs', *STARTS), rows)}\n\nSeeds: {seeds}. {machines_line(found)}"


STUDY = Study(
    title="averages, best weights and refits of the callback, one by one",
    minutes=15,
    cells=cells,
    pages=pages,
    fields=("test", "seconds"),
    packages=("snntorch", "lightning"),
    needs=("mnist",),
)
