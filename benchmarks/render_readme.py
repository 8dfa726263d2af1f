"""Runs the demo and writes its output into the README, so that no figure there is typed by hand."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

from snn_recon_plugin.demo import main

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- demo output: written by benchmarks/render_readme.py -->", "<!-- end of demo output -->"


def demo_output() -> str:
    """What ``make demo`` prints."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
        figure = str(Path(folder) / "snn_recon_demo.png")
        if main(["--figure", figure]) != 0:
            raise SystemExit(printed.getvalue())
    return printed.getvalue().replace(figure, "snn_recon_demo.png").strip()


def render() -> None:
    """Replaces the text between the two marks."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    README.write_text(f"{before}{BEGIN}\n```text\n{demo_output()}\n```\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    render()
