"""Random nets, data, options and faults, each checked from outside: nothing but own errors, every bit in its place.

python -m benchmarks.fuzz                       10,000 cases in two processes (`make fuzz`), kept in results/fuzz.json
python -m benchmarks.fuzz --interrupts 3000     an interrupt at a random line of transaction and cleanup in every case, kept beside
                                                them; of the whole package in one of fifty, since tracing all of it takes longer
python -m benchmarks.fuzz --reports 2000        random scripts: the accuracy of a report is that of the script's own test
python -m benchmarks.fuzz --seed 17             one case again, printed (with --interrupts 1 or --reports 1: that one)
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import time
import warnings
from collections import Counter
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
VERSIONS = ("torch", "numpy", "snntorch", "norse", "spikingjelly", "hypothesis")
EVERYWHERE = ("",)  # files of the package, by the endings of their paths
SLOW = 10.0  # seconds from which a case is listed


def outcome(seed: int, mode: str) -> tuple[int, str, str | None, float]:
    """Seed, ending, violation and seconds of one case."""
    from tests.fuzz.cases import seeded_case
    from tests.fuzz.checks import SAFETY, timed
    from tests.fuzz.reports import check_report

    if mode == "reports":
        return (seed, *check_report(seed))
    interrupts = mode == "interrupts"
    files = EVERYWHERE if interrupts and seed % 50 == 0 else SAFETY
    return (seed, *timed(seeded_case(seed, "line" if interrupts else None), files))


def start() -> None:
    sys.path[:0] = [str(ROOT)]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def run(seeds: range, mode: str, processes: int, minutes: float) -> dict[str, object]:
    began, done = time.perf_counter(), []
    with multiprocessing.get_context("spawn").Pool(processes, start) as pool:
        for result in pool.imap_unordered(partial(outcome, mode=mode), seeds, chunksize=10):
            done.append(result)
            if result[2] is not None:
                print(f"seed {result[0]}: {result[2]}", flush=True)
            if len(done) % 500 == 0:
                print(f"{len(done)} of {len(seeds)}, {time.perf_counter() - began:.0f} s", flush=True)
            if time.perf_counter() - began > 60 * minutes:
                break
    endings = Counter(ending for _, ending, _, _ in done)
    kinds = Counter(ending.split(":")[0] for ending in endings.elements())
    return {
        "cases": len(done),
        "seeds": [seeds.start, seeds.stop],
        "processes": processes,
        "seconds": round(time.perf_counter() - began, 1),
        "seconds of all cases": round(sum(seconds for *_, seconds in done), 1),
        "endings": dict(kinds.most_common()),
        "refusals": {ending: count for ending, count in endings.most_common() if ending.startswith("refused")},
        "violations": [{"seed": seed, "what": what} for seed, _, what, _ in sorted(done) if what is not None],
        "slow": [{"seed": seed, "seconds": round(seconds, 1)} for seed, _, _, seconds in sorted(done) if seconds > SLOW],
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
    }


def repeat(seed: int, mode: str) -> int:
    start()
    from tests.fuzz.cases import seeded_case
    from tests.fuzz.reports import seeded_script

    print(*(seeded_script(seed)[:2] if mode == "reports" else [seeded_case(seed, "line" if mode == "interrupts" else None)]))
    _, ending, violation, seconds = outcome(seed, mode)
    print(f"{violation or ending}  ({seconds:.2f} s)")
    return violation is not None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="how many (default 10,000)")
    parser.add_argument("--interrupts", type=int, default=0, help="how many with an interrupt at a random line, instead")
    parser.add_argument("--reports", type=int, default=0, help="how many random scripts, instead")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long; what was run is kept")
    parser.add_argument("--no-save", action="store_true", help="leave results/fuzz.json as it is")
    args = parser.parse_args()
    mode = "interrupts" if args.interrupts else "reports" if args.reports else "cases"
    if args.seed is not None:
        return repeat(args.seed, mode)
    count = args.interrupts or args.reports or args.cases
    result = run(range(args.first, args.first + count), mode, args.processes, args.minutes)
    if not args.no_save:
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps({**kept, mode: result}, indent=1) + "\n")
    print(f"{result['cases']} cases, {result['endings']}, {len(result['violations'])} violations, {result['seconds']} s")
    return bool(result["violations"])


if __name__ == "__main__":
    sys.exit(main())
