"""Random nets, data, options and faults; `make fuzz` runs many more. `python -m benchmarks.fuzz --seed 10000` repeats one."""

from collections import Counter

import pytest

from .cases import seeded_case
from .checks import check


@pytest.mark.slow
def test_random_cases_with_faults():
    endings = Counter(check(seeded_case(seed)).split(":")[0] for seed in range(10_000, 10_200))  # beyond those of `make fuzz`
    assert endings["written"] >= 0.4 * (endings.total() - endings["fault"]), endings
