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

from ..helpers import accuracy, batches, values
from ..nets import convolutions
from .tasks import OVER, make_site


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 11)),
        (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (3, 9, 8)),
        (nn.Conv2d(3, 4, 3, padding="same"), (3, 5, 5)),
        (nn.Conv2d(3, 4, 3, padding="valid"), (3, 5, 5)),
        (nn.Conv3d(2, 4, 2), (2, 4, 3, 5)),
    ],
    ids=str,
)
def test_a_row_times_its_patches_is_what_the_convolution_computes(conv, shape):
    inputs = torch.rand(5, *shape)
    patches = extract_patches(conv, inputs)
    made = torch.einsum("md,ndl->nml", conv.weight.detach().flatten(1), patches)
    assert torch.allclose(made, (conv(inputs) - conv.bias.reshape(-1, *[1] * (len(shape) - 1))).detach().flatten(2), atol=1e-5)
    if conv.weight.dim() == 4 and not isinstance(conv.padding, str):
        assert torch.equal(patches, F.unfold(inputs, conv.kernel_size, conv.dilation, conv.padding, conv.stride))


def test_the_groups_of_a_site_see_their_channels():
    conv = nn.Conv2d(6, 8, 3, groups=2)
    inputs, labels = torch.rand(40, 6, 5, 5), torch.arange(40) % 2
    site = LayerSite(conv, inputs, labels, measure_excitability(snn.Leaky(beta=0.9), 8, inputs), False)
    first, second = site.split_groups()
    assert torch.equal(first.inputs, inputs[:, :3])
    assert torch.equal(second.inputs, inputs[:, 3:])
    assert pairs(second, 7, torch.Generator().manual_seed(0)).weight.shape == (7, 3, 3, 3)
    plain = make_site()
    assert plain.split_groups() == [plain]


def test_each_candidate_is_run_once_in_a_row_of_its_group():
    groups = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2])
    seen = []
    for index, fresh in assign_rows(Candidates(torch.zeros(9, 1), None, groups=groups), 6, 3):
        assert index.shape == fresh.shape == (6,)
        assert torch.equal(groups[index][fresh], (torch.arange(6) // 2)[fresh])
        seen += index[fresh].tolist()
    assert sorted(seen) == list(range(9))
    for width, groups, expected in ((4, None, [[0, 1, 2, 3], [4]]), (4, torch.ones(5).long(), [[0, 1], [2, 3], [4]])):
        assigned = assign_rows(Candidates(torch.zeros(5, 1), None, groups=groups), width, 1 if groups is None else 2)
        assert [index[fresh].tolist() for index, fresh in assigned] == expected


NETS = {
    "1d": lambda: convolutions((1, 64), nn.Conv1d(1, 6, 9, stride=6)),
    "1d in groups": lambda: convolutions((8, 8), nn.Conv1d(8, 8, 3, groups=4)),
    "depthwise, then pointwise": lambda: convolutions((4, 4, 4), nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.Conv2d(8, 6, 1)),
    "3d": lambda: convolutions((1, 4, 4, 4), nn.Conv3d(1, 4, 2)),
    "Norse in groups": lambda: convolutions((4, 4, 4), nn.Conv2d(4, 8, 3, groups=2), library=norse),
}


@pytest.mark.parametrize("name", NETS)
def test_rebuilt_and_undone(name):
    net = NETS[name]()
    before = values(net)
    report = convex_init_(net, batches(200), forward=OVER, hidden="reconstruct", n_candidates=6.0)
    assert all(layer.witnesses.selected == layer.witnesses.width for layer in report.layers)
    assert report.exactness.label == "exact"
    assert accuracy(net, OVER) > 0.7  # a tenth is chance
    report.undo()
    assert values(net) == before


def test_rows_stay_in_the_group_that_they_were_made_for():
    made = []

    def marked(site, count, generator):
        rows = pairs(site, count, generator)
        made.append((site.group, len(rows)))
        return Candidates(rows.weight, rows.bias.round() + 0.25 * site.group)  # the fraction tells the group

    net = NETS["1d in groups"]()
    convex_init_(net, batches(200), forward=OVER, hidden="reconstruct", witnesses=marked, n_candidates=32)
    assert torch.equal(net[1].bias.detach().remainder(1), 0.25 * torch.arange(8).div(2, rounding_mode="floor"))
    assert [group for group, _ in made] == [0, 1, 2, 3]
    assert sum(count for _, count in made) <= 32
