"""Writes docs/benchmarks.md and docs/benchmarks_gap.png from the results of the solver study; no figure there is typed by hand.

Run: cd benchmarks && python -m solvers.render [--results DIR] [--docs DIR]
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from snn_recon_plugin.plots import BLUE, GREEN, GREY, ORANGE

from .cell import GOAL
from .comparison import SPARSE, fastest_table, headline, load, problem_table, ratio_table
from .peers import PEERS
from .tables import NOT_RUN, Cells, choice_table, floor_table, growth_table, memory_table, path_table, share_table

ROOT = Path(__file__).resolve().parents[2]
PENALTIES = ("l1", "group_l1")
# Okabe and Ito's palette; kindred peers share a colour and differ in the line.
STYLES: dict[str, tuple[str, str]] = {
    "ours": (BLUE, "-"),
    "fista": (ORANGE, ":"),
    "fista_restart": (ORANGE, "-"),
    "adelie": (GREEN, "-"),
    "adelie_path": (GREEN, "--"),
    "saga": ("#56B4E9", "-"),
    "skglm": ("#CC79A7", "-"),
    "celer": ("#E69F00", "-"),
    "clarabel": ("#000000", "-"),
    "highs": ("#000000", ":"),
    "scs": (GREY, "-"),
}


def setting(by_threads: dict[int, Cells]) -> str:
    """Return machine, versions, dates and the peers' mappings."""
    cells = [cell for found in by_threads.values() for cell in found.values()]
    ours = next(cell for cell in cells if cell["peer"] == "ours")
    versions: dict[str, str] = {}
    for cell in cells:
        versions |= cell["machine"]["versions"] | cell.get("versions", {})
    dates = sorted({cell["date"] for cell in cells})
    packages = ", ".join(f"{name} {value}" for name, value in sorted(versions.items()) if name != "numpy")
    machine = ours["machine"]
    first = f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, {packages}; "
    first += f"{ours['limit']:.0f} s a solve; seed {ours['seed']}; {dates[0]} to {dates[-1]}; 2 threads unless said."
    mappings = {cell["peer"]: cell["mapping"] for cell in cells}
    return "\n".join([first, "", *(f"- {peer}: {mappings[peer]}." for peer in PEERS if peer in mappings)])


def draw(cells: Cells, path: Path) -> None:
    """Draw the gap against seconds for the middle strength, a panel a problem and penalty."""
    figure = Figure(figsize=(11, 2.4 * len(SPARSE)), layout="constrained")
    panels = figure.subplots(len(SPARSE), len(PENALTIES), squeeze=False)
    shown: dict[str, Any] = {}
    for (problem, penalty), axes in zip(itertools.product(SPARSE, PENALTIES), panels.flat, strict=True):
        for peer, (colour, line) in STYLES.items():
            cell = cells.get((problem, penalty, 1e-3, peer), {"trajectory": []})
            # Exact points lie on the lower edge.
            points = [(p["seconds"], max(p["relative_gap"], 1.3e-7)) for p in cell["trajectory"] if p["relative_gap"] < math.inf]
            if points:
                mark, width = "" if cell["mode"] == "one run" else "o", 2.2 if peer == "ours" else 1.2
                shown[peer] = axes.loglog(*zip(*points, strict=True), color=colour, ls=line, marker=mark, ms=3, lw=width)[0]
        axes.set_visible(bool(axes.lines))
        axes.set_title(f"{problem}, {penalty}", fontsize=10)
        axes.set_ylim(1e-7, 1.5)
        axes.axhline(GOAL, color=GREY, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("seconds")
        axes.set_ylabel("relative gap")
        axes.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=130)


