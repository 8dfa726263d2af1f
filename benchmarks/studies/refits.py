"""Refits of the callback, the first and the last one alone, on tasks and on convolutional nets.

Five tasks begin from a start, with aids and averages; three convolutional nets without one.  The first refit stays if it gives
0.3 points at the median over the tasks, beside the last one.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from benchmarks.image_nets import DEEP_NETS
from benchmarks.methods import CLIP, QUIET, Method, Timed
from benchmarks.render import machines_line, markdown_table
from benchmarks.store import Store
from benchmarks.studies.training import CASES, tuning_of
from benchmarks.study import Bench, Cells, Study, load_study
from benchmarks.tasks import Parts, load_task
from snn_recon_plugin import ConvexInitializer, ReconstructionCallback

TASKS = ("digits", "digits by row, recurrent", "spike timing", "delayed match, recurrent", "spoken digits")
NETS, NET_EPOCHS, NET_BATCH, NET_RATE = ("four convolutions", "four convolutions, batch norm", "SEW"), 4, 64, 1e-2
NONE, FIRST, LAST, BOTH = "no refit", "first refit", "last refit", "both refits"
# Of a convolutional net: the callback's options.
PARTS: dict[str, dict[str, Any] | None] = {
    "one cycle": None,
    "averages and best weights": {"refits": NONE},
    FIRST: {"refits": FIRST, "average": None},
    LAST: {"refits": LAST, "average": None},
    "all of these": {"refits": BOTH},
}
SEEDS = 2


class Chosen(ReconstructionCallback):  # type: ignore[misc]
    """The callback with some of its refits."""

    def __init__(self, refits: str, **options: Any) -> None:
        super().__init__(**options)
        self.kept = refits

    def _choose(self, trainer: Any, refits: Any, solves: bool) -> dict[str, float]:
        wanted = (BOTH, FIRST) if trainer.current_epoch == 0 else (BOTH, LAST)
        return super()._choose(trainer, refits, solves and self.kept in wanted)


def cells(bench: Bench) -> Cells:
    """Every choice of refits on every task, and every part of the callback on every net."""
    found: dict[str, Any] = {}
    for seed in range(SEEDS):
        for task, kept in itertools.product(TASKS, (BOTH, LAST, FIRST, NONE)):
            found[f"{task} | {kept} | seed {seed}"] = partial(measure_task, bench, task, kept, seed)
        for net, part in itertools.product(NETS, PARTS) if seed == 0 else ():
            found[f"{net} | {part} | seed {seed}"] = partial(measure_net, bench, net, part, seed)
    return found


def measure_task(bench: Bench, task: str, kept: str, seed: int) -> dict[str, Any]:
    """Train a task in one cycle, with the rate that the study of training tuned without the plugin."""
    case, method = CASES[task], Method(cycle=True)
    rate = float(load_study("training")[1][tuning_of(task, method)]["rate"])
    data = load_task(case.task, bench.places)
    pl.seed_everything(seed, verbose=False)
    module = Timed(case.make(data), Parts(data, seed), method, rate)
    return {"task": task, "kept": kept, "seed": seed, **train(module, {"refits": kept}, case.epochs, 128, seed)}


def measure_net(bench: Bench, net: str, part: str, seed: int) -> dict[str, Any]:
    """Train a convolutional net on hard images in one cycle, without a start."""
    pl.seed_everything(seed, verbose=False)
    module = Timed(DEEP_NETS[net](), Parts(load_task("hard images", bench.places), seed), Method(cycle=True), NET_RATE)
    options = None if PARTS[part] is None else {"at_start": False, **PARTS[part]}
    return {"task": net, "kept": part, "seed": seed, **train(module, options, NET_EPOCHS, NET_BATCH, seed)}


def train(module: Timed, options: Mapping[str, Any] | None, epochs: int, batch: int, seed: int) -> dict[str, Any]:
    """Return test and validation accuracy in the end, CPU seconds, and how many solves were kept."""
    made = [] if options is None else [Chosen(initializer=ConvexInitializer(seed=seed, progress=False), **options)]
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=made, gradient_clip_val=CLIP, **QUIET)
    trainer.fit(module, DataLoader(module.parts.train, batch, shuffle=True), DataLoader(module.parts.validation, 500))
    kept = [not report.undone for one in made for report in one.reports]
    return {"final": module.point(), "solves": len(kept), "solves_kept": sum(kept)}


def table(store: Store, rows: Sequence[str], columns: Sequence[str]) -> str:
    """Return mean test accuracies, and the median gain of each column on the first one."""
    lines, gains = [], {column: list[float]() for column in columns}
    for row in rows:
        found = {column: [cell["final"]["test"] for cell in store.cells(f"{row} | {column} | *")] for column in columns}
        if all(found.values()):
            means = {column: 100 * statistics.fmean(values) for column, values in found.items()}
            lines.append([row, *(f"{value:.1f}" for value in means.values())])
            for column, value in means.items():
                gains[column].append(value - means[columns[0]])
    medians = ["median gain", *(f"{statistics.median(values):+.1f}" if values else "" for values in gains.values())]
    return markdown_table(["", *columns], [*lines, medians])


def pages(store: Store) -> dict[str, dict[str, str]]:
    """Both tables, once there are results."""
    if not store.cells():
        return {}
    tasks, nets = table(store, TASKS, (LAST, BOTH, FIRST, NONE)), table(store, NETS, tuple(PARTS))
    return {"evidence/training.md": {"refits": f"{tasks}\n\n{nets}\n\n{machines_line(store.cells())}"}}


STUDY = Study(
    title="the callback's first and last refit, alone and together",
    minutes=20,
    cells=cells,
    pages=pages,
    fields=("task", "kept", "seed", "final", "solves", "solves_kept"),
    packages=("snntorch", "lightning"),
    needs=("mnist", "speech"),
)
