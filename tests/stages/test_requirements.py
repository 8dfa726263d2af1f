"""Networks and data that can never work are refused, on the first batch where it shows there."""

import itertools

import pytest
from torch import nn

from snn_recon_plugin.errors import DataError, ReconstructionError, SilentLayerError

from ..helpers import batches, divided, loop_net, refused

pytestmark = pytest.mark.usefixtures("one_rate")


def filled(weight, bias):
    """A net whose first layer has one weight and one bias everywhere."""
    net = loop_net()
    nn.init.constant_(net.fc1.weight, weight)
    nn.init.constant_(net.fc1.bias, bias)
    return net


@pytest.mark.parametrize(
    ("net", "hidden", "words"),
    [
        (divided(loop_net()), "keep", ["'fc1' is silent", "none of its 48 neurons", "hidden='rescale'"]),
        (filled(0.0, 50.0), "keep", ["'fc1' always spikes", "hidden='rescale'"]),
        (filled(-0.1, -0.1), "rescale", ["'fc1'", "no positive current"]),
    ],
    ids=["silent", "always on", "without a gain that helps"],
)
def test_a_hidden_layer_that_tells_nothing(net, hidden, words):
    refused(net, batches(200), SilentLayerError, *words, hidden=hidden)


def test_a_layer_that_spikes_at_any_gain():
    error = refused(filled(0.0, 50.0), batches(200), ReconstructionError, hidden="rescale")
    assert isinstance(error, (SilentLayerError, DataError))
    assert "hidden='rescale'" not in str(error)


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
