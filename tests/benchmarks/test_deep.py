"""The study of deep nets: what a budget buys, and what its tables show of refusals and of budgets that are too small."""

import pytest
import torch

from benchmarks.nets import convolutions
from benchmarks.store import Store
from benchmarks.studies import deep
from benchmarks.studies.deep import CYCLE, DRIVEN, FIRING, FIXED, LINE, STUDY, TRAINED, cells, name_of
from benchmarks.study import Bench, Places
from benchmarks.tasks import Parts
from snn_recon_plugin.demo import Data

NET = "four convolutions"
MADE = {"before": 0.1, "epoch_seconds": 2.0, "seconds": 1.0, "step_memory": 2**20, "memory": 2**21}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Images of a bright row each, a small net, and a line that costs half an epoch."""
    labels = torch.arange(640) % 10
    inputs = 0.3 * torch.rand(640, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    inputs[torch.arange(640), 0, 4 + 2 * labels] = 1.0
    parts = Parts(Data(inputs, labels, inputs, labels), 0)
    monkeypatch.setattr(deep, "parts_of", lambda net, places: parts)
    monkeypatch.setitem(deep.DEEP_NETS, NET, lambda: convolutions(channels=(2, 4), steps=3))
    monkeypatch.setattr(deep, "RATES", (1e-2,))
    made = Bench(Places(), Store(tmp_path / "deep.jsonl", STUDY.fields), STUDY)
    for budget in (1, 2):
        made.store.add(name_of(CYCLE, NET, budget, 0), {"rate": 1e-3, "test": 0.45})
    made.store.add(name_of(LINE, NET, 0, 0), {**MADE, "test": 0.5, "cost": 0.5})
    return made


def test_the_cost_of_the_line_shortens_its_training(bench):
    measured = cells(bench)
    trained = {budget: measured[name_of(TRAINED, NET, budget, 0)]() for budget in (1, 2)}
    assert [trained[budget]["steps"] for budget in (1, 2)] == [4, 14]  # of 9 steps an epoch
    assert trained[2]["test"] > 0.2


def test_tables_show_the_best_baseline_refusals_and_budgets_that_are_too_small(bench):
    store = bench.store
    store.add(name_of(FIXED, NET, 8, 0), {"before": 0.1, "tests": {"1": 0.3, "2": 0.4, "4": 0.5, "8": 0.6}})
    store.add(name_of(TRAINED, NET, 2, 0), {"test": None, "steps": 0})
    row = f"| {NET} | 10.0 | 50.0 | 0.50 | 45.0 | – | 60.0 |  |"
    assert row in deep.summary(store)
    store.add(name_of(LINE, NET, 0, 0), {"before": 0.1, "test": 0.1, "refused": "found something"})
    assert f"| {NET} | 10.0 | refused |  |" in deep.summary(store)


def test_a_firing_rate_is_measured_at_the_start_and_after_training(bench):
    found = cells(bench)[f"{DRIVEN} | {NET} | rate 0.1"]()
    assert found["before"] > 0.2
    assert found["test"] > 0.2
    for rate in FIRING:
        bench.store.add(f"{DRIVEN} | {NET} | rate {rate}", {"before": 0.1 + rate, "test": 0.5})
    assert f"| {NET} | 13.0 → 50.0 | 20.0 → 50.0 | 40.0 → 50.0 |" in deep.firing_table(bench.store)
