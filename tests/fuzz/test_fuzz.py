"""Random nets, data, options and faults; `make fuzz` runs many more. `python -m benchmarks.fuzz --seed 17` repeats one."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from .cases import cases
from .checks import check

EXAMPLES = 200
# Drawn, not shrunk: a failing case prints as code, and shrinking it takes minutes.
FUZZ = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
def test_random_cases_with_faults():
    endings = Counter()

    @FUZZ
    @given(cases())
    def run(case):
        endings[check(case).split(":")[0]] += 1

    run()
    assert endings["written"] >= 0.4 * (endings.total() - endings["fault"]), endings
