"""The bound on a solve's cost, in epochs of training, and the report of a solve that it ends."""

from types import SimpleNamespace

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.convex import Outcome
from snn_recon_plugin.convex.budget import PRICE
from snn_recon_plugin.distributed import SINGLE_PROCESS
from snn_recon_plugin.stages.fit import epoch_products
from snn_recon_plugin.stages.rows import Rows

from ..helpers import CLASSES, PIXELS, STEPS, batches, loop_net, values

HIDDEN = 40
LONG = 1000  # steps


@pytest.mark.parametrize(
    ("samples", "steps", "multiply_adds"),
    [
        # Forward, and backward twice as much.
        (10**5, LONG, 3 * LONG * (PIXELS * HIDDEN + HIDDEN * CLASSES)),
        (300, STEPS, 2e10 / 300),  # small solves are always allowed
    ],
)
def test_an_epoch_is_counted_in_products_of_the_readout(samples, steps, multiply_adds):
    layer = SimpleNamespace(name="fc1", synapse=nn.Linear(PIXELS, HIDDEN), neuron=snn.Leaky(beta=0.9))
    readout = SimpleNamespace(in_features=HIDDEN, out_features=CLASSES)
    task = SimpleNamespace(net_map=SimpleNamespace(readout=readout, hidden=[layer], num_steps=steps), rows=Rows())
    captured = SimpleNamespace(targets=torch.zeros(samples))
    data = SimpleNamespace(captured=captured, layers={"fc1": SimpleNamespace(neurons=HIDDEN)})
    assert epoch_products(task, data, SINGLE_PROCESS) == pytest.approx(multiply_adds / (HIDDEN * PRICE))


def test_a_bound_that_is_hit_is_reported_with_the_gap():
    net, again = loop_net(hidden=HIDDEN), loop_net(hidden=HIDDEN)
    report, _ = (convex_init_(each, batches(300), hidden="keep", max_cost=1e-3) for each in (net, again))
    assert report.program.outcome == Outcome.WORK_LIMIT.value
    assert not report.certificate.reached
    assert report.certificate.relative_gap > report.certificate.tol == 1e-6
    assert "NOT reached" in report.details()
    assert "max_cost" in report.details()
    assert report.accuracy_after > 0.5  # what is written is the best point so far
    assert values(again) == values(net)
