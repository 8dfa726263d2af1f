"""Norse networks, end to end."""

import copy

import pytest
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.demo import load_digits_data

from ..nets import Looped

norse = pytest.importorskip("norse.torch")
STEPS = 20


def multi_step(net, x):
    return net(x.expand(STEPS, -1, -1))[0]


@pytest.mark.parametrize(("forward", "neurons"), [(multi_step, "LIF LI"), (over_time(STEPS), "LIFCell LICell")])
def test_a_norse_net_is_initialised_exactly_and_undone(forward, neurons):
    torch.manual_seed(0)
    data = load_digits_data()
    hidden, output = (getattr(norse, name)() for name in neurons.split())
    net = Looped(forward, nn.Linear(64, 64), hidden, nn.Linear(64, 10), output)
    before = copy.deepcopy(net.state_dict())
    report = convex_init_(net, [(data.train_inputs, data.train_labels)])
    assert report.exactness.label == "exact"
    assert report.exactness.max_difference < 1e-4
    assert report.certificate.reached
    with torch.no_grad():
        predicted = net(data.test_inputs).mean(0).argmax(1)
    assert float((predicted == data.test_labels).float().mean()) > 0.92
    report.undo()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
