"""The squared hinge in the place of cross-entropy: when it is solved, how its solution is scaled, and what is said of it."""

import norse.torch as norse
import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
from torch import nn
from torch.nn import functional as F

from snn_recon_plugin import ConvexInitializer, convex_init_, over_time
from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.stages import Context, Options, initialize_network
from snn_recon_plugin.stages.stream import split_samples

from ..helpers import CLASSES, PIXELS, STEPS, accuracy, batches, features, loop_net, mean_filter, mean_membrane, train_data

COUNT = 500


def _name(value):
    """The same in every process, which objects' own names are not."""
    return str(value) if isinstance(value, str | float) else type(value).__name__


def solved(**options):
    """A net with a wide hidden layer, whose spikes tell digits well, and the report."""
    net = loop_net(hidden=200)
    return net, convex_init_(net, batches(COUNT), hidden="keep", **options)


def heldout_scores(net, report, count=COUNT):
    """Scores of the held-out samples by the readout that was fitted without them, from outside."""
    held = split_samples(count, 0.2, 0).heldout
    inputs, labels = train_data(count)
    point = report.path.chosen.solution
    scores = features(net.fc1, inputs[held]) @ point.weight.T + float(mean_filter().sum()) * point.bias
    return scores, labels[held]


# -- what is solved ---------------------------------------------------------------------------------------------------------


def test_where_the_squared_hinge_decides_well_it_is_written_and_has_the_lower_loss():
    net, report = solved()
    plain, other = solved(fit_loss="same")
    assert (report.loss, report.fit_loss) == ("cross_entropy", "squared_hinge")
    assert (other.loss, other.fit_loss) == ("cross_entropy", "cross_entropy")
    assert report.accuracy_after >= 0.9
    assert report.solved_loss < other.solved_loss
    assert accuracy(net) >= accuracy(plain) - 0.005  # two samples
    assert report.certificate.reached
    assert report.exactness.label == "exact"
    assert other.exactness.weight_scale == 1.0


@pytest.mark.parametrize("loss", ["squared_hinge", "cross_entropy"])
def test_a_strength_is_known_of_its_own_program_alone(loss):
    _, plain = solved()
    context = Context(previous={loss: plain.strength / 100})
    told = initialize_network(loop_net(hidden=200), batches(COUNT), Options(hidden="keep"), context)
    assert told.fit_loss == "squared_hinge"
    if loss == told.fit_loss:
        assert told.path.points[0].strength < plain.path.points[-1].strength
    else:
        assert [point.strength for point in told.path.points] == [point.strength for point in plain.path.points]


def test_where_it_decides_badly_the_lower_held_out_loss_is_written():
    def narrow(**options):
        return convex_init_(loop_net(hidden=12), batches(COUNT), hidden="keep", **options)

    hinge, same = narrow(fit_loss="squared_hinge"), narrow(fit_loss="same")
    assert hinge.accuracy_after < 0.9
    assert same.solved_loss < hinge.solved_loss
    report = narrow()
    assert report.fit_loss == "cross_entropy"
    assert (report.solved_loss, report.strength, report.certificate) == (same.solved_loss, same.strength, same.certificate)


@pytest.mark.parametrize(
    "options",
    [
        {"strength": 1e-3},
        {"fit_loss": "same"},
        {"loss": "logistic"},
        {"loss": nn.MSELoss()},
        {"loss": SF.ce_rate_loss()},
        {"loss": SF.ce_max_membrane_loss()},
        {"readout": "membrane_per_step"},
        {"readout": "membrane_max"},
    ],
    ids=lambda options: "-".join(map(_name, next(iter(options.items())))),
)
def test_the_loss_itself_is_solved(options):
    _, report = solved(**options)
    assert report.fit_loss == {"logistic": "logistic", "MSELoss": "squared"}.get(report.loss, "cross_entropy")


@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss(), nn.NLLLoss(), SF.ce_count_loss()], ids=_name)
def test_it_stands_in_for_every_cross_entropy_of_a_score_a_sample(loss):
    assert solved(loss=loss)[1].fit_loss == "squared_hinge"


@pytest.mark.parametrize("readout", ["membrane_per_step", "membrane_max"])
def test_it_may_be_asked_for_where_it_is_not_the_default(readout):
    net, report = solved(fit_loss="squared_hinge", readout=readout)
    assert report.fit_loss == "squared_hinge"
    assert report.certificate.reached
    assert not report.exactness.refined
    assert accuracy(net) > 0.8


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"fit_loss": "hinge"}, "one of \\['auto', 'same', 'squared_hinge'\\]"),
        ({"fit_loss": "squared_hinge", "loss": "squared"}, "loss='squared'.*pass loss='squared_hinge'"),
        ({"fit_loss": "squared_hinge", "loss": nn.MSELoss()}, "loss='MSELoss'"),
    ],
    ids=str,
)
def test_refused(options, text):
    with pytest.raises(OptionError, match=f"(?s){text}"):
        ConvexInitializer(**options)


