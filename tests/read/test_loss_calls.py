"""A run of a training step that only shows what its losses get."""

import copy

import pytest
import snntorch.functional as SF
import torch
import torchmetrics
from snntorch import utils
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.functional import reset_net
from torch import nn
from torch.nn import functional

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import NetworkError
from snn_recon_plugin.options import Options
from snn_recon_plugin.read.loss_calls import StepWatch
from snn_recon_plugin.read.step import read_first

from ..helpers import batches, loop_net, snapshot, train_data, values
from ..nets import CLASSES, PIXELS, STEPS
from ..user_nets.spikingjelly_nets import multi_step
from .steps import QUICK, both, ce, outside, repeated, run

pytestmark = pytest.mark.usefixtures("no_other_neurons")

BATCH = train_data(20)


def watched(step, net=None, ends=lambda tensor: True):
    return StepWatch(ends).run(step, loop_net() if net is None else net, BATCH)


def count(net, batch):
    return net(batch[0])[0].sum(0)


LOSSES = {
    "a module": lambda net, batch: nn.CrossEntropyLoss(label_smoothing=0.1)(net(batch[0]), batch[1]),
    "a function": lambda net, batch: functional.cross_entropy(net(batch[0]), batch[1], label_smoothing=0.1),
    "by names": lambda net, batch: functional.cross_entropy(target=batch[1], input=net(batch[0]), label_smoothing=0.1),
    "a dictionary": lambda net, batch: {"loss": functional.cross_entropy(net(batch[0]), batch[1], label_smoothing=0.1)},
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_torch_is_seen_with_its_arguments(name):
    seen = watched(LOSSES[name], decoding())
    (call,) = seen.calls
    assert isinstance(call.loss, nn.CrossEntropyLoss)
    assert call.loss.label_smoothing == 0.1
    assert call.targets is BATCH[1]
    assert torch.equal(call.value, seen.total)


def decoding():
    """A net that returns scores."""
    return loop_net(decode=lambda spikes, membranes: membranes.mean(0))


def test_a_loss_of_snntorch_is_seen_as_itself():
    loss = SF.mse_count_loss(0.8, 0.2)
    (call,) = watched(lambda net, batch: loss(net(batch[0]), batch[1]), loop_net(decode=lambda spikes, _: spikes)).calls
    assert call.loss is loss
    assert call.scores.shape[0] == 8


def test_a_function_that_trains_is_stopped_and_changes_nothing():
    net, live = decoding(), decoding()
    optimizer = torch.optim.Adam(live.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    for parameter in live.parameters():
        parameter.grad = torch.ones_like(parameter)
    reached = []

    def train_batch(net, batch):
        net.train()
        optimizer.zero_grad()
        scheduler.step()
        optimizer.step(lambda: reached.append("closure"))
        loss = functional.cross_entropy(net(batch[0]), batch[1])
        loss.backward()
        reached.append("after backward")

    net.eval()
    before, state = snapshot(live), copy.deepcopy(optimizer.state_dict())
    seen = watched(train_batch, net)
    assert reached == ["closure"]
    assert len(seen.calls) == 1
    assert snapshot(live) == before
    assert optimizer.state_dict() == state
    assert not net.training
    assert "train" not in vars(net)


@pytest.mark.parametrize("way", ["autograd.backward", "autograd.grad", "scaler"])
def test_other_ways_to_go_backward_end_it_too(way):
    def step(net, batch):
        loss = functional.cross_entropy(net(batch[0]), batch[1])
        if way == "autograd.backward":
            torch.autograd.backward(loss)
        elif way == "autograd.grad":
            torch.autograd.grad(loss, list(net.parameters()))
        else:
            scaler = torch.amp.GradScaler("cpu")
            scaler.scale(loss).backward()
        raise AssertionError("it went on")

    assert watched(step, decoding()).total is not None


def test_other_losses_that_go_backward_are_passed_over():
    critic = nn.Linear(64, 1)

    def step(net, batch):
        first = critic(batch[0]).mean()
        first.backward()
        return functional.cross_entropy(net(batch[0]), batch[1])

    seen = watched(step, decoding(), ends=lambda tensor: False)
    assert critic.weight.grad is None
    assert len(seen.calls) == 1


def test_all_is_put_back_after_an_error():
    before = torch.optim.SGD.step, torch.optim.Optimizer.zero_grad, torch.autograd.backward, SF.ce_rate_loss.__call__
    net = decoding()

    def step(net, batch):
        raise ValueError("of the user's")

    with pytest.raises(ValueError, match="of the user's"):
        watched(step, net)
    assert (torch.optim.SGD.step, torch.optim.Optimizer.zero_grad, torch.autograd.backward, SF.ce_rate_loss.__call__) == before
    assert "train" not in vars(net)


# -- what else a step does -----------------------------------------------------------------------------------------------
def test_other_networks_and_losses_in_a_step():
    """A critic that is trained beside, on what the net does not make, and a second head."""
    net = both()
    net.head = nn.Linear(PIXELS, CLASSES)
    critic = nn.Linear(PIXELS, 1)
    optimizer = torch.optim.SGD(critic.parameters(), 0.1)
    before = values(critic)

    def step(net, batch):
        loss = functional.binary_cross_entropy_with_logits(critic(batch[0])[:, 0], torch.ones(len(batch[1])))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scores = net(batch[0])[0].sum(0)
        return ce(scores, batch[1]) + ce(net.head(batch[0]), batch[1])

    with pytest.warns(UserWarning, match="the rest, such as a penalty"):
        report = convex_init_(net, batches(300), step=step, **QUICK)
    assert (report.readout.name, report.accuracy_after > 0.7) == ("fc2", True)
    assert values(critic) == before


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_terms_beside_the_loss_are_named_but_not_a_factor(penalty, recwarn):
    def step(net, batch):
        return ce(net(batch[0])[0].sum(0), batch[1]) / 4 + penalty * net.fc1.weight.square().sum()

    convex_init_(both(), batches(300), step=step, **QUICK)
    assert any("is left out" in str(each.message) for each in recwarn) is bool(penalty)


def weighed(values, labels):
    return (values * (labels > 4)).mean()


def focal(values, labels):
    return ((1 - (-values).exp()) ** 2 * values).mean()


@pytest.mark.parametrize(("total", "named"), [(weighed, True), (focal, True), (lambda values, labels: values.mean(), False)])
def test_weights_of_samples_are_named(total, named, recwarn):
    def step(net, batch):
        return total(functional.cross_entropy(net(batch[0])[0].sum(0), batch[1], reduction="none"), batch[1])

    convex_init_(both(), batches(300), step=step, **QUICK)
    found = [str(each.message) for each in recwarn if "The step" in str(each.message)]
    assert [text[:42] for text in found] == ["The step weighs its CrossEntropyLoss by sa"] * named


def test_a_step_may_change_its_batch():
    """It gets a copy each time: values are divided once, and the loader's own tensors stay."""
    loader = [{"image": 255 * inputs, "label": labels} for inputs, labels in batches(300)]
    before = [batch["image"].clone() for batch in loader]

    def step(net, batch):
        labels = batch.pop("label")
        batch["image"] /= 255
        return ce(net(batch["image"])[0].sum(0), labels)

    report = convex_init_(both(), loader, step=step, **QUICK)
    assert report.accuracy_after > 0.7
    assert all(torch.equal(batch["image"], image) for batch, image in zip(loader, before, strict=True))


def test_a_metric_in_a_step_stays_as_it_was():
    metric = torchmetrics.Accuracy(task="multiclass", num_classes=CLASSES)
    metric.update(torch.eye(CLASSES), torch.arange(CLASSES))

    def step(net, batch):
        scores = net(batch[0])[0].sum(0)
        metric.update(scores, batch[1])
        return ce(scores, batch[1]), metric(scores, batch[1])

    convex_init_(both(), batches(300), step=step, **QUICK)
    assert (int(metric.tp.sum()), metric._update_count, float(metric.compute())) == (CLASSES, 1, 1.0)


# -- losses that go backward one after the other ---------------------------------------------------------------------------------
def truncated(net, batch):
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    utils.reset(net)
    for part in repeated(batch[0]).split(STEPS // 2):
        loss = ce(torch.stack([net(step)[0] for step in part]).sum(0), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        net[1].detach_hidden()
        net[3].detach_hidden()


def in_parts(net, batch):
    for inputs, labels in zip(batch[0].split(50), batch[1].split(50), strict=True):
        ce(run(net, repeated(inputs)).sum(0), labels).backward()


@pytest.mark.parametrize("step", [truncated, in_parts])
def test_several_losses_that_go_backward_one_after_the_other_are_refused(step):
    with pytest.raises(NetworkError, match=r"several losses \(CrossEntropyLoss\) of the net go backward") as caught:
        convex_init_(outside(), batches(300), step=step, **QUICK)
    assert "a forward_pass over all steps" in caught.value.fix


def epoch(net, loader):
    count = 0
    for inputs, labels in loader:
        ce(run(net, repeated(inputs)).sum(0), labels).backward()
        count += len(labels)
    return count


def twice(net, batch):
    for _ in range(2):
        loss = ce(run(net, repeated(batch[0])).sum(0), batch[1])
        loss.backward()
        net[0].weight.grad.norm()  # is None here


@pytest.mark.parametrize("step", [lambda net, batch: epoch(net, [batch]), twice], ids=["an epoch of one batch", "the same loss"])
def test_a_loss_in_a_loop_may_be_the_only_one(step):
    assert convex_init_(outside(), batches(300), step=step, **QUICK).accuracy_after > 0.7


def test_a_step_ends_at_its_loss_outside_loops():
    seen = []

    def step(net, batch):
        nonlocal seen
        for part in batch[0].split(50):
            seen += [len(part)]
        ce(net(batch[0])[0].sum(0), batch[1]).backward()
        seen.append("behind")

    read_first(both(), batches(300, 100), Options(step=step))
    assert seen == [50, 50]


def test_neurons_without_a_gradient_in_evaluation():
    """As those of SpikingJelly before version 2."""

    class Node(neuron.LIFNode):
        def multi_step_forward(self, x):
            spikes = super().multi_step_forward(x)
            return spikes if self.training else spikes.detach()

    net = multi_step("LIF")
    net[3] = Node(step_mode="m")
    net.eval()
    data = [(inputs.expand(STEPS, *inputs.shape), labels) for inputs, labels in batches(300)]

    def step(net, batch):
        reset_net(net)
        return ce(net(batch[0]).mean(0), batch[1])

    report = convex_init_(net, data, step=step, **QUICK)
    assert report.readout.kind == "spike_rate"
    assert not any(module.training for module in net.modules())
