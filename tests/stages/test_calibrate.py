"""Readouts that are not exact: scaled and shifted until they decide as the linear score does, or refined."""

import pytest
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import WriteError
from snn_recon_plugin.networks import Calibration, own_scores
from snn_recon_plugin.stages import Context, Options, calibrate, initialize_network

from ..helpers import CLASSES, assert_as_before, batches, lived_in, one_line, refused, snapshot, train_data
from .nets import OPTIONS, accuracy, both, build, linear_accuracy, membranes

# Class weights of 1 change nothing but that a maximum is not refined.
UNREFINED = nn.CrossEntropyLoss(weight=torch.ones(CLASSES))
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
    assert report.exactness.agreement > 0.94
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
    assert "the solution times" in text
    assert ", every bias shifted by" in text
    assert "(the linear score:" in text
    assert "the linear score, before scale, shift and refinement" in text
    assert "linear score" not in str(convex_init_(build(membranes), batches(), **OPTIONS))


def test_a_maximum_over_time_is_majorised():
    net = build(lambda spk, mem: mem.amax(0))
    report = convex_init_(net, batches(), loss=UNREFINED, **OPTIONS)
    assert (report.readout_kind, report.exactness.label) == ("membrane_max", "majorised")
    assert not report.exactness.refined
    assert report.exactness.weight_scale == 1.0
    assert accuracy(net, lambda out: out) > linear_accuracy("membrane_last") - 0.01


def fading_maximum():
    """A net whose maximum over time is far from its last membrane, since the output neuron forgets."""
    return build(lambda spk, mem: mem.amax(0), beta=0.3)


def test_a_maximum_far_from_the_linear_score_is_refined():
    options = {"hidden": "keep", "strength": 1e-3}
    refined = convex_init_(fading_maximum(), batches(), **options)
    kept = convex_init_(fading_maximum(), batches(), loss=UNREFINED, **options)
    assert (refined.exactness.refined, kept.exactness.refined) == (True, False)
    assert refined.loss_after < kept.loss_after
    assert "then refined on the true objective" in one_line(refined)
    assert refined.certificate.primal == pytest.approx(kept.certificate.primal, abs=1e-6)


def refitted_maximum(change=lambda labels: labels):
    """The net and the report of a refit whose first 100 samples are validation data, with other labels."""
    net, pairs = fading_maximum(), batches()
    pairs[0] = pairs[0][0], change(pairs[0][1])
    options, context = Options(hidden="keep", strength=1e-3), Context(warm_start=True, trains_on=False, held_first=100)
    return net, initialize_network(net, pairs, options, context)


def test_a_maximum_is_not_refined_on_validation_data():
    def change(labels):
        return torch.cat([labels[:99], (labels[99:] + 1) % CLASSES])

    (net, report), (other, same) = refitted_maximum(), refitted_maximum(change)
    assert (report.exactness.refined, same.exactness.refined) == (True, True)
    assert report.solved_loss != same.solved_loss
    assert torch.equal(net.fc2.weight, other.fc2.weight)


def test_a_maximum_without_spikes_of_other_samples_is_not_refined(monkeypatch):
    monkeypatch.setattr("snn_recon_plugin.stages.collect._KEPT_SAMPLES", 100)
    assert not refitted_maximum()[1].exactness.refined


def test_a_sparse_readout_keeps_its_zeros():
    net = fading_maximum()
    report = convex_init_(net, batches(), hidden="keep", strength=1e-3, penalty="l1")
    assert not report.exactness.refined
    assert float((net.fc2.weight == 0).double().mean()) > 0.2


def test_a_surrogate_that_does_not_do_what_was_simulated(monkeypatch):
    simulate = __import__("snn_recon_plugin.stages.calibrate", fromlist=["own_scores"]).own_scores
    monkeypatch.setattr("snn_recon_plugin.stages.calibrate.own_scores", lambda *args: simulate(*args).flip(1))
    refused(build(both, reset="subtract"), batches(300), WriteError, "differ from those promised", **OPTIONS)


def test_few_held_out_samples_are_judged_without_those_that_were_fitted():
    report = convex_init_(build(both, reset="subtract"), batches(60, 30), **OPTIONS)
    assert (report.heldout_before, report.heldout) == (12, 12)
    assert report.exactness.samples == 60


def test_a_loss_weighted_by_class_is_reported_so_and_not_refined_without_its_weights():
    weight = torch.ones(CLASSES)
    weight[3] = 20.0
    loss = nn.CrossEntropyLoss(weight=weight)
    maximum = convex_init_(fading_maximum(), batches(), loss=loss, hidden="keep", strength=1e-3)
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


def test_each_half_of_the_held_out_samples_is_judged_by_the_numbers_chosen_on_the_other(monkeypatch):
    scales, chosen, judged = [2.0, 4.0, 1.0], [], []  # of the first half, the second, and all

    def choose(readout, neuron, samples, **options):
        chosen.append(samples.currents)
        return Calibration(scales[len(chosen) - 1], 0.0, 0.0)

    def score(readout, neuron, currents):
        judged.append(currents)
        return own_scores(readout, neuron, currents)

    monkeypatch.setattr(calibrate, "calibrate", choose)
    monkeypatch.setattr(calibrate, "own_scores", score)
    convex_init_(build(both, reset="subtract"), batches(), **{**OPTIONS, "strength": 0.1})
    torch.testing.assert_close(judged[0] / scales[0], chosen[1])
    torch.testing.assert_close(judged[1] / scales[1], chosen[0])
