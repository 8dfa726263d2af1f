"""Networks and data that can never work are refused, on the first batch where it shows there."""

import itertools

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import DataError, ReconstructionError, SilentLayerError

from ..helpers import batches, divided, loop_net, refused

pytestmark = pytest.mark.usefixtures("one_rate")


def test_a_silent_hidden_layer():
    words = ("'fc1' is silent", "none of its 48 neurons", "hidden='rescale'")
    refused(divided(loop_net()), batches(200), SilentLayerError, *words, hidden="keep")


def always_on(net):
    with torch.no_grad():
        net.fc1.weight.zero_()
        net.fc1.bias.fill_(50.0)
    return net


def test_a_hidden_layer_that_always_spikes():
    words = ("'fc1' always spikes", "hidden='rescale'")
    refused(always_on(loop_net()), batches(200), SilentLayerError, *words, hidden="keep")


def test_a_layer_that_no_gain_can_help():
    dead = loop_net()
    with torch.no_grad():
        dead.fc1.weight.abs_().neg_()
        dead.fc1.bias.abs_().neg_()
    refused(dead, batches(200), SilentLayerError, "'fc1'", "no positive current", hidden="rescale")
    # Always on at any gain, for the input plays no part.
    error = refused(always_on(loop_net()), batches(200), ReconstructionError, hidden="rescale")
    assert isinstance(error, (SilentLayerError, DataError))
    assert "hidden='rescale'" not in str(error)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_targets_that_are_images(loss):
    data = [(x, x.reshape(-1, 1, 8, 8)) for x, _ in batches(200)]
    refused(loop_net(), data, DataError, "targets that are images", "(1, 8, 8)", "the part of the net that classifies", loss=loss)


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.out = nn.Linear(64, 16), snn.LeakyParallel(16, 10)

    def forward(self, x):
        return self.out(self.fc1(x).expand(5, -1, -1))


def frozen_readout():
    net = loop_net()
    net.fc2.requires_grad_(False)
    return net


class Signs(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight.sign(), self.bias)


def binarised_readout():
    net = loop_net()
    net.fc2 = Signs(*net.fc2.weight.T.shape)
    return net


NEVER = {
    "no neuron": (lambda: nn.Sequential(nn.Linear(64, 10)), "no spiking neuron"),
    "LeakyParallel": (Parallel, "ends in 'out' (LeakyParallel)"),
    "binarised readout": (binarised_readout, "quantised or binarised"),
    "frozen readout": (frozen_readout, "net.fc2.requires_grad_(True)"),
    "autoencoder": (loop_net, "targets that are images"),
}


@pytest.mark.parametrize("name", NEVER)
def test_what_can_never_work_is_refused_on_the_first_batch(name):
    make, words = NEVER[name]
    drawn = []

    def endless():
        for x, y in itertools.cycle(batches(200)):
            drawn.append(len(y))
            yield x, (x.reshape(-1, 1, 8, 8) if name == "autoencoder" else y)

    with pytest.raises(ReconstructionError) as caught:
        convex_init_(make(), endless())
    assert words in str(caught.value)
    assert len(drawn) == 1
