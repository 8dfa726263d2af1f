"""Readouts that are not exact: scaled and shifted until they decide as the linear score does, or refined."""

import math

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import WriteError
from snn_recon_plugin.networks.private.workbench import private_copy
from snn_recon_plugin.networks.readout.output_neuron import Calibration, own_scores
from snn_recon_plugin.options import Options
from snn_recon_plugin.stages import calibrate
from snn_recon_plugin.stages.calibrate import LARGEST, choose_factor, relative_size
from snn_recon_plugin.stages.initialize import initialize_network
from snn_recon_plugin.stages.run import DIAGNOSE, REFIT, START

from ..helpers import (
    CLASSES,
    assert_as_before,
    batches,
    lived_in,
    loop_net,
    mean_membrane,
    one_line,
    refused,
    snapshot,
    test_data,
    train_data,
)
from ..nets import BETA, membranes_of, shallow, spikes_and_membranes

OPTIONS = {"hidden": "keep", "strength": 1e-4}
LINEAR = 0.855  # test accuracy of the same net without a reset
# Class weights of 1 change nothing but that a maximum is not refined.
UNREFINED = nn.CrossEntropyLoss(weight=torch.ones(CLASSES))


def counts(out):
    return out[0].sum(0)


SURROGATES = {
    "spike count": ({"reset_mechanism": "subtract"}, spikes_and_membranes, "spike_count", counts),
    "spike count, reset to zero": ({"reset_mechanism": "zero"}, spikes_and_membranes, "spike_count", counts),
    "spike rate": ({"reset_mechanism": "subtract"}, lambda spk, mem: spk.mean(0), "spike_rate", lambda out: out),
    "resetting membrane": ({"reset_mechanism": "subtract"}, membranes_of, "membrane_mean", lambda out: out.mean(0)),
    "without a bias": ({"reset_mechanism": "subtract", "bias": False}, spikes_and_membranes, "spike_count", counts),
}


def counting():
    return shallow(spikes_and_membranes, reset_mechanism="subtract")


def fading_maximum():
    """A net whose maximum over time is far from its last membrane, since the output neuron forgets."""
    return shallow(lambda spk, mem: mem.amax(0), beta=0.3)


def accuracy(net, decode, data):
    inputs, labels = data
    with torch.no_grad():
        return float((decode(private_copy(net)(inputs)).argmax(1) == labels).double().mean())


@pytest.mark.parametrize(
    "name", [name if name != "spike count" else pytest.param(name, marks=pytest.mark.slow) for name in SURROGATES]
)
def test_a_surrogate_follows_the_linear_score_and_is_undone_bit_for_bit(name):
    options, returns, kind, decode = SURROGATES[name]
    net = lived_in(shallow(returns, **options))
    before, again = snapshot(net), snapshot(net)
    report = convex_init_(net, batches(), **OPTIONS)
    assert_as_before(net, before, written=[name for name, _ in net.named_parameters() if name.startswith("fc2")])
    assert (report.readout.kind, report.exactness.label) == (kind, "surrogate")
    assert accuracy(net, decode, test_data()) > LINEAR - 0.02
    assert report.exactness.agreement > 0.94
    assert report.exactness.weight_scale > 0
    assert abs(report.accuracy_after - report.after.linear_accuracy) < 0.06
    assert report.certificate.reached
    assert report.accuracy_written == pytest.approx(accuracy(net, decode, train_data()))
    report.undo()
    assert_as_before(net, again)


