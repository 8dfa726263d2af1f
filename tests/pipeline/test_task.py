"""Readouts that are not exact, and losses that say how values over time are read: end to end on the digits."""

import functools
import math

import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import DataError, NetworkError, OptionError, UnsupportedModuleError, WriteError

from ..helpers import CLASSES, HIDDEN, PIXELS, assert_as_before, batches, lived_in, snapshot, test_data, train_data

OPTIONS = {"hidden": "keep", "strength": 1e-4}
STEPS = 20  # a spike count over fewer steps is too coarse to follow a score closely


class Net(nn.Module):
    """What forward returns is decided by a function of spikes and membranes over time."""

    def __init__(self, returns, reset="none", outputs=CLASSES, bias=True):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(PIXELS, HIDDEN), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, outputs, bias=bias), snn.Leaky(beta=0.9, reset_mechanism=reset)
        self.returns = returns

    def forward(self, x):
        mem1, mem2, spikes, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), [], []
        for _ in range(STEPS):
            spk, mem1 = self.lif1(self.fc1(x), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            spikes.append(spk)
            membranes.append(mem2)
        return self.returns(torch.stack(spikes), torch.stack(membranes))


def both(spk, mem):
    return spk, mem


def membranes(spk, mem):
    return mem


def build(returns=both, **options):
    torch.manual_seed(0)
    return Net(returns, **options)


def accuracy(net, decode):
    inputs, labels = test_data()
    with torch.no_grad():
        return float((decode(net(inputs)).argmax(1) == labels).double().mean())


# -- what is written, and what the report says of it -----------------------------------------------------------------------


@functools.cache
def linear_accuracy(readout="membrane_mean"):
    """Of the same net without a reset, on test data: what a readout that follows the linear score may lose little of."""
    net = build(membranes)
    convex_init_(net, batches(), readout=readout, **OPTIONS)
    return accuracy(net, lambda mem: mem[-1] if readout == "membrane_last" else mem.mean(0))


SURROGATES = {
    "spike count": ({"reset": "subtract"}, both, "spike_count", lambda out: out[0].sum(0)),
    "spike count, reset to zero": ({"reset": "zero"}, both, "spike_count", lambda out: out[0].sum(0)),
    "spike rate": ({"reset": "subtract"}, lambda spk, mem: spk.mean(0), "spike_rate", lambda out: out),
    "resetting membrane": ({"reset": "subtract"}, membranes, "membrane_mean", lambda out: out.mean(0)),
    "without a bias": ({"reset": "subtract", "bias": False}, both, "spike_count", lambda out: out[0].sum(0)),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_a_surrogate_follows_the_linear_score(name):
    options, returns, kind, decode = SURROGATES[name]
    net = build(returns, **options)
    report = convex_init_(net, batches(), **OPTIONS)
    assert (report.readout_kind, report.exactness.label) == (kind, "surrogate")
    own = accuracy(net, decode)
    assert own > linear_accuracy() - 0.02
    assert report.exactness.agreement > 0.95
    assert report.exactness.weight_scale > 0
    assert abs(report.accuracy_after - report.linear_accuracy) < 0.06
    assert report.certificate.reached
    inputs, labels = train_data()
    with torch.no_grad():
        assert report.accuracy_written == pytest.approx(float((decode(net(inputs)).argmax(1) == labels).double().mean()))


def test_the_certificate_is_that_of_the_linear_score_of_the_written_weights():
    """The same program as without a reset: scale and shift taken back, the written point has the exact net's objective."""
    surrogate, exact = build(both, reset="subtract"), build(membranes)
    found, known = (convex_init_(net, batches(), **OPTIONS) for net in (surrogate, exact))
    assert found.certificate.primal == pytest.approx(known.certificate.primal, abs=1e-6)
    scale, shift = found.exactness.weight_scale, found.exactness.bias_shift
    assert torch.allclose(surrogate.fc2.weight / scale, exact.fc2.weight, atol=1e-4)
    assert torch.allclose((surrogate.fc2.bias - shift) / scale, exact.fc2.bias, atol=1e-3)


def test_the_table_tells_a_surrogate_from_an_exact_readout():
    text = str(convex_init_(build(both, reset="subtract"), batches(), **OPTIONS))
    assert "surrogate: decides like the linear score for" in text
    assert "times the solution, every bias shifted by" in text
    assert "(the linear score:" in text
    assert "the linear score, before scale, shift and refinement" in text
    assert "linear score" not in str(convex_init_(build(membranes), batches(), **OPTIONS))


def test_a_maximum_over_time_is_majorised():
    net = build(lambda spk, mem: mem.amax(0))
    report = convex_init_(net, batches(), **OPTIONS)
    assert (report.readout_kind, report.exactness.label) == ("membrane_max", "majorised")
    assert report.exactness.weight_scale == 1.0
    assert accuracy(net, lambda out: out) > linear_accuracy("membrane_last") - 0.01


def test_a_maximum_is_refined_where_held_out_samples_gain(monkeypatch):
    """With the linear score taken for different at any distance, a refinement that lowers the held-out loss is written."""
    monkeypatch.setattr("snn_recon_plugin.pipeline.calibrate._SAME", 0.0)
    plain = convex_init_(build(lambda spk, mem: mem.amax(0)), batches(), hidden="keep", strength=1e-3)
    assert plain.exactness.refined
    monkeypatch.setattr("snn_recon_plugin.pipeline.calibrate._SAME", 1e9)
    kept = convex_init_(build(lambda spk, mem: mem.amax(0)), batches(), hidden="keep", strength=1e-3)
    assert not kept.exactness.refined
    assert plain.loss_after < kept.loss_after
    assert "then refined on the true objective" in str(plain)
    assert plain.certificate.primal == pytest.approx(kept.certificate.primal, abs=1e-6)


def test_a_net_that_ends_in_log_softmax():
    net = build(lambda spk, mem: mem.mean(0).log_softmax(1))
    plain = build(membranes)
    report, known = convex_init_(net, batches(), loss=nn.NLLLoss(), **OPTIONS), convex_init_(plain, batches(), **OPTIONS)
    assert (report.readout_kind, report.exactness.label) == ("membrane_mean", "exact")
    assert torch.equal(net.fc2.weight, plain.fc2.weight)
    assert report.accuracy_written == known.accuracy_written
    assert report.loss_before == pytest.approx(known.loss_before, rel=1e-5)


# -- losses of values over time ---------------------------------------------------------------------------------------------

KINDS = {
    "rate": (SF.ce_rate_loss(), membranes, {}, "membrane_per_step"),
    "count": (SF.ce_count_loss(), membranes, {}, "membrane_sum"),
    "maximum": (SF.ce_max_membrane_loss(), membranes, {}, "membrane_max"),
    "squared count": (SF.mse_count_loss(0.8, 0.2), membranes, {}, "membrane_sum"),
    "squared membrane": (SF.mse_membrane_loss(), membranes, {}, "membrane_per_step"),
    "rate of spikes": (SF.ce_rate_loss(), both, {"reset": "subtract"}, "spike_count"),
    "count of spikes without a reset": (SF.ce_count_loss(), both, {}, "spike_count"),
    "squared count of spikes": (SF.mse_count_loss(0.8, 0.2), both, {}, "spike_count"),
    "maximum beside spikes": (SF.ce_max_membrane_loss(), both, {"reset": "subtract"}, "membrane_max"),
    "squared membrane beside spikes": (SF.mse_membrane_loss(), both, {}, "membrane_per_step"),
    "rate of a resetting membrane": (SF.ce_rate_loss(), membranes, {"reset": "subtract"}, "membrane_mean"),
    "count of a resetting membrane": (SF.ce_count_loss(), membranes, {"reset": "subtract"}, "membrane_sum"),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_says_how_values_over_time_are_read(name):
    loss, returns, options, kind = KINDS[name]
    report = convex_init_(build(returns, **options), batches(300), loss=loss, hidden="keep", strength=1.0)
    assert report.readout_kind == kind
    assert report.loss == type(loss).__name__


def test_a_readout_that_was_asked_for_wins():
    options = {"loss": SF.ce_rate_loss(), "readout": "membrane_last", **OPTIONS}
    assert convex_init_(build(membranes), batches(300), **options).readout_kind == "membrane_last"


def test_a_loss_over_time_for_a_net_that_returns_scores():
    with pytest.raises(OptionError, match="ce_count_loss, which takes values over time") as caught:
        convex_init_(build(lambda spk, mem: mem.mean(0)), batches(300), loss=SF.ce_count_loss(), **OPTIONS)
    assert "membrane_sum" in caught.value.needed


def test_a_loss_of_scores_for_a_net_that_returns_log_probabilities():
    with pytest.raises(OptionError, match="log_softmax of its scores") as caught:
        convex_init_(build(lambda spk, mem: mem.mean(0).log_softmax(1)), batches(300), loss="squared", **OPTIONS)
    assert "NLLLoss" in caught.value.fix


def one_hot(labels):
    return nn.functional.one_hot(labels, CLASSES).float()


# Name: the loss, and its value for membranes over time and labels, with torch's own code.
TRAINED = {
    "mean": (nn.CrossEntropyLoss(), lambda mem, y: nn.functional.cross_entropy(mem.mean(0), y)),
    "weighted": (
        nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, CLASSES)),
        lambda mem, y: nn.functional.cross_entropy(mem.mean(0), y, weight=torch.linspace(0.5, 2, CLASSES)),
    ),
    "each step": (SF.ce_rate_loss(), SF.ce_rate_loss()),
    "count": (SF.ce_count_loss(), SF.ce_count_loss()),
    "squared count": (SF.mse_count_loss(0.8, 0.2), SF.mse_count_loss(0.8, 0.2)),
    "squared membrane": (SF.mse_membrane_loss(), SF.mse_membrane_loss()),
    "squared": (nn.MSELoss(), lambda mem, y: nn.functional.mse_loss(mem.mean(0), one_hot(y))),
    "squared margin": (nn.MultiMarginLoss(p=2), lambda mem, y: nn.functional.multi_margin_loss(mem.mean(0), y, p=2)),
}


@pytest.mark.parametrize("name", TRAINED)
def test_training_takes_over_at_the_minimum_of_its_own_loss(name):
    """The gradient of the user's loss in the readout, by autograd through the net, against that at the default init."""
    loss, value = TRAINED[name]
    net, (inputs, labels) = build(membranes), train_data()

    def gradient():
        net.zero_grad()
        value(net(inputs), labels).backward()
        return torch.cat([net.fc2.weight.grad.flatten(), net.fc2.bias.grad]).norm()

    before = gradient()
    report = convex_init_(net, batches(), loss=loss, hidden="keep", strength=1e-6)
    assert report.exactness.label == "exact"
    # What is left is the penalty's own gradient, which this strength makes small.
    assert gradient() <= 1e-3 * before


def test_class_weights_move_the_solution_towards_their_classes():
    plain, weighted = build(membranes), build(membranes)
    weight = torch.ones(CLASSES)
    weight[8] = 50.0
    options = {"hidden": "keep", "strength": 0.1}
    convex_init_(plain, batches(), **options)
    convex_init_(weighted, batches(), loss=nn.CrossEntropyLoss(weight=weight), **options)
    inputs, labels = test_data()
    found = [float((net(inputs).mean(0).argmax(1) == 8)[labels == 8].double().mean()) for net in (plain, weighted)]
    assert found[1] > found[0]


def test_regression_of_two_values():
    inputs, labels = train_data()
    targets = torch.stack([labels % 2, labels // 5], 1).float()
    net = build(membranes, outputs=2)
    report = convex_init_(net, [(inputs, targets)], loss=nn.MSELoss(), **OPTIONS)
    assert report.exactness.label == "exact"
    with torch.no_grad():
        own = float((net(inputs).mean(0) - targets).square().mean())
    assert own < 0.5 * float((targets - targets.mean(0)).square().mean())
    assert math.isnan(report.accuracy_written)


# -- functions of the user ------------------------------------------------------------------------------------------------


def test_a_function_whose_scores_are_linear_is_exact():
    scale = torch.linspace(1, 2, STEPS)
    net = build(both)
    report = convex_init_(net, batches(), scores=lambda out: torch.einsum("t,tbc->bc", scale, out[1]), **OPTIONS)
    assert (report.readout_kind, report.exactness.label) == ("custom", "exact")


def test_a_function_of_late_spikes():
    def late(out):
        return out[0][3:].sum(0)

    net = build(both, reset="subtract")
    report = convex_init_(net, batches(), scores=late, **OPTIONS)
    assert (report.readout_kind, report.exactness.label) == ("custom", "surrogate")
    assert accuracy(net, late) > linear_accuracy() - 0.03


# -- errors, and what is left behind ----------------------------------------------------------------------------------------


def refused(net, error, *words, loader=None, **options):
    lived_in(net)
    before = snapshot(net)
    with pytest.raises(error) as caught:
        convex_init_(net, batches(300) if loader is None else loader, **{**OPTIONS, **options})
    assert_as_before(net, before)
    for word in words:
        assert word in str(caught.value)


def test_a_single_spiking_output():
    net = build(both, reset="subtract", outputs=1)
    loader = [(inputs, (labels > 4).long()) for inputs, labels in batches(300)]
    refused(net, DataError, "two outputs", loader=loader, loss="logistic")


def test_every_step_of_a_resetting_membrane():
    refused(build(both, reset="subtract"), UnsupportedModuleError, "membrane_per_step", "resets", readout="membrane_per_step")


def test_every_step_of_a_neuron_that_moves_to_a_rest_above_zero():
    import norse.torch as norse

    neuron = norse.LI(p=norse.LIParameters(v_leak=torch.tensor(0.3)))
    net = norse.SequentialState(nn.Linear(PIXELS, 16), norse.LIF(), nn.Linear(16, CLASSES), neuron)
    options = {"forward": over_time(STEPS), "readout": "membrane_per_step", "strength": 1e-3}
    with pytest.raises(UnsupportedModuleError, match="drifts to a resting value"):
        convex_init_(net, batches(300), **options)
    report = convex_init_(net, batches(300), **{**options, "readout": "membrane_mean"})
    assert report.exactness.label == "exact"


def test_a_function_that_gives_no_scores():
    refused(build(both), NetworkError, "scores of shape", scores=lambda out: out[1])


def test_a_function_that_uses_more_than_the_output_neuron():
    def returns(spk, mem):
        return spk, spk.mean((0, 2))

    refused(
        build(returns, reset="subtract"),
        UnsupportedModuleError,
        "looks at more",
        scores=lambda out: out[0][3:].sum(0) + out[1][:, None],
    )


def test_scores_must_be_a_function():
    with pytest.raises(OptionError, match="scores=3"):
        convex_init_(build(), batches(300), scores=3)


def test_a_surrogate_that_does_not_do_what_was_simulated(monkeypatch):
    simulate = __import__("snn_recon_plugin.pipeline.calibrate", fromlist=["own_scores"]).own_scores
    monkeypatch.setattr("snn_recon_plugin.pipeline.calibrate.own_scores", lambda *args: simulate(*args).flip(1))
    refused(build(both, reset="subtract"), WriteError, "differ from those promised")


@pytest.mark.parametrize("returns", [both, lambda spk, mem: mem.amax(0)], ids=["spikes", "maximum"])
def test_values_to_regress_where_only_decisions_can_be_followed(returns):
    loader = [(inputs, one_hot(labels)) for inputs, labels in batches(300)]
    reset = "subtract" if returns is both else "none"
    refused(build(returns, reset=reset), DataError, "one class index a sample", loader=loader, loss=nn.MSELoss())


def test_an_error_while_the_guard_puts_things_back(monkeypatch):
    """The write is complete by then, but the user holds no report to undo it with."""
    from snn_recon_plugin.networks import guard

    net = build(membranes)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}

    def interrupted(self, but=()):
        raise KeyboardInterrupt

    monkeypatch.setattr(guard.ModuleState, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convex_init_(net, batches(300), **OPTIONS)
    assert all(torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())


def test_few_held_out_samples_are_judged_without_those_that_were_fitted():
    report = convex_init_(build(both, reset="subtract"), batches(60, 30), **OPTIONS)
    assert (report.heldout_before, report.heldout) == (12, 12)
    assert report.exactness.samples == 60


def test_a_loss_weighted_by_class_is_reported_so_and_not_refined_without_its_weights(monkeypatch):
    monkeypatch.setattr("snn_recon_plugin.pipeline.calibrate._SAME", 0.0)
    weight = torch.ones(CLASSES)
    weight[3] = 20.0
    loss = nn.CrossEntropyLoss(weight=weight)
    maximum = convex_init_(build(lambda spk, mem: mem.amax(0)), batches(), loss=loss, hidden="keep", strength=1e-3)
    assert not maximum.exactness.refined
    net = build(membranes)
    inputs, labels = train_data()
    with torch.no_grad():
        everywhere = float(loss(net(inputs).mean(0), labels))
    report = convex_init_(net, batches(), loss=loss, holdout=0.5, **OPTIONS)
    plain = convex_init_(build(membranes), batches(), holdout=0.5, **OPTIONS)
    assert abs(report.loss_before - everywhere) < abs(plain.loss_before - everywhere)


@pytest.mark.parametrize("name", SURROGATES)
def test_undo_bit_for_bit(name):
    options, returns, _, _ = SURROGATES[name]
    net = lived_in(build(returns, **options))
    before, again = snapshot(net), snapshot(net)
    report = convex_init_(net, batches(300), **OPTIONS)
    assert_as_before(net, before, written=[name for name, _ in net.named_parameters() if name.startswith("fc2")])
    report.undo()
    assert_as_before(net, again)


def test_the_same_bits_each_time():
    nets = [build(both, reset="subtract") for _ in range(2)]
    for net in nets:
        convex_init_(net, batches(300), **OPTIONS)
    assert torch.equal(nets[0].fc2.weight, nets[1].fc2.weight)
    assert torch.equal(nets[0].fc2.bias, nets[1].fc2.bias)
