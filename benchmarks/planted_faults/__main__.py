"""Plant each fault in a copy of a commit, and run that commit's own tests to see whether one fails.

cd benchmarks && python -m planted_faults --commit 79cd86d       all faults that have no result yet

1. Each fault alone: the tests nearest to its file.
2. The faults that are left, planted together: one folder of tests after another.  A test that passes then finds none of them.  The
   tests that fail run again with each of these faults alone, which leaves fewer for the next folder.
3. No fault: the tests that found one must pass.

So a fault that no test finds costs a share of one run of the suite.  Slow tests are left out, and those of the studies, the pages
and other environments.  A fault that no longer applies ends the run with its name.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, machine, run_all
from benchmarks.quick import nearest_tests

from .catalogue import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
RESULT = RESULTS / "planted_faults.json"
LEFT_OUT = ("tests/benchmarks/", "tests/test_docs.py", "tests/ecosystem/", "tests/alone/")
TOGETHER, SOUND = "the faults left", "no fault"
_NEAR = 4  # test files that are nearest to a fault
TIME_LIMIT = 7200  # seconds of a run: a fault may make a loop endless
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


def checkout(commit: str, folder: Path) -> None:
    """Copy the files of a commit into a folder; the repository does not change."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)


@contextlib.contextmanager
def planted(root: Path, faults: Sequence[Fault]) -> Iterator[None]:
    """Plant faults in a checkout until the block ends."""
    before = {path: path.read_bytes() for path in {fault.find(root) for fault in faults}}
    try:
        for fault in faults:
            fault.plant(fault.find(root))
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def all_tests(root: Path) -> list[str]:
    """Return the test files of a checkout."""
    paths = [str(path.relative_to(root)) for path in sorted((root / "tests").rglob("test_*.py"))]
    return [path for path in paths if not path.startswith(LEFT_OUT)]


def failing(root: Path, tests: Sequence[str], *, first: bool) -> list[str]:
    """Run tests in order and return those that fail, or the first one alone."""
    if not tests:
        return []
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-m", "not slow", "-p", "no:cacheprovider"]
    command += ["-x"] if first else []
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*command, *tests], cwd=root, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
    )
    found = _FAILED.findall(ran.stdout)
    if ran.returncode not in (0, 5) and not found:  # 5: all tests are slow ones
        raise RuntimeError((ran.stdout + ran.stderr)[-2000:])
    return found


def by_folder(root: Path, rooms: Sequence[str]) -> dict[str, list[str]]:
    """Return the test files by folder; those of rooms come first, rooms that occur most at the head."""
    folders: dict[str, list[str]] = {}
    for test in all_tests(root):
        folders.setdefault("/".join(test.split("/")[:-1][:2]), []).append(test)
    return dict(sorted(folders.items(), key=lambda item: -rooms.count(item[0].removeprefix("tests/"))))


def look_near(fault: Fault, root: Path) -> dict[str, Any]:
    """Run the tests nearest to a fault; found is None if they pass."""
    file = fault.find(root).relative_to(root)
    every = set(all_tests(root))
    near = [str(path) for path in nearest_tests(root, file, levels=1) if str(path) in every]
    with planted(root, [fault]):
        found = failing(root, near[:_NEAR], first=True)
    return {"file": str(file), "found": True if found else None, "by": next(iter(found), None), "tests": "nearest"}


def look_in_folder(faults: Sequence[Fault], root: Path, tests: Sequence[str]) -> dict[str, Any]:
    """Run tests with several faults together, then those that fail with each fault alone."""
    with planted(root, faults):
        failed = failing(root, tests, first=False)
    found = {}
    for fault in faults:
        with planted(root, [fault]):
            alone = failing(root, failed, first=True)
        if alone:
            found[fault.name] = alone[0]
    return {"faults": [fault.name for fault in faults], "failing": failed, "found": found}


def run_sound(root: Path, tests: Sequence[str]) -> dict[str, Any]:
    """Run tests without any fault."""
    return {"failing": failing(root, tests, first=False)}


def measured(work: partial[dict[str, Any]]) -> dict[str, Any]:
    """Return a result with its CPU time and date."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = work()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    return {**result, "cpu_seconds": round(seconds, 1), "date": datetime.date.today().isoformat()}


def run(commit: str, root: Path) -> dict[str, dict[str, Any]]:
    """Run the four steps in a checkout, and return the result of each fault."""
    head = {"machine": machine("pytest", "snntorch", "norse", "lightning")}

    def keep(works: dict[str, partial[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
        cases = {f"{commit} | {name}": partial(measured, work) for name, work in works.items()}
        content = run_all(RESULT, head, cases)["cases"]
        return {name: content[f"{commit} | {name}"] for name in works}

    def decide(faults: Iterable[str], **result: Any) -> None:
        cases = {f"{commit} | {fault}": partial(dict, {**found[fault], **result}) for fault in faults}
        content = run_all(RESULT, head, cases, again=cases)["cases"]
        found.update({name.partition(" | ")[2]: content[name] for name in cases})

    found = keep({fault.name: partial(look_near, fault, root) for fault in FAULTS})
    left = [fault for fault in FAULTS if found[fault.name]["found"] is None]
    for folder, tests in by_folder(root, [Path(found[fault.name]["file"]).parts[1] for fault in left]).items():
        if not left:
            break
        name = f"{TOGETHER} | {folder}"
        for fault, test in keep({name: partial(look_in_folder, left, root, tests)})[name]["found"].items():
            decide([fault], found=True, by=test, tests=folder)
        left = [fault for fault in left if found[fault.name]["found"] is None]
    decide([fault.name for fault in left], found=False)
    finders = sorted({result["by"] for result in found.values() if result["by"]})
    sound = keep({SOUND: partial(run_sound, root, finders)})[SOUND]["failing"]
    if sound:
        raise SystemExit(f"tests that fail without any fault: {', '.join(sound)}")
    return found


def main() -> int:
    """Run the faults of one commit that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="HEAD", help="whose package and tests are used; default HEAD")
    options = parser.parse_args()
    name = ["git", "rev-parse", "--short=7", options.commit]
    commit = subprocess.run(name, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        checkout(commit, root)
        for fault in FAULTS:
            fault.find(root)
        found = run(commit, root)
    print(f"{commit}: {sum(bool(result['found']) for result in found.values())} of {len(found)} faults found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