_PAGE = """# Benchmarks

Seconds of the package's [solver](solver.md) and of its peers on `(1/n) sum loss + strength * penalty(W)` with a free bias. One
float64 routine, `Problem.certify`, certifies every point, with the clock stopped: [how it is measured](#how-it-is-measured).

{headline}

## The fastest peer against ours

{ratio}

{fastest}

## The default program

Squared hinge or cross-entropy with ridge. A cell reads: seconds to a relative gap of 1e-2 / 1e-4 / 1e-6.

{default}

## The default program along strengths

A fifth of the samples is held out and chooses the strength; all samples are solved at it. `ridge_cv` solves another program, the
squared loss, and its gap says nothing.

{choice}

## What the default program spends its time on

The aim was a fifth of the fastest peer's time. The first lines of this page show how far from it the default program is. L-BFGS
comes close where features are nearly uncorrelated, as the binary spikes of random neurons. There it ends after few products, and
the proximal steps that come first here need about as many. L-BFGS falls behind on correlated features and at small strengths.

{shares}

## Sparse penalties

{problems}

![relative gap against seconds at strength 1e-3; dots: solved from scratch each](benchmarks_gap.png)

## Paths

{paths}

## Memory

{memory}

## Growth

{growth}

## Floor

A product with the features and one with their transpose, against a large square product and a copy of the features.

{floor}

## How it is measured

- A cell reads: seconds to a relative gap of 1e-2 / 1e-4 / 1e-6, a dash if the peer did not reach it in the time limit.
- "Presumed" cells were not run: the peer did not reach 1e-6 for a larger strength of the same program, or for the same strength of
  a smaller program of the same loss. Each cell's json has the reason. "Not run" is for want of time.
- Cells of one thread ran beside other work: compare their CPU seconds, which are off by up to a third. For n=60,000 and C=100 some
  peers were not run; the tables show which. L-BFGS in float32 stands still above a gap of 1e-6 on some of these programs.
- "Killed", "died" and "failed" mostly mean memory. Peak memory is what the process added to features and imported packages.
- Peers that run to a tolerance or a budget solve from scratch for each point. Ratios interpolate between them, in their favour.
- The gap comes from the point alone. A peer without a dual of its own may be nearer to the optimum than its gap shows: the second
  measure is the distance to the best lower bound that any peer proved. Cells that were not run count as not reached.
- The CVXPY peers go through the package, whose own certificate of their point, two products, is inside their seconds.

{setting}

<!-- this page is written by benchmarks/solvers/render.py -->
"""


def page(folder: Path) -> tuple[str, Cells]:
    """Return the page, and the cells of two threads."""
    by_threads = {threads: load(folder, threads) for threads in (2, 1)}
    cells = by_threads[2]
    default = []
    for threads, found in by_threads.items():
        for clock, about in (("seconds_to", "wall-clock"), ("cpu_to", "CPU")):
            names = sorted({key[0] for key in found if key[0].startswith("G")})
            tables = "\n\n".join(problem_table(found, name, "ridge", clock) for name in names)
            default.append(f"### {threads} threads, {about} seconds\n\n{tables}" if tables else "")
    sparse = [problem_table(cells, *pair) for pair in itertools.product(SPARSE, PENALTIES)]
    blocks = {
        "headline": headline(by_threads),
        "ratio": ratio_table(by_threads),
        "fastest": fastest_table(cells),
        "default": "\n\n".join(filter(None, default)) or NOT_RUN,
        "choice": choice_table(folder),
        "shares": share_table(folder / "shares.json"),
        "problems": "\n\n".join(filter(None, sparse)),
        "paths": path_table(folder / "paths.json"),
        "memory": memory_table(folder / "memory.json"),
        "growth": growth_table(cells),
        "floor": floor_table(folder / "floor.json", cells),
        "setting": setting(by_threads),
    }
    return _PAGE.format(**blocks), cells


def main() -> None:
    """Write page and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "solvers")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    if not load(options.results):
        raise SystemExit(f"no results in {options.results}: run `python -m solvers` first")
    text, cells = page(options.results)
    (options.docs / "benchmarks.md").write_text(text, encoding="utf-8")
    draw(cells, options.docs / "benchmarks_gap.png")


if __name__ == "__main__":
    main()
