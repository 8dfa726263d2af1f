"""Nets of both libraries, reconstructed, exported to NIR and read back: the weights that were written are there."""

import nir
import norse.torch as norse
import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time

from ..helpers import STEPS, batches


def snntorch_net(hidden=40, **resets):
    def neuron(width, **options):  # one value for each unit, as an export to NIR needs it
        return snn.Leaky(beta=torch.full((width,), 0.9), threshold=torch.ones(width), init_hidden=True, **options, **resets)

    return nn.Sequential(nn.Linear(64, hidden), neuron(hidden), nn.Linear(hidden, 10), neuron(10, output=True))


def assert_weights(graph, net):
    linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
    nodes = [node for node in graph.nodes.values() if isinstance(node, nir.Affine)]
    assert len(nodes) == len(linears) == 2
    for node, linear in zip(nodes, linears, strict=True):
        np.testing.assert_array_equal(node.weight, linear.weight.detach().numpy())
        np.testing.assert_array_equal(node.bias, linear.bias.detach().numpy())


@pytest.mark.filterwarnings("ignore")
def test_snntorch(tmp_path):
    from snntorch.export_nir import export_to_nir
    from snntorch.import_nir import import_from_nir

    torch.manual_seed(0)
    net = snntorch_net()
    before = [linear.weight.detach().clone() for linear in (net[0], net[2])]
    convex_init_(net, batches(400), forward=over_time(STEPS), hidden="reconstruct", heterogeneous=True)
    assert all(not torch.equal(linear.weight, old) for linear, old in zip((net[0], net[2]), before, strict=True))
    nir.write(tmp_path / "net.nir", export_to_nir(net, batches(4)[0][0], ignore_dims=[0]))
    graph = nir.read(tmp_path / "net.nir")
    assert_weights(graph, net)
    assert_weights(graph, import_from_nir(graph))
    leaks = net[1].beta
    assert len(leaks.unique()) > 2
    assert torch.equal(import_from_nir(graph).get_submodule("1").beta, leaks)


@pytest.mark.filterwarnings("ignore")
def test_norse():
    torch.manual_seed(0)
    net = norse.SequentialState(nn.Linear(64, 40), norse.LIFBoxCell(), nn.Linear(40, 10), norse.LIBoxCell())
    convex_init_(net, batches(400), forward=over_time(STEPS))
    graph = norse.to_nir(net, batches(4)[0][0])  # nir 1.0 can't write Norse's scalar parameters to a file
    assert_weights(graph, net)
    assert_weights(graph, norse.from_nir(graph))
