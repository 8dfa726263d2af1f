"""Scores at every step, for losses at every step."""

import norse.torch as norse
import pytest
import torch
from torch import nn

from snn_recon_plugin.networks.calls.forward import over_time
from snn_recon_plugin.networks.readout.output_neuron import own_scores, readout_currents

from ..user_nets.small_idioms import BATCH, CLASSES, FIRST, loud
from .nets import STEPS, Dense, Logits
from .reading import captured, explained, resolve


def test_one_filter_for_each_step_and_their_mean(inputs):
    cell = norse.LICell(p=norse.LIParameters(v_leak=torch.tensor(0.3)))
    net = norse.SequentialState(nn.Linear(10, 16), norse.LIFCell(), nn.Linear(16, 3), cell)
    readout = resolve(net, inputs, "membrane_per_step", over_time(STEPS))
    assert (readout.kind, readout.exactness, readout.per_step) == ("membrane_per_step", "exact", True)
    # An impulse at each step and, last, nothing; Norse's integrator starts at v_leak, from which it then doesn't move.
    v, i, rest = torch.full((STEPS + 1,), 0.3), torch.cat([torch.eye(STEPS), torch.zeros(1, STEPS)]), []
    current, expected = torch.zeros(STEPS + 1), []
    for step in range(STEPS):
        current = current + i[:, step]
        v = v + 0.1 * (0.3 - v + current)
        current = current - 0.2 * current
        rest.append(v[-1].item())
        expected.append(v[:-1] - v[-1])
    matrix = torch.stack(expected).double()
    assert readout.matrix.dtype == torch.float64
    assert torch.allclose(readout.matrix, matrix, atol=1e-6)
    assert torch.allclose(readout.bias_gains, matrix.sum(1), atol=1e-6)
    assert readout.constants.tolist() == pytest.approx(rest, rel=1e-5)
    assert torch.allclose(readout.filter, matrix.mean(0), atol=1e-6)
    assert readout.bias_gain == pytest.approx(float(matrix.mean(0).sum()), rel=1e-5)
    assert readout.constant == pytest.approx(sum(rest) / STEPS, rel=1e-5)


@pytest.mark.parametrize("layout", ["steps", "time_first", "batch_first"])
def test_logits_at_every_step(layout, inputs, loader):
    net = Logits(layout)
    found, readout, net_map = captured(net, loader, inputs, "linear_per_step")
    assert net_map.layout == layout
    assert torch.equal(readout.matrix, torch.eye(STEPS, dtype=torch.float64))
    assert (readout.bias_gains.tolist(), readout.constants.tolist()) == ([1.0] * STEPS, [0.0] * STEPS)
    assert found.features.any()
    x, y = loader.dataset.tensors
    with torch.no_grad():
        assert torch.allclose(found.scores, net.fc2(found.features), atol=1e-5)
        own = net(x)
    assert torch.equal(found.targets, y)
    assert torch.allclose(found.scores, own if layout == "batch_first" else own.movedim(0, 1), atol=1e-6)


def test_features_of_every_step_are_filtered_spikes(inputs, loader):
    net = Dense()
    found, readout, _ = captured(net, loader, inputs, "membrane_per_step", keep=20)
    assert found.features.dtype == torch.float32
    assert found.features.shape == (20, STEPS, 16)
    for step in range(STEPS):
        expected = sum(0.9 ** (step - earlier) * found.spikes[earlier].double() for earlier in range(step + 1))
        assert torch.allclose(found.features[:, step].double(), expected, atol=1e-5)
    with torch.no_grad():
        linear = explained(net.fc3, found, readout)
    assert found.scores.std() > 0
    assert torch.allclose(linear, found.scores, atol=1e-5)
    alone = own_scores(readout, net.lif3, readout_currents(found.spikes, net.fc3.weight, net.fc3.bias))
    assert torch.allclose(alone, found.scores, atol=1e-5)
    # Their mean over the steps is the other readout.
    mean, other, _ = captured(net, loader, inputs, "membrane_mean")
    assert torch.allclose(found.features.mean(1), mean.features, atol=1e-5)
    assert torch.allclose(found.scores.mean(1), mean.scores, atol=1e-5)
    assert torch.allclose(readout.filter, other.filter)
    assert found.firing["fc1"].stats() == mean.firing["fc1"].stats()
    # The same for the first samples alone.
    cut, _, _ = captured(net, loader, inputs, "membrane_per_step", samples=11, keep=9)
    assert torch.equal(cut.features, found.features[:11])
    assert torch.equal(cut.scores, found.scores[:11])
    assert torch.equal(cut.spikes, found.spikes[:, :9])


def test_spikes_that_the_net_overwrites(inputs):
    class Overwrites(Logits):
        def forward(self, x):
            mem, out = self.lif.reset_mem(), []
            for _ in range(STEPS):
                z, mem = self.lif(3 * self.fc1(x), mem)
                out.append(self.fc2(z))
                z.zero_()
            return torch.stack(out)

    net = Overwrites()
    found, _, _ = captured(net, [(inputs, torch.zeros(8))], inputs, "linear_per_step")
    assert found.features.any()
    with torch.no_grad():
        assert torch.allclose(found.scores, net.fc2(found.features), atol=1e-5)


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
