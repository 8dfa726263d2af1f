"""Writes what solvers.py measured into docs/benchmarks.md and draws docs/benchmarks_gap.png; no figure there is typed by hand.

Run: python benchmarks/render_solvers.py [--results DIR] [--docs DIR]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from solver_peers import MAPPINGS, PEERS, TARGETS
from solver_problems import PENALTIES, PROBLEMS, STRENGTHS
from solver_tables import Cells, floor_table, growth_table, memory_table, path_table, seconds

from snn_recon_plugin.plots import BLUE, GREEN, GREY, ORANGE

ROOT = Path(__file__).resolve().parents[1]
_KEYS = [f"{target:g}" for target in TARGETS]
# Okabe and Ito's palette again; kindred peers share a colour and differ in the line.
STYLES: dict[str, tuple[str, str]] = {
    "native": (BLUE, "-"),
    "fista": (ORANGE, ":"),
    "fista_dual": (ORANGE, "--"),
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


def load(folder: Path) -> Cells:
    """All cells by problem, penalty, strength and peer."""
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*-*.json"))]
    return {(cell["problem"], cell["penalty"], cell["strength"], cell["peer"]): cell for cell in contents}


def problem_table(cells: Cells, problem: str) -> str:
    """For each penalty a row a peer: seconds to the three gaps for each strength, and the most memory."""
    parts = []
    for penalty in PENALTIES:
        chosen = {key[2:]: cell for key, cell in cells.items() if key[:2] == (problem, penalty)}
        strengths = [value for value in STRENGTHS if any(strength == value for strength, _ in chosen)]
        peers = [peer for peer in PEERS if any(name == peer for _, name in chosen)]
        applied = [peer for peer in peers if any(chosen[key]["outcome"] != "does not apply" for key in chosen if key[1] == peer)]
        if applied:
            first = next(iter(chosen.values()))
            size = f"n={first['n']}, P={first['P']}, C={first['C']}, {first['loss']}"
            rows = [f"**{problem}, {penalty}** ({first['about']}; {size})", ""]
            rows.append("| | " + " | ".join(f"strength {value:g}" for value in strengths) + " | peak MiB |")
            rows.append("|---" * (len(strengths) + 2) + "|")
            for peer in applied:
                found = [chosen.get((value, peer)) for value in strengths]
                peaks = [cell["peak_mib"] for cell in found if cell and cell["peak_mib"] is not None]
                peak = f"{max(peaks):.0f}" if peaks else "–"
                rows.append(f"| {peer} | " + " | ".join(_three(cell) for cell in found) + f" | {peak} |")
            parts.append("\n".join(rows))
        refused: dict[str, list[str]] = {}
        for peer in peers:
            if peer not in applied:
                refused.setdefault(next(cell for key, cell in chosen.items() if key[1] == peer)["reason"], []).append(peer)
        if refused:
            reasons = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in refused.items())
            parts.append(f"{problem}, {penalty}, does not apply: {reasons}.")
    return "\n\n".join(parts) or "Not run yet."


def _three(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "not run"
    times = [seconds(cell["seconds_to"].get(key)) for key in _KEYS]
    if any(time != "–" for time in times):
        return " / ".join(times)
    return cell["outcome"] if cell["outcome"] != "reached" else "not reached"


def excess_times(cells: Cells, key: tuple[str, str, float], peer: str) -> dict[str, float | None]:
    """Seconds until the objective is within each gap of the best lower bound that any peer proved for the program."""
    rivals = [cell for name, cell in cells.items() if name[:3] == key and cell["trajectory"]]
    bound = max(point["dual"] for cell in rivals for point in cell["trajectory"])
    cell = cells[(*key, peer)]
    result: dict[str, float | None] = {}
    for name, target in zip(_KEYS, TARGETS, strict=True):
        near = [p["seconds"] for p in cell["trajectory"] if p["objective"] - bound <= (1 + 1e-4) * target * cell["zero_loss"]]
        result[name] = min(near, default=None)
    return result


def ratios(cells: Cells, problems: str, by_excess: bool) -> Iterator[tuple[str, float | None, int, int, int]]:
    """For each gap: geometric mean of fastest peer over native, over how many programs, and who alone reached the others."""
    programs = sorted({key[:3] for key, cell in cells.items() if cell["trajectory"] and key[0] in problems})
    for name in _KEYS:
        logs, native_alone, peer_alone = [], 0, 0
        for program in programs:
            times: dict[str, float | None] = {}
            for key, cell in cells.items():
                if key[:3] == program and cell["trajectory"]:
                    # Native's seconds are those of a certified point; a peer's are the least that finer budgets could have shown.
                    kind = "seconds_to" if key[3] == "native" else "seconds_to_least"
                    times[key[3]] = (excess_times(cells, program, key[3]) if by_excess else cell[kind]).get(name)
            own = times.pop("native", None)
            best = min((value for value in times.values() if value is not None), default=None)
            if own is not None and best is not None:
                logs.append(math.log(best / own))
            native_alone += own is not None and best is None
            peer_alone += own is None and best is not None
        yield name, math.exp(sum(logs) / len(logs)) if logs else None, len(logs), native_alone, peer_alone


def ratio_table(cells: Cells) -> str:
    """Both measures side by side, for the cross-entropy programs of 6,000 samples and for all that ran."""
    rows = [
        "| problems | relative gap | measured by | fastest peer / native | programs | native alone | a peer alone |",
        "|---" * 7 + "|",
    ]
    measures = (("certificate of the point", False), ("distance to the best known bound", True))
    for problems, (label, by_excess) in itertools.product(("AB", "".join(PROBLEMS)), measures):
        for name, mean, count, native_alone, peer_alone in ratios(cells, problems, by_excess):
            shown = "–" if mean is None else f"{mean:.2g}"
            rows.append(f"| {', '.join(problems)} | {name} | {label} | {shown} | {count} | {native_alone} | {peer_alone} |")
    return "\n".join(rows)


def fastest_table(cells: Cells) -> str:
    """For every cross-entropy program of 6,000 samples: native's seconds to the smallest gap, and those of the fastest peer."""
    rows = ["| program | native | fastest peer | its seconds | times native's |", "|---" * 5 + "|"]
    for program in itertools.product("AB", PENALTIES, STRENGTHS):
        found = {key[3]: cell for key, cell in cells.items() if key[:3] == program and cell["trajectory"]}
        own = found.pop("native", {"seconds_to": {}})["seconds_to"].get(_KEYS[-1])
        times = {peer: cell["seconds_to_least"].get(_KEYS[-1]) for peer, cell in found.items()}
        reached = {peer: value for peer, value in times.items() if value is not None}
        name = f"{program[0]}, {program[1]}, {program[2]:g}"
        if reached and own is not None:
            best = min(reached, key=lambda peer: reached[peer])
            rows.append(f"| {name} | {seconds(own)} | {best} | {seconds(reached[best])} | {reached[best] / own:.2g} |")
        else:
            limit = max((cell["limit"] for cell in found.values()), default=0.0)
            ran = f"none of {len(found)} that ran, in {limit:.0f} s" if found else "none ran"
            rows.append(f"| {name} | {seconds(own)} | {ran} | – | – |")
    return "\n".join(rows)


