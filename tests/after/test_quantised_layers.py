"""Nets whose hidden layers were quantised by other tools get a readout on a grid; what they compute below stays."""

import pytest
import torch

from snn_recon_plugin import convex_init_, quantize_readout_
from snn_recon_plugin.errors import UnsupportedModuleError

from ..helpers import batches, untouched, values
from ..user_nets import unusual_nets as nets

NETS = {"torch.ao": nets.fake_quantised, "by hand": nets.rounded_by_hand, "Brevitas": nets.brevitas_net}
ROUNDS = {"torch.ao": lambda: nets.fake_quantised("fc2"), "Brevitas": lambda: nets.brevitas_net("fc2")}


def made(name, table):
    if name == "Brevitas":
        pytest.importorskip("brevitas")
    torch.manual_seed(0)
    return table[name]()


@pytest.mark.filterwarnings("ignore")  # of Brevitas and torch.ao
@pytest.mark.parametrize("name", NETS)
def test_hidden_layers_stay_and_the_readout_is_on_the_grid(name):
    net = made(name, NETS)
    before = values(net)
    quantized = quantize_readout_(net, batches(300), bits=4)
    assert {key for key, value in values(net).items() if value != before[key]} <= {"fc2.weight", "fc2.bias"}
    assert torch.equal(net.fc2.weight.detach(), quantized.scale[:, None] * quantized.integers)
    assert quantized.report.accuracy_written > 0.7
    quantized.undo()
    assert values(net) == before
    assert convex_init_(net, batches(300), hidden="keep").accuracy_after > 0.6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ROUNDS)
def test_a_readout_that_rounds_is_refused(name):
    net = made(name, ROUNDS)
    with untouched(net), pytest.raises(UnsupportedModuleError, match=r"fc2.*(?s:.)*quantize_readout_"):
        quantize_readout_(net, batches(300))