def test_the_certificate_is_that_of_the_linear_score_of_the_written_weights():
    """The same program as without a reset: scale and shift taken back, the written point has the exact net's objective."""
    surrogate, again, exact = counting(), counting(), shallow()
    found, _, known = (convex_init_(net, batches(300), **OPTIONS) for net in (surrogate, again, exact))
    assert found.certificate.primal == pytest.approx(known.certificate.primal, abs=1e-6)
    scale, shift = found.exactness.weight_scale, found.exactness.bias_shift
    assert torch.allclose(surrogate.fc2.weight / scale, exact.fc2.weight, atol=1e-4)
    assert torch.allclose((surrogate.fc2.bias - shift) / scale, exact.fc2.bias, atol=1e-3)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in surrogate.state_dict().items())
    for words in ("surrogate: decides like the linear score for", "the solution times", ", every bias shifted by"):
        assert words in one_line(found)
    for words in ("objective of the linear score within", "of the linear score, before scale, shift and refinement"):
        assert words in one_line(found)
    assert "linear score" not in known.details()


def test_a_maximum_far_from_the_linear_score_is_refined():
    refined = convex_init_(fading_maximum(), batches(300), **OPTIONS)
    kept = convex_init_(fading_maximum(), batches(300), loss=UNREFINED, **OPTIONS)
    assert (refined.exactness.refined, kept.exactness.refined) == (True, False)
    assert (kept.readout.kind, kept.exactness.label, kept.exactness.weight_scale) == ("membrane_max", "majorised", 1.0)
    assert refined.after.loss < kept.after.loss
    assert "then refined on the true objective" in one_line(refined)
    assert refined.certificate.primal == pytest.approx(kept.certificate.primal, abs=1e-6)


def refitted_maximum(shift=0):
    """The net and the report of a refit whose first 100 samples are validation data; the last one's label is shifted."""
    net, pairs = fading_maximum(), batches(300, 100)
    pairs[0][1][-1] = (pairs[0][1][-1] + shift) % CLASSES
    return net, initialize_network(
        net, pairs[1:], Options(hidden="keep", strength=1e-3), REFIT, val_loader=pairs[:1], fit_val=False
    )


def test_a_maximum_is_not_refined_on_validation_data(monkeypatch):
    (net, report), (other, same) = refitted_maximum(), refitted_maximum(shift=1)
    assert (report.exactness.refined, same.exactness.refined) == (True, True)
    assert report.solved.loss != same.solved.loss
    assert torch.equal(net.fc2.weight, other.fc2.weight)
    monkeypatch.setattr("snn_recon_plugin.stages.collect._KEPT_SAMPLES", 100)  # spikes of the validation data alone
    assert not refitted_maximum()[1].exactness.refined


def test_a_sparse_readout_keeps_its_zeros():
    net = fading_maximum()
    report = convex_init_(net, batches(), hidden="keep", strength=1e-3, penalty="l1")
    assert not report.exactness.refined
    assert float((net.fc2.weight == 0).double().mean()) > 0.2


def test_a_surrogate_that_does_not_do_what_was_simulated(monkeypatch):
    monkeypatch.setattr(calibrate, "own_scores", lambda *args: own_scores(*args).flip(1))
    refused(counting(), batches(300), WriteError, "differ from those promised", **OPTIONS)


def test_few_held_out_samples_are_judged_without_those_that_were_fitted():
    report = convex_init_(counting(), batches(60, 30), **OPTIONS)
    assert (report.before.samples, report.after.samples) == (12, 12)
    assert report.exactness.samples == 60


def test_each_half_of_the_held_out_samples_is_judged_by_the_numbers_chosen_on_the_other(monkeypatch):
    scales, chosen, judged = [1.0, 2.0, 4.0], [], []  # of all, of the first half, and of the second

    def choose(readout, neuron, currents, *, sets, **options):
        chosen.extend(currents[:, some] for some in sets)
        return [Calibration(scale, 0.0, 0.0) for scale in scales]

    def score(readout, neuron, currents):
        judged.append(currents)
        return own_scores(readout, neuron, currents)

    monkeypatch.setattr(calibrate, "calibrate", choose)
    monkeypatch.setattr(calibrate, "own_scores", score)
    convex_init_(counting(), batches(), **{**OPTIONS, "strength": 0.1})
    torch.testing.assert_close(judged[0] / scales[1], chosen[2])
    torch.testing.assert_close(judged[1] / scales[2], chosen[1])


