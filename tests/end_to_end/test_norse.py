"""Norse networks, end to end."""

import pytest
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.demo import load_digits_data

norse = pytest.importorskip("norse.torch")
STEPS = 20


class MultiStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = norse.SequentialState(nn.Linear(64, 64), norse.LIF(), nn.Linear(64, 10), norse.LI())

    def forward(self, x):
        return self.layers(x.expand(STEPS, -1, -1))[0]


def cells():
    return norse.SequentialState(nn.Linear(64, 64), norse.LIFCell(), nn.Linear(64, 10), norse.LICell())


@pytest.mark.parametrize(("build", "forward"), [(MultiStep, None), (cells, over_time(STEPS))], ids=["multi-step", "cells"])
def test_a_norse_net_is_initialised_exactly_and_undone(build, forward):
    torch.manual_seed(0)
    data = load_digits_data()
    net = build()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    report = convex_init_(net, [(data.train_inputs, data.train_labels)], forward=forward)
    assert report.exactness.label == "exact"
    assert report.exactness.max_difference < 1e-4
    assert report.certificate.reached
    with torch.no_grad():
        outputs = net(data.test_inputs) if forward is None else forward(net, data.test_inputs)
    membranes = outputs[0] if isinstance(outputs, tuple) else outputs
    accuracy = float((membranes.mean(0).argmax(1) == data.test_labels).float().mean())
    assert accuracy > 0.92
    report.undo()
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))
