"""Every way in which the tutorials of the libraries put a net together, read and captured without a change to it."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin.networks.calls.activity import ActivityRecorder
from snn_recon_plugin.networks.calls.forward import over_time, plain_forward
from snn_recon_plugin.networks.capture import capture
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.readout.resolve import resolve_readout
from snn_recon_plugin.networks.structure.inspect import inspect_network

from ..helpers import as_batches
from ..user_nets.small_idioms import (
    BATCH,
    CASES,
    CATALOGUE,
    CLASSES,
    DECODED,
    FIRST,
    HIDDEN,
    INPUTS,
    MULTI_STEP,
    STEPS,
    BatchMajor,
    Mixed,
    decoded,
    loud,
)

OVER = over_time(STEPS)


def inspected(net, inputs, forward, kind="auto"):
    net_map = inspect_network(net, inputs, forward)
    return net_map, resolve_readout(net, net_map, inputs, forward=forward, kind=kind)


def built(title, output="LI"):
    return CATALOGUE[title].build(output)


@pytest.mark.parametrize("name", CASES)
def test_idiom(name, snapshot, assert_unwritten, count_hooks):
    idiom, reading = CASES[name]
    net, x = loud(idiom.build(reading.output)), 2 * torch.rand(BATCH, *idiom.shape)
    data = DataLoader(TensorDataset(x, torch.arange(BATCH) % CLASSES), 5)
    before = snapshot(net)
    with quiet(net, seed=0):
        net_map, readout = inspected(net, x, idiom.forward, reading.kind)
        captured = capture(net, as_batches(data), ActivityRecorder(net_map, readout, 6), idiom.forward)
    assert_unwritten(net, before, snapshot(net))
    assert count_hooks(net) == 0
    assert (net_map.readout.name, len(net_map.hidden), net_map.num_steps) == (idiom.readout, idiom.hidden, STEPS)
    assert (readout.kind, readout.exactness) == (reading.kind, reading.exactness)
    assert 0 < captured.firing[net_map.hidden[-1].name].stats().firing_rate < 1
    if reading.exactness == "exact":
        assert_linear(captured, net_map, readout)
    again = torch.einsum("t,tmp->mp", readout.filter.float(), captured.spikes.float())
    assert torch.allclose(again, captured.features[:6], rtol=1e-4, atol=1e-5)
    assert captured.spikes.dtype == torch.uint8


def assert_linear(captured, net_map, readout):
    """Compare the network's scores with those of its readout and the captured features."""
    with torch.no_grad():
        linear = captured.features @ net_map.readout.weight.T + readout.constant
        if net_map.readout.bias is not None:
            linear += readout.bias_gain * net_map.readout.bias
        linear = readout.linked(linear)
    assert float((captured.scores - linear).abs().max()) <= 1e-4 * max(1.0, float(linear.abs().max()))


@pytest.mark.parametrize("name", DECODED)
def test_scores_that_forward_decodes(name, inputs):
    reading, link = DECODED[name]
    net = loud(decoded(name))
    with quiet(net, seed=0):
        net_map, readout = inspected(net, inputs, plain_forward)
        captured = capture(
            net, as_batches([(inputs, torch.arange(BATCH) % CLASSES)]), ActivityRecorder(net_map, readout), plain_forward
        )
    assert (net_map.readout.name, readout.kind, readout.exactness) == ("body.2", reading.kind, reading.exactness)
    assert readout.link == link
    if reading.exactness == "exact":
        assert_linear(captured, net_map, readout)


OVER_TIME = [name for name, (_, reading) in FIRST.items() if reading.kind == "membrane_mean"]


@pytest.mark.parametrize("name", OVER_TIME)
def test_scores_at_every_step_of_an_idiom(name):
    idiom, reading = FIRST[name]
    net, x = loud(idiom.build(reading.output)), 2 * torch.rand(BATCH, *idiom.shape)
    data = [(x[:5], torch.zeros(5)), (x[5:], torch.zeros(3))]
    with quiet(net, seed=0):
        net_map, readout = inspected(net, x, idiom.forward, "membrane_per_step")
        captured = capture(net, as_batches(data), ActivityRecorder(net_map, readout, 6), idiom.forward)
        linear = captured.features @ net_map.readout.weight.T + readout.constants.float()[:, None]
        if net_map.readout.bias is not None:
            linear += readout.bias_gains.float()[:, None] * net_map.readout.bias
    assert captured.features.any()
    assert captured.scores.shape == (BATCH, STEPS, CLASSES)
    assert float((captured.scores - linear).abs().max()) <= 1e-4 * max(1.0, float(linear.abs().max()))
    again = torch.einsum("ts,smp->mtp", readout.matrix.float(), captured.spikes.float())
    assert torch.allclose(again, captured.features[:6], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["membrane_mean", "membrane_last", "membrane_sum", "membrane_max"])
