"""Ways in which the tutorials of the libraries put a net together, read and captured."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.networks.calls.forward import over_time, plain_forward
from snn_recon_plugin.networks.structure.inspect import inspect_network

from ..user_nets.small_idioms import (
    BATCH,
    CATALOGUE,
    CLASSES,
    DECODED,
    FIRST,
    HIDDEN,
    INPUTS,
    STEPS,
    BatchMajor,
    decoded,
    loud,
)
from .reading import captured, explained, resolve

OVER = over_time(STEPS)


def built(title, output="LI"):
    return CATALOGUE[title].build(output)


@pytest.mark.parametrize("name", DECODED)
def test_scores_that_forward_decodes(name, inputs):
    reading, link = DECODED[name]
    found, readout, net_map = captured(loud(decoded(name)), [(inputs, torch.arange(BATCH) % CLASSES)], inputs)
    assert (net_map.readout.name, readout.kind, readout.exactness) == ("body.2", reading.kind, reading.exactness)
    assert readout.link == link
    if reading.exactness == "exact":
        with torch.no_grad():
            linear = readout.linked(explained(net_map.readout, found, readout))
        assert float((found.scores - linear).abs().max()) <= 1e-4 * max(1.0, float(linear.abs().max()))


OVER_TIME = [name for name, (_, reading) in FIRST.items() if reading.kind == "membrane_mean"]


@pytest.mark.parametrize("name", OVER_TIME)
def test_scores_at_every_step_of_an_idiom(name):
    idiom, reading = FIRST[name]
    net, x = loud(idiom.build(reading.output)), 2 * torch.rand(BATCH, *idiom.shape)
    data = [(x[:5], torch.zeros(5)), (x[5:], torch.zeros(3))]
    found, readout, net_map = captured(net, data, x, "membrane_per_step", idiom.forward, keep=6)
    with torch.no_grad():
        linear = found.features @ net_map.readout.weight.T + readout.constants.float()[:, None]
        if net_map.readout.bias is not None:
            linear += readout.bias_gains.float()[:, None] * net_map.readout.bias
    assert found.features.any()
    assert found.scores.shape == (BATCH, STEPS, CLASSES)
    assert float((found.scores - linear).abs().max()) <= 1e-4 * max(1.0, float(linear.abs().max()))
    again = torch.einsum("ts,smp->mtp", readout.matrix.float(), found.spikes.float())
    assert torch.allclose(again, found.features[:6], rtol=1e-4, atol=1e-5)


def test_the_readout_names_its_parameters(inputs):
    net = built("Norse, LILinearCell")
    readout = inspect_network(net, inputs, plain_forward).readout
    assert (readout.module, readout.neuron, readout.weight_name, readout.bias_name) == (net.out, net.out, "input_weights", None)
    assert (readout.in_features, readout.out_features) == (HIDDEN, CLASSES)
    assert readout.weight is net.out.input_weights
    assert readout.bias is None
    bare = inspect_network(snn_without_bias(), inputs, over_time(3)).readout
    assert (bare.weight_name, bare.bias_name, bare.bias) == ("weight", None, None)


def snn_without_bias():
    return nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(HIDDEN, CLASSES, bias=False),
        snn.Leaky(beta=0.9, init_hidden=True, output=True, reset_mechanism="none"),
    )


@pytest.mark.parametrize("batch", [STEPS, BATCH], ids=["as many samples as steps", "more"])
def test_layouts_where_time_comes_second(batch, inputs):
    few = inputs[:batch]
    assert inspect_network(BatchMajor(), few, plain_forward).layout == "batch_first"
    assert inspect_network(BatchMajor(fold=True), few, plain_forward).layout == "folded_batch_first"


def test_a_monitor_of_snntorch_sees_the_user_alone(inputs):
    from snntorch.functional import probe

    net = loud(snn_without_bias())
    monitor = probe.OutputMonitor(net, instance=snn.Leaky)
    monitor.disable()
    resolve(net, inputs, forward=over_time(3))
    monitor.enable()
    over_time(3)(net, inputs)
    assert len(monitor["1"]) == 3
    monitor.remove_hooks()
