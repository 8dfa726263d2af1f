"""Contract of a study: its cells, which are measured once each, and what the pages show of them."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import os
import pkgutil
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import snn_recon_plugin
from benchmarks import studies
from benchmarks.store import RESULTS, Store

Cells = Mapping[str, Callable[[], dict[str, Any]]]  # what measures a cell, by the cell's name
Pages = Mapping[str, Mapping[str, str]]  # text by page of docs/ and section; the section "" is the whole page


@dataclass(frozen=True)
class Places:
    """Folders and programs that are not part of the repository.

    Args:
        mnist: folder where torchvision finds MNIST.
        speech: folder of the spoken digits, with ende.npz.
        events: folder in which Tonic keeps its data sets.
    """

    mnist: str | None = None
    speech: str | None = None
    events: str | None = None

    def need(self, what: str) -> str:
        """Return a folder, or end the program with what to pass."""
        found: str | None = getattr(self, what)
        if found is None:
            raise SystemExit(f"{what} is needed: pass {PASSED[what]}, the folder of {_FOLDERS[what]}")
        return found


PASSED = {"mnist": "--root DIR", "speech": "--speech DIR", "events": "--root DIR"}
_FOLDERS = {
    "mnist": "MNIST, as torchvision finds it (download=True fetches it)",
    "speech": "ende.npz, which holds the Spiking Heidelberg Digits",
    "events": "SHD, SSC, NMNIST and DVSGesture, as Tonic finds them (it fetches what is not there)",
}


@dataclass(frozen=True)
class Bench:
    """What the cells of a study get.

    Args:
        places: of data.
        store: results so far.
        study: which study.
    """

    places: Places
    store: Store
    study: Study

    def cell(self, name: str, work: Callable[[], dict[str, Any]], again: bool = False) -> dict[str, Any]:
        """Return a cell's content; measure and keep it if there is none yet, or if it is to be repeated.

        A cell that ran in a process with other threads brings its own ``machine``.
        """
        if name not in self.store or again:
            content = work()
            self.store.add(name, {"machine": machine(*self.study.packages), **content})
        return self.store[name]


@dataclass(frozen=True)
class Study:
    """A study.

    Args:
        title: what it measures, for the table in benchmarks/README.md.
        minutes: of a full run on one core.
        cells: what measures each cell.
        pages: text for docs/, made from the results.
        fields: names of a cell's content.
        figures: figures for docs/ by path.
        packages: whose versions are kept beside those of torch and numpy.
        needs: of "mnist", "speech" and "events".
    """

    title: str
    minutes: int
    cells: Callable[[Bench], Cells]
    pages: Callable[[Store], Pages]
    fields: tuple[str, ...]
    figures: Callable[[Store], Mapping[str, Figure]] = field(default=lambda store: {})
    packages: tuple[str, ...] = ("snntorch",)
    needs: tuple[str, ...] = ()


def all_studies() -> list[str]:
    """Return the names of the studies: those of the files in studies/."""
    return sorted(module.name for module in pkgutil.iter_modules(studies.__path__))


def load_study(name: str) -> tuple[Study, Store]:
    """Return a study and its results."""
    if name not in all_studies():
        raise SystemExit(f"{name!r} is no study: choose from {', '.join(all_studies())}")
    study: Study = importlib.import_module(f"benchmarks.studies.{name}").STUDY
    return study, Store(RESULTS / f"{name}.jsonl", study.fields)


def machine(*packages: str) -> dict[str, Any]:
    """Return what figures depend on: processor, cores, threads, versions and date."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {
            **{name: importlib.metadata.version(name) for name in ("torch", "numpy", *packages)},
            "snn-recon-plugin": snn_recon_plugin.__version__,
        },
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    """Return the processor's name, on Linux with family and model: runs on different ones must not be compared."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines())
    found = {key.strip(): value.strip() for key, _, value in lines}
    name, family, model = (found.get(key, "") for key in ("model name", "cpu family", "model"))
    return f"{name} ({family}, {model})" if name else platform.machine()
