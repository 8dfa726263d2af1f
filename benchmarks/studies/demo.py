"""What ``make demo`` prints, a report from an untrained network to a certified classifier, and the report's details."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin.demo import run_demo


def measure() -> dict[str, Any]:
    """Run the demo."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
        figure = str(Path(folder) / "snn_recon_demo.png")
        details = run_demo(figure)["details"]
    return {"printed": printed.getvalue().replace(figure, "snn_recon_demo.png").strip(), "details": details}


def cells(bench: Bench) -> Cells:
    """One run."""
    return {"demo": measure}


def pages(store: Store) -> dict[str, dict[str, str]]:
    """The printed text, and the details."""
    blocks = {"demo output": "printed", "demo details": "details"}
    return {"report.md": {block: f"```text\n{store['demo'][field]}\n```" for block, field in blocks.items()}}


STUDY = Study(title="what the demo prints", minutes=1, cells=cells, pages=pages, fields=("printed", "details"))