# -- factor of the written readout ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("size", "accuracies", "factor"),
    [
        (0.5, (0.9, 0.9, 0.9), 1.0),
        (3.0, (0.9, 0.9, 0.9), 1.0),
        (3.1, (0.9, 0.9, 0.9), 0.5),
        (6.0, (0.9, 0.9, 0.9), 0.5),
        (6.1, (0.9, 0.9, 0.9), 0.25),
        (100.0, (0.9, 0.9, 0.9), 0.25),  # halved at most twice
        (100.0, (0.9, 0.896, 0.896), 0.25),
        (100.0, (0.9, 0.896, 0.894), 0.5),
        (100.0, (0.9, 0.894, 0.9), 1.0),  # the second is not tried
        (100.0, (0.9, math.nan, 0.9), 1.0),
        (100.0, (math.nan, math.nan, 0.9), 1.0),
    ],
)
def test_a_large_readout_is_halved_while_it_is_as_accurate_within_half_a_point(size, accuracies, factor):
    found = dict(zip((1.0, 0.5, 0.25), accuracies, strict=True))
    for given in (lambda tried: [found[tried]], lambda tried: [found[tried], 0.95], lambda tried: [0.95, found[tried]]):
        assert choose_factor(size, given) == factor


def test_a_fresh_layer_has_about_the_size_one():
    torch.manual_seed(0)
    layer = nn.Linear(200, 50)
    assert relative_size(layer.weight, layer.bias) == pytest.approx(1.0, abs=0.02)
    assert relative_size(2 * layer.weight, None) == pytest.approx(2.0, abs=0.02)


def size(net):
    return relative_size(net.fc2.weight, net.fc2.bias)


def test_an_exact_readout_decides_alike():
    net = loop_net(hidden=200)
    report = convex_init_(net, batches(), hidden="keep")
    assert report.factor in (0.5, 0.25)
    assert size(net) <= LARGEST or report.factor == 0.25
    smaller = mean_membrane(net, test_data()[0])
    assert report.accuracy_after == report.solved.accuracy
    assert report.after.loss > report.solved.loss
    report.write_solved()
    assert torch.equal(smaller, report.factor * mean_membrane(net, test_data()[0]))


def test_counts_of_spikes_decide_about_as_well():
    net = loop_net(hidden=200, steps=20, output=snn.Leaky(beta=BETA), decode=spikes_and_membranes)
    report = convex_init_(net, batches(), hidden="keep", fit_loss="squared_hinge", holdout=0.4)
    assert report.factor < 1
    assert report.accuracy_after >= report.solved.accuracy - 0.005
    assert report.exactness.agreement > 0.5  # of the smaller readout, which was verified
    assert torch.equal(net.fc2.weight, report.factor * report.solved_weights["fc2.weight"])
    report.write_solved()
    inputs, labels = train_data()
    solved = float((net(inputs)[0].sum(0).argmax(1) == labels).double().mean())
    assert report.accuracy_written >= solved - 0.005


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({"strength": 1e-5}, START),  # the caller determines the program
        ({"fit_loss": "same"}, START),
        ({"allow_tied": True}, START),  # perhaps another layer's
        ({"loss": nn.MSELoss()}, START),  # values keep their size
        ({}, DIAGNOSE),
    ],
    ids=["strength", "loss", "tied", "values", "not trained on"],
)
def test_other_large_readouts_are_written_as_they_were_solved(options, mode):
    net, data = loop_net(hidden=200), batches()
    if "loss" in options:
        data = [(inputs, 100 * nn.functional.one_hot(labels, CLASSES).float()) for inputs, labels in data]
    report = initialize_network(net, data, Options(hidden="keep", **options), mode)
    assert report.factor == 1.0
    assert size(net) > LARGEST
    assert torch.equal(net.fc2.weight, report.solved_weights["fc2.weight"])
    assert report.after.loss == report.solved.loss
