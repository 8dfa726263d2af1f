"""What ``make demo`` prints: a report from an untrained network to a certified classifier."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin.demo import main


def measure() -> dict[str, Any]:
    """Run the demo."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
        figure = str(Path(folder) / "snn_recon_demo.png")
        if main(["--figure", figure]) != 0:
            raise SystemExit(printed.getvalue())
    return {"printed": printed.getvalue().replace(figure, "snn_recon_demo.png").strip()}


def cells(bench: Bench) -> Cells:
    """One run."""
    return {"demo": measure}


def pages(store: Store) -> dict[str, dict[str, str]]:
    """The printed text."""
    return {"report.md": {"demo output": f"```text\n{store['demo']['printed']}\n```"}}


STUDY = Study(title="what the demo prints", minutes=1, cells=cells, pages=pages, fields=("printed",))
