"""The one line on the digits: what it promises, what it writes and leaves alone, and its options."""

import copy

import pytest
import torch

from snn_recon_plugin import ConvexInitializer, Report, convex_init_

from .helpers import (
    TRAIN,
    accuracy,
    batches,
    check_certificate,
    chosen,
    data_loader,
    divided,
    features,
    hidden_spikes,
    mean_filter,
    mean_membrane,
    test_data,
    train_data,
    values,
)
from .nets import HIDDEN, TwoHeads, loop_net
from .user_nets.more_nets import Tokens


def test_one_line_on_the_digits():
    net = loop_net()
    before = accuracy(net)
    report = convex_init_(net, data_loader(), hidden="keep")
    assert isinstance(report, Report)
    assert before <= 0.3
    assert accuracy(net) >= 0.86
    assert report.accuracy_before <= 0.3
    assert report.accuracy_after >= 0.85
    assert report.accuracy_written >= report.accuracy_after
    assert report.solved.loss < 0.5 < report.after.loss < report.before.loss
    assert report.exactness.label == "exact"
    assert report.exactness.max_difference <= 1e-4
    assert (report.program.samples, report.after.samples, report.before.samples) == (TRAIN, TRAIN // 5, TRAIN // 5)
    assert report.certificate.tol == 1e-6
    check_certificate(report, net)
    # The network computes the program's scores on new samples too.
    inputs, _ = test_data()
    gain = float(mean_filter().sum())
    promised = features(net.fc1, inputs) @ net.fc2.weight.detach().double().T + gain * net.fc2.bias.detach().double()
    assert float((mean_membrane(net, inputs).double() - promised).abs().max()) <= 1e-4
    # The report's own figures are those of the written network on the training data.
    inputs, labels = train_data()
    scores = mean_membrane(net, inputs)
    assert report.accuracy_written == pytest.approx(float((scores.argmax(1) == labels).double().mean()), abs=1e-12)
    assert report.exactness.scale == pytest.approx(float(scores.abs().max()), rel=1e-5)
    assert report.exactness.samples == TRAIN


def test_rescaling_revives_a_silent_net():
    healthy, silent = loop_net(), divided(loop_net())
    own, (inputs, _) = copy.deepcopy(silent), train_data()
    assert not hidden_spikes(silent.fc1, inputs).any()
    convex_init_(healthy, data_loader(), hidden="keep")
    report = convex_init_(silent, data_loader(), hidden="rescale")
    (layer,) = report.layers
    assert layer.gain > 5
    for name in ("weight", "bias"):
        assert torch.equal(getattr(silent.fc1, name), getattr(own.fc1, name) * layer.gain)
    rate = float(hidden_spikes(silent.fc1, inputs).mean())
    assert (layer.before.firing_rate, layer.before.silent) == (0.0, 1.0)
    assert 0.005 < rate < 0.5
    assert layer.stats.firing_rate == pytest.approx(rate, rel=1e-6)
    assert accuracy(silent) >= accuracy(healthy) - 0.04
    check_certificate(report, silent)


def test_defaults_and_repr():
    expected = "ConvexInitializer(hidden='auto', loss='cross_entropy', penalty='ridge', strength='auto', readout='auto', tol=1e-06)"
    assert repr(ConvexInitializer()) == expected
    shown = repr(ConvexInitializer(hidden="keep", strength=0.01, tol=1e-7))
    for default, given in (("hidden='auto'", "hidden='keep'"), ("strength='auto'", "strength=0.01"), ("1e-06", "1e-07")):
        expected = expected.replace(default, given)
    assert shown == expected


@pytest.mark.parametrize(
    ("loss", "bias", "penalty", "strength"),
    [("cross_entropy", True, "group_l1", 8e-3), ("squared", True, "l1", 8e-3), ("logistic", False, "ridge", 2e-3)],
)
def test_losses_and_penalties(loss, bias, penalty, strength):
    net = loop_net(bias=bias)
    report = convex_init_(net, batches(300), hidden="keep", loss=loss, penalty=penalty, strength=strength)
    program = report.program
    assert (report.loss, program.loss, program.penalty, program.strength, program.path) == (loss, loss, penalty, strength, None)
    assert accuracy(net) >= 0.7
    check_certificate(report, net, penalty, count=300)
    active = (net.fc2.weight.detach() != 0).any(0)
    assert (report.program.active_neurons, report.program.hidden_neurons) == (int(active.sum()), HIDDEN)
    assert (torch.tensor(report.program.neuron_sizes) > 0).tolist() == active.tolist()
    assert (0 < report.program.active_neurons < HIDDEN) or penalty == "ridge"


def test_strength_auto_is_the_best_of_its_path():
    net, again, options = loop_net(), loop_net(), {"hidden": "keep", "penalty": "group_l1"}
    best = convex_init_(net, batches(), **options)
    losses = {point.strength: point.heldout_loss for point in best.program.path}
    assert len(losses) >= 4
    assert losses[best.program.strength] == chosen(best).heldout_loss == min(losses.values())
    assert best.solved.loss == pytest.approx(min(losses.values()), rel=1e-12)  # the same numbers, added up in another order
    # Typed in by hand, a strength gives the same program, and a solution as good.
    given = convex_init_(again, batches(), **options, strength=best.program.strength)
    best.write_solved()
    assert given.certificate.primal == pytest.approx(best.certificate.primal, rel=1e-5)
    assert torch.allclose(again.fc2.weight, net.fc2.weight, atol=0.05 * float(net.fc2.weight.detach().abs().max()))


@pytest.mark.parametrize(("tol", "holdout"), [(1e-3, 0.1), (1e-8, 0.5)])
def test_the_gap_and_the_held_out_share_that_were_asked_for(tol, holdout):
    report = convex_init_(loop_net(), batches(300), hidden="keep", strength=1e-3, tol=tol, holdout=holdout)
    assert report.certificate.tol == tol
    # A network in float32 holds 7 digits: what rounding costs is in the certificate, and it is said where that is too much.
    assert report.certificate.reached is (report.certificate.relative_gap <= tol)
    assert report.certificate.relative_gap <= max(tol, 1e-7)
    assert (report.program.samples, report.after.samples) == (300, 300 * holdout)


def test_readout_layer_picks_one_of_several():
    torch.manual_seed(0)
    net = TwoHeads()
    before = values(net)
    loader = [(inputs, labels % 3) for inputs, labels in batches(200)]
    report = convex_init_(net, loader, hidden="keep", readout_layer="fc3", strength=1e-3)
    after = values(net)
    assert report.readout.name == "fc3"
    assert {name for name in before if before[name] != after[name]} == {"fc3.weight", "fc3.bias"}


def test_a_linear_over_tokens_keeps_its_rows():
    torch.manual_seed(0)
    images = [(inputs.view(-1, 8, 8), labels) for inputs, labels in batches(200)]
    (layer,) = convex_init_(Tokens(), images, hidden="reconstruct", strength=1e-3).layers
    assert layer.witnesses is None
    assert "one input a sample and step, as with tokens" in layer.reason
