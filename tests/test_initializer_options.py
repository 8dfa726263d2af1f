import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import ConvexInitializer, convex_init_
from snn_recon_plugin.errors import UnsupportedModuleError

from .helpers import (
    HIDDEN,
    STEPS,
    Loop,
    TwoHeads,
    accuracy,
    batches,
    check_certificate,
    loop_net,
    mean_membrane,
    test_data,
    train_data,
    values,
)


@pytest.mark.parametrize("penalty", ["ridge", "group_l1", "l1"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared", "logistic"])
def test_every_loss_with_every_penalty(loss, penalty):
    net = loop_net()
    report = convex_init_(net, batches(300), hidden="keep", loss=loss, penalty=penalty, strength=2e-3)
    assert (report.loss, report.penalty, report.strength, report.path) == (loss, penalty, 2e-3, None)
    assert accuracy(net) >= 0.75
    assert report.fit_loss == loss
    check_certificate(report, net, penalty, count=300)


@pytest.mark.parametrize("penalty", ["group_l1", "l1"])
def test_active_neurons_are_those_with_a_weight(penalty):
    net = loop_net()
    report = convex_init_(net, batches(300), hidden="keep", penalty=penalty, strength=2e-2)
    active = int((net.fc2.weight != 0).any(0).sum())
    assert 0 < active < HIDDEN
    assert (report.active_neurons, report.hidden_neurons) == (active, HIDDEN)
    sizes = net.fc2.weight.detach()
    sizes = sizes.norm(dim=0) if penalty == "group_l1" else sizes.abs().sum(0)
    assert (torch.tensor(report.neuron_sizes) > 0).tolist() == (sizes > 0).tolist()


def test_one_standard_error_uses_a_larger_strength():
    reports = [convex_init_(loop_net(), batches(), hidden="keep", penalty="group_l1", strength=kind) for kind in ("auto", "one_se")]
    best, sparser = reports
    assert [point.strength for point in best.path.points] == [point.strength for point in sparser.path.points]
    assert sparser.strength == sparser.path.chosen.strength >= best.strength
    limit = best.path.chosen.heldout_loss + best.path.chosen.heldout_error
    assert sparser.path.chosen.heldout_loss <= limit
    above = [point for point in sparser.path.points if point.strength > sparser.strength]
    assert all(point.heldout_loss > limit for point in above)
    assert "strength='one_se'" in repr(ConvexInitializer(strength="one_se"))


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


@pytest.mark.parametrize("kind", ["membrane_mean", "membrane_sum", "membrane_last"])
def test_readouts_by_name(kind):
    net = loop_net()
    report = convex_init_(net, batches(300), hidden="keep", readout=kind, strength=1e-2)
    assert report.readout_kind == kind
    with torch.no_grad():
        membranes = net(test_data()[0])
    scores = {"membrane_mean": membranes.mean(0), "membrane_sum": membranes.sum(0), "membrane_last": membranes[-1]}[kind]
    assert float((scores.argmax(1) == test_data()[1]).double().mean()) >= 0.8
    weight, bias = net.fc2.weight.detach().double(), net.fc2.bias.detach().double()
    loss = nn.functional.cross_entropy(_decoded(net, kind).double(), train_data(300)[1])
    assert report.certificate.primal == pytest.approx(float(loss + 0.5e-2 * weight.square().sum()), rel=1e-5)
    assert bias.abs().max() > 0


def _decoded(net, kind):
    with torch.no_grad():
        membranes = net(train_data(300)[0])
    return {"membrane_mean": membranes.mean(0), "membrane_sum": membranes.sum(0), "membrane_last": membranes[-1]}[kind]


@pytest.mark.parametrize("tol", [1e-3, 1e-8])
def test_the_gap_that_was_asked_for(tol):
    report = convex_init_(loop_net(), batches(300), hidden="keep", strength=1e-3, tol=tol)
    assert report.certificate.tol == tol
    # A network in float32 holds 7 digits: what rounding costs is in the certificate, and it is said where that is too much.
    assert report.certificate.reached is (report.certificate.relative_gap <= tol)
    assert report.certificate.relative_gap <= max(tol, 1e-7)


@pytest.mark.parametrize("holdout", [0.1, 0.5])
def test_holdout(holdout):
    report = convex_init_(loop_net(), batches(200), hidden="keep", holdout=holdout, strength=1e-3)
    assert (report.samples, report.heldout) == (200, 200 * holdout)


def test_a_readout_that_rests_above_zero():
    """The constant of an output neuron is taken up by the bias, and must be."""

    class Offset(snn.Leaky):
        def forward(self, input_, mem=None):
            return super().forward(input_ + 0.5, mem)

    def output():
        return Offset(beta=0.9, reset_mechanism="none")

    net, plain = loop_net(output=output()), loop_net()
    report = convex_init_(net, batches(300), hidden="keep", strength=1e-3)
    convex_init_(plain, batches(300), hidden="keep", strength=1e-3)
    assert report.exactness.max_difference <= 1e-4
    assert torch.allclose(net.fc2.bias + 0.5, plain.fc2.bias, atol=2e-3)
    with pytest.raises(UnsupportedModuleError, match="bias=True"):
        convex_init_(loop_net(output=output(), bias=False), batches(300), hidden="keep")


def test_regression_targets():
    net = loop_net(outputs=2)
    inputs, labels = train_data(300)
    targets = torch.stack([labels / 10.0, inputs.mean(1)], dim=1)
    loader = list(zip(inputs.split(100), targets.split(100), strict=True))
    report = convex_init_(net, loader, hidden="keep", loss="squared")
    assert report.loss_after < 0.5 * report.loss_before
    assert all(np.isnan(value) for value in (report.accuracy_before, report.accuracy_after, report.accuracy_written))
    assert report.certificate.reached


def test_a_single_output_for_two_classes():
    net = loop_net(outputs=1)
    inputs, labels = train_data(300)
    binary = (labels >= 5).long()
    report = convex_init_(net, [(inputs, binary)], hidden="keep", loss="logistic")
    predicted = mean_membrane(net, inputs)[:, 0] > 0
    assert float((predicted == binary.bool()).double().mean()) >= 0.8
    assert report.accuracy_after >= 0.65


@pytest.mark.usefixtures("one_rate")
def test_several_hidden_layers():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc0, self.lif0 = nn.Linear(64, HIDDEN), snn.Leaky(beta=0.9)
            self.rest = Loop(inputs=HIDDEN)

        def forward(self, x):
            mems, membranes = [neuron.reset_mem() for neuron in (self.lif0, self.rest.lif1, self.rest.lif2)], []
            for _ in range(STEPS):
                spikes, mems[0] = self.lif0(self.fc0(x), mems[0])
                spikes, mems[1] = self.rest.lif1(self.rest.fc1(spikes), mems[1])
                _, mems[2] = self.rest.lif2(self.rest.fc2(spikes), mems[2])
                membranes.append(mems[2])
            return torch.stack(membranes)

    torch.manual_seed(0)
    net = Deep()
    with torch.no_grad():
        for layer in (net.fc0, net.rest.fc1):
            layer.weight.div_(20)
            layer.bias.div_(20)
    report = convex_init_(net, batches(300), hidden="rescale")
    assert [layer.name for layer in report.layers] == ["fc0", "rest.fc1"]
    assert all(layer.gain > 1 and layer.stats.firing_rate > 0.003 for layer in report.layers)
    assert accuracy(net) >= 0.6


def test_readout_layer_picks_one_of_several():
    torch.manual_seed(0)
    net = TwoHeads()
    before = values(net)
    loader = [(inputs, labels % 3) for inputs, labels in batches(200)]
    report = convex_init_(net, loader, hidden="keep", readout_layer="fc3", strength=1e-3)
    after = values(net)
    assert report.readout == "fc3"
    assert {name for name in before if before[name] != after[name]} == {"fc3.weight", "fc3.bias"}
