"""Run the notebooks of this folder and those proposed to other projects, and store their outputs with the package's version.

Cells tagged "install" do not run: the package is here.

python tutorials/store_outputs.py [NOTEBOOK ...]
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from snn_recon_plugin import __version__

ROOT = Path(__file__).resolve().parents[1]


def store(path: Path) -> None:
    """Run one notebook in its folder; the version goes into its metadata."""
    began = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    installs = [cell for cell in notebook.cells if "install" in cell.metadata.get("tags", [])]
    sources = [cell.source for cell in installs]
    for cell in installs:
        cell.source = ""
    place = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False, resources=place).execute()
    for cell, source in zip(installs, sources, strict=True):
        cell.update(source=source, outputs=[])
    notebook.metadata["snn_recon_plugin"] = __version__
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    named = [Path(name).resolve() for name in sys.argv[1:]]
    for each in named or [*sorted(ROOT.glob("tutorials/*.ipynb")), *sorted(ROOT.glob("contrib/snntorch/*.ipynb"))]:
        store(each)
