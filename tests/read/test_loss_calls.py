"""A run of a training step that only shows what its losses get."""

import copy

import pytest
import snntorch.functional as SF
import torch
from torch import nn
from torch.nn import functional

from snn_recon_plugin.read.loss_calls import StepWatch

from ..helpers import loop_net, snapshot, train_data

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
