"""The program that is solved for a training loss and for a function of the outputs: its readout and its loss."""

import itertools
import math

import norse.torch as norse
import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
from torch import nn

from snn_recon_plugin import ReadoutWarning, convex_init_, over_time
from snn_recon_plugin.errors import DataError, OptionError, ReconstructionError, SilentLayerError, UnsupportedModuleError

from ..helpers import CLASSES, PIXELS, batches, divided, loop_net, refused, train_data
from ..nets import membranes_of, shallow, spikes_and_membranes

OPTIONS = {"hidden": "keep", "strength": 1e-4}


def one_hot(labels):
    return nn.functional.one_hot(labels, CLASSES).float()


def mean(spk, mem):
    return mem.mean(0)


def log_probabilities(spk, mem):
    return mem.mean(0).log_softmax(1)


# -- losses of values over time ---------------------------------------------------------------------------------------------
KINDS = {
    "rate": (SF.ce_rate_loss(), membranes_of, "none", "membrane_per_step"),
    "count": (SF.ce_count_loss(), membranes_of, "none", "membrane_sum"),
    "maximum": (SF.ce_max_membrane_loss(), membranes_of, "none", "membrane_max"),
    "squared count": (SF.mse_count_loss(0.8, 0.2), membranes_of, "none", "membrane_sum"),
    "squared membrane": (SF.mse_membrane_loss(), membranes_of, "none", "membrane_per_step"),
    "rate of spikes": (SF.ce_rate_loss(), spikes_and_membranes, "subtract", "spike_count"),
    "count of spikes without a reset": (SF.ce_count_loss(), spikes_and_membranes, "none", "spike_count"),
    "squared count of spikes": (SF.mse_count_loss(0.8, 0.2), spikes_and_membranes, "none", "spike_count"),
    "maximum beside spikes": (SF.ce_max_membrane_loss(), spikes_and_membranes, "subtract", "membrane_max"),
    "squared membrane beside spikes": (SF.mse_membrane_loss(), spikes_and_membranes, "none", "membrane_per_step"),
    "rate of a resetting membrane": (SF.ce_rate_loss(), membranes_of, "subtract", "membrane_mean"),
    "count of a resetting membrane": (SF.ce_count_loss(), membranes_of, "subtract", "membrane_sum"),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_says_how_values_over_time_are_read(name):
    loss, returns, reset, kind = KINDS[name]
    net = shallow(returns, reset_mechanism=reset, steps=8)
    report = convex_init_(net, batches(100), loss=loss, hidden="keep", strength=1.0)
    assert (report.readout.kind, report.loss) == (kind, type(loss).__name__)


@pytest.mark.parametrize("name", ["loss_fn", "criterion", "loss"])
def test_a_net_that_holds_its_loss(name):
    net, plain = shallow(), shallow()
    setattr(net, name, SF.ce_rate_loss())
    options = {"hidden": "keep", "strength": 1.0}  # which a solve takes few steps for
    report = convex_init_(net, batches(100), **options)
    assert (report.readout.kind, report.loss) == ("membrane_per_step", f"ce_rate_loss ({type(net).__name__}.{name})")
    assert f"training loss {report.loss}" in " ".join(report.details().split())
    convex_init_(plain, batches(100), loss=SF.ce_rate_loss(), **options)
    assert torch.equal(net.fc2.weight, plain.fc2.weight)
    assert convex_init_(net, batches(100), loss="mse", **options).loss == "squared"


def test_a_net_that_holds_an_unknown_loss():
    net = shallow()
    net.loss_fn, net.criterion = nn.GaussianNLLLoss(), nn.MSELoss()
    with pytest.warns(ReadoutWarning, match=r"loss_fn is not used.*loss=GaussianNLLLoss.*pass loss="):
        report = convex_init_(net, batches(100), **OPTIONS)
    assert report.loss == "cross_entropy"
    net.loss_fn = net.criterion = None
    net.loss = 0.5  # a number, such as the last loss
    assert convex_init_(net, batches(100), **OPTIONS).loss == "cross_entropy"


def test_a_readout_that_was_asked_for_wins():
    options = {"loss": SF.ce_rate_loss(), "readout": "membrane_last", **OPTIONS}
    assert convex_init_(shallow(), batches(100), **options).readout.kind == "membrane_last"


# Name: the loss, and its value for membranes over time and labels, with torch's own code.
WEIGHTED = nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, CLASSES))
SMOOTHED = nn.CrossEntropyLoss(WEIGHTED.weight, label_smoothing=0.2)
LABELLED = nn.BCEWithLogitsLoss(pos_weight=4 * WEIGHTED.weight)
TRAINED = {
    "mean": (nn.CrossEntropyLoss(), lambda mem, y: nn.functional.cross_entropy(mem.mean(0), y)),
    "weighted": (WEIGHTED, lambda mem, y: WEIGHTED(mem.mean(0), y)),
    "smoothed": (SMOOTHED, lambda mem, y: SMOOTHED(mem.mean(0), y)),
    "several labels": (LABELLED, lambda mem, y: LABELLED(mem.mean(0), one_hot(y))),
    "each step": (SF.ce_rate_loss(), SF.ce_rate_loss()),
    "count": (SF.ce_count_loss(), SF.ce_count_loss()),
    "squared count": (SF.mse_count_loss(0.8, 0.2), SF.mse_count_loss(0.8, 0.2)),
    "squared membrane": (SF.mse_membrane_loss(), SF.mse_membrane_loss()),
    "squared": (nn.MSELoss(), lambda mem, y: nn.functional.mse_loss(mem.mean(0), one_hot(y))),
}


