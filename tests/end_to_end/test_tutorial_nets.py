"""The nets of snnTorch's and Norse's tutorials: after the one line their own tests show the accuracy that the report shows."""

import pytest
import snntorch as snn
import torch
import user_nets
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from user_nets_common import Samples, digits

from snn_recon_plugin import convex_init_

from ..nets import Sequence

TRAIN, FRESH, BATCH, STEPS, HIDDEN = 400, 200, 100, 8, 50
TUTORIALS = (
    pytest.param("tutorial 3: a step of input a step", marks=pytest.mark.slow),
    "tutorial 5: the loop flattens images",
    pytest.param("tutorial 6: convolutions, init_hidden", marks=pytest.mark.slow),
    pytest.param("tutorial 7: convolutions on events", marks=pytest.mark.slow),
    pytest.param("events, another number of steps in each batch", marks=pytest.mark.slow),
    "quickstart: a leak an output, learned",
    "population code, one step",
    pytest.param("population code, 10 steps", marks=pytest.mark.slow),
    pytest.param("MNIST notebook, recurrent cells, NLLLoss", marks=pytest.mark.slow),
)
ENTRIES = {entry.name: entry for nets in user_nets.GROUPS.values() for entry in nets}


@pytest.fixture(autouse=True)
def no_other_neurons(monkeypatch):
    """``utils.reset`` resets every neuron of the process, those of other tests too, whatever these did to them."""
    monkeypatch.setattr(snn.SpikingNeuron, "instances", [])


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorials_own_test_shows_the_reports_accuracy(name):
    entry, (train, fresh) = ENTRIES[name], digits()
    train = entry.order(Samples(train.images[:TRAIN], train.labels[:TRAIN]))
    fresh = entry.order(Samples(fresh.images[:FRESH], fresh.labels[:FRESH]))
    result = user_nets.run_net(entry, train, fresh)
    assert user_nets.as_it_must_be(result), user_nets.verdict(result)
    after = result["estimate"]["own"]
    assert after > max(0.6, result["before"] + 0.4)
    # The report's estimate is of 80 samples and of a readout fitted without them.
    assert result["estimate"]["report"] == pytest.approx(after, abs=0.1)


def functions(count):
    """Regression I: a line over time for each sample, and its end as the input at each step, both [B, T, 1]."""
    ends = torch.rand(count, 1, 1, generator=torch.Generator().manual_seed(count))
    return ends.expand(count, 2 * STEPS, 1).clone(), ends * torch.linspace(0, 1, 2 * STEPS)[:, None]


def test_regression_1_follows_a_function_of_time():
    torch.manual_seed(0)
    output = snn.Leaky(beta=0.9, threshold=1.0, learn_beta=True, reset_mechanism="none")
    net, loss = Sequence(1, HIDDEN, HIDDEN, 1, output=output), nn.MSELoss()

    def error(samples):
        feature, label = (part.swapaxes(0, 1) for part in samples)
        with torch.no_grad():
            return float(loss(net(feature), label))

    train, fresh = functions(300), functions(100)
    before = error(fresh)
    report = convex_init_(
        net,
        DataLoader(TensorDataset(*train), BATCH),
        forward=lambda net, data: net(data.swapaxes(0, 1)),
        loss=loss,
        readout="membrane_per_step",
        progress=False,
    )
    assert report.exactness.label == "exact"
    assert error(fresh) < 0.1 * before
    # Both are of samples that the readout was not fitted on, the report's of 60.
    assert 2 * report.loss_after == pytest.approx(error(fresh), rel=0.5)
