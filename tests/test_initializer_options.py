"""Options of the one line: each changes the program, or the net, as it says."""

import pytest
import torch
from torch import nn

from snn_recon_plugin import convex_init_

from .helpers import accuracy, batches, check_certificate, test_data, train_data, values
from .nets import HIDDEN, TwoHeads, loop_net


@pytest.mark.parametrize("penalty", ["ridge", "group_l1", "l1"])
@pytest.mark.parametrize(("loss", "bias"), [("cross_entropy", True), ("squared", True), ("logistic", False)])
def test_every_loss_with_every_penalty(loss, bias, penalty):
    net, strength = loop_net(bias=bias), 2e-3 if penalty == "ridge" else 8e-3
    report = convex_init_(net, batches(300), hidden="keep", loss=loss, penalty=penalty, strength=strength)
    assert (report.loss, report.fit_loss, report.penalty, report.strength, report.path) == (loss, loss, penalty, strength, None)
    assert accuracy(net) >= 0.75
    check_certificate(report, net, penalty, count=300)
    active = (net.fc2.weight.detach() != 0).any(0)
    assert (report.active_neurons, report.hidden_neurons) == (int(active.sum()), HIDDEN)
    assert (torch.tensor(report.neuron_sizes) > 0).tolist() == active.tolist()
    assert (0 < report.active_neurons < HIDDEN) or penalty == "ridge"


def test_one_standard_error_uses_a_larger_strength():
    reports = [convex_init_(loop_net(), batches(), hidden="keep", penalty="group_l1", strength=kind) for kind in ("auto", "one_se")]
    best, sparser = reports
    assert [point.strength for point in best.path.points] == [point.strength for point in sparser.path.points]
    assert sparser.strength == sparser.path.chosen.strength >= best.strength
    limit = best.path.chosen.heldout_loss + best.path.chosen.heldout_error
    assert sparser.path.chosen.heldout_loss <= limit
    above = [point for point in sparser.path.points if point.strength > sparser.strength]
    assert all(point.heldout_loss > limit for point in above)


def test_strength_auto_is_the_best_of_its_path():
    net = loop_net()
    report = convex_init_(net, batches(), hidden="keep")
    losses = [point.heldout_loss for point in report.path.points]
    assert len(losses) >= 4
    assert report.path.chosen.heldout_loss == min(losses)
    assert report.solved_loss == pytest.approx(min(losses), rel=1e-12)  # the same numbers, added up in another order
    assert report.strength == report.path.chosen.strength
    # Typed in by hand, that strength gives the same program, and a solution as good.
    again = loop_net()
    given = convex_init_(again, batches(), hidden="keep", strength=report.strength)
    report.write_solved()
    assert given.certificate.primal == pytest.approx(report.certificate.primal, rel=1e-5)
    assert torch.allclose(again.fc2.weight, net.fc2.weight, atol=0.05 * float(net.fc2.weight.detach().abs().max()))


@pytest.mark.parametrize("solver", ["clarabel", "scs"])
def test_reference_solvers_write_the_same_readout(solver):
    options = {"hidden": "keep", "penalty": "ridge", "strength": 3e-2, "loss": "squared", "tol": 1e-7}
    native, reference = loop_net(hidden=8), loop_net(hidden=8)
    first = convex_init_(native, batches(60, 20), **options)
    second = convex_init_(reference, batches(60, 20), solver=solver, **options)
    assert (first.solver, second.solver) == ("newton", solver)
    assert second.certificate.reached
    assert second.certificate.primal == pytest.approx(first.certificate.primal, rel=1e-6)
    assert torch.allclose(native.fc2.weight, reference.fc2.weight, atol=2e-3)


@pytest.mark.parametrize(
    ("kind", "decode"),
    [
        ("membrane_mean", lambda membranes: membranes.mean(0)),
        ("membrane_sum", lambda membranes: membranes.sum(0)),
        ("membrane_last", lambda membranes: membranes[-1]),
    ],
)
def test_readouts_by_name(kind, decode):
    net = loop_net()
    report = convex_init_(net, batches(300), hidden="keep", readout=kind, strength=1e-2)
    assert report.readout_kind == kind
    (inputs, labels), (fresh, wanted) = train_data(300), test_data()
    with torch.no_grad():
        scores, right = decode(net(inputs)).double(), decode(net(fresh)).argmax(1) == wanted
    assert float(right.double().mean()) >= 0.8
    expected = nn.functional.cross_entropy(scores, labels) + 0.5e-2 * net.fc2.weight.detach().double().square().sum()
    assert report.certificate.primal == pytest.approx(float(expected), rel=1e-5)
    assert net.fc2.bias.detach().abs().max() > 0


@pytest.mark.parametrize(("tol", "holdout"), [(1e-3, 0.1), (1e-8, 0.5)])
def test_the_gap_and_the_held_out_share_that_were_asked_for(tol, holdout):
    report = convex_init_(loop_net(), batches(300), hidden="keep", strength=1e-3, tol=tol, holdout=holdout)
    assert report.certificate.tol == tol
    # A network in float32 holds 7 digits: what rounding costs is in the certificate, and it is said where that is too much.
    assert report.certificate.reached is (report.certificate.relative_gap <= tol)
    assert report.certificate.relative_gap <= max(tol, 1e-7)
    assert (report.samples, report.heldout) == (300, 300 * holdout)


def test_readout_layer_picks_one_of_several():
    torch.manual_seed(0)
    net = TwoHeads()
    before = values(net)
    loader = [(inputs, labels % 3) for inputs, labels in batches(200)]
    report = convex_init_(net, loader, hidden="keep", readout_layer="fc3", strength=1e-3)
    after = values(net)
    assert report.readout == "fc3"
    assert {name for name in before if before[name] != after[name]} == {"fc3.weight", "fc3.bias"}
