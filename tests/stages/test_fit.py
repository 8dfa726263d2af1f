"""The squared hinge in the place of cross-entropy: when it is solved, how its solution is scaled, and what is said of it."""

from types import SimpleNamespace

import norse.torch as norse
import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
from torch import nn
from torch.nn import functional as F

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.convex import Outcome
from snn_recon_plugin.convex.solvers.solver import PRICE
from snn_recon_plugin.stages import initialize
from snn_recon_plugin.stages.fit import epoch_products, solve_best
from snn_recon_plugin.stages.scores import RowsPerSample
from snn_recon_plugin.stages.stream import split_samples

from ..helpers import CLASSES, PIXELS, STEPS, accuracy, batches, features, loop_net, mean_filter, train_data, values

COUNT = 500


def solved(count=COUNT, hidden=200, **options):
    net = loop_net(hidden=hidden)
    return net, convex_init_(net, batches(count), hidden="keep", **options)


# -- what is solved ---------------------------------------------------------------------------------------------------------
def test_where_the_squared_hinge_decides_well_it_is_written_and_has_the_lower_loss():
    net, report = solved()
    plain, other = solved(fit_loss="same")
    assert (report.loss, report.program.loss) == ("cross_entropy", "squared_hinge")
    assert (other.loss, other.program.loss) == ("cross_entropy", "cross_entropy")
    assert report.accuracy_after >= 0.9
    assert report.solved.loss < other.solved.loss
    assert accuracy(net) >= accuracy(plain) - 0.005  # two samples
    assert report.certificate.reached
    assert report.exactness.label == "exact"
    assert other.exactness.weight_scale == 1.0


def test_where_it_decides_badly_the_lower_held_out_loss_is_written():
    hinge, same, report = (solved(hidden=12, fit_loss=kind)[1] for kind in ("squared_hinge", "same", "auto"))
    assert hinge.accuracy_after < 0.9
    assert same.solved.loss < hinge.solved.loss
    assert report.program.loss == "cross_entropy"
    assert (report.solved.loss, report.certificate) == (same.solved.loss, same.certificate)
    assert report.program.strength == same.program.strength


@pytest.mark.parametrize(
    ("options", "fit_loss"),
    [
        ({"strength": 1e-3}, "cross_entropy"),
        ({"fit_loss": "same"}, "cross_entropy"),
        ({"loss": "logistic"}, "logistic"),
        ({"loss": nn.MSELoss()}, "squared"),
        ({"loss": SF.ce_rate_loss()}, "cross_entropy"),
        ({"loss": SF.ce_max_membrane_loss()}, "cross_entropy"),
        ({"readout": "membrane_per_step"}, "cross_entropy"),
        ({"readout": "membrane_max"}, "cross_entropy"),
        ({"loss": "cross_entropy"}, "squared_hinge"),
        ({"loss": nn.CrossEntropyLoss()}, "squared_hinge"),
        ({"loss": nn.NLLLoss()}, "squared_hinge"),
        ({"loss": SF.ce_count_loss()}, "squared_hinge"),
    ],
)
def test_it_replaces_a_cross_entropy_of_one_score_a_sample_alone(options, fit_loss):
    assert solved(300, **options)[1].program.loss == fit_loss


@pytest.mark.parametrize("readout", ["membrane_per_step", "membrane_max"])
def test_it_may_be_asked_for_where_it_is_not_the_default(readout):
    net, report = solved(fit_loss="squared_hinge", readout=readout)
    assert report.program.loss == "squared_hinge"
    assert report.certificate.reached
    assert not report.exactness.refined
    assert accuracy(net) > 0.8


# -- the factor -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("count", "class_weights", "hidden"),
    [(COUNT, torch.ones(CLASSES), 200), (COUNT, torch.tensor(5 * [20.0] + 5 * [1.0]), 200), (60, torch.ones(CLASSES), 48)],
    ids=["plain", "class weights", "few samples"],
)
def test_the_factor_has_the_least_cross_entropy_on_held_out_samples(monkeypatch, count, class_weights, hidden):
    fits = []
    monkeypatch.setattr(initialize, "solve_best", lambda *stages: fits.append(solve_best(*stages)) or fits[-1])
    loss = nn.CrossEntropyLoss() if class_weights.max() == 1 else nn.CrossEntropyLoss(weight=class_weights)
    net, report = solved(count, hidden, loss=loss, fit_loss="squared_hinge")
    held, (inputs, labels), point = split_samples(count, 0.2, 0).heldout, train_data(count), fits[0].path.chosen.solution
    # Scores by the readout that was fitted without these samples, from outside.
    scores = features(net.fc1, inputs[held]) @ point.weight.T + float(mean_filter().sum()) * point.bias
    tried = torch.linspace(-4, 6, 4001, dtype=torch.float64).exp2()
    losses = torch.stack([F.cross_entropy(factor * scores, labels[held], class_weights.double()) for factor in tried])
    assert report.exactness.weight_scale / report.factor == pytest.approx(float(tried[losses.argmin()]), rel=0.01)
    assert report.solved.loss == pytest.approx(float(losses.min()), rel=1e-5)
    assert report.accuracy_after == float((scores.argmax(1) == labels[held]).double().mean())
    assert report.after.samples == count / 5


