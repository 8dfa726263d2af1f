"""A batch norm, a factor or an offset behind the readout: the same answer as without it, in other weights."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import DataError, UnsupportedModuleError

from ..helpers import batches, train_data, values
from ..nets import BETA, CLASSES, Loop, loop_net, membranes_of, spikes_and_membranes

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
    net.fc2 = Changed(net.fc2, change)
    return net


class Changed(nn.Module):
    def __init__(self, linear, change):
        super().__init__()
        self.linear, self.change = linear, change

    def forward(self, x):
        return self.change(self.linear(x))


class NoNeuron(Loop):
    """A readout without a neuron, normalised at each step."""

    def __init__(self, change):
        torch.manual_seed(0)
        super().__init__()
        del self.lif2
        self.change = change

    def forward(self, x):
        mem, found = self.lif1.reset_mem(), []
        for _ in range(self.steps):
            spikes, mem = self.lif1(self.fc1(x), mem)
            found.append(self.change(self.fc2(spikes)))
        return torch.stack(found)


def after(change, decode=lambda membranes: membranes, **options):
    """A net that returns what ``change`` makes of its membranes, decoded or not."""
    return loop_net(decode=lambda spikes, membranes: change(decode(membranes)), **options)


def at_each_step(membranes):
    return (NORM(membranes.flatten(0, 1))).unflatten(0, membranes.shape[:2])


NORM = norm()
LEAKS = snn.Leaky(beta=torch.linspace(0.3, 0.95, CLASSES), reset_mechanism="none")
SCALED = {  # the net, and the one without the change
    "a factor": (lambda: before(lambda x: 2.5 * x), loop_net),
    "a norm": (lambda: before(norm()), loop_net),
    "a negative factor": (lambda: before(torch.neg), loop_net),
    "a norm, and a leak an output": (lambda: before(norm(), output=LEAKS), lambda: loop_net(output=LEAKS)),
    "a norm of the membranes at each step": (lambda: after(at_each_step), loop_net),
    "a norm of the mean membrane": (lambda: after(norm(), lambda membranes: membranes.mean(0)), loop_net),
    "a norm of the last membrane, and a leak an output": (
        lambda: after(norm(), lambda membranes: membranes[-1], output=LEAKS),
        lambda: loop_net(decode=lambda spikes, membranes: membranes[-1], output=LEAKS),
    ),
    "two norms": (lambda: before(norm(), decode=lambda spikes, membranes: at_each_step(membranes)), loop_net),
    "a norm without an output neuron": (lambda: NoNeuron(norm()), lambda: NoNeuron(nn.Identity())),
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


def decoded(returned):
    return returned if returned.dim() == 2 else returned.mean(0)


SPIKING = {
    "a norm before": lambda: before(norm(), output=snn.Leaky(beta=BETA), decode=spikes_and_membranes),
    "a factor of the counts": lambda: loop_net(output=snn.Leaky(beta=BETA), decode=lambda spikes, _: 0.3 * spikes.sum(0)),
    "a factor and an offset at each step": lambda: loop_net(output=snn.Leaky(beta=BETA), decode=lambda spikes, _: 3 * spikes - 1),
    "a factor of membranes that reset": lambda: loop_net(output=snn.Leaky(beta=BETA), decode=lambda _, membranes: 2 * membranes),
}


@pytest.mark.parametrize("name", SPIKING)
def test_spiking_outputs(name):
    net = SPIKING[name]()
    report = convex_init_(net, batches(300), hidden="keep", strength=1e-2)
    assert report.exactness.label == "surrogate"
    inputs, labels = (part[:300] for part in train_data())
    with torch.no_grad():
        returned = net.eval()(inputs)
    scores = returned[0] if isinstance(returned, tuple) else returned
    scores = scores.sum(0) if scores.dim() == 3 else scores
    own = float((scores.argmax(1) == labels).float().mean())
    assert own > 0.85
    assert report.accuracy_written == pytest.approx(own, abs=0.005)
    exactness = report.exactness
    assert exactness.agreement >= exactness.linear_accuracy + report.accuracy_written - 1
    assert exactness.linear_accuracy > 0.8


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
    assert torch.equal(net.fc2.change.running_var, torch.ones(CLASSES))


def test_a_norm_of_another_offset_needs_a_bias():
    with pytest.raises(UnsupportedModuleError, match="without a bias, whose scores have an offset of"):
        convex_init_(before(norm(), bias=False), batches(300), **OPTIONS)
    fresh = before(nn.BatchNorm1d(CLASSES), bias=False)
    assert convex_init_(fresh, batches(300), **OPTIONS).accuracy_written > 0.9


# -- one output -----------------------------------------------------------------------------------------------------------


def halves(labels):
    return (labels > 4).long()


def single(loader_of=halves):
    return [(inputs, loader_of(labels)) for inputs, labels in batches(300)]


def one(decode=spikes_and_membranes, **output):
    return loop_net(outputs=1, output=snn.Leaky(beta=BETA, **output), decode=decode, steps=12)


SINGLE = {  # net, what its user decides by
    "spikes at more than half of the steps": (one, lambda returned: returned[0].sum(0) > 6),
    "a rate above one half": (lambda: one(lambda spikes, _: spikes.mean(0)), lambda rate: rate > 0.5),
    "scores of the form [B]": (lambda: one(lambda spikes, _: spikes.sum(0)[:, 0]), lambda count: count[:, None] > 6),
    "more than two spikes": (lambda: one(lambda spikes, _: spikes.sum(0) - 2.5), lambda score: score > 0),
    "twice the count": (lambda: one(lambda spikes, _: 2 * spikes.sum(0)), lambda score: score > 12),
    "a membrane without a reset": (lambda: one(membranes_of, reset_mechanism="none"), lambda membranes: membranes.mean(0) > 0),
    "a membrane that resets": (lambda: one(membranes_of), lambda membranes: membranes.mean(0) > 0),
    "the largest membrane": (lambda: one(lambda _, m: m.amax(0), reset_mechanism="none"), lambda largest: largest > 0),
}
LABELS = {
    "class indices": (halves, "logistic"),
    "a column of floats": (lambda labels: halves(labels).float()[:, None], nn.BCEWithLogitsLoss()),
}


@pytest.mark.parametrize("form", LABELS)
@pytest.mark.parametrize("name", SINGLE)
def test_a_single_output_decides_between_two_classes(name, form):
    build, decide = SINGLE[name]
    net, (labelled, loss) = build(), LABELS[form]
    report = convex_init_(net, single(labelled), loss=loss, hidden="keep", strength=1e-3)
    inputs, labels = (part[:300] for part in train_data())
    with torch.no_grad():
        own = float((decide(net.eval()(inputs))[:, 0] == halves(labels)).float().mean())
    assert own > 0.8
    assert report.accuracy_written == pytest.approx(own, abs=0.005)


def test_the_decision_of_a_single_output_is_named():
    assert "spike count of output[0], class 1 above 6" in str(
        convex_init_(one(), single(), loss="logistic", hidden="keep").readout.decided_by
    )


def test_the_fix_of_the_first_refusal_is_not_refused():
    with pytest.raises(DataError, match="cross_entropy with one output") as caught:
        convex_init_(one(), single())
    assert "pass loss='logistic'" in caught.value.fix
    with pytest.raises(DataError, match="squared for a single output") as caught:
        convex_init_(one(), single(), loss="squared")
    assert caught.value.fix == "pass loss='logistic'"
    assert convex_init_(one(), single(), loss="logistic", hidden="keep").accuracy_written > 0.8
