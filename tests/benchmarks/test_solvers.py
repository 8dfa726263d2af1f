"""The solver study: its clocks, its table of peers, its own first-order methods, and its page."""

import json
import math

import numpy as np
import pytest
import torch

from benchmarks.solvers.__main__ import doubt, programs
from benchmarks.solvers.cell import GOAL
from benchmarks.solvers.comparison import best_times, load, ratio_rows
from benchmarks.solvers.first_order import Objective, fista, torch_lbfgs
from benchmarks.solvers.measure import times_to
from benchmarks.solvers.peers import PEERS, refusal
from benchmarks.solvers.problems import Data, Task, default_tasks
from benchmarks.solvers.render import ROOT, make_pages
from benchmarks.solvers.shares import measure_shares
from benchmarks.store import Store
from snn_recon_plugin.convex import Features, Problem

RESULTS = ROOT / "benchmarks" / "results" / "solvers.jsonl"


def point(seconds, gap):
    return {"seconds": seconds, "cpu": 2 * seconds, "relative_gap": gap}


def test_seconds_to_a_gap_are_of_the_fastest_point_within_it():
    times = times_to([point(1.0, 1e-1), point(3.0, 1e-3), point(2.0, 1e-5)], limit=10.0)
    assert times["seconds_to"] == {"0.01": 2.0, "0.0001": 2.0, "1e-06": None}
    assert times["cpu_to"] == {"0.01": 4.0, "0.0001": 4.0, "1e-06": None}


def test_a_finer_choice_of_settings_is_interpolated():
    least = times_to([point(1.0, 1e-1), point(2.0, 1e-3)], limit=10.0)["seconds_to_least"]
    assert least["0.01"] == pytest.approx(1.5)
    assert times_to([point(11.0, 1e-9)], limit=10.0)["seconds_to"]["0.01"] is None


def test_refusals():
    assert refusal("ours", "hinge", "l1", 1) is None
    assert refusal("ours", "hinge", "group_l1", 1) == "with one output group_l1 is l1"
    assert refusal("celer", "cross_entropy", "l1", 10) == "no cross_entropy loss"
    assert refusal("saga", "cross_entropy", "group_l1", 10) == "no group_l1 with cross_entropy"
    assert refusal("linear_svc", "squared_hinge", "ridge", 10) is None


def test_programs_take_each_strength_with_all_its_peers():
    tasks = [Task("A", "cross_entropy", 10, "", 1, 1, ""), Task("G-x", "squared_hinge", 10, "", 1, 1, "")]
    listed = [(task.name, *rest) for task, *rest in programs(tasks, ["ours", "saga", "linear_svc"], growth=False)]
    assert listed[:2] == [("A", "group_l1", 3e-3, "ours"), ("A", "group_l1", 1e-3, "ours")]
    assert listed[3:5] == [("A", "l1", 3e-3, "ours"), ("A", "l1", 3e-3, "saga")]
    assert listed[-2:] == [("G-x", "ridge", 1e-3, "ours"), ("G-x", "ridge", 1e-3, "linear_svc")]


def test_a_peer_that_failed_at_a_larger_strength_is_presumed_to_fail(tmp_path):
    cell = {"outcome": "not reached", "peer": "saga", "strength": 1e-3}
    store = Store(tmp_path / "cells.jsonl")
    store.add("A-l1-0.001-saga", cell)
    task = Task("A", "cross_entropy", 10, "", 1, 1, "")
    assert doubt(store, (task, "l1", 1e-4, "saga")) == "a larger strength was not enough"
    assert doubt(store, (task, "l1", 3e-3, "saga")) == ""
    assert "problem A" in doubt(store, (Task("B", "cross_entropy", 10, "", 1, 1, ""), "l1", 1e-3, "saga"))


class FakeCell:
    """A cell that certifies its points itself."""

    def __init__(self, loss, penalty, strength):
        generator = torch.Generator().manual_seed(0)
        features = torch.rand(80, 6, generator=generator)
        labels = (features[:, 0] > features[:, 1]).long() + (features[:, 2] > 0.7).long()
        self.features, self.labels, self.outputs = features.numpy(), labels.numpy(), 3
        self.loss, self.penalty, self.strength = loss, penalty, strength
        self.problem = Problem(Features(features), labels, loss=loss, penalty=penalty, strength=strength)
        self.gap, self.ready, self.begin = math.inf, lambda _: None, lambda: None
        self.clock = 0.0

    def spent(self):
        self.clock += 1.0
        return np.full(2, self.clock)

    def late(self):
        return False

    def centred(self):
        mean = self.features.mean(0, dtype=np.float64)
        return self.features - mean, mean

    def report(self, weight, bias, **_):
        self.gap = self.problem.certify(weight.double(), bias.double(), GOAL).relative_gap
        return self.gap


