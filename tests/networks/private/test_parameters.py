import contextlib

import norse.torch as norse
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from snn_recon_plugin.errors import WriteError
from snn_recon_plugin.networks.private.parameters import can_replace, with_values, write_values
from snn_recon_plugin.networks.write import Transaction

from ...helpers import assert_as_before, snapshot
from ..nets import Dense


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_originals_come_back(error):
    net, batchnorm = Dense(), nn.BatchNorm1d(2)
    before, others = snapshot(net), snapshot(batchnorm)
    values = {
        (net.fc1, "weight"): torch.ones(16, 10),
        (net.fc1, "bias"): torch.zeros(16),
        (batchnorm, "weight"): torch.ones(5),
        (batchnorm, "running_mean"): torch.zeros(3),
    }
    with contextlib.suppress(error), with_values(values):
        assert torch.equal(net.fc1(torch.ones(1, 10)), torch.full((1, 16), 10.0))
        assert not net.fc1.weight.requires_grad
        assert (batchnorm.weight.shape, batchnorm.running_mean.shape) == ((5,), (3,))
        raise error
    assert_as_before(net, before)
    assert_as_before(batchnorm, others)


@pytest.mark.parametrize("how", ["plain", "weight_norm", "weight_norm of the whole"])
def test_values_tried_written_and_taken_back_give_the_same_spikes(inputs, how):
    net = Dense()
    if how != "plain":
        parametrizations.weight_norm(net.fc2, dim=0 if how == "weight_norm" else None)
    assert can_replace(net.fc2, "weight")
    before, found = snapshot(net)["parameters"], net(inputs)[1]
    values = {(net.fc2, "weight"): 4 * torch.randn(16, 16), (net.fc1, "bias"): torch.randn(16)}
    with with_values(values):
        assert torch.allclose(net.fc2.weight, values[net.fc2, "weight"], rtol=1e-5)
        spikes, tried = net(inputs)
    assert spikes.any()
    assert snapshot(net)["parameters"] == before
    with Transaction(net) as transaction:
        for (module, name), value in values.items():
            transaction.write(module, name, value)
    assert torch.equal(net(inputs)[1], tried)
    transaction.undo()
    assert snapshot(net)["parameters"] == before
    parameters = list(net.parameters())
    replaced = write_values(values)
    assert all(one is other for one, other in zip(net.parameters(), parameters, strict=True))
    assert torch.equal(net(inputs)[1], tried)
    with with_values(replaced):
        assert torch.equal(net(inputs)[1], found)
    assert torch.equal(net(inputs)[1], tried)
    with pytest.raises(WriteError, match=r"shape \[3\] for 'fc2.weight'"), Transaction(net) as transaction:
        transaction.write(net.fc2, "weight", torch.zeros(3))


def test_plain_parameters_can_be_tried():
    layer = nn.Linear(2, 3, bias=False)
    assert can_replace(layer, "weight")
    assert not can_replace(layer, "bias")
    assert can_replace(norse.LILinearCell(2, 3), "input_weights")
