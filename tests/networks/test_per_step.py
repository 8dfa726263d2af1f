"""Scores at every step, for losses at every step."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import CaptureError, NetworkError, OptionError, UnsupportedModuleError
from snn_recon_plugin.networks import (
    KINDS,
    ActivityRecorder,
    Storage,
    capture,
    inspect_network,
    over_time,
    own_scores,
    plain_forward,
    quiet,
    readout_currents,
    resolve_readout,
)

from ..helpers import as_batches

STEPS = 6


def resolve(net, inputs, kind="membrane_per_step", forward=plain_forward, **options):
    return resolve_readout(net, inspect_network(net, inputs, forward), inputs, forward, kind, **options)


def run(net, loader, inputs, kind, keep=0, **storage):
    with quiet(net, seed=0):
        net_map = inspect_network(net, inputs, plain_forward)
        readout = resolve_readout(net, net_map, inputs, plain_forward, kind)
        recorder = ActivityRecorder(net_map, readout, keep)
        return capture(net, as_batches(loader), recorder, plain_forward, Storage(**storage)), readout, net_map


class Logits(nn.Module):
    """Plain logits at every step; the readout sees one step a call, or all of them in one."""

    def __init__(self, layout="steps"):
        super().__init__()
        self.fc1, self.lif, self.fc2, self.layout = nn.Linear(10, 8), snn.Leaky(beta=0.9), nn.Linear(8, 3), layout

    def forward(self, x):
        mem, spk = self.lif.reset_mem(), []
        for _ in range(int(x[0, -1].abs()) or STEPS):
            z, mem = self.lif(3 * self.fc1(x), mem)
            spk.append(z)
        if self.layout == "steps":
            return torch.stack([self.fc2(z) for z in spk])
        return self.fc2(torch.stack(spk, dim=1 if self.layout == "batch_first" else 0))


def test_the_kinds_are_known_but_never_taken_unasked(nets, inputs):
    assert [kind.name for kind in KINDS.values() if kind.decoding.per_step] == ["membrane_per_step", "linear_per_step"]
    readout = resolve(nets.Mlp(), inputs, "auto")
    assert (readout.kind, readout.per_step) == ("membrane_mean", False)
    inputs[:, -1] = 0
    assert resolve(Logits(), inputs, "auto").kind == "linear_mean"


def test_one_filter_for_each_step_and_their_mean(nets, inputs):
    cell = norse.LICell(p=norse.LIParameters(v_leak=torch.tensor(0.3)))
    net = norse.SequentialState(nn.Linear(10, 16), norse.LIFCell(), nn.Linear(16, 3), cell)
    readout = resolve(net, inputs, forward=over_time(STEPS))
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


@pytest.mark.parametrize(
    ("returns", "index", "time_dim"),
    [
        (lambda spk, mem: (spk, mem), 1, 0),
        (lambda spk, mem: mem.movedim(0, 1), None, 1),
        (lambda spk, mem: {"mem": list(mem)}, "mem", 0),
    ],
)
def test_scores_have_the_batch_first(nets, inputs, returns, index, time_dim):
    net = nets.Mlp(returns=returns)
    readout = resolve(net, inputs)
    assert (readout.output_index, readout.time_dim) == (index, time_dim)
    net.returns = lambda spk, mem: (returns(spk, mem), mem)
    out, mem = net(inputs)
    assert readout.scores(out).shape == (8, STEPS, 3)
    assert torch.equal(readout.scores(out), mem.movedim(0, 1))


@pytest.mark.parametrize("layout", ["steps", "time_first", "batch_first"])
def test_logits_at_every_step(layout, inputs, loader):
    inputs[:, -1] = 0
    x, y = loader.dataset.tensors
    x[:, -1] = 0
    net = Logits(layout)
    captured, readout, net_map = run(net, loader, inputs, "linear_per_step")
    assert net_map.layout == layout
    assert torch.equal(readout.matrix, torch.eye(STEPS, dtype=torch.float64))
    assert (readout.bias_gains.tolist(), readout.constants.tolist()) == ([1.0] * STEPS, [0.0] * STEPS)
    assert captured.features.any()
    with torch.no_grad():
        assert torch.allclose(captured.scores, net.fc2(captured.features), atol=1e-5)
        own = net(x)
    assert torch.equal(captured.targets, y)
    assert torch.allclose(captured.scores, own if layout == "batch_first" else own.movedim(0, 1), atol=1e-6)


def test_features_of_every_step_are_filtered_spikes(nets, inputs, loader):
    net = nets.Mlp()
    captured, readout, _ = run(net, loader, inputs, "membrane_per_step", keep=20)
    spikes, matrix = captured.spikes.double(), readout.matrix
    assert captured.features.dtype == torch.float32
    assert captured.features.shape == (20, STEPS, 16)
    for step in range(STEPS):
        expected = sum(0.9 ** (step - earlier) * spikes[earlier] for earlier in range(step + 1))
        assert torch.allclose(captured.features[:, step].double(), expected, atol=1e-5)
    with torch.no_grad():
        linear = captured.features @ net.fc3.weight.T + matrix.sum(1).float()[:, None] * net.fc3.bias
    assert captured.scores.std() > 0
    assert torch.allclose(linear, captured.scores, atol=1e-5)
    alone = own_scores(readout, net.lif3, readout_currents(captured.spikes, net.fc3.weight, net.fc3.bias))
    assert torch.allclose(alone, captured.scores, atol=1e-5)


def test_their_mean_over_the_steps_is_the_other_readout(nets, inputs, loader):
    net = nets.Mlp()
    each, readout, _ = run(net, loader, inputs, "membrane_per_step")
    mean, other, _ = run(net, loader, inputs, "membrane_mean")
    assert torch.allclose(each.features.mean(1), mean.features, atol=1e-5)
    assert torch.allclose(each.scores.mean(1), mean.scores, atol=1e-5)
    assert torch.allclose(readout.filter, other.filter)
    assert each.firing["fc1"].stats() == mean.firing["fc1"].stats()


def test_a_cut_and_stored_batches(nets, inputs, loader):
    net = nets.Mlp()
    whole, _, _ = run(net, loader, inputs, "membrane_per_step")
    captured, _, _ = run(net, loader, inputs, "membrane_per_step", samples=11, keep=9)
    assert captured.features.shape == (11, STEPS, 16)
    assert captured.spikes.shape == (STEPS, 9, 16)
    assert torch.equal(captured.features, whole.features[:11])
    assert torch.equal(captured.scores, whole.scores[:11])


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
    captured, _, _ = run(net, [(inputs, torch.zeros(8))], inputs, "linear_per_step")
    assert captured.features.any()
    with torch.no_grad():
        assert torch.allclose(captured.scores, net.fc2(captured.features), atol=1e-5)


@pytest.mark.parametrize("layout", ["steps", "time_first"])
def test_a_varying_number_of_steps(layout):
    x, y = torch.ones(4, 10), torch.zeros(4)
    with pytest.raises(CaptureError, match="batches of 3 and of 4 time steps, for a readout linear_per_step"):
        run(Logits(layout), [(3 * x, y), (4 * x, y)], 3 * x, "linear_per_step")


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_membranes_that_reset_are_refused(nets, inputs, reset):
    net = nets.Mlp(output=nets.readout_neuron(reset_mechanism=reset))
    with pytest.raises(UnsupportedModuleError) as error:
        resolve(net, inputs)
    assert "reset_mechanism='none'" in error.value.fix
    assert "'lif3'" in error.value.found
    assert "readout='membrane_mean'" in error.value.fix


def test_outputs_without_a_time_axis_are_refused(nets, inputs):
    with pytest.raises(OptionError, match="'membrane_per_step' for a net that returns membrane_sum"):
        resolve(nets.Mlp(returns=lambda spk, mem: mem.sum(0)), inputs)
    with pytest.raises(OptionError, match="'membrane_per_step' for a net that returns spikes"):
        resolve(nets.Mlp(returns=lambda spk, mem: spk), inputs)
    with pytest.raises(OptionError, match="'linear_per_step' for a net with an output neuron"):
        resolve(nets.Mlp(), inputs, "linear_per_step")


def test_scores_that_lost_their_time_axis(nets, inputs):
    readout = resolve(nets.Mlp(returns=lambda spk, mem: mem), inputs)
    with pytest.raises(NetworkError, match=r"tensor \[8, 3\]"):
        readout.scores(torch.zeros(8, 3))
