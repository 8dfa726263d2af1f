"""The nets of snnTorch's and Norse's tutorials: after the one line their own tests show the accuracy that the report shows."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import user_nets
from benchmarks.user_nets_common import Samples, digits
from snn_recon_plugin import convex_init_

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


class Function(nn.Module):
    """Regression I: the output's membrane follows a function of time."""

    def __init__(self):
        super().__init__()
        self.fc_in, self.lif1 = nn.Linear(1, HIDDEN), snn.Leaky(beta=0.9, threshold=1.0)
        self.fc_hidden, self.lif2 = nn.Linear(HIDDEN, HIDDEN), snn.Leaky(beta=0.9, threshold=1.0)
        self.fc_out = nn.Linear(HIDDEN, 1)
        self.li_out = snn.Leaky(beta=0.9, threshold=1.0, learn_beta=True, reset_mechanism="none")

    def forward(self, x):
        mem1, mem2, mem3, mem_rec = self.lif1.init_leaky(), self.lif2.init_leaky(), self.li_out.init_leaky(), []
        for step in x:
            spk1, mem1 = self.lif1(self.fc_in(step), mem1)
            spk2, mem2 = self.lif2(self.fc_hidden(spk1), mem2)
            _, mem3 = self.li_out(self.fc_out(spk2), mem3)
            mem_rec.append(mem3)
        return torch.stack(mem_rec)


def test_regression_1_follows_a_function_of_time():
    torch.manual_seed(0)
    net, loss = Function(), nn.MSELoss()

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