def setting(cells: Cells) -> str:
    """Machine, versions and mappings."""
    native = next(cell for key, cell in cells.items() if key[3] == "native")
    machine, versions = native["machine"], {}
    for cell in cells.values():
        versions |= cell["machine"]["versions"] | cell.get("versions", {})
    dates = sorted({cell["date"] for cell in cells.values()})
    packages = ", ".join(f"{name} {value}" for name, value in sorted(versions.items()) if name != "numpy")
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {native['threads']} threads, Python {machine['python']}, {packages}; "
        f"{native['limit']:.0f} s a solve; seed {native['seed']}; {dates[0]} to {dates[-1]}.",
        "",
    ]
    used = {key[3] for key, cell in cells.items() if cell["outcome"] != "does not apply"}
    lines += [f"- {peer}: {MAPPINGS[peer]}." for peer in PEERS if peer in used]
    return "\n".join(lines)


def draw(cells: Cells, path: Path) -> None:
    """Gap against seconds for the middle strength, a panel a problem and penalty."""
    figure = Figure(figsize=(11, 2.4 * len(PROBLEMS)), layout="constrained")
    panels = figure.subplots(len(PROBLEMS), len(PENALTIES), squeeze=False)
    shown: dict[str, Any] = {}
    for row, problem in zip(panels, PROBLEMS, strict=True):
        for axes, penalty in zip(row, PENALTIES, strict=True):
            drawn = False
            for peer, (colour, line) in STYLES.items():
                cell = cells.get((problem, penalty, 1e-3, peer), {"trajectory": []})
                finite = [p for p in cell["trajectory"] if p["relative_gap"] < math.inf]
                points = [(p["seconds"], max(p["relative_gap"], 1.3e-7)) for p in finite]  # exact ones lie on the lower edge
                if points:
                    mark = "" if cell["mode"] == "one run" else "o"
                    width = 2.2 if peer == "native" else 1.2
                    shown[peer] = axes.loglog(*zip(*points, strict=True), color=colour, ls=line, marker=mark, ms=3, lw=width)[0]
                    drawn = True
            axes.set_visible(drawn)
            axes.set_title(f"{problem}, {penalty}", fontsize=10)
            axes.set_ylim(1e-7, 1.5)
            axes.axhline(TARGETS[-1], color=GREY, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlabel("seconds")
            axes.set_ylabel("relative gap")
            axes.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=130)


