"""Writes the tables of docs/scale.md and docs/evidence/scale.md, and docs/scale.png; no figure there is typed by hand.

cd benchmarks && python -m scale.render
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common import RESULTS
from benchmarks.render_docs import EVIDENCE, ROOT, replace
from benchmarks.render_networks import machine_line
from snn_recon_plugin.plots import BLUE, GREEN, ORANGE

from .__main__ import IMAGES, STEPS
from .floor import seconds_of
from .nets import NETS
from .plan import COLUMNS, GPU, OUTPUTS, ROWS, SOURCE, make_plans
from .solver import STRENGTH, TOL
from .tables import NOT_RUN, Cells, find, growth_text, lead_text, load, memory_table, plan_table, rank_table, solver_table

DOC, FULL, FIGURE, SCRIPT = ROOT / "docs" / "scale.md", EVIDENCE / "scale.md", ROOT / "docs" / "scale.png", "scale/render.py"
DRAWN = ("dense", "conv", "recurrent")
LINES = {"step": (ORANGE, "training step"), "start": (BLUE, "start"), "refit": (GREEN, "refit")}

APART = 1.45  # least ratio of the heights of two labels


def draw(cells: Cells, path: Path) -> None:
    """Draw peak memory against time steps, a panel a net."""
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    for axes, net in zip(figure.subplots(1, len(DRAWN), sharey=True), DRAWN, strict=True):
        _draw_net(axes, cells, net)
        axes.set_title(NETS[net].title, fontsize=10)
        axes.set_xlabel("time steps T")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("peak memory, MiB")
    figure.savefig(path, dpi=130)


def _draw_net(axes: Axes, cells: Cells, net: str) -> None:
    ends: list[tuple[float, float, str, str]] = []
    for action, (colour, label) in LINES.items():
        found = [find(cells, kind="memory", net=net, action=action, T=T, **_images(action)) for T in STEPS]
        points = [(cell["T"], cell["added_bytes"] / 2**20) for cell in found if cell is not None and "added_bytes" in cell]
        if points:
            axes.loglog(*zip(*points, strict=True), color=colour, marker="o", markersize=3)
            ends.append((*reversed(points[-1]), label, colour))
    height = 0.0
    for memory, steps, label, colour in sorted(ends):
        height = max(memory, APART * height)
        axes.annotate(label, (steps, height), xytext=(6, -3), textcoords="offset points", color=colour, fontsize=10)
    axes.set_xlim(20, 9_000)  # labels are to the right of the lines
    axes.set_xticks(STEPS, [str(T) for T in STEPS])
    axes.minorticks_off()


def _images(action: str) -> dict[str, int]:
    return {} if action == "step" else {"n": IMAGES[0]}


def plan_text(cells: Cells) -> str:
    """Return the plan for ImageNet's numbers, in half a page."""
    solves = [
        c for c in cells if c["kind"] == "solver" and c["peer"] == "ours" and c["device"] == "cpu" and c["outcome"] == "reached"
    ]
    solves = [cell for cell in solves if cell["loss"] == "squared_hinge" and find(cells, kind="floor", threads=cell["threads"])]
    if not solves:
        return NOT_RUN
    measured = max(solves, key=lambda cell: cell["n"] * cell["P"] * cell["C"])
    rates = find(cells, kind="floor", threads=measured["threads"])
    assert rates is not None
    flops = {name: rate / 1e9 for name, rate in rates["flops"].items()}
    size = f"n = {measured['n']:,}, P = {measured['P']:,}, C = {measured['C']:,}"
    return "\n".join(
        [
            f"{ROWS:,} rows, {COLUMNS:,} features as bytes, {OUTPUTS:,} outputs, squared hinge with ridge, gap {TOL:g}. "
            "This is arithmetic, not a measurement.",
            "",
            plan_table(make_plans(measured, rates)),
            "",
            f"- Measured here: the solve of {size} took {measured['products']:.0f} products and {seconds_of(measured):.3g} s; "
            f"threads: {measured['threads']}. The plan takes as many products.",
            f"  A copy runs at {rates['bytes_per_second'] / 1e9:.1f} GB/s, a large product at "
            + ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in flops.items())
            + ".",
            f"- [Data sheet]({SOURCE}) of the H100 SXM, not measured: {GPU['memory'] / 1e9:.0f} GB, "
            f"{GPU['bytes_per_second'] / 1e12:.2f} TB/s, {GPU['tf32'] / 1e12:.0f} TFLOP/s in TF32 without sparsity, "
            f"{GPU['link'] / 1e9:.0f} GB/s of NVLink.",
            "- Limits count the products alone, each at the fastest of these rates. Expected seconds assume the share of the "
            "limits that the measured solve reached.",
            "- Scores are arrays of rows times outputs in float64. As many are held as the measured solve held. Where they do not "
            "fit, outputs are solved in blocks: the squared hinge separates them. Cross-entropy does not. On several GPUs each "
            "holds a share of the rows, and the gradient is summed over them.",
        ]
    )


def setting(cells: Cells) -> str:
    """Return what the figures depend on."""
    records = [cell for cell in cells if cell["device"] == "cpu"]
    if not records:
        return NOT_RUN
    dates = sorted({cell["machine"]["date"] for cell in records})
    first: dict[str, Any] = {**records[0]["machine"], "date": " to ".join(dict.fromkeys((dates[0], dates[-1])))}
    return f"Seed {records[0]['seed']}, ridge strength {STRENGTH:g}, gap {TOL:g}. {machine_line(first)}"


def gpu_text(cells: Cells) -> str:
    """Return the GPU part, or that it has not run."""
    found = [cell for cell in cells if cell["device"] != "cpu"]
    if not found:
        return "**No figure on this page is from a GPU.** A script exists; it has not been run on a GPU."
    return f"{found[0]['machine']['accelerator']}:\n\n{solver_table(cells, 'squared_hinge', found[0]['threads'], 'cuda')}"


def main(path: Path = RESULTS / "scale.jsonl") -> None:
    """Write the blocks of both pages, and the figure."""
    cells = load(path)
    draw(cells, FIGURE)
    blocks = {
        "memory": memory_table(cells, (100, 250, 1000), IMAGES[:1]),
        "lead": lead_text(cells),
        "growth": growth_text(cells),
        "ranks": rank_table(path.with_suffix("") / "ranks.json"),
        "gpu": gpu_text(cells),
        "plan": plan_text(cells),
        "setting": setting(cells),
    }
    for name, text in blocks.items():
        replace(DOC, f"scale {name}", text, script=SCRIPT)
    full = {
        "memory": memory_table(cells, STEPS, IMAGES),
        "squared hinge": solver_table(cells, "squared_hinge"),
        "cross-entropy": solver_table(cells, "cross_entropy"),
        "largest": solver_table(cells, "squared_hinge", threads=2),
        "setting": setting(cells),
    }
    for name, text in full.items():
        replace(FULL, f"scale {name}", text, script=SCRIPT)


if __name__ == "__main__":
    main()
