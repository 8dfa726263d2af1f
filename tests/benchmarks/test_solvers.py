"""The study of solvers: seconds to a gap, and the peers that are written here on the package's program."""

from functools import partial

import pytest
import torch

from benchmarks.solvers.measure import Task, outcome_of, run_peer, times_to


def point(seconds, gap):
    return {"seconds": seconds, "cpu": 2 * seconds, "relative_gap": gap}


def test_seconds_to_a_gap_are_of_the_fastest_point_within_it():
    times = times_to([point(1.0, 1e-1), point(3.0, 1e-3), point(2.0, 1e-5)], limit=10.0)
    assert times["seconds_to"] == {"0.01": 2.0, "0.0001": 2.0, "1e-06": None}
    assert times["cpu_to"] == {"0.01": 4.0, "0.0001": 4.0, "1e-06": None}
    assert times_to([point(1.0, 1e-1), point(2.0, 1e-3)], 10.0)["seconds_to_least"]["0.01"] == pytest.approx(1.5)
    assert outcome_of([point(11.0, 1e-9)], "", limit=10.0) == "not reached"
    assert outcome_of([], "failed: ValueError: no", limit=10.0) == "failed"


def made(rows, columns):
    features = torch.rand(rows, columns, generator=torch.Generator().manual_seed(0))
    return features, (features[:, 0] > features[:, 1]).long() + (features[:, 2] > 0.7).long()


PEERS = [("squared", "l1", "fista"), ("cross_entropy", "group_l1", "fista_restart"), ("squared_hinge", "ridge", "torch_lbfgs_64")]


@pytest.mark.parametrize(("loss", "penalty", "peer"), [*PEERS, ("squared_hinge", "ridge", "linear_svc")])
def test_peers_reach_the_gap_of_the_package_s_program(loss, penalty, peer):
    task, ours, theirs = Task("made", loss, 3, 150, 10, partial(made, 150, 10)), [], []
    for name, found in (("ours", ours), (peer, theirs)):
        run_peer(task, {"penalty": penalty, "strength": 1e-2}, name, found.append)
        assert found[-1]["relative_gap"] <= 1.001e-6
    assert theirs[-1]["objective"] == pytest.approx(ours[-1]["objective"], rel=1e-5)