# -- the factor -------------------------------------------------------------------------------------------------------------


def test_the_factor_has_the_least_cross_entropy_on_held_out_samples():
    net, report = solved(fit_loss="squared_hinge")
    scores, labels = heldout_scores(net, report)
    tried = torch.linspace(-4, 6, 4001, dtype=torch.float64).exp2()
    losses = torch.stack([F.cross_entropy(factor * scores, labels) for factor in tried])
    assert report.exactness.weight_scale / report.factor == pytest.approx(float(tried[losses.argmin()]), rel=0.01)
    assert report.solved_loss == pytest.approx(float(losses.min()), rel=1e-5)
    assert report.accuracy_after == float((scores.argmax(1) == labels).double().mean())


def test_classes_weigh_in_the_factor():
    weight = torch.ones(CLASSES)
    weight[:5] = 20.0
    net, report = solved(loss=nn.CrossEntropyLoss(weight=weight), fit_loss="squared_hinge")
    scores, labels = heldout_scores(net, report)
    tried = torch.linspace(-4, 6, 4001, dtype=torch.float64).exp2()
    losses = torch.stack([F.cross_entropy(factor * scores, labels, weight=weight.double()) for factor in tried])
    assert report.exactness.weight_scale / report.factor == pytest.approx(float(tried[losses.argmin()]), rel=0.01)


def test_every_score_of_the_net_is_that_of_the_solution_times_the_factor():
    inputs, labels = train_data(COUNT)
    net, report = solved(fit_loss="squared_hinge")
    report.write_solved()
    same = loop_net(hidden=200)
    # The same program as a loss of its own, written as it is.
    own = convex_init_(same, batches(COUNT), hidden="keep", loss="squared_hinge")
    assert own.certificate.primal == pytest.approx(report.certificate.primal, rel=1e-6)
    assert own.exactness.weight_scale == 1.0
    temperature = report.exactness.weight_scale / report.factor
    expected = temperature * mean_membrane(same, inputs)
    assert torch.allclose(mean_membrane(net, inputs), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert temperature > 1
    # The written network has the lower cross-entropy.
    plain, scaled = (float(F.cross_entropy(mean_membrane(one, inputs), labels)) for one in (same, net))
    assert scaled < plain


def test_the_factor_of_few_held_out_samples():
    net = loop_net()
    report = convex_init_(net, batches(60, 20), hidden="keep", fit_loss="squared_hinge")
    assert report.heldout == 12
    scores, labels = heldout_scores(net, report, 60)
    losses = [float(F.cross_entropy(factor * scores, labels)) for factor in torch.linspace(-4, 6, 4001).exp2().tolist()]
    assert report.solved_loss == pytest.approx(min(losses), rel=1e-5)


def test_a_readout_that_rests_above_zero():
    def net_of(rest):
        torch.manual_seed(0)
        neuron = norse.LI(p=norse.LIParameters(v_leak=torch.tensor(rest)))
        return norse.SequentialState(nn.Linear(PIXELS, 200), norse.LIF(), nn.Linear(200, CLASSES), neuron)

    options = {"forward": over_time(STEPS), "fit_loss": "squared_hinge", "readout": "membrane_mean"}
    shifted, plain = (convex_init_(net_of(rest), batches(300), **options) for rest in (0.3, 0.0))
    for report in (shifted, plain):
        assert report.exactness.label == "exact"
        assert report.exactness.weight_scale != 1.0
        assert report.certificate.reached
    assert shifted.certificate.primal == pytest.approx(plain.certificate.primal, rel=1e-5)
    assert shifted.solved_loss == pytest.approx(plain.solved_loss, rel=1e-3)


def test_counts_of_spikes_are_placed_as_ever():
    net = loop_net(hidden=200, output=snn.Leaky(beta=0.9))
    report = convex_init_(net, batches(COUNT), hidden="keep", fit_loss="squared_hinge", readout="membrane_mean")
    assert report.exactness.label == "surrogate"
    assert report.fit_loss == "squared_hinge"
    assert report.accuracy_after > 0.8


def test_held_out_samples_that_weigh_nothing_choose_no_factor():
    """All of one class of weight 0: their loss is no number, and the solution is written as it is."""
    inputs, labels = train_data(COUNT)
    labels = labels.clamp_max(CLASSES - 2)
    labels[split_samples(COUNT, 0.2, 0).heldout] = CLASSES - 1
    weight = torch.ones(CLASSES)
    weight[-1] = 0.0
    loss = nn.CrossEntropyLoss(weight=weight)
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
