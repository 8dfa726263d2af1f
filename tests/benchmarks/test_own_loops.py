"""The users' own loops: a net with calls after own epochs, and the table of made results."""

import pytest

from benchmarks.studies import own_loops
from benchmarks.studies.own_loops import FINISH, FUNCTIONS, LINE, MOMENTS, TRAINED, finish_table, is_lowered
from tests.user_nets.catalogue import GROUPS

from .test_finish import MACHINE


def made(trained, finish, samples=600):
    """A net whose accuracy is the same after all epochs; the line is never accepted."""
    tests = {TRAINED: trained, FINISH: finish, LINE: trained}
    return {
        "tests": {f"{way}, {epochs}": test for epochs in MOMENTS for way, test in tests.items()},
        "refused": {f"{LINE}, {epochs}": "found something" for epochs in MOMENTS},
        "samples": samples,
        "machine": MACHINE,
    }


def test_nets_that_a_call_lowers_are_counted_and_small_tests_are_pooled():
    assert is_lowered([made(90.0, 87.0)], FINISH, 3)
    assert not is_lowered([made(90.0, 88.0)], FINISH, 3)  # two standard errors are 2.6
    assert not is_lowered([made(90.0, 87.0, 100)], FINISH, 3)
    assert is_lowered([made(90.0, 87.0, 100)] * 6, FINISH, 3)
    nets = [made(90.0, 87.0), made(60.0, 80.0), made(15.0, 90.0), *[made(70.0, 60.0, 100)] * 3]
    text = finish_table(nets)
    row = "| 3 | 70.0 | 60.0 | 70.0 | -10.0 | -10.0 | 2 | 0 | +0.0 | +0.0 | 0 | 5 |"
    assert row in text
    assert "5 of 6 nets learn. 2 are judged one by one, and 3 with fewer than 500 count as one." in text
    assert finish_table([]) == "Not measured yet."


@pytest.mark.slow
def test_a_net_is_called_after_own_epochs(monkeypatch):
    monkeypatch.setattr(own_loops, "MOMENTS", (0, 1))
    entry = next(entry for nets in GROUPS.values() for entry in nets if entry.must == "work" and not entry.regression)
    found = own_loops.measure_finish(entry, 0)
    assert found["samples"] == 597
    assert list(found["tests"]) == [f"{way}, {epochs}" for epochs in (0, 1) for way in (TRAINED, *FUNCTIONS)]
    assert found["refused"] == {}
    assert min(found["tests"][f"{way}, 1"] - found["tests"][f"{TRAINED}, 1"] for way in FUNCTIONS) > 0
