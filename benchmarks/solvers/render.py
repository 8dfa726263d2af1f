"""Writes docs/evidence/solver*.md and their figure from the results of the solver study; no figure there is typed by hand.

Run: cd benchmarks && python -m solvers.render [--results DIR] [--docs DIR]
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from snn_recon_plugin.plots import BLUE, GREEN, GREY, ORANGE

from .cell import GOAL
from .comparison import SPARSE, fastest_table, headline, load, problem_table, ratio_table
from .peers import PEERS
from .tables import NOT_RUN, Cells, choice_table, floor_table, growth_table, memory_table, path_table, share_table

ROOT = Path(__file__).resolve().parents[2]
PENALTIES = ("l1", "group_l1")
PANELS = (("A", "l1"), ("B", "group_l1"), ("E", "l1"))
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
# The gap at which a peer's name is written beside its line, and the side of the name that touches it.
NAMES = {"ours": (1e-2, "right"), "fista_restart": (1e-5, "right"), "celer": (2e-2, "left"), "skglm": (3e-5, "left")}


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
    processors = Counter(cell["machine"]["processor"] for cell in cells if cell["trajectory"])
    named = ", ".join(f"{name} ({count} cells)" for name, count in processors.most_common())
    first = f"Processors: {named}; {machine['cores']} cores, Python {machine['python']}, {packages}; "
    first += f"{ours['limit']:.0f} s a solve; seed {ours['seed']}; {dates[0]} to {dates[-1]}; 2 threads unless said."
    mappings = {cell["peer"]: cell["mapping"] for cell in cells}
    return "\n".join([first, "", *(f"- {peer}: {mappings[peer]}." for peer in PEERS if peer in mappings)])


def draw(cells: Cells, path: Path) -> None:
    """Draw the gap against seconds for the middle strength, a panel for each of three programs, with a name on each line."""
    figure = Figure(figsize=(4.2 * len(PANELS), 3.4), layout="constrained")
    for (problem, penalty), axes in zip(PANELS, figure.subplots(1, len(PANELS)), strict=True):
        for peer, (colour, line) in STYLES.items():
            cell = cells.get((problem, penalty, 1e-3, peer), {"trajectory": []})
            # Exact points lie on the lower edge.
            points = [(p["seconds"], max(p["relative_gap"], 1.3e-7)) for p in cell["trajectory"] if p["relative_gap"] < math.inf]
            if points:
                mark, width = "" if cell["mode"] == "one run" else "o", 2.2 if peer == "ours" else 1.2
                axes.loglog(*zip(*points, strict=True), color=colour, ls=line, marker=mark, ms=3, lw=width)
                height, side = NAMES.get(peer, (3e-4, "left"))
                near = min(points, key=lambda point: abs(math.log10(point[1] / height)))
                axes.annotate(
                    peer, near, xytext=(6 if side == "left" else -6, 0), textcoords="offset points", color=colour, ha=side
                )
        axes.set_title(f"problem {problem}, {penalty}")
        axes.set_ylim(1e-7, 1.5)
        axes.axhline(GOAL, color=GREY, linewidth=0.6)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("seconds")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    figure.axes[0].set_ylabel("relative gap")
    figure.savefig(path, dpi=130)


_MARK = "<!-- this page is written by benchmarks/solvers/render.py -->"
_CELL = "A cell reads: seconds to a relative gap of 1e-2 / 1e-4 / 1e-6. [How it is measured](solver.md#how-it-is-measured)."
_HEAD = """# The solver against others

Time to a certified gap of the package's [solver](../solver.md) and of its peers, on the same programs.

{headline}

Programs are `(1/n) sum loss + strength * penalty(W)` with a free bias. The default is the squared hinge or cross-entropy with
ridge. At a loose gap of 1e-2 the lead is small, and a peer is often faster: see the table.

## The fastest peer against ours

The ratio is a geometric mean over the programs that both reached. Above 1, ours is faster.

{ratio}

Seconds to a relative gap of 1e-6, two threads, for every program:

{fastest}

## The tables

- [Default program, 5,000 samples](solver_default.md), with strengths chosen on held-out samples and the parts of a solve.
- [Default program, 60,000 samples and 100 classes](solver_large.md).
- [Sparse penalties](solver_sparse.md): problems A to F, each peer.
- [Paths, memory and growth](solver_scale.md).

## How it is measured

- One float64 routine, `Problem.certify`, certifies every point, with the clock stopped.
- A cell of the tables has a dash if the peer did not reach the gap in the time limit.
- "Presumed" cells were not run: the peer had missed 1e-6 on an easier program. That is a larger strength of the same program, or
  the same strength of a smaller program of the same loss. Each cell's line has the reason.
- "Not run" cells were left out to save time. For n=60,000 and C=100 some peers were not run; the tables show which.
- Cells of other processors than ours are older: adelie, celer, saga, LogisticRegression, CVXPY's solvers and some of FISTA and
  skglm.