_PAGE = """# Benchmarks

All programs are `(1/n) sum loss + strength * penalty(W)` with a free bias. Every point of every peer is certified by one float64
routine, `Problem.certify`; the clock stands still meanwhile. (The CVXPY peers go through the package, whose own certificate of
their point, two products, is inside their seconds.) A cell reads: seconds to a relative gap of 1e-2 / 1e-4 / 1e-6, a dash where
it was not reached in the time limit. "Presumed" cells were not run, since the peer did not reach 1e-6 for a larger strength of the
same program, or for the same strength of a program of the same loss that is no larger (A, then B, then C), or since FISTA
with restarts, which needs fewer of the same steps, did not reach it; the reason is in each cell's json. "Not run" is for want
of time. "Killed", "died" and "failed" mostly mean memory. Peers that run to a tolerance or a budget solve from scratch for
each point.
Peak memory is what the process added to the loaded features and imported packages.

## Setting
{setting}

## Seconds to a gap
{problems}

![relative gap against seconds at strength 1e-3; dots: solved from scratch each](benchmarks_gap.png)

## The fastest peer against native
Geometric mean of seconds over the programs where both reached the gap. A peer's seconds are interpolated between its budgets, in
its favour; cells that were presumed or not run count as not reached. The certificate of a point comes from the point alone; peers
without a dual of their own may be nearer to the optimum than it can tell, so the second measure is the distance to the
best lower bound that anyone proved.

{ratio}

{fastest}

## Paths
{paths}

## Memory
{memory}

## Growth
{growth}

## Floor
{floor}
"""


def main() -> None:
    """Page and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "solvers")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    cells = load(options.results)
    if not cells:
        raise SystemExit(f"no results in {options.results}: run benchmarks/solvers.py first")
    blocks = {f"problem {problem}": problem_table(cells, problem) for problem in PROBLEMS}
    blocks |= {"setting": setting(cells), "ratio": ratio_table(cells), "growth": growth_table(cells)}
    blocks |= {"fastest": fastest_table(cells), "paths": path_table(options.results / "paths.json")}
    blocks["memory"] = memory_table(options.results / "memory.json")
    blocks["floor"] = floor_table(options.results / "floor.json", cells)
    page = options.docs / "benchmarks.md"
    if not page.exists():
        marks = {name: f"{_begin(name)}\n{_end(name)}" for name in blocks}
        problems = "\n\n".join(marks[f"problem {problem}"] for problem in PROBLEMS)
        page.write_text(_PAGE.format(problems=problems, **{k: v for k, v in marks.items() if " " not in k}), encoding="utf-8")
    whole = page.read_text(encoding="utf-8")
    for name, text in blocks.items():
        before, rest = whole.split(_begin(name))
        whole = f"{before}{_begin(name)}\n{text}\n{_end(name)}{rest.split(_end(name))[1]}"
    page.write_text(whole, encoding="utf-8")
    draw(cells, options.docs / "benchmarks_gap.png")


def _begin(name: str) -> str:
    return f"<!-- {name}: written by benchmarks/render_solvers.py -->"


def _end(name: str) -> str:
    return f"<!-- end of {name} -->"


if __name__ == "__main__":
    main()
