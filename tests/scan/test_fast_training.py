"""Faster steps in training: the callback and the guard of a plain loop."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from ..nets import shallow, spikes_and_membranes
from ..training.runs import MARKS, READ, STEPS, Module, callback, trained
from ..training.test_guard import adam, epoch, started

pytestmark = MARKS


def is_faster(net):
    return any("forward" in vars(module) for module in net.modules())


class Noted(Module):
    """Notes whether layers of its net have a forward of their own at each step."""

    def __init__(self):
        super().__init__()
        self.faster = []

    def training_step(self, batch, batch_idx):
        self.faster.append(is_faster(self.net))
        return super().training_step(batch, batch_idx)


def test_the_callback_trains_as_without_also_in_a_resumed_run(tmp_path):
    runs = [trained(tmp_path / str(fast), callback(fast=fast), kind=Noted, epochs=2)[0] for fast in (False, True)]
    assert runs[1].losses == pytest.approx(runs[0].losses, rel=1e-3)
    assert [{*run.faster} for run in runs] == [{False}, {True}]
    assert not is_faster(runs[1].net)
    resumed, _ = trained(tmp_path / "True", callback(fast=True), kind=Noted, epochs=3, ckpt_path=tmp_path / "True" / "epoch=1.ckpt")
    assert resumed.faster == [True] * 8


def test_without_a_word_a_run_of_enough_steps_is_faster(tmp_path, monkeypatch):
    runs = []
    for number, least in enumerate((9, 8)):
        monkeypatch.setattr("snn_recon_plugin.callback._LONG", least)
        runs.append(trained(tmp_path / str(number), callback(), kind=Noted, epochs=1)[0])
    assert [{*run.faster} for run in runs] == [{False}, {True}]
    assert len(runs[0].faster) == 8


class SpikingOutputs(Noted):
    """Trains on the membranes of neurons that reset, and returns their spikes too, as snnTorch's tutorial 5."""

    def __init__(self):
        super().__init__()
        self.net = shallow(spikes_and_membranes, steps=STEPS, reset_mechanism="subtract")

    def training_step(self, batch, batch_idx):
        self.faster.append(is_faster(self.net))
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val", self.loss(batch))

    def loss(self, batch):
        return torch.stack([functional.cross_entropy(step, batch[1]) for step in self.net(batch[0])[1]]).sum()


def test_spikes_that_decide_beside_the_loss_leave_steps_fast(tmp_path):
    run, _ = trained(tmp_path, callback(of=READ, fast=True), kind=SpikingOutputs, epochs=1)
    assert {*run.faster} == {True}


def test_the_guard_takes_faster_steps_until_it_is_closed():
    nets = []
    for fast in (False, True):
        net, report = started()
        optimizer = adam(net)
        with report.protect(optimizer, fast=fast):
            assert is_faster(net) is fast
            epoch(net, optimizer)
        assert not is_faster(net)
        nets.append(net)
    torch.testing.assert_close(*(list(net.parameters()) for net in nets), rtol=1e-3, atol=1e-4)


class Outside(Module):
    """Its time loop is in the training step."""

    def __init__(self):
        hidden, output = snn.Leaky(beta=0.9, init_hidden=True), snn.Leaky(beta=0.9, init_hidden=True, output=True)
        super().__init__(net=nn.Sequential(nn.Linear(64, 48), hidden, nn.Linear(48, 10), output))

    def training_step(self, batch, batch_idx):
        for neuron in (self.net[1], self.net[3]):
            neuron.reset_mem()
        scores = torch.stack([self.net(batch[0])[1] for _ in range(STEPS)]).mean(0)
        return functional.cross_entropy(scores, batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val", self.training_step(batch, batch_idx))


def test_a_loop_outside_of_the_net_is_named(tmp_path):
    with pytest.warns(UserWarning, match="fast=True changes nothing for this Sequential: its time loop is outside of its modules"):
        trained(tmp_path, callback(of=READ, fast=True), kind=Outside, epochs=1)
