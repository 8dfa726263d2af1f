"""A layer's recorded inputs: as small as their values allow, in the order of the samples asked for."""

import pytest
import torch
from torch import nn

from snn_recon_plugin.errors import DataError
from snn_recon_plugin.hidden.hidden_task import HiddenTask, make_averaging_readout
from snn_recon_plugin.hidden.layer_inputs import collect_inputs, find_layout
from snn_recon_plugin.hidden.stage import Stage
from snn_recon_plugin.networks.calls.forward import plain_forward
from snn_recon_plugin.networks.structure.layers import HiddenLayer

from ..nets import Series
from .tasks import stored

STEPS, COUNT, WIDTH, BATCH = 5, 12, 3, 4
USED, COMPARED = torch.arange(1, 11), torch.tensor([7, 0, 11, 3])


def collect(inputs, targets=COUNT):
    net = Series(inputs=WIDTH)
    layer = HiddenLayer("fc1", net.fc1, "lif1", net.lif1)
    readout = make_averaging_readout(STEPS)
    task = HiddenTask(net, stored(inputs, BATCH), torch.zeros(targets), None, None, plain_forward, readout, None)
    return collect_inputs(task, layer, "steps", [USED, COMPARED])


def draw(samples=COUNT):
    return torch.rand(samples, STEPS, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["", "constant", "binary", "constant and binary"])
@pytest.mark.parametrize("first", [BATCH, COUNT], ids=["first batch", "all"])
def test_each_set_of_samples_is_in_its_own_order_in_bytes_or_one_step_if_all_allow_it(kind, first):
    inputs = draw()
    if "binary" in kind:
        inputs[:first] = (inputs[:first] < 0.3).float()
    if "constant" in kind:
        inputs[:first] = inputs[:first, :1]
    steps = 1 if "constant" in kind and first == COUNT else STEPS
    for found, samples in zip(collect(inputs), (USED, COMPARED), strict=True):
        assert (found.dtype is torch.uint8) == ("binary" in kind and first == COUNT)
        assert torch.equal(found.float(), inputs[samples, :steps].movedim(1, 0))


def test_as_many_targets_as_samples_are_needed():
    with pytest.raises(DataError, match="11 targets for 12 samples that reach hidden layer 'fc1'"):
        collect(draw(), targets=11)


def test_blank_samples_in_front_do_not_hide_the_order_of_time_and_samples():
    inputs, synapse = draw(64), nn.Linear(WIDTH, 2)
    inputs[:20] = 0.0
    currents = synapse(inputs).detach().movedim(1, 0)
    assert find_layout(synapse, Stage(), [inputs.flatten(0, 1)], currents) == "folded_batch_first"
