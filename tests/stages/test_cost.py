"""The bound on a solve's cost, in epochs of training, and the report of a solve that it ends."""

import math
from types import SimpleNamespace

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import ConvexInitializer, convex_init_
from snn_recon_plugin.convex import Outcome
from snn_recon_plugin.convex.budget import PRICE
from snn_recon_plugin.distributed import SINGLE_PROCESS
from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.stages import strength
from snn_recon_plugin.stages.fit import epoch_products
from snn_recon_plugin.stages.rows import Rows

from ..helpers import CLASSES, PIXELS, STEPS, batches, loop_net

HIDDEN = 40
TINY = 1e-3  # epochs, which end every solve


def bounded(max_cost, **options):
    net = loop_net(hidden=HIDDEN)
    return net, convex_init_(net, batches(300), hidden="keep", max_cost=max_cost, **options)


def products(samples, steps):
    """Return the cost of an epoch of a Linear and a Leaky under a readout of classes."""
    layer = SimpleNamespace(name="fc1", synapse=nn.Linear(PIXELS, HIDDEN), neuron=snn.Leaky(beta=0.9))
    readout = SimpleNamespace(in_features=HIDDEN, out_features=CLASSES)
    task = SimpleNamespace(net_map=SimpleNamespace(readout=readout, hidden=[layer], num_steps=steps), rows=Rows())
    layers = {"fc1": SimpleNamespace(neurons=HIDDEN)}
    captured = SimpleNamespace(targets=torch.zeros(samples), features=torch.zeros(1))
    return epoch_products(task, SimpleNamespace(captured=captured, layers=layers), SINGLE_PROCESS)


def test_an_epoch_is_counted_in_products_of_the_readout():
    steps = 1000
    multiply_adds = 3 * steps * (PIXELS * HIDDEN + HIDDEN * CLASSES)  # forward, and backward twice as much
    assert products(10**5, steps) == pytest.approx(multiply_adds / (HIDDEN * PRICE))


def test_small_solves_are_always_allowed():
    assert products(300, STEPS) == pytest.approx(2e10 / (300 * HIDDEN * PRICE))
    assert bounded(1.0)[1].certificate.reached


def test_a_bound_that_is_hit_is_reported_with_the_gap():
    _, report = bounded(TINY)
    assert report.outcome == Outcome.WORK_LIMIT.value
    assert not report.certificate.reached
    assert report.certificate.relative_gap > report.certificate.tol == 1e-6
    assert "NOT reached" in str(report)
    assert "max_cost" in str(report)
    assert report.accuracy_after > 0.5  # what is written is the best point so far


def test_no_bound_solves_to_the_tolerance():
    assert bounded(math.inf)[1].certificate.reached


def test_the_same_bits_twice_where_the_bound_is_hit():
    one, two = bounded(TINY)[0], bounded(TINY)[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_only_the_program_that_is_taken_is_solved_on_all_samples(monkeypatch):
    """Both programs of a net are compared if its squared hinge decides badly."""
    solved, original = [], strength.solve

    def watch(problem, **options):
        solved.append((problem.loss.name, problem.features.num_samples))
        return original(problem, **options)

    monkeypatch.setattr(strength, "solve", watch)
    report = convex_init_(loop_net(hidden=12), batches(500), hidden="keep")
    assert report.fit_loss == "cross_entropy"
    assert solved == [("cross_entropy", 500)]


@pytest.mark.parametrize("max_cost", [0, -1.0, math.nan, "1", True])
def test_bad_bounds(max_cost):
    with pytest.raises(OptionError, match="max_cost="):
        ConvexInitializer(max_cost=max_cost)
