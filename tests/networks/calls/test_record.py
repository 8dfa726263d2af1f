import pytest
import torch
from torch import nn

from snn_recon_plugin.errors import CaptureError
from snn_recon_plugin.networks.calls.calls import CallRecorder
from snn_recon_plugin.networks.calls.forward import plain_forward
from snn_recon_plugin.networks.calls.record import StoredBatch, Taps, record, tapped
from snn_recon_plugin.networks.private.quiet import autocast_rounding, quiet
from snn_recon_plugin.networks.structure.inspect import inspect_network

from ...helpers import parameters_of
from ..nets import Dense


def run(net, x, **taps):
    return record(net, StoredBatch(x, slice(0, len(x))), plain_forward, Taps(**taps))


def nothing(value):
    return None


def test_inputs_and_outputs_are_seen_and_outputs_replaced(inputs):
    net, entered, left = Dense(), [], []
    before = parameters_of(net)
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
    assert parameters_of(net) == before


def test_a_batch_is_run_from_rest_with_its_own_random_numbers(inputs):
    net = Dense()
    noisy = lambda net, x: net(x + torch.rand_like(x))  # noqa: E731
    one, two = (StoredBatch(inputs, rows) for rows in (slice(0, 8), slice(8, 16)))
    with quiet(net, seed=0):
        first, other = record(net, one, noisy)[1], record(net, two, noisy)[1]
        redrawn, again = record(net, one, noisy, draw=1)[1], record(net, one, noisy)[1]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, redrawn)
    assert not first.requires_grad


def test_taps_that_capture_nothing(inputs):
    net = Dense()
    net.unused = nn.Linear(2, 2)
    layer, before = inspect_network(net, inputs, plain_forward).hidden[0], parameters_of(net)
    with pytest.raises(CaptureError, match=r"calls none of 'unused' \(Linear\)"):
        run(net, inputs, inputs={net.unused: nothing})
    with pytest.raises(CaptureError, match=r"calls none of 'lif1' \(Leaky\)"):
        CallRecorder(net, [StoredBatch(inputs, slice(0, 8))], lambda net, x: x).record_currents(layer)
    run(net, inputs, inputs={net.unused: nothing}, outputs={net.fc1: nothing})
    assert parameters_of(net) == before


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
