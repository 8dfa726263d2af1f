"""The loss of a network, and comparisons by it."""

import gc
import math

import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef

from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.demo import build_network
from snn_recon_plugin.networks import Inspections
from snn_recon_plugin.training.measure import Judgement, sum_losses

from .runs import DATA, Module, validation

BATCH = [(DATA.train_inputs[:100], DATA.train_labels[:100])]


# -- judgements -----------------------------------------------------------------------------------------------------------


def sums(weight, own, *scaled):
    return torch.tensor([weight, 2.3 * weight, own, *scaled], dtype=torch.float64)


def test_sums_of_two_ranks_give_one_mean_at_one_temperature():
    """The best temperature of each rank alone is another."""
    one, two = sums(1.0, 6.0, 3.0, 1.0, 9.0), sums(3.0, 2.0, 1.0, 9.0, 9.0)
    assert Judgement.of_sums([one]) == (1.0, 6.0, 2.3)
    assert Judgement.of_sums([two]).loss == pytest.approx(1 / 3)
    assert Judgement.of_sums([one, two]) == pytest.approx((1.0, 2.0, 2.3))


def test_samples_without_weight_give_no_judgement():
    assert all(math.isnan(value) for value in Judgement.of_sums([sums(0.0, 0.0, 0.0)]))


@pytest.mark.parametrize(
    ("new", "old", "better"),
    [
        (0.9, 1.0, True),
        (1.0, 1.0, False),
        (1.1, 1.0, False),
        (math.nan, 1.0, False),
        (1.0, math.nan, True),
        (math.nan, math.nan, False),
    ],
)
def test_the_lower_loss_is_better_and_any_is_better_than_none(new, old, better):
    assert Judgement(new).beats(Judgement(old)) is better


# -- measure_loss -------------------------------------------------------------------------------------------------------


def test_a_loss_of_several_steps_is_the_mean_over_them():
    """One label a sample, and a loss at every step or of the mean."""
    net, found = Module().net, []
    membranes = net(BATCH[0][0]).detach()
    every = torch.stack([F.cross_entropy(step, BATCH[0][1]) for step in membranes]).mean()
    for options in ({"loss": SF.ce_rate_loss()}, {}):
        judged = Judgement.of_sums([sum_losses(net, BATCH, ConvexInitializer(**options))])
        assert judged.zero == pytest.approx(math.log(10))
        found.append(judged.own)
    assert found == pytest.approx([float(every), float(F.cross_entropy(membranes.mean(0), BATCH[0][1]))], rel=1e-5)
    assert found[0] != pytest.approx(found[1], rel=1e-3)


class Sequences(torch.nn.Module):
    """Inputs (T, batch, 64) to membranes at every step."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(64, 48), torch.nn.Linear(48, 10)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x):
        hidden, output, membranes = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for step in x:
            spikes, hidden = self.lif1(self.fc1(step), hidden)
            _, output = self.lif2(self.fc2(spikes), output)
            membranes.append(output)
        return torch.stack(membranes)


@pytest.mark.parametrize("weight", [None, torch.linspace(0.5, 2, 10)])
def test_batches_may_differ_in_their_number_of_steps(weight):
    net, options = Sequences(), ConvexInitializer(loss=SF.ce_rate_loss(weight=weight))
    batches = [(DATA.train_inputs[:50].expand(steps, 50, 64), DATA.train_labels[:50]) for steps in (4, 6)]
    one, two = (sum_losses(net, [batch], options) for batch in batches)
    assert torch.equal(sum_losses(net, batches, options), one + two)


def test_no_more_batches_are_read_than_needed():
    batches = list(zip(BATCH[0][0].split(10), BATCH[0][1].split(10), strict=True))
    assert sum_losses(Module().net, batches, ConvexInitializer(), samples=25)[0] == 30


def test_an_inspection_keeps_no_batch_in_memory():
    """It is kept for as long as training takes."""
    inputs = DATA.train_inputs[:100].clone()
    storage = StorageWeakRef(inputs.untyped_storage())
    net = Module().net
    sum_losses(net, [(inputs, DATA.train_labels[:100])], ConvexInitializer(), Inspections(net))
    del inputs
    gc.collect()
    assert storage.expired()


@pytest.mark.parametrize("loss", ["logistic", "cross_entropy"])
def test_the_scale_of_class_scores_does_not_count(loss):
    torch.manual_seed(0)
    net, options = build_network(64, 48, 10, 8), ConvexInitializer(hidden="keep", loss=loss, progress=False)
    options.initialize(net, validation()).write_solved()
    before = Judgement.of_sums([sum_losses(net, validation(), options)])
    with torch.no_grad():
        for parameter in net.fc2.parameters():
            parameter.mul_(2)
    after = Judgement.of_sums([sum_losses(net, validation(), options)])
    assert after.own != pytest.approx(before.own, rel=0.01)
    assert after.loss == pytest.approx(before.loss, rel=1e-3)


def test_values_have_no_temperature():
    net, labels = build_network(64, 48, 1, 8), (BATCH[0][1] % 2)[:, None].float()
    found = Judgement.of_sums([sum_losses(net, [(BATCH[0][0], labels)], ConvexInitializer(loss="squared"))])
    assert found.loss == pytest.approx(found.own, rel=1e-12)
