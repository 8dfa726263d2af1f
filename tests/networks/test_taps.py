import pytest
import torch
from torch import nn

from snn_recon_plugin.errors import CaptureError
from snn_recon_plugin.networks.taps import Taps, tapped


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_taps_are_removed_on_errors(count_hooks, error):
    layer = nn.Linear(2, 2)
    weight = layer.weight

    def interrupted():
        taps = Taps(inputs={layer: lambda value: None}, parameters={(layer, "weight"): torch.ones(2, 2)})
        with tapped(taps):
            assert count_hooks(layer) == 2
            raise error

    with pytest.raises(error):
        interrupted()
    assert count_hooks(layer) == 0
    assert layer.weight is weight


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
    with (
        tapped(Taps(arguments={layer: seen.append}, inputs={layer: seen.append})),
        pytest.raises(CaptureError, match="Identity was called with a list"),
    ):
        layer(["text"])
    assert seen == [["text"]]


def test_inputs_and_parameters_are_replaced_for_a_while():
    layer = nn.Linear(2, 3)
    weight = layer.weight
    taps = Taps(new_inputs={layer: lambda value: torch.eye(5)[: len(value)]}, parameters={(layer, "weight"): torch.ones(3, 5)})
    with torch.no_grad():
        expected = layer(torch.ones(4, 2))
        with tapped(taps):
            assert torch.equal(layer(torch.ones(4, 2)), 1 + layer.bias.expand(4, 3))
            assert torch.equal(layer(input=torch.ones(4, 2)), 1 + layer.bias.expand(4, 3))
        assert layer.weight is weight
        assert torch.equal(layer(torch.ones(4, 2)), expected)


def test_the_rounding_of_autocast_is_reported_and_functions_run_without_it():
    layer, roundings, dtypes = nn.Linear(2, 2), [], []
    taps = Taps(
        roundings={layer: roundings.append}, outputs={layer: lambda _: dtypes.append((torch.ones(2, 2) @ torch.ones(2)).dtype)}
    )
    with tapped(taps):
        layer(torch.ones(1, 2))
        with torch.autocast("cpu", torch.bfloat16):
            layer(torch.ones(1, 2))
    assert roundings == [0.0, torch.finfo(torch.bfloat16).eps]
    assert dtypes == [torch.float32] * 2