- Cells of one thread ran beside other work. Compare their CPU seconds, which are off by up to a third.
- L-BFGS in float32 stops improving above a gap of 1e-6 on some programs.
- "Killed", "died" and "failed" mostly mean lack of memory. Peak memory excludes features and imported packages.
- Peers that run to a tolerance or a budget solve from scratch for each point. Ratios interpolate between them, in their favour.
- The gap comes from the point alone. A peer without a dual may be nearer to the optimum than its gap shows. The second measure is
  therefore the distance to the best lower bound that any peer proved. Cells that were not run count as not reached.
- CVXPY peers go through the package. Their seconds include its certificate of their point, which takes two products.

{setting}

{mark}
"""
_DEFAULT = """# The default program, 5,000 samples

Squared hinge or cross-entropy with ridge, which is what the one line solves. {cell}

{small}

## Strengths chosen on held-out samples

A fifth of the samples is held out and chooses the strength. All samples are then solved at it. `ridge_cv` solves another program,
the squared loss, so its gap is not comparable.

{choice}

## Parts of a solve

The aim was a fifth of the fastest peer's time, which the default program does [not reach](solver.md). Binary spikes of random
neurons are nearly uncorrelated. The solve is then L-BFGS alone, and has no lead over a peer that is L-BFGS too. On correlated
features and at small strengths Newton steps follow. The share of the products alone is the bound: only fewer products would be
faster.

{shares}

{mark}
"""
_LARGE = """# The default program, 60,000 samples and 100 classes

Squared hinge or cross-entropy with ridge. {cell}

{large}

{mark}
"""
_SPARSE = """# Sparse penalties

Problems A to F with l1 and group l1, two threads, wall-clock. {cell}

{problems}

![On three programs the relative gap falls with the seconds; ours reaches 1e-6 first](solver_gap.png)

Relative gap against seconds at strength 1e-3, on three programs. Dots: solved from scratch each.
On D and F HiGHS is faster: see their tables.

{mark}
"""
_SCALE = """# Paths, memory and growth

The package's solver alone. A path of 20 strengths costs about as much as one or two of its hardest solves. Spikes as `uint8`
are not copied to floats.

## Paths

{paths}

## Memory

{memory}

## Growth

{growth}

## Distance from the machine's limits

A product with the features and one with their transpose, against a large square product and a copy of the features.

{floor}

{mark}
"""
PAGES = {"solver": _HEAD, "solver_default": _DEFAULT, "solver_large": _LARGE, "solver_sparse": _SPARSE, "solver_scale": _SCALE}


def default_tables(by_threads: dict[int, Cells], small: bool) -> str:
    """Return the tables of the default program of 5,000 samples, or of larger ones, by threads and clock."""
    parts = []
    for threads, found in by_threads.items():
        names = sorted({key[0] for key in found if key[0].startswith("G") and ("-5k-" in key[0]) == small})
        for clock, about in (("seconds_to", "Wall-clock"), ("cpu_to", "CPU")):
            if names:
                tables = "\n\n".join(problem_table(found, name, "ridge", clock) for name in names)
                parts.append(f"## {about} seconds, {threads} thread{'' if threads == 1 else 's'}\n\n{tables}")
    return "\n\n".join(parts) or NOT_RUN


def make_pages(path: Path) -> tuple[dict[str, str], Cells]:
    """Return the pages by name, and the cells of two threads."""
    by_threads, folder = {threads: load(path, threads) for threads in (2, 1)}, path.with_suffix("")
    cells = by_threads[2]
    sparse = [problem_table(cells, *pair) for pair in itertools.product(SPARSE, PENALTIES)]
    blocks = {
        "headline": headline(by_threads),
        "ratio": ratio_table(by_threads),
        "fastest": fastest_table(cells),
        "small": default_tables(by_threads, small=True),
        "large": default_tables(by_threads, small=False),
        "choice": choice_table(folder),
        "shares": share_table(folder / "shares.json"),
        "problems": "\n\n".join(filter(None, sparse)),
        "paths": path_table(folder / "paths.json"),
        "memory": memory_table(folder / "memory.json"),
        "growth": growth_table(cells),
        "floor": floor_table(folder / "floor.json", cells),
        "setting": setting(by_threads),
        "cell": _CELL,
        "mark": _MARK,
    }
    return {name: text.format(**blocks) for name, text in PAGES.items()}, cells


def main() -> None:
    """Write pages and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "solvers.jsonl")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "evidence")
    options = parser.parse_args()
    if not load(options.results):
        raise SystemExit(f"no results in {options.results}: run `python -m solvers` first")
    pages, cells = make_pages(options.results)
    for name, text in pages.items():
        (options.docs / f"{name}.md").write_text(text, encoding="utf-8")
    draw(cells, options.docs / "solver_gap.png")


if __name__ == "__main__":
    main()
