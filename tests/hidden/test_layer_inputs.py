"""A layer's recorded inputs: as small as their values allow, in the order of the samples asked for."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import DataError
from snn_recon_plugin.hidden import HiddenTask, make_temporary_readout
from snn_recon_plugin.hidden.layer_inputs import collect_inputs, find_layout
from snn_recon_plugin.networks import HiddenLayer, plain_forward

from .nets import stored

STEPS, COUNT, WIDTH, BATCH = 5, 12, 3, 4
USED, COMPARED = torch.arange(1, 11), torch.tensor([7, 0, 11, 3])


class Reads(nn.Module):
    """Runs its layer on each step of a sequence (B, T, 3)."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(WIDTH, 2), snn.Leaky(beta=0.9)

    def forward(self, x):
        membrane = self.lif.reset_mem()
        for step in x.movedim(1, 0):
            _, membrane = self.lif(self.fc(step), membrane)
        return membrane


class Readout:
    """Means over the steps."""

    filter, bias_gain = torch.full((STEPS,), 1 / STEPS, dtype=torch.float64), 1.0


def collect(inputs, targets=COUNT):
    net = Reads()
    layer = HiddenLayer("fc", net.fc, "lif", net.lif)
    temporary = make_temporary_readout(Readout())
    task = HiddenTask(net, stored(inputs, BATCH), torch.zeros(targets), None, None, plain_forward, temporary, None)
    return collect_inputs(task, layer, "steps", [USED, COMPARED])


def draw():
    return torch.rand(COUNT, STEPS, WIDTH, generator=torch.Generator().manual_seed(0))


def test_each_set_of_samples_is_in_its_own_order():
    inputs = draw()
    used, compared = collect(inputs)
    assert torch.equal(used, inputs[USED].movedim(1, 0))
    assert torch.equal(compared, inputs[COMPARED].movedim(1, 0))


def test_spikes_are_bytes():
    inputs = (draw() < 0.3).float()
    used, _ = collect(inputs)
    assert used.dtype is torch.uint8
    assert torch.equal(used.float(), inputs[USED].movedim(1, 0))


def test_constant_inputs_have_one_step():
    inputs = draw()[:, :1].expand(-1, STEPS, -1)
    used, compared = collect(inputs)
    assert torch.equal(used, inputs[USED, :1].movedim(1, 0))
    assert compared.shape == (1, len(COMPARED), WIDTH)


@pytest.mark.parametrize("first", ["constant", "binary", "constant and binary"])
def test_a_first_batch_says_nothing_about_the_others(first):
    inputs = draw()
    if "binary" in first:
        inputs[:BATCH] = (inputs[:BATCH] < 0.3).float()
    if "constant" in first:
        inputs[:BATCH] = inputs[:BATCH, :1]
    used, compared = collect(inputs)
    assert torch.equal(used, inputs[USED].movedim(1, 0))
    assert torch.equal(compared, inputs[COMPARED].movedim(1, 0))


def test_as_many_targets_as_samples_are_needed():
    with pytest.raises(DataError, match="11 targets for 12 samples that reach hidden layer 'fc'"):
        collect(draw(), targets=11)


def test_blank_samples_in_front_do_not_hide_the_order_of_time_and_samples():
    inputs = torch.rand(64, STEPS, WIDTH, generator=torch.Generator().manual_seed(0))
    inputs[:20] = 0.0
    synapse = nn.Linear(WIDTH, 2)
    folded = inputs.flatten(0, 1)
    with torch.no_grad():
        currents = synapse(inputs).movedim(1, 0)
    assert find_layout(synapse, [folded], currents) == "folded_batch_first"
