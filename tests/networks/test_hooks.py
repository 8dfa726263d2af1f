import pytest
import torch
from torch import nn

from snn_recon_plugin.errors import CaptureError
from snn_recon_plugin.networks.hooks import temporary_hooks


def test_hooks_see_inputs_and_replace_outputs(count_hooks):
    layer, seen = nn.Linear(2, 2), []
    with temporary_hooks() as hooks:
        hooks.on_input(layer, seen.append)
        hooks.on_output(layer, lambda output: torch.full_like(output, 7.0))
        out = layer(torch.ones(1, 2))
        layer(input=torch.zeros(1, 2))
    assert torch.equal(out, torch.full((1, 2), 7.0))
    assert [float(value.sum()) for value in seen] == [2.0, 0.0]
    assert count_hooks(layer) == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_are_removed_on_errors(count_hooks, error):
    layer = nn.Linear(2, 2)

    def interrupted():
        with temporary_hooks() as hooks:
            hooks.on_input(layer, lambda value: None)
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
    with temporary_hooks() as hooks:
        hooks.on_input(neuron, seen.append)
        neuron(mem=torch.zeros(1), input_=torch.ones(4))
    assert seen[0].shape == (4,)


def test_a_first_argument_that_is_no_tensor():
    layer = nn.Identity()
    with temporary_hooks() as hooks:
        hooks.on_input(layer, lambda value: None)
        with pytest.raises(CaptureError, match="Identity was called with a list"):
            layer([torch.ones(1)])


def test_inputs_and_parameters_are_replaced_for_a_while():
    layer = nn.Linear(2, 3)
    weight = layer.weight
    with torch.no_grad():
        expected = layer(torch.ones(4, 2))
        with temporary_hooks() as hooks:
            hooks.replace_input(layer, lambda value: torch.eye(5)[: len(value)])
            hooks.replace_parameter(layer, "weight", torch.ones(3, 5))
            assert torch.equal(layer(torch.ones(4, 2)), 1 + layer.bias.expand(4, 3))
            assert torch.equal(layer(input=torch.ones(4, 2)), 1 + layer.bias.expand(4, 3))
        assert layer.weight is weight
        assert torch.equal(layer(torch.ones(4, 2)), expected)