def test_a_readout_that_rests_above_zero():
    def net_of(rest):
        torch.manual_seed(0)
        neuron = norse.LI(p=norse.LIParameters(v_leak=torch.tensor(rest)))
        return norse.SequentialState(nn.Linear(PIXELS, 100), norse.LIF(), nn.Linear(100, CLASSES), neuron)

    options = {"forward": over_time(STEPS), "fit_loss": "squared_hinge", "readout": "membrane_mean"}
    shifted, plain = (convex_init_(net_of(rest), batches(300), **options) for rest in (0.3, 0.0))
    for report in (shifted, plain):
        assert report.exactness.label == "exact"
        assert report.exactness.weight_scale != 1.0
        assert report.certificate.reached
    assert shifted.certificate.primal == pytest.approx(plain.certificate.primal, rel=1e-5)
    assert shifted.solved.loss == pytest.approx(plain.solved.loss, rel=1e-3)


def test_held_out_samples_that_weigh_nothing_choose_no_factor():
    """All of one class of weight 0: their loss is no number, and the solution is written as it is."""
    inputs, labels = train_data(COUNT)
    labels = labels.clamp_max(CLASSES - 2)
    labels[split_samples(COUNT, 0.2, 0).heldout] = CLASSES - 1
    loss = nn.CrossEntropyLoss(weight=torch.tensor(9 * [1.0] + [0.0]))
    report = convex_init_(loop_net(), [(inputs, labels)], loss=loss, hidden="keep", fit_loss="squared_hinge")
    assert report.exactness.weight_scale == report.factor


def test_the_factor_is_bounded_where_the_loss_falls_for_ever():
    """Held-out samples without an error have a lower loss with every larger factor."""
    inputs, labels = train_data()
    data = [(inputs[labels < 2], labels[labels < 2])]
    options = {"hidden": "keep", "fit_loss": "squared_hinge", "strength": 30.0}  # small margins
    report = convex_init_(loop_net(hidden=200, outputs=2), data, **options)
    assert report.accuracy_after == 1.0
    assert report.exactness.weight_scale == pytest.approx(64.0, rel=2e-3)


# -- the bound on the cost, in epochs of training ---------------------------------------------------------------------------
WIDTH = 40
LONG = 1000  # steps


@pytest.mark.parametrize(
    ("samples", "steps", "multiply_adds"),
    [
        # Forward, and backward twice as much.
        (10**5, LONG, 3 * LONG * (PIXELS * WIDTH + WIDTH * CLASSES)),
        (300, STEPS, 2e10 / 300),  # small solves are always allowed
    ],
)
def test_an_epoch_is_counted_in_products_of_the_readout(samples, steps, multiply_adds):
    layer = SimpleNamespace(name="fc1", synapse=nn.Linear(PIXELS, WIDTH), neuron=snn.Leaky(beta=0.9))
    readout = SimpleNamespace(in_features=WIDTH, out_features=CLASSES)
    task = SimpleNamespace(net_map=SimpleNamespace(readout=readout, hidden=[layer], num_steps=steps), rows=RowsPerSample())
    data = SimpleNamespace(targets=range(samples), layers={"fc1": SimpleNamespace(neurons=WIDTH)})
    assert epoch_products(task, data) == pytest.approx(multiply_adds / (WIDTH * PRICE))


def test_a_bound_that_is_hit_is_reported_with_the_gap():
    net, again = loop_net(hidden=WIDTH), loop_net(hidden=WIDTH)
    report, _ = (convex_init_(each, batches(300), hidden="keep", max_cost=1e-3) for each in (net, again))
    assert report.program.outcome == Outcome.WORK_LIMIT.value
    assert not report.certificate.reached
    assert report.certificate.relative_gap > report.certificate.tol == 1e-6
    assert "NOT reached" in report.details()
    assert "max_cost" in report.details()
    assert report.accuracy_after > 0.5  # what is written is the best point so far
    assert values(again) == values(net)
