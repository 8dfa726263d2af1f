"""Random nets, data, options and faults; `make fuzz` runs many more. `python -m benchmarks.fuzz --seed 10000` repeats one."""

from collections import Counter
from pathlib import Path

import pytest

from ..faults import PACKAGE
from ..versions import needs_new_jelly
from .cases import seeded_case
from .checks import SAFETY, check
from .reports import check_report


@pytest.mark.slow
@needs_new_jelly
def test_random_cases_with_faults():
    endings = Counter(check(seeded_case(seed)).split(":")[0] for seed in range(10_000, 10_200))  # beyond those of `make fuzz`
    assert endings["written"] >= 0.4 * (endings.total() - endings["fault"]), endings


def test_interrupts_come_in_files_that_are_there():
    assert [file for file in SAFETY if not (Path(PACKAGE) / file).exists()] == []


@needs_new_jelly
def test_reports_of_random_scripts():
    found = [check_report(seed) for seed in range(10_000, 10_020)]
    assert [violation for _, violation, _ in found if violation] == []
    assert sum(ending == "written" for ending, *_ in found) > 10
