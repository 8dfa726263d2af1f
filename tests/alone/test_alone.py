"""With one of the libraries installed: `make alone` runs this in an environment of its own for each."""

import importlib.util
import os
import sys

import pytest
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time

LIBRARIES = ("snntorch", "norse", "spikingjelly")
INSTALLED = [name for name in LIBRARIES if importlib.util.find_spec(name) is not None]
STEPS, CLASSES = 10, 3


def of_snntorch():
    import snntorch as snn

    return nn.Sequential(
        nn.Linear(8, 24),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(24, CLASSES),
        snn.Leaky(beta=0.9, init_hidden=True, output=True, reset_mechanism="none"),
    )


def of_norse():
    import norse.torch as norse

    return norse.SequentialState(nn.Linear(8, 24), norse.LIFCell(), nn.Linear(24, CLASSES), norse.LICell())


def of_spikingjelly():
    from spikingjelly.activation_based import layer, neuron

    return nn.Sequential(layer.Linear(8, 24), neuron.LIFNode(), layer.Linear(24, CLASSES))


@pytest.mark.parametrize("library", INSTALLED)
def test_a_net_of_an_installed_library(library):
    torch.manual_seed(0)
    labels = torch.arange(120) % CLASSES
    inputs = torch.rand(120, 8) + 2 * nn.functional.one_hot(labels, 8)
    net = {"snntorch": of_snntorch, "norse": of_norse, "spikingjelly": of_spikingjelly}[library]()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    report = convex_init_(net, [(inputs, labels)], forward=over_time(STEPS))
    assert report.exactness.label == "exact"
    assert report.certificate.reached
    assert report.accuracy_written > 0.95
    report.undo()
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


def test_the_environment_holds_what_it_is_named_after():
    """`make alone` says which library its environment is for; elsewhere several may be there."""
    expected = os.environ.get("ALONE")
    assert INSTALLED
    if expected is not None:
        assert [expected] == INSTALLED
        assert not [name for name in {*LIBRARIES} - {expected} if sys.modules.get(name) is not None]
