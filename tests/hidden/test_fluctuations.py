"""The rule of a start without labels, on single layers; tests/test_hidden_init.py has whole nets."""

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from snn_recon_plugin.errors import SilentLayerError
from snn_recon_plugin.hidden.fluctuations import DriveTask, LoneNeuron, choose_drive, take_few
from snn_recon_plugin.networks.calls.forward import over_time, plain_forward
from snn_recon_plugin.networks.calls.record import StoredBatch
from snn_recon_plugin.networks.private.parameters import write_values
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.structure.inspect import inspect_hidden

from ..helpers import STEPS, hidden_spikes, loop_net, train_data
from ..nets import Stack

IMAGES = train_data(100)[0]


def task_of(net, inputs=IMAGES, forward=plain_forward):
    batch = StoredBatch(inputs, slice(0, 100))
    return DriveTask(net, [batch], forward, inspect_hidden(net, inputs, forward))


def test_a_neuron_alone_fires_as_in_the_net():
    net = loop_net()
    currents = net.fc1(IMAGES).detach().expand(STEPS, -1, -1)
    expected = hidden_spikes(net.fc1, IMAGES).mean().item()
    assert LoneNeuron(net.lif1, currents).rate(1.0) == pytest.approx(expected)
    assert take_few(currents).shape == currents.shape  # they are not many
    assert take_few(torch.zeros(1).expand(10, 100, 10**5)).shape[1] == 16


@pytest.mark.parametrize("rate", [0.02, 0.2])
def test_layers_are_set_from_the_input_up(rate):
    net = Stack((50.0, 50.0)).eval()
    task = task_of(net)
    with quiet(net, seed=0):
        with pytest.raises(SilentLayerError, match=r"'synapses\.1' gets the same current") as caught:
            choose_drive(task, 1, rate)  # the layer below is silent still
        assert "no frozen layer below it is silent" in caught.value.fix
        for number in (0, 1):
            choice, values = choose_drive(task, number, rate)
            assert set(values) == {
                (net.synapses[number], "weight"),
                (net.synapses[number], "bias"),
            }
            assert choice.gain > 10
            write_values(values)


def test_a_unit_that_drifts_is_shifted_and_others_lose_their_bias():
    net = loop_net().eval()
    with torch.no_grad():
        net.fc1.weight[0] = net.fc1.weight[0].abs()  # its currents are far above zero
        net.fc1.weight[1] = -net.fc1.weight[0]
    with quiet(net, seed=0):
        write_values(choose_drive(task_of(net), 0)[1])
        current = net.fc1(IMAGES)
    assert torch.allclose(current.mean(0)[:2], torch.tensor([1.0, -1.0]) * current.std(0)[:2], rtol=0.02)
    assert 0 < int((net.fc1.bias.abs() < 1e-5).sum()) < len(net.fc1.bias)


@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_batch_norm_is_measured_by_channels_in_both_step_modes(mode):
    torch.manual_seed(0)
    norm, steps = layer.BatchNorm2d(4, step_mode=mode), mode == "m"
    conv = layer.Conv2d(1, 4, 3, step_mode=mode)
    hidden = nn.Unflatten(1 + steps, (1, 8, 8)), conv, norm, neuron.IFNode(step_mode=mode), nn.Flatten(1 + steps)
    net = nn.Sequential(*hidden, nn.Linear(144, 3)).eval()
    with quiet(net, seed=0):
        _, values = choose_drive(task_of(net, forward=over_time(STEPS)), 0)
        current = nn.functional.conv2d(IMAGES.view(-1, 1, 8, 8), conv.weight, conv.bias)
    assert torch.allclose(values[norm, "running_mean"].float(), current.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(values[norm, "running_var"].float(), current.var((0, 2, 3), correction=0), rtol=1e-3)
