"""The program that is solved for a training loss and for a function of the outputs: its readout and its loss."""

import math

import pytest
import snntorch.functional as SF
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import DataError, OptionError, UnsupportedModuleError

from ..helpers import CLASSES, PIXELS, batches, refused, test_data, train_data
from .nets import OPTIONS, STEPS, both, build, membranes, one_hot


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
    report = convex_init_(net, batches(), loss=loss, hidden="keep", strength=1e-6, max_cost=math.inf)
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


def test_scores_that_a_forward_takes_from_the_output_are_exact_if_they_are_a_weighted_sum():
    scale = torch.linspace(1, 2, STEPS)
    net = build(both)
    report = convex_init_(net, batches(), forward=lambda net, x: torch.einsum("t,tbc->bc", scale, net(x)[1]), **OPTIONS)
    assert (report.readout_kind, report.exactness.label) == ("custom", "exact")


# -- errors, and what is left behind ----------------------------------------------------------------------------------------


def test_a_single_spiking_output():
    net = build(both, reset="subtract", outputs=1)
    loader = [(inputs, (labels > 4).long()) for inputs, labels in batches(300)]
    refused(net, loader, DataError, "two outputs", loss="logistic", **OPTIONS)


def test_every_step_of_a_resetting_membrane():
    options = {"readout": "membrane_per_step", **OPTIONS}
    refused(build(both, reset="subtract"), batches(300), UnsupportedModuleError, "membrane_per_step", "resets", **options)


def test_every_step_of_a_neuron_that_moves_to_a_rest_above_zero():
    import norse.torch as norse

    neuron = norse.LI(p=norse.LIParameters(v_leak=torch.tensor(0.3)))
    net = norse.SequentialState(nn.Linear(PIXELS, 16), norse.LIF(), nn.Linear(16, CLASSES), neuron)
    options = {"forward": over_time(STEPS), "readout": "membrane_per_step", "strength": 1e-3}
    with pytest.raises(UnsupportedModuleError, match="drifts to a resting value"):
        convex_init_(net, batches(300), **options)
    report = convex_init_(net, batches(300), **{**options, "readout": "membrane_mean"})
    assert report.exactness.label == "exact"


@pytest.mark.parametrize("returns", [both, lambda spk, mem: mem.amax(0)], ids=["spikes", "maximum"])
def test_values_to_regress_where_only_decisions_can_be_followed(returns):
    loader = [(inputs, one_hot(labels)) for inputs, labels in batches(300)]
    reset = "subtract" if returns is both else "none"
    refused(build(returns, reset=reset), loader, DataError, "one class index a sample", loss=nn.MSELoss(), **OPTIONS)


@pytest.mark.parametrize(
    ("returns", "kind"),
    [(lambda spk, mem: mem.mean(0).squeeze(1), "membrane_mean"), (lambda spk, mem: (spk, mem[-1, :, 0]), "membrane_last")],
    ids=["output", "item"],
)
def test_scores_of_one_output_without_an_axis_of_classes(returns, kind):
    """With labels as BCEWithLogitsLoss takes them for such scores."""
    net, loss = build(returns, outputs=1), nn.BCEWithLogitsLoss()
    loader = [(inputs, (labels < 5).float()) for inputs, labels in batches(300)]
    report = convex_init_(net, loader, loss=loss, readout=kind, **OPTIONS)
    assert (report.readout_kind, report.exactness.label) == (kind, "exact")
    assert 0.7 < report.accuracy_after <= report.accuracy_written
    inputs, labels = test_data()
    with torch.no_grad():
        output = net(inputs)
        scores = output if isinstance(output, torch.Tensor) else output[1]
        assert float(((scores > 0) == (labels < 5)).double().mean()) > 0.7


@pytest.mark.parametrize("form", [torch.Tensor.long, torch.Tensor.float, lambda labels: labels.float()[:, None]])
def test_two_classes_of_one_output_have_an_accuracy_in_any_form(form):
    loader = [(inputs, form(labels < 5)) for inputs, labels in batches(300)]
    net = build(membranes, outputs=1)
    report = convex_init_(net, loader, loss=nn.BCEWithLogitsLoss(), **OPTIONS)
    with torch.no_grad():
        right = torch.cat([(net(inputs).mean(0)[:, 0] > 0) == (labels < 5) for inputs, labels in batches(300)])
    assert report.accuracy_written == pytest.approx(float(right.double().mean()))
    assert math.isnan(convex_init_(build(membranes, outputs=1), loader, loss=nn.MSELoss(), **OPTIONS).accuracy_written) == (
        form is not torch.Tensor.long
    )
