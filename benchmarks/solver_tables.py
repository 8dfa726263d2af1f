"""Tables of docs/benchmarks.md that are not about peers: growth, the floor, paths and memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from solver_cell import TARGETS

__all__ = ["Cells", "floor_table", "growth_table", "memory_table", "path_table", "seconds"]

Cells = dict[tuple[str, str, float, str], dict[str, Any]]
_LAST = f"{TARGETS[-1]:g}"


def seconds(value: float | None) -> str:
    """Two digits, or a dash where the gap was not reached."""
    if value is None:
        return "–"
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def growth_table(cells: Cells) -> str:
    """Seconds of native to 1e-6 and the exponents of power laws fitted to them."""
    parts = []
    for kind, size in (("n", "n"), ("p", "P")):
        found = sorted((c for key, c in cells.items() if key[0].startswith(f"growth-{kind}")), key=lambda cell: cell[size])
        times = [(cell[size], cell["seconds_to"].get(_LAST), cell["peak_mib"]) for cell in found]
        done = [(value, time) for value, time, _ in times if time]
        if not times:
            continue
        rows = [f"| {size} | seconds to 1e-6 | peak MiB |", "|---|---|---|"]
        rows += [f"| {value} | {seconds(time)} | {peak or 0:.0f} |" for value, time, peak in times]
        if len(done) > 1:
            slope = np.polyfit(*np.log(np.array(done).T), 1)[0]
            other = f"P={found[0]['P']}" if size == "n" else f"n={found[0]['n']}"
            rows.append(f"\nSeconds grow as {size}^{slope:.2f} ({other}, group_l1, strength 1e-3, {found[0]['about']}).")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) or "Not run yet."


def floor_table(path: Path, cells: Cells) -> str:
    """One product with the features and one with their transpose, 4nPC flop, 4nP bytes read once or 8nP in two passes."""
    if not path.exists():
        return "Not run yet."
    rows = [
        "| | n | P | C | ms | GFLOP/s | of a large product's | GB/s, two passes | of the copy's | ms if read once "
        "| native to 1e-6 in pairs |",
        "|---" * 11 + "|",
    ]
    for shape in json.loads(path.read_text(encoding="utf-8"))["shapes"]:
        n, columns, outputs, pair = shape["n"], shape["P"], shape["C"], shape["pair_seconds"]
        rate, speed = 4 * n * columns * outputs / pair, 8 * n * columns / pair
        once = 4 * n * columns / shape["copy_bytes_per_second"]
        penalty = "l1" if outputs == 1 else "group_l1"
        native = cells.get((shape["problem"], penalty, 1e-3, "native"), {"seconds_to": {}})["seconds_to"].get(_LAST)
        pairs = "–" if native is None else f"{native / pair:.0f}"
        rows.append(
            f"| {shape['problem']} | {n} | {columns} | {outputs} | {1e3 * pair:.3g} | {rate / 1e9:.3g} "
            f"| {100 * rate / shape['gemm_flops']:.0f} % | {speed / 1e9:.3g} "
            f"| {100 * speed / shape['copy_bytes_per_second']:.0f} % | {1e3 * once:.3g} | {pairs} |"
        )
    return "\n".join(rows)


def path_table(path: Path) -> str:
    """A path against the single hardest of its solves."""
    if not path.exists():
        return "Not run yet."
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        "| program | strengths | path, s | hardest solve from zero, s | path / hardest | path without screening, s | all reached |",
        "|---" * 7 + "|",
    ]
    for name, case in content["cases"].items():
        span = f"{content['count']}, {case['strengths'][0]:.2g} to {case['strengths'][1]:.2g}"
        reached = "yes" if case["reached"] else "NO"
        rows.append(
            f"| {name.replace('-', ', ')} | {span} | {seconds(case['seconds'])} | {seconds(case['hardest'])} "
            f"| {case['seconds'] / case['hardest']:.2g} | {seconds(case['without_screening'])} | {reached} |"
        )
    often = sorted({case.get("times", 1) for case in content["cases"].values()})
    about = f"Solves asked for a relative gap of {content['tol']:g}; the hardest is the slowest of the three smallest strengths.  "
    about += f"Each is the fastest of {' or '.join(map(str, often))} runs (short ones are repeated): seconds vary by half."
    return "\n".join([*rows, "", about])


def memory_table(path: Path) -> str:
    """Peak memory of the largest programs."""
    if not path.exists():
        return "Not run yet."
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = ["| features | penalty | s | gap | features, MiB | taken besides, MiB | bound, MiB | process, MiB |", "|---" * 8 + "|"]
    for case in content["cases"].values():
        sizes = [case[f"{key}_bytes"] / 2**20 for key in ("features", "taken", "bound", "process")]
        shown = " | ".join(f"{size:.0f}" for size in sizes)
        gap = f"{case['relative_gap']:.1e}"
        rows.append(f"| {case['dtype']} | {case['penalty']} | {seconds(case['seconds'])} | {gap} | {shown} |")
    case = next(iter(content["cases"].values()))
    size = f"n={case['n']}, P={case['P']}, C={case['C']}, cross-entropy, strength {case['strength']:g}"
    return "\n".join([*rows, "", f"{size}, asked for a gap of {content['tol']:g}. The bound is `memory_bound`."])
