"""Cells of the study: one line for each task, net, width, method and seed; what has its line is not run again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import RESULTS, machine
from benchmarks.store import Store
from snn_recon_plugin.demo import Data

from .methods import SLOPE, STARTS, TRAININGS, start
from .nets import NETS
from .training import Schedule, train, tune

__all__ = ["PATH", "Cell", "load_cells", "run_cell"]

PATH = RESULTS / "temporal.jsonl"
TUNINGS = {  # their epochs don't count
    "tuning": Schedule(1),
    "tuning-cycle": Schedule(1, cycle=True),
    "tuning-sharp": Schedule(1, cycle=True, slope=SLOPE),
}
TUNING_SEED = 1000  # of no other run


@dataclass(frozen=True)
class Cell:
    """One run of the study."""

    task: str
    net: str
    hidden: int
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its line."""
        return f"{self.task}-{self.net}-{self.hidden}-{self.method}-{self.seed}"


def run_cell(cell: Cell, data: Data, store: Store, again: bool = False) -> dict[str, Any] | None:
    """Run a cell and keep its result; None if it has one and is not repeated."""
    if cell.name in store and not again:
        return None
    about = {**asdict(cell), "machine": machine("snntorch", "norse"), "samples": [len(data.train_labels), len(data.test_labels)]}
    return store.add(cell.name, {**about, **_measure(cell, data, store)})


def _measure(cell: Cell, data: Data, store: Store) -> dict[str, Any]:
    def make() -> nn.Module:
        torch.manual_seed(cell.seed)
        return NETS[cell.net](data.train_inputs.shape[2], cell.hidden, int(data.train_labels.max()) + 1)

    if cell.method in STARTS:
        return start(make(), data, STARTS[cell.method], cell.seed)
    if cell.method in TUNINGS:
        return tune(make, data, TUNINGS[cell.method], cell.seed)
    schedule = TRAININGS[cell.method]
    return train(make(), data, schedule, _tuned_rate(cell, schedule, data, store), cell.seed)


def _tuned_rate(cell: Cell, schedule: Schedule, data: Data, store: Store) -> float:
    """Learning rate of all seeds of a training, tuned once; delete the line of the tuning to repeat that."""
    method = next(name for name, short in TUNINGS.items() if short == replace(schedule, epochs=short.epochs))
    tuning = replace(cell, method=method, seed=TUNING_SEED)
    run_cell(tuning, data, store)
    return float(store[tuning.name]["rate"])


def load_cells(path: Path = PATH) -> dict[Cell, dict[str, Any]]:
    """Return all results by their cells, tunings included."""
    contents = Store(path).cells()
    return {Cell(**{field.name: content[field.name] for field in fields(Cell)}): content for content in contents}