@pytest.mark.parametrize("name", TRAINED)
def test_training_takes_over_at_the_minimum_of_its_own_loss(name):
    """The gradient of the user's loss in the readout, by autograd through the net, against that at the default init."""
    loss, value = TRAINED[name]
    net, (inputs, labels) = shallow(steps=8), train_data(300)

    def gradient():
        net.zero_grad()
        value(net(inputs), labels).backward()
        return torch.cat([net.fc2.weight.grad.flatten(), net.fc2.bias.grad]).norm()

    before = gradient()
    report = convex_init_(net, batches(300), loss=loss, hidden="keep", strength=1e-5, max_cost=math.inf, write="always")
    assert report.exactness.label == "exact"
    # What is left is the penalty's own gradient, which this strength makes small.
    assert gradient() <= 1e-3 * before


# -- refusals -----------------------------------------------------------------------------------------------------------------
def maximum(spk, mem):
    return mem.amax(0)


def over_four(labels):
    return (labels > 4).long()


PER_STEP = {"readout": "membrane_per_step"}
# What the net returns, its reset, targets made of labels, options, the error and words of its message.
REFUSED = [
    (mean, "none", torch.clone, {"loss": SF.ce_count_loss()}, OptionError, ["which takes values over time", "membrane_sum"]),
    (log_probabilities, "none", torch.clone, {"loss": "squared"}, OptionError, ["log_softmax of its scores", "NLLLoss"]),
    (spikes_and_membranes, "subtract", over_four, {"loss": "squared"}, DataError, ["squared for a single output", "'logistic'"]),
    (
        spikes_and_membranes,
        "subtract",
        lambda labels: one_hot(labels)[:, None].expand(-1, 20, -1),
        {"loss": nn.MSELoss(), **PER_STEP},
        DataError,
        ["one class index a sample or step", "membrane_per_step"],
    ),
    (
        spikes_and_membranes,
        "subtract",
        one_hot,
        {"loss": nn.MSELoss()},
        DataError,
        ["one class index a sample", ".argmax(-1)", "snn."],
    ),
    (maximum, "none", one_hot, {"loss": nn.MSELoss()}, DataError, ["one class index a sample"]),
]


@pytest.mark.parametrize(("returns", "reset", "form", "options", "error", "words"), REFUSED)
def test_refused(returns, reset, form, options, error, words):
    net = shallow(returns, reset_mechanism=reset, outputs=1 if form is over_four else CLASSES)
    loader = [(inputs, form(labels)) for inputs, labels in batches(300)]
    refused(net, loader, error, *words, **OPTIONS, **options)


def test_every_step_of_a_neuron_that_moves_to_a_rest_above_zero():
    neuron = norse.LI(p=norse.LIParameters(v_leak=torch.tensor(0.3)))
    net = norse.SequentialState(nn.Linear(PIXELS, 16), norse.LIF(), nn.Linear(16, CLASSES), neuron)
    with pytest.raises(UnsupportedModuleError, match="drifts to a resting value"):
        convex_init_(net, batches(300), forward=over_time(20), readout="membrane_per_step", **OPTIONS)


def test_labels_of_each_step_with_time_first():
    inputs, labels = train_data(40)
    net = nn.Sequential(nn.Linear(PIXELS, 16), snn.Leaky(0.9, init_hidden=True), nn.Linear(16, CLASSES))
    rows = [(inputs[:, None].repeat(1, 7, 1), labels.repeat(7, 1))]

    def by_rows(net, x):
        return torch.stack([net(step) for step in x.unbind(1)])

    refused(net, rows, DataError, "targets of shape (7, 40)", "transpose(0, 1)", forward=by_rows, loss=nn.CrossEntropyLoss())


# -- networks and data that can never work ----------------------------------------------------------------------------------
def filled(weight, bias):
    net = loop_net()
    nn.init.constant_(net.fc1.weight, weight)
    nn.init.constant_(net.fc1.bias, bias)
    return net


@pytest.mark.parametrize(
    ("net", "hidden", "words"),
    [
        (
            divided(loop_net()),
            "keep",
            ["'fc1' is silent", "none of its 48 neurons", "call hidden_init_(net, loader) before"],
        ),
        (filled(0.0, 50.0), "keep", ["'fc1' always spikes", "call hidden_init_(net, loader) before"]),
        (filled(-0.1, -0.1), "rescale", ["'fc1'", "no positive current"]),
    ],
    ids=["silent", "always on", "without a gain that helps"],
)
@pytest.mark.usefixtures("one_rate")
def test_a_hidden_layer_that_tells_nothing(net, hidden, words):
    refused(net, batches(200), SilentLayerError, *words, hidden=hidden)


def test_a_layer_that_spikes_at_any_gain():
    error = refused(filled(0.0, 50.0), batches(200), ReconstructionError, hidden="rescale")
    assert isinstance(error, (SilentLayerError, DataError))
    assert "hidden='keep'" not in str(error)


def frozen_readout():
    net = loop_net()
    net.fc2.requires_grad_(False)
    return net


IMAGES = ["targets that are images", "(1, 8, 8)", "the part of the net that classifies"]


@pytest.mark.parametrize(
    ("net", "loss", "words"),
    [
        (frozen_readout(), "cross_entropy", ["net.fc2.requires_grad_(True)"]),
        (loop_net(), "cross_entropy", IMAGES),
        (loop_net(), "squared", IMAGES),
    ],
    ids=["frozen readout", "autoencoder", "autoencoder, squared"],
)
def test_what_can_never_work_is_refused_on_the_first_batch(net, loss, words):
    drawn = []

    def endless():
        for x, y in itertools.cycle(batches(200)):
            drawn.append(len(y))
            yield x, (x.reshape(-1, 1, 8, 8) if words is IMAGES else y)

    refused(net, endless(), ReconstructionError, *words, loss=loss)
    assert len(drawn) == 1
