"""Writes results into docs/ and docs/evidence/, so that no figure there is typed by hand."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.render_networks import blocks, exactness_table, machine_line
from snn_recon_plugin.demo import main

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE = ROOT / "docs" / "evidence"


def demo_output() -> str:
    """What ``make demo`` prints."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
        figure = str(Path(folder) / "snn_recon_demo.png")
        if main(["--figure", figure]) != 0:
            raise SystemExit(printed.getvalue())
    return f"```text\n{printed.getvalue().replace(figure, 'snn_recon_demo.png').strip()}\n```"


def neuromorphic() -> str:
    """NeuroBench's metrics, a row a method."""
    content = json.loads((ROOT / "benchmarks" / "results" / "neuromorphic.json").read_text(encoding="utf-8"))
    names = ["net", "test accuracy", "activations that are zero", "connections that are zero"]
    names += ["multiplications", "additions", "dense"]
    rows = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for name, case in content["cases"].items():
        operations = case["SynapticOperations"]
        cells = [f"{100 * case[key]:.1f} %" for key in ("ClassificationAccuracy", "ActivationSparsity", "ConnectionSparsity")]
        cells += [f"{operations[key]:,.0f}" for key in ("Effective_MACs", "Effective_ACs", "Dense")]
        rows.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join([*rows, "", f"Seed {content['seed']}; {machine_line(content['machine'])}"])


def newcomer(name: str) -> str:
    """Return what was typed in a new environment, with seconds, and what it printed: "own net" or "get started"."""
    content = json.loads((ROOT / "benchmarks" / "results" / "newcomer.json").read_text(encoding="utf-8"))
    rows = [(f"`{step['command']}`", f"{step['seconds']:.0f}") for step in content[name]]
    rows.append(("all", f"{sum(step['seconds'] for step in content[name]):.0f}"))
    printed = [(f"$ {step['command']}", *step["printed"]) for step in content[name] if step["printed"]]
    parts = [markdown_table(["typed", "seconds"], rows), ""]
    if name == "own net":
        parts += ["The lines of the landing page, in the script:", "", "```python", *content["lines"], "```", ""]
    parts += ["```text", "\n\n".join("\n".join(lines) for lines in printed), "```", "", machine_line(content["machine"])]
    return "\n".join(parts)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def replace(path: Path, name: str, text: str, script: str = "render_docs.py") -> None:
    """Replaces what stands between the two marks of ``name``."""
    begin, end = f"<!-- {name}: written by benchmarks/{script} -->", f"<!-- end of {name} -->"
    whole = path.read_text(encoding="utf-8")
    before, rest = whole.split(begin)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def render_networks() -> None:
    """Write the tables of networks: full ones as evidence, a summary for users."""
    for name, text in blocks().items():
        replace(EVIDENCE / ("networks_digits.md" if name == "digits" else "networks.md"), name, text)
    replace(ROOT / "docs" / "networks.md", "exactness", exactness_table())


def render() -> None:
    """All blocks."""
    render_networks()
    replace(ROOT / "docs" / "howto_tools.md", "neuromorphic", neuromorphic())
    for name in ("own net", "get started"):
        replace(EVIDENCE / "get_started.md", name, newcomer(name))
    replace(ROOT / "docs" / "report.md", "demo output", demo_output())


if __name__ == "__main__":
    render()