@pytest.mark.parametrize("loss", ["cross_entropy", "squared", "squared_hinge"])
def test_the_objective_of_first_order_peers_is_that_of_the_package(loss):
    cell = FakeCell(loss, "ridge", 0.1)
    objective = Objective(cell, torch.float64, centre=False)
    weight = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64)
    value, slope = objective.value_and_slope(objective.scores(weight, bias))
    assert value.item() + 0.05 * weight.square().sum().item() == pytest.approx(cell.problem.objective(weight.detach(), bias))
    value.backward()
    assert torch.allclose(weight.grad, slope.T @ objective.features)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("penalty", ["l1", "group_l1"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_fista(loss, penalty, restart):
    cell = FakeCell(loss, penalty, 0.02)
    assert fista(cell, restart) == "reached"
    assert cell.gap <= GOAL


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_hinge"])
def test_lbfgs(loss, centre):
    cell = FakeCell(loss, "ridge", 0.01)
    assert torch_lbfgs(cell, torch.float64, centre, 10) == "reached"
    assert cell.gap <= GOAL


def test_default_tasks_keep_the_dtype_of_a_capture(tmp_path, monkeypatch):
    files = {"trained": torch.rand(600, 50), "spikes": torch.randint(0, 2, (600, 50), dtype=torch.uint8)}
    for name, features in files.items():
        np.save(tmp_path / f"{name}-features.npy", features.numpy())
        np.save(tmp_path / f"{name}-labels.npy", np.zeros(600, dtype=np.int64))
    monkeypatch.setattr(Data, "trained", lambda _: str(tmp_path / "trained"))
    monkeypatch.setattr(Data, "spikes", lambda *_: str(tmp_path / "spikes"))
    tasks = {task.name: task for task in default_tasks(Data("", tmp_path, 0, tiny=True))}
    assert len(tasks) == 10
    loaded = {name: task.load()[0] for name, task in tasks.items()}
    assert loaded["G-filtered-5k-squared_hinge"].dtype == np.float32
    assert loaded["G-spikes-60k-cross_entropy"].dtype == loaded["G-counts-100-cross_entropy"].dtype == np.uint8
    assert loaded["G-spikes-5k-cross_entropy"].shape == (300, 50)
    assert set(np.unique(tasks["G-counts-100-squared_hinge"].load()[1])) == set(range(12))


def test_the_pages_of_the_kept_results():
    pages, cells = make_pages(RESULTS)
    head = pages["solver"].split("\n## ", maxsplit=1)[0]
    assert len(head.splitlines()) <= 11
    for text in pages.values():
        assert "nan" not in text
        assert len(text.splitlines()) <= 150
    own, peers = best_times(cells, ("A", "l1", 1e-3), "1e-06", "seconds_to")
    assert own == cells[("A", "l1", 1e-3, "ours")]["seconds_to"]["1e-06"]
    assert set(peers) < set(PEERS)


def test_of_repeated_cells_the_fastest_counts(tmp_path):
    cell = {"problem": "A", "penalty": "l1", "strength": 1e-3, "peer": "saga", "threads": 2}
    store = Store(tmp_path / "cells.jsonl")
    for name, time in (("", 3.0), ("-2t-2", 2.0), ("-2t-3", None)):
        store.add(f"A-l1-0.001-saga{name}", {**cell, "seconds_to": {"1e-06": time}})
    store.add("A-l1-0.001-saga-1t-1", {**cell, "threads": 1, "seconds_to": {"1e-06": 1.0}})
    assert [found["seconds_to"]["1e-06"] for found in load(store.path).values()] == [2.0]
    assert load(store.path, threads=1)[("A", "l1", 1e-3, "saga")]["threads"] == 1


def test_a_program_that_no_peer_tried_counts_for_nobody():
    ours = {"trajectory": [point(1.0, 1e-9)], "cpu_to": {"1e-06": 2.0}}
    other = {"trajectory": [point(1.0, 1e-9)], "cpu_to": {"1e-06": 6.0}}
    cells = {("G-a", "ridge", 0.1, "ours"): ours, ("G-b", "ridge", 0.1, "ours"): ours, ("G-b", "ridge", 0.1, "lbfgs"): other}
    assert ratio_rows(cells, "G", ("G",), {"cpu_to": "CPU"})[-1] == ("G", "1e-06", "CPU", "3", 1, 0, 0)


def test_shares_are_of_the_whole_and_none_is_missing(tmp_path):
    data = Data("", tmp_path, 0, tiny=True)
    stem = data.stem("made", lambda: (torch.rand(300, 200).cumsum(1), torch.arange(300) % 3))
    task = Task("G-made", "squared_hinge", 3, stem, 300, 200, "")
    measure_shares(tmp_path / "shares.json", {"threads": 1}, [task])
    *_, case = json.loads((tmp_path / "shares.json").read_text())["cases"].values()
    assert all(share > 0 for share in case["shares"].values())
    assert sum(case["shares"].values()) < 1
