"""Convolutions over one to three axes, with groups: what a row sees, and layers rebuilt."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional as F

from snn_recon_plugin import convex_init_
from snn_recon_plugin.hidden import Candidates
from snn_recon_plugin.hidden.neuron import measure_excitability
from snn_recon_plugin.hidden.samplers import pairs
from snn_recon_plugin.hidden.simulate import assign_rows
from snn_recon_plugin.hidden.site import LayerSite, extract_patches

from ..helpers import accuracy, batches, bits

STEPS = 8

CONVOLUTIONS = {
    "1d": (nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 11)),
    "2d": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (3, 9, 8)),
    "2d same": (nn.Conv2d(3, 4, 3, padding="same"), (3, 5, 5)),
    "2d valid": (nn.Conv2d(3, 4, 3, padding="valid"), (3, 5, 5)),
    "3d": (nn.Conv3d(2, 4, 2), (2, 4, 3, 5)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_row_times_its_patches_is_what_the_convolution_computes(name):
    conv, shape = CONVOLUTIONS[name]
    inputs = torch.rand(5, *shape)
    patches = extract_patches(conv, inputs)
    made = torch.einsum("md,ndl->nml", conv.weight.detach().flatten(1), patches)
    assert torch.allclose(made, (conv(inputs) - conv.bias.reshape(-1, *[1] * (len(shape) - 1))).detach().flatten(2), atol=1e-5)


def test_patches_over_two_axes_are_those_of_unfold():
    conv, shape = CONVOLUTIONS["2d"]
    inputs = torch.rand(5, *shape)
    assert torch.equal(extract_patches(conv, inputs), F.unfold(inputs, conv.kernel_size, conv.dilation, conv.padding, conv.stride))


def test_the_groups_of_a_site_see_their_channels():
    conv = nn.Conv2d(6, 8, 3, groups=2)
    inputs, labels = torch.rand(40, 6, 5, 5), torch.arange(40) % 2
    site = LayerSite(conv, inputs, labels, measure_excitability(snn.Leaky(beta=0.9), STEPS, inputs), False)
    first, second = site.split_groups()
    assert torch.equal(second.inputs, inputs[:, 3:])
    assert torch.equal(first.inputs, inputs[:, :3])
    assert pairs(second, 7, torch.Generator().manual_seed(0)).weight.shape == (7, 3, 3, 3)
    plain = LayerSite(nn.Linear(3, 3), torch.rand(40, 3), labels, site.excitability, False)
    assert plain.split_groups() == [plain]


def test_each_candidate_is_run_once_in_a_row_of_its_group():
    groups = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2])
    candidates = Candidates(torch.zeros(9, 1), None, groups=groups)
    seen = []
    for index, fresh in assign_rows(candidates, 6, 3):
        assert index.shape == fresh.shape == (6,)
        rows = torch.arange(6) // 2
        assert torch.equal(groups[index][fresh], rows[fresh])
        seen += index[fresh].tolist()
    assert sorted(seen) == list(range(9))
    plain = Candidates(torch.zeros(5, 1), None)
    assert [index[fresh].tolist() for index, fresh in assign_rows(plain, 4, 1)] == [
        [0, 1, 2, 3],
        [4],
    ]


def test_a_group_without_candidates_does_not_matter():
    candidates = Candidates(torch.zeros(3, 1), None, groups=torch.tensor([1, 1, 1]))
    assert [index[fresh].tolist() for index, fresh in assign_rows(candidates, 4, 2)] == [[0, 1], [2]]


class Conv(nn.Module):
    """A convolution on digits, seen as a given shape, and a readout on the spikes pooled over positions."""

    def __init__(self, *layers, shape, library=snn):
        super().__init__()
        torch.manual_seed(0)
        self.shape, self.convs = shape, nn.ModuleList(layers)
        self.lifs = nn.ModuleList([snn.Leaky(beta=0.8) if library is snn else norse.LIFCell() for _ in layers])
        self.fc, self.out = nn.LazyLinear(10), snn.Leaky(beta=0.9, reset_mechanism="none") if library is snn else norse.LICell()
        self(torch.zeros(1, 64))

    def forward(self, x):
        states, out, record = [None] * len(self.lifs), None, []
        for _ in range(STEPS):
            value = x.reshape(-1, *self.shape)
            for number, (conv, lif) in enumerate(zip(self.convs, self.lifs, strict=True)):
                value, states[number] = self.step(lif, conv(value), states[number])
            _, out = self.step(self.out, self.fc(value.flatten(1)), out)
            record.append(out if isinstance(out, torch.Tensor) else out.v)
        return torch.stack(record)

    def step(self, neuron, current, state):
        return neuron(current, neuron.reset_mem() if state is None and hasattr(neuron, "reset_mem") else state)


NETS = {
    "1d": lambda: Conv(nn.Conv1d(1, 6, 9, stride=6), shape=(1, 64)),
    "1d in groups": lambda: Conv(nn.Conv1d(8, 8, 3, groups=4), shape=(8, 8)),
    "depthwise, then pointwise": lambda: Conv(nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.Conv2d(8, 6, 1), shape=(4, 4, 4)),
    "3d": lambda: Conv(nn.Conv3d(1, 4, 2), shape=(1, 4, 4, 4)),
    "Norse in groups": lambda: Conv(nn.Conv2d(4, 8, 3, groups=2), shape=(4, 4, 4), library=norse),
}


@pytest.mark.parametrize("name", NETS)
def test_rebuilt_and_undone(name):
    net = NETS[name]()
    before = {key: bits(value) for key, value in net.named_parameters()}
    report = convex_init_(net, batches(200), hidden="reconstruct", n_candidates=6.0)
    for layer in report.layers:
        assert layer.witnesses is not None
        assert layer.witnesses.selected == layer.witnesses.width
    assert report.exactness.label == "exact"
    assert accuracy(net) > 0.7  # a tenth is chance
    report.undo()
    assert {key: bits(value) for key, value in net.named_parameters()} == before


def test_rows_stay_in_the_group_that_they_were_made_for():
    made = []

    def marked(site, count, generator):
        rows = pairs(site, count, generator)
        bias = rows.bias.round() + 0.25 * site.group  # the fraction tells the group
        made.append((site.group, len(rows)))
        return Candidates(rows.weight, bias)

    net = NETS["1d in groups"]()
    convex_init_(net, batches(200), hidden="reconstruct", witnesses=marked, n_candidates=32)
    assert torch.equal(net.convs[0].bias.detach().remainder(1), 0.25 * torch.arange(8).div(2, rounding_mode="floor"))
    assert [group for group, _ in made] == [0, 1, 2, 3]
    assert sum(count for _, count in made[:4]) <= 32
