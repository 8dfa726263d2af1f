"""The loss of a network, and comparisons by it."""

import gc
import math

import pytest
import snntorch.functional as SF
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef

from snn_recon_plugin import ConvexInitializer
from snn_recon_plugin.demo import build_network
from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.training.measure import FEW, Judgement, WeightJudge

from ..nets import Sequence
from ..user_nets.more_nets import EveryStepNorm, behind
from .runs import DATA, Module, validation

INPUTS, LABELS = DATA.train_inputs[:100], DATA.train_labels[:100]
BATCH = [(INPUTS, LABELS)]


def judge(net, batches, **options):
    return Judgement.of_sums([WeightJudge(net, ConvexInitializer(**options)).sum_losses(batches)])


def sums(weight, own, *scaled):
    return torch.tensor([[weight, 2.3 * weight, own, *scaled]], dtype=torch.float64)


def test_sums_of_two_ranks_give_one_mean_at_one_temperature():
    """The best temperature of each rank alone is another; samples without weight give no judgement."""
    one, two = sums(1.0, 6.0, 3.0, 1.0, 9.0), sums(3.0, 2.0, 1.0, 9.0, 9.0)
    assert Judgement.of_sums([one]) == (1.0, 6.0, 2.3, None)
    assert Judgement.of_sums([two]).loss == pytest.approx(1 / 3)
    assert Judgement.of_sums([one, two])[:3] == pytest.approx((1.0, 2.0, 2.3))
    assert all(math.isnan(value) for value in Judgement.of_sums([sums(0.0, 0.0, 0.0)])[:3])


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


def test_few_samples_are_near_within_the_standard_error_of_their_differences():
    """Their mean loss alone decides from 100 samples on."""
    torch.manual_seed(0)
    noise = torch.randn(FEW, 1, dtype=torch.float64)
    assert abs(float(noise.mean())) < float(noise.std()) / 10

    def judged(losses):
        return Judgement.of_sums([torch.cat([torch.ones_like(losses), losses.expand(-1, 3)], 1)])

    few = judged(2 + noise[1:])
    assert few.is_near(judged(2 + noise[1:].roll(1, 0)))
    assert not few.is_near(judged(2.001 + noise[1:]))  # each sample is worse
    assert not judged(2 + noise).is_near(judged(2 + noise.roll(1, 0)))
    assert not few.is_near(Judgement())


def test_a_loss_of_several_steps_is_the_mean_over_them():
    """One label a sample, and a loss at every step or of the mean."""
    net = Module().net
    membranes = net(INPUTS).detach()
    every = torch.stack([F.cross_entropy(step, LABELS) for step in membranes]).mean()
    of_mean = F.cross_entropy(membranes.mean(0), LABELS)
    assert float(every) != pytest.approx(float(of_mean), rel=1e-3)
    for options, expected in (({"loss": SF.ce_rate_loss()}, every), ({}, of_mean)):
        judged = judge(net, BATCH, **options)
        assert judged.zero == pytest.approx(math.log(10))
        assert judged.own == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("weight", [None, torch.linspace(0.5, 2, 10)])
def test_batches_may_differ_in_their_number_of_steps(weight):
    judge = WeightJudge(Sequence(64, 48, 10), ConvexInitializer(loss=SF.ce_rate_loss(weight=weight)))
    batches = [(INPUTS[:50].expand(steps, 50, 64), LABELS[:50]) for steps in (4, 6)]
    one, two = (judge.sum_losses([batch]) for batch in batches)
    assert torch.equal(judge.sum_losses(batches), torch.cat([one, two]).sum(0, keepdim=True))


def test_no_more_batches_are_read_than_needed():
    batches = list(zip(INPUTS.split(10), LABELS.split(10), strict=True))
    judge = WeightJudge(Module().net, ConvexInitializer())
    assert judge.sum_losses(batches, samples=25)[:, 0].tolist() == [1.0] * 30
    assert judge.sum_losses([*batches, *batches], samples=120)[:, 0].tolist() == [120.0]


def test_a_norm_that_learnt_an_offset_is_measured_though_no_bias_could_cancel_it():
    """Only a solve needs the bias."""
    net = behind(torch.nn.BatchNorm1d(10), bias=False)
    before = WeightJudge(net, ConvexInitializer()).sum_losses(BATCH)
    with torch.no_grad():
        next(part for part in net.modules() if isinstance(part, torch.nn.BatchNorm1d)).bias.add_(torch.arange(10.0))
    assert not torch.equal(WeightJudge(net, ConvexInitializer()).sum_losses(BATCH), before)


def test_norms_that_come_to_differ_from_step_to_step_are_measured_but_not_solved():
    net = EveryStepNorm(trained=False)
    judge = WeightJudge(net, ConvexInitializer())
    before = judge.sum_losses(BATCH)
    with torch.no_grad():
        for number, norm in enumerate(net.norms):
            norm.weight.mul_(1 + number)
    assert not torch.equal(judge.sum_losses(BATCH), before)
    with pytest.raises(UnsupportedModuleError, match="by one factor and offset for each output, the same at all steps"):
        WeightJudge(net, ConvexInitializer()).sum_losses(BATCH)  # that never saw it otherwise


def test_an_inspection_keeps_no_batch_in_memory():
    """It is kept for as long as training takes."""
    judge, inputs = WeightJudge(Module().net, ConvexInitializer()), INPUTS.clone()
    storage = StorageWeakRef(inputs.untyped_storage())
    judge.sum_losses([(inputs, LABELS)])
    del inputs
    gc.collect()
    assert storage.expired()


@pytest.mark.parametrize("loss", ["logistic", "cross_entropy"])
def test_the_scale_of_class_scores_does_not_count(loss):
    torch.manual_seed(0)
    net, options = build_network(64, 48, 10, 8), {"hidden": "keep", "loss": loss, "strength": 0.01, "progress": False}
    ConvexInitializer(**options).initialize(net, validation()).write_solved()
    before = judge(net, validation(), **options)
    with torch.no_grad():
        for parameter in net.fc2.parameters():
            parameter.mul_(2)
    after = judge(net, validation(), **options)
    assert after.own != pytest.approx(before.own, rel=0.01)
    assert after.loss == pytest.approx(before.loss, rel=1e-3)


def test_a_squared_loss_of_classes_is_compared_by_cross_entropy_at_the_best_temperature():
    """It is large for counts whatever they decide; rows of values, as of one-hot labels, keep it."""
    net = build_network(64, 48, 10, 8)
    squared, entropy = (judge(net, BATCH, loss=loss) for loss in ("squared", "cross_entropy"))
    assert squared.loss == pytest.approx(entropy.loss, rel=1e-6)
    assert squared.own != pytest.approx(entropy.own, rel=0.1)
    rows = judge(net, [(INPUTS, F.one_hot(LABELS, 10).float())], loss="squared")
    assert (rows.loss, rows.own) == pytest.approx((squared.own, squared.own), rel=1e-6)


def test_values_have_no_temperature():
    found = judge(build_network(64, 48, 1, 8), [(INPUTS, (LABELS % 2)[:, None].float())], loss="squared")
    assert found.loss == pytest.approx(found.own, rel=1e-12)