def test_kinds_of_norse_layers(kind, inputs):
    readout = inspected(loud(MULTI_STEP.build("LI")), inputs, OVER, kind)[1]
    assert (readout.kind, readout.exactness) == (kind, "majorised" if kind == "membrane_max" else "exact")
    # v += 0.1 (i - v) with the current before its decay by 0.2: the first answer to a unit current is 0.1.
    assert readout.response.matrix[0, 0] == pytest.approx(0.1)
    assert readout.response.matrix[1, 0] == pytest.approx(0.09 + 0.1 * 0.8)


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


@pytest.mark.parametrize(
    ("title", "layout"),
    [
        ("Norse, cells", "steps"),
        ("Norse, multi-step layers", "time_first"),
        ("Norse, lifted Linears", "steps"),
        ("snnTorch, LinearLeaky", "folded"),
    ],
)
def test_layouts(title, layout, inputs):
    assert inspect_network(built(title), inputs, OVER).layout == layout


@pytest.mark.parametrize("batch", [STEPS, BATCH], ids=["as many samples as steps", "more"])
def test_layouts_where_time_comes_second(batch, inputs):
    few = inputs[:batch]
    assert inspect_network(BatchMajor(), few, plain_forward).layout == "batch_first"
    assert inspect_network(BatchMajor(fold=True), few, plain_forward).layout == "folded_batch_first"


def test_a_forgotten_time_loop_around_cells(inputs):
    from snn_recon_plugin.errors import NetworkError

    with pytest.raises(NetworkError, match="a single time step") as error:
        inspect_network(built("Norse, cells"), inputs, plain_forward)
    assert "over_time(25)" in error.value.fix


def test_a_monitor_of_snntorch_sees_the_user_alone(inputs):
    from snntorch.functional import probe

    net = loud(snn_without_bias())
    monitor = probe.OutputMonitor(net, instance=snn.Leaky)
    monitor.disable()
    inspected(net, inputs, over_time(3))
    monitor.enable()
    over_time(3)(net, inputs)
    assert len(monitor["1"]) == 3
    monitor.remove_hooks()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 8 * 2**-7), (torch.float16, 8 * 2**-10), (torch.float32, 1e-4), (torch.float64, 1e-4)]
)
def test_precisions(dtype, tolerance, inputs):
    net = Mixed(dtype)
    net_map, readout = inspected(net, inputs, plain_forward)
    assert (readout.kind, readout.exactness) == ("membrane_mean", "exact")
    assert net_map.readout.tolerance == tolerance
    with quiet(net, seed=0):
        captured = capture(
            net, as_batches([(inputs, torch.arange(BATCH) % CLASSES)]), ActivityRecorder(net_map, readout), plain_forward
        )
        linear = captured.features @ net.fc2.weight.float().T + readout.bias_gain * net.fc2.bias.float()
    assert float((linear - captured.scores).abs().max()) <= tolerance * max(1.0, float(linear.abs().max()))


@pytest.mark.parametrize("hidden", ["SLSTM", "DeltaLeaky"])
def test_neurons_that_read_nothing_out(hidden, inputs):
    from snn_recon_plugin.errors import UnsupportedModuleError

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, CLASSES)
            self.l1 = snn.SLSTM(HIDDEN, HIDDEN, threshold=0.1) if hidden == "SLSTM" else snn.DeltaLeaky(beta=0.9, init_hidden=True)
            self.l2 = snn.RLeaky(beta=0.9, linear_features=CLASSES)

        def forward(self, x):
            syn, mem = self.l1.reset_mem() if hidden == "SLSTM" else (None, None)
            (spk, mem2), record = self.l2.reset_mem(), []
            for _ in range(STEPS):
                if hidden == "SLSTM":
                    z, syn, mem = self.l1(self.fc1(x), syn, mem)
                else:
                    z = self.l1(self.fc1(x))[0]
                spk, mem2 = self.l2(self.fc2(z), spk, mem2)
                record.append(spk)
            return torch.stack(record)

    with pytest.raises(UnsupportedModuleError, match=r"'l2' \(RLeaky\), which feeds its spikes back") as error:
        inspect_network(Net(), inputs, plain_forward)
    assert "net.l2 = snn.Leaky" in error.value.fix
