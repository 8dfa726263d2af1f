"""The study of solvers: seconds to a gap, programs of the peers, and the formulas of those that are written here."""

from functools import partial

import pytest
import torch

from benchmarks.solvers.first_order import Objective
from benchmarks.solvers.measure import Task, outcome_of, run_peer, times_to
from benchmarks.solvers.peers import make_problem, refusal
from benchmarks.solvers.program import Program
from benchmarks.solvers.tables import ratio_rows


def made(rows, columns):
    """Features, and labels of three classes that follow two of them."""
    features = torch.rand(rows, columns, generator=torch.Generator().manual_seed(0))
    return features, (features[:, 0] > features[:, 1]).long() + (features[:, 2] > 0.7).long()


def point(seconds, gap):
    return {"seconds": seconds, "cpu": 2 * seconds, "relative_gap": gap}


def test_seconds_to_a_gap_are_of_the_fastest_point_within_it():
    times = times_to([point(1.0, 1e-1), point(3.0, 1e-3), point(2.0, 1e-5)], limit=10.0)
    assert times["seconds_to"] == {"0.01": 2.0, "0.0001": 2.0, "1e-06": None}
    assert times["cpu_to"] == {"0.01": 4.0, "0.0001": 4.0, "1e-06": None}
    least = times_to([point(1.0, 1e-1), point(2.0, 1e-3)], limit=10.0)["seconds_to_least"]
    assert least["0.01"] == pytest.approx(1.5)
    assert outcome_of([point(11.0, 1e-9)], "", limit=10.0) == "not reached"
    assert outcome_of([], "failed: ValueError: no", limit=10.0) == "failed"


def test_refusals():
    assert refusal("ours", "hinge", "l1", 1) is None
    assert refusal("ours", "hinge", "group_l1", 1) == "with one output group_l1 is l1"
    assert refusal("celer", "cross_entropy", "l1", 10) == "no cross_entropy loss"
    assert refusal("saga", "cross_entropy", "group_l1", 10) == "no group_l1 with cross_entropy"


@pytest.mark.parametrize("loss", ["cross_entropy", "squared", "squared_hinge"])
def test_the_objective_of_first_order_peers_is_that_of_the_package(loss):
    features, labels = (part.numpy() for part in made(80, 6))
    program = Program(features, labels, loss, "ridge", 0.1, 3)
    objective = Objective(program, torch.float64, centre=False)
    weight = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64)
    value, slope = objective.value_and_slope(objective.scores(weight, bias))
    penalty = 0.05 * weight.detach().square().sum()
    assert float(value.detach() + penalty) == pytest.approx(make_problem(program).objective(weight.detach(), bias))
    value.backward()
    assert torch.allclose(weight.grad, slope.T @ objective.features)


PEERS = [("squared", "l1", "fista"), ("cross_entropy", "group_l1", "fista_restart"), ("squared_hinge", "ridge", "torch_lbfgs_64")]


@pytest.mark.parametrize(("loss", "penalty", "peer"), [*PEERS, ("squared_hinge", "ridge", "linear_svc")])
def test_peers_reach_the_gap_of_the_package_s_program(loss, penalty, peer):
    task = Task("made", loss, 3, 400, 30, partial(made, 400, 30))
    ours, theirs = [], []
    for name, found in (("ours", ours), (peer, theirs)):
        run_peer(task, {"penalty": penalty, "strength": 1e-2}, name, found.append)
        assert found[-1]["relative_gap"] <= 1.001e-6
    assert theirs[-1]["objective"] == pytest.approx(ours[-1]["objective"], rel=1e-5)


def test_a_program_that_no_peer_tried_counts_for_nobody():
    ours = {"trajectory": [point(1.0, 1e-9)], "cpu_to": dict.fromkeys(("0.01", "0.0001", "1e-06"), 2.0)}
    other = {"trajectory": [point(1.0, 1e-9)], "cpu_to": dict.fromkeys(("0.01", "0.0001", "1e-06"), 6.0)}
    cells = {("G-a", "ridge", 0.1, "ours"): ours, ("G-b", "ridge", 0.1, "ours"): ours, ("G-b", "ridge", 0.1, "lbfgs"): other}
    assert ratio_rows(cells, "G", ("G",), {"cpu_to": "CPU"})[-1] == ("G", "1e-06", "CPU", "3", "1", "0", "0")
