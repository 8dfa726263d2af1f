import pytest
import torch
from torch import nn

from snn_recon_plugin.errors import CaptureError
from snn_recon_plugin.networks import (
    StoredBatch,
    Taps,
    autocast_rounding,
    inspect_network,
    neuron_currents,
    plain_forward,
    quiet,
    record,
)
from snn_recon_plugin.networks.record import tapped


def run(net, x, **taps):
    return record(net, StoredBatch(x, slice(0, len(x))), plain_forward, Taps(**taps))


def test_inputs_and_outputs_are_seen_and_outputs_replaced(nets, inputs, count_hooks):
    net, entered, left = nets.Mlp(), [], []
    spikes, _ = run(
        net,
        inputs,
        inputs={net.fc3: entered.append},
        new_outputs={net.fc3: lambda output: torch.full_like(output, 7.0)},
        outputs={net.fc3: left.append},
    )
    assert len(entered) == len(left) == 6
    assert all(bool((value == 7.0).all()) for value in left)
    assert bool((spikes == 1).all())
    assert count_hooks(net) == 0


def test_a_batch_is_run_from_rest_with_its_own_random_numbers(nets, inputs):
    net = nets.Mlp()
    noisy = lambda net, x: net(x + torch.rand_like(x))  # noqa: E731
    one, two = (StoredBatch(inputs, rows) for rows in (slice(0, 8), slice(8, 16)))
    with quiet(net, seed=0):
        first, other = record(net, one, noisy)[1], record(net, two, noisy)[1]
        redrawn, again = record(net, one, noisy, draw=1)[1], record(net, one, noisy)[1]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, redrawn)
    assert not first.requires_grad


def test_taps_that_capture_nothing(nets, inputs, count_hooks):
    net, unused = nets.Mlp(), nn.Linear(2, 2)
    net.unused = unused
    with pytest.raises(CaptureError, match=r"calls none of 'unused' \(Linear\)"):
        run(net, inputs, inputs={unused: lambda value: None})
    assert count_hooks(net) == 0
    run(net, inputs, inputs={unused: lambda value: None}, outputs={net.fc1: lambda value: None})


def test_currents_need_the_neuron_to_run(nets, inputs):
    net = nets.Mlp()
    layer = inspect_network(net, inputs, plain_forward).hidden[0]
    with pytest.raises(CaptureError, match=r"calls none of 'lif1' \(Leaky\)"):
        neuron_currents(net, [StoredBatch(inputs, slice(0, 8))], layer, lambda net, x: x)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_taps_are_removed_on_errors(count_hooks, error):
    layer = nn.Linear(2, 2)

    def interrupted():
        with tapped(Taps(inputs={layer: lambda value: None})):
            assert count_hooks(layer) == 2
            raise error

    with pytest.raises(error):
        interrupted()
    assert count_hooks(layer) == 0


def test_keyword_currents_are_found_behind_states():
    class Neuron(nn.Module):
        def forward(self, input_, mem=None):
            return input_

    neuron, seen = Neuron(), []
    with tapped(Taps(inputs={neuron: seen.append})):
        neuron(mem=torch.zeros(1), input_=torch.ones(4))
    assert seen[0].shape == (4,)


def test_a_first_argument_that_is_no_tensor():
    layer, seen = nn.Identity(), []
    with tapped(Taps(inputs={layer: seen.append})), pytest.raises(CaptureError, match="Identity was called with a list"):
        layer(["text"])
    assert seen == []


def test_inputs_are_replaced_for_a_while():
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        expected = layer(torch.ones(4, 2))
        with tapped(Taps(new_inputs={layer: lambda value: 2 * value})):
            assert torch.equal(layer(torch.ones(4, 2)), layer(input=torch.ones(4, 2)))
            assert not torch.equal(layer(torch.ones(4, 2)), expected)
        assert torch.equal(layer(torch.ones(4, 2)), expected)


def test_calls_are_seen_under_the_nets_autocast_and_other_functions_run_without_it():
    layer, roundings, dtypes = nn.Linear(2, 2), [], []
    taps = Taps(
        calls={layer: lambda arguments, output: roundings.append(autocast_rounding(output.device))},
        outputs={layer: lambda _: dtypes.append((torch.ones(2, 2) @ torch.ones(2)).dtype)},
    )
    with tapped(taps):
        layer(torch.ones(1, 2))
        with torch.autocast("cpu", torch.bfloat16):
            layer(torch.ones(1, 2))
    assert roundings == [0.0, torch.finfo(torch.bfloat16).eps]
    assert dtypes == [torch.float32] * 2
