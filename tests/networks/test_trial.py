import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from snn_recon_plugin.errors import UnsupportedModuleError, WriteError
from snn_recon_plugin.networks import Transaction, trial_parameters


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_originals_come_back(nets, inputs, error):
    net = nets.Mlp()
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in net.named_parameters()}
    values = {(net.fc1, "weight"): torch.ones(16, 10), (net.fc1, "bias"): torch.zeros(16)}
    try:
        with trial_parameters(values):
            assert torch.equal(net.fc1(torch.ones(1, 10)), torch.full((1, 16), 10.0))
            assert not net.fc1.weight.requires_grad
            if error is not None:
                raise error
    except KeyboardInterrupt:
        pass
    after = dict(net.named_parameters())
    assert list(after) == list(before)
    for name, (parameter, value) in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter, value)
        assert parameter.requires_grad


def test_trial_weights_spike_as_written_ones(nets, inputs):
    net = nets.Mlp()
    values = {(net.fc1, "weight"): torch.randn(16, 10), (net.fc2, "bias"): torch.randn(16)}
    with trial_parameters(values):
        tried = net(inputs)
    with Transaction(net) as transaction:
        for (module, name), value in values.items():
            transaction.write(module, name, value)
    written = net(inputs)
    assert tried[0].any()
    assert torch.equal(tried[0], written[0])
    assert torch.equal(tried[1], written[1])


def test_bad_values_change_nothing():
    layer = nn.Linear(2, 3)
    weight = layer.weight
    with (
        pytest.raises(WriteError, match=r"shape \[3\] for 'weight'"),
        trial_parameters({(layer, "bias"): torch.zeros(3), (layer, "weight"): torch.zeros(3)}),
    ):
        pass
    assert layer.weight is weight
    normed = parametrizations.weight_norm(nn.Linear(2, 3))
    with (
        pytest.raises(UnsupportedModuleError, match="without a plain parameter 'weight'"),
        trial_parameters({(normed, "weight"): torch.zeros(3, 2)}),
    ):
        pass
