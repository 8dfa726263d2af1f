"""A batch norm, a factor or an offset behind the readout: the same answer as without it, in other weights."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import UnsupportedModuleError

from ..helpers import batches, train_data, values
from ..nets import BETA, CLASSES, loop_net, spikes_and_membranes
from ..user_nets.more_nets import Apply, NoOutputNeuron

OPTIONS = {"hidden": "keep", "strength": 1e-3, "fit_loss": "same"}


def norm(seed=1):
    """A batch norm as after some training, in evaluation mode."""
    torch.manual_seed(seed)
    found = nn.BatchNorm1d(CLASSES)
    for tensor, low, high in (
        (found.running_var, 0.3, 3.0),
        (found.weight, 0.5, 2.0),
        (found.running_mean, -1, 1),
        (found.bias, -1, 1),
    ):
        nn.init.uniform_(tensor, low, high)
    return found.eval()


def before(change, **options):
    """A net whose output neuron gets what ``change`` makes of the readout's output."""
    net = loop_net(**options)
    net.fc2 = nn.Sequential(net.fc2, change if isinstance(change, nn.Module) else Apply(change))
    return net


def after(change, decode=lambda membranes: membranes, **options):
    """A net that returns what ``change`` makes of its membranes, decoded or not."""
    return loop_net(decode=lambda spikes, membranes: change(decode(membranes)), **options)


def no_neuron(change):
    """A readout without a neuron, changed at each step."""
    torch.manual_seed(0)
    return NoOutputNeuron(decode=lambda values: values, last=change)


def at_each_step(membranes):
    return (NORM(membranes.flatten(0, 1))).unflatten(0, membranes.shape[:2])


NORM = norm()
LEAKS = snn.Leaky(beta=torch.linspace(0.3, 0.95, CLASSES), reset_mechanism="none")
SCALED = {  # the net, and the one without the change
    "a norm": (lambda: before(norm()), loop_net),
    "a negative factor": (lambda: before(torch.neg), loop_net),
    "a norm of the membranes at each step": (lambda: after(at_each_step), loop_net),
    "a norm without an output neuron": (lambda: no_neuron(norm()), lambda: no_neuron(nn.Identity())),
}


@pytest.mark.parametrize("name", SCALED)
def test_the_scores_are_those_without_the_scale(name):
    scaled, plain = (build() for build in SCALED[name])
    kept = values(scaled)
    report, known = (convex_init_(net, batches(300), **OPTIONS) for net in (scaled, plain))
    assert report.exactness.label == "exact"
    assert report.exactness.max_difference <= 1e-4 * max(1.0, report.exactness.scale)
    assert report.certificate.reached
    assert report.certificate.primal == pytest.approx(known.certificate.primal, rel=1e-5)
    assert report.accuracy_written == known.accuracy_written
    inputs = train_data()[0][:50]
    with torch.no_grad():
        own, other = (decoded(net(inputs)) for net in (scaled.eval(), plain))
    assert torch.allclose(own, other, atol=2e-3 * float(other.abs().max()))
    report.write_solved()
    report.undo()
    assert values(scaled) == kept


@pytest.mark.parametrize("name", ["before", "after"])
def test_outputs_with_a_leak_each_and_a_norm(name):
    nets = {"before": before, "after": lambda *norm, **more: after(*norm, lambda membranes: membranes.mean(0), **more)}
    report = convex_init_(nets[name](norm(), output=LEAKS), batches(300), **OPTIONS)
    assert report.exactness.label == "surrogate"
    assert report.exactness.agreement > 0.9
    assert report.accuracy_written > 0.9


def decoded(returned):
    return returned if returned.dim() == 2 else returned.mean(0)


def test_a_maximum_behind_a_norm():
    net = before(norm(), decode=lambda spikes, membranes: membranes.amax(0))
    report = convex_init_(net, batches(300), **OPTIONS)
    assert (report.readout.kind, report.exactness.label) == ("membrane_max", "majorised")
    assert report.accuracy_written > 0.9


@pytest.mark.parametrize("hidden", ["auto", "rescale"])
def test_a_fresh_norm_behind_the_readout_stays_as_it_is(hidden):
    net = before(nn.BatchNorm1d(CLASSES))
    report = convex_init_(net, batches(300), hidden=hidden, progress=False)
    assert report.exactness.label == "exact"
    assert torch.equal(net.fc2[1].running_var, torch.ones(CLASSES))


def test_a_norm_of_another_offset_needs_a_bias():
    with pytest.raises(UnsupportedModuleError, match="without a bias, whose scores have an offset of"):
        convex_init_(before(norm(), bias=False), batches(300), **OPTIONS)
    fresh = before(nn.BatchNorm1d(CLASSES), bias=False)
    assert convex_init_(fresh, batches(300), **OPTIONS).accuracy_written > 0.9


def test_a_single_output_decides_above_half_of_the_steps():
    net = loop_net(outputs=1, output=snn.Leaky(beta=BETA), decode=spikes_and_membranes, steps=12)
    halves = [(inputs, (labels > 4).long()) for inputs, labels in batches(300)]
    report = convex_init_(net, halves, loss="logistic", hidden="keep", strength=1e-3)
    assert report.readout.decided_by == "spike count of output[0], class 1 above 6"
    exactness = report.exactness  # both right or both wrong are alike
    assert exactness.agreement >= exactness.linear_accuracy + report.accuracy_written - 1
    program = convex_init_(loop_net(outputs=1, steps=12), halves, loss="logistic", hidden="keep", strength=1e-3)
    assert exactness.linear_accuracy == program.exactness.linear_accuracy  # before the bias was shifted for spikes
