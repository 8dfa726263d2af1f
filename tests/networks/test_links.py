"""Nets that end in log_softmax, trained by NLLLoss."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.convex import make_loss, make_penalty
from snn_recon_plugin.errors import NetworkError
from snn_recon_plugin.networks import (
    ActivityRecorder,
    LabelledCurrents,
    MaximumObjective,
    calibrate,
    capture,
    inspect_network,
    own_scores,
    plain_forward,
    quiet,
    readout_currents,
    refine_maximum,
    resolve_readout,
    trying,
)

from ..helpers import as_batches

STEPS = 6


def resolve(net, inputs, kind="auto", **options):
    return resolve_readout(net, inspect_network(net, inputs, plain_forward), inputs, plain_forward, kind, **options)


def linked(decode):
    return lambda spk, mem: decode(spk, mem).log_softmax(1)


def net_of(nets, reset, returns):
    """A net whose readout makes its neuron spike now and then."""
    net = nets.Mlp(output=nets.readout_neuron(reset_mechanism=reset), returns=returns)
    with torch.no_grad():
        net.fc3.weight.mul_(4)
    return net


CASES = {
    "membrane_mean": ("none", lambda spk, mem: mem.mean(0), "exact"),
    "membrane_sum": ("none", lambda spk, mem: mem.sum(0), "exact"),
    "membrane_last": ("subtract", lambda spk, mem: mem[-1], "surrogate"),
    "membrane_max": ("none", lambda spk, mem: mem.amax(0), "majorised"),
    "spike_count": ("subtract", lambda spk, mem: spk.sum(0), "surrogate"),
    "spike_rate": ("zero", lambda spk, mem: spk.mean(0), "surrogate"),
}


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("kind", CASES)
def test_log_softmax_of_decoded_scores(nets, inputs, kind, asked):
    reset, decode, exactness = CASES[kind]
    net = net_of(nets, reset, linked(decode))
    readout = resolve(net, inputs, kind if asked else "auto")
    assert (readout.kind, readout.exactness, readout.link) == (kind, exactness, "log_softmax")
    log_probabilities = net(inputs)
    assert torch.equal(readout.scores(log_probabilities), log_probabilities)
    net.returns = decode
    plain = resolve(net, inputs, kind)
    assert plain.link == "identity"
    assert torch.equal(plain.filter, readout.filter)
    assert torch.equal(readout.linked(net(inputs)), log_probabilities)
    assert torch.equal(plain.linked(net(inputs)), net(inputs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_linked_scores_of_any_shape(nets, inputs, dtype):
    readout = resolve(nets.Mlp(returns=linked(CASES["membrane_sum"][1])), inputs)
    scores = torch.randn(5, 4, 3, dtype=dtype)
    found = readout.linked(scores)
    assert (found.dtype, found.shape) == (dtype, scores.shape)
    assert torch.allclose(found.double().exp().sum(-1), torch.ones(5, 4, dtype=torch.float64), atol=0.02)
    assert torch.allclose((found - found[..., :1]).double(), (scores - scores[..., :1]).double(), atol=0.05)


def test_scores_without_log_softmax_come_first(nets, inputs):
    readout = resolve(nets.Mlp(returns=lambda spk, mem: (mem.sum(0).log_softmax(1), mem.mean(0))), inputs)
    assert (readout.kind, readout.link, readout.output_index) == ("membrane_mean", "identity", 1)
    readout = resolve(nets.Mlp(returns=lambda spk, mem: (mem.square(), mem.sum(0).log_softmax(1))), inputs)
    assert (readout.kind, readout.link, readout.output_index) == ("membrane_sum", "log_softmax", 1)


@pytest.mark.parametrize("time_dim", [0, 1])
@pytest.mark.parametrize("kind", ["membrane_per_step", "membrane_last"])
def test_log_softmax_at_every_step(nets, inputs, loader, kind, time_dim):
    net = nets.Mlp(returns=lambda spk, mem: mem.log_softmax(2).movedim(0, time_dim))
    with quiet(net, seed=0):
        net_map = inspect_network(net, inputs, plain_forward)
        readout = resolve_readout(net, net_map, inputs, plain_forward, kind)
        captured = capture(net, as_batches(loader), ActivityRecorder(net_map, readout), plain_forward)
    assert (readout.kind, readout.exactness, readout.link, readout.time_dim) == (kind, "exact", "log_softmax", time_dim)
    gain = readout.bias_gains.float()[:, None] if readout.per_step else readout.bias_gain
    with torch.no_grad():
        linear = captured.features @ net.fc3.weight.T + gain * net.fc3.bias
    assert captured.scores.shape == ((20, STEPS, 3) if readout.per_step else (20, 3))
    assert torch.allclose(readout.linked(linear), captured.scores, atol=1e-5)


@pytest.mark.parametrize("kind", ["auto", "membrane_mean", "membrane_sum"])
def test_a_mean_of_log_softmax_is_refused(nets, inputs, kind):
    with pytest.raises(NetworkError, match=f"log_softmax at every step, and readout='{kind}'") as error:
        resolve(nets.Mlp(returns=lambda spk, mem: mem.log_softmax(2)), inputs, kind)
    assert "readout='membrane_per_step'" in error.value.fix


@pytest.mark.parametrize("returns", [lambda spk, mem: mem.sum(0).softmax(1), lambda spk, mem: mem.softmax(2)])
@pytest.mark.parametrize("kind", ["auto", "membrane_per_step"])
def test_softmax_is_refused(nets, inputs, returns, kind):
    with pytest.raises(NetworkError) as error:
        resolve(nets.Mlp(returns=returns), inputs, kind)
    assert "softmax" in error.value.fix


@pytest.mark.parametrize("kind", ["auto", "membrane_per_step"])
def test_log_softmax_over_time_is_no_readout(nets, inputs, kind):
    with pytest.raises(NetworkError, match="whose values are none of"):
        resolve(nets.Mlp(returns=lambda spk, mem: mem.log_softmax(0).movedim(0, 1)), inputs, kind)


@pytest.mark.parametrize("zeros", [(8, 1), (STEPS, 8, 1)])
def test_log_softmax_of_a_single_class_says_nothing(nets, inputs, zeros):
    net = nets.Mlp(returns=lambda spk, mem: (torch.zeros(zeros), mem.square()))
    net.fc3 = nn.Linear(16, 1)
    with pytest.raises(NetworkError, match="whose values are none of"):
        resolve(net, inputs)


def solvable(nets, loader, inputs, reset, returns):
    net = net_of(nets, reset, returns)
    with quiet(net, seed=0):
        net_map = inspect_network(net, inputs, plain_forward)
        readout = resolve_readout(net, net_map, inputs, plain_forward)
        return net, readout, capture(net, as_batches(loader), ActivityRecorder(net_map, readout, 20), plain_forward)


@pytest.mark.parametrize("kind", CASES)
def test_the_neuron_alone_gives_what_the_net_returns(nets, loader, inputs, kind):
    reset, decode, _ = CASES[kind]
    net, readout, captured = solvable(nets, loader, inputs, reset, linked(decode))
    with torch.no_grad():
        alone = own_scores(readout, net.lif3, readout_currents(captured.spikes, net.fc3.weight, net.fc3.bias))
    assert captured.scores.std() > 0
    assert torch.allclose(alone, captured.scores, atol=1e-5)


@pytest.mark.parametrize("kind", ["membrane_last", "membrane_max", "spike_count"])
def test_calibration_does_not_see_the_link(nets, loader, inputs, kind):
    reset, decode, _ = CASES[kind]
    net, readout, captured = solvable(nets, loader, inputs, reset, linked(decode))
    weight, bias = torch.randn(3, 16), torch.linspace(-0.1, 0.1, 3)
    currents = readout_currents(captured.spikes, weight, bias)
    found = calibrate(readout, net.lif3, LabelledCurrents(currents, captured.targets))
    net.returns = decode
    other = calibrate(resolve(net, inputs, kind), net.lif3, LabelledCurrents(currents, captured.targets))
    assert (found.scale, found.shift) == pytest.approx((other.scale, other.shift))
    assert found.difference == pytest.approx(other.difference, rel=1e-3, abs=1e-5)
    net.returns = linked(decode)
    values = {(net.fc3, "weight"): found.scale * weight, (net.fc3, "bias"): found.scale * bias + found.shift}
    with torch.no_grad(), trying(values):
        written = readout.scores(net(loader.dataset.tensors[0]))
    alone = own_scores(readout, net.lif3, found.scale * currents + found.shift)
    assert torch.allclose(written, alone, atol=1e-4)


def test_a_refined_maximum_lowers_what_the_net_is_trained_on(nets, loader, inputs):
    net, readout, captured = solvable(nets, loader, inputs, "none", linked(CASES["membrane_max"][1]))
    loss, penalty = make_loss("cross_entropy"), make_penalty("ridge")
    objective = MaximumObjective(captured.spikes.float(), captured.targets, readout, loss, penalty, strength=0.0)
    weight, bias = refine_maximum(objective, net.fc3.weight, net.fc3.bias, max_steps=5)
    targets = loader.dataset.tensors[1]
    before = float(nn.functional.nll_loss(captured.scores, targets))
    with torch.no_grad(), trying({(net.fc3, "weight"): weight, (net.fc3, "bias"): bias}):
        after = float(nn.functional.nll_loss(net(loader.dataset.tensors[0]), targets))
    assert after < before


def test_plain_logits(inputs):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif, self.fc2 = nn.Linear(10, 8), snn.Leaky(beta=0.9), nn.Linear(8, 3)

        def forward(self, x):
            mem, out = self.lif.reset_mem(), []
            for _ in range(STEPS):
                z, mem = self.lif(3 * self.fc1(x), mem)
                out.append(self.fc2(z))
            return torch.stack(out).mean(0).log_softmax(1)

    readout = resolve(Net(), inputs)
    assert (readout.kind, readout.exactness, readout.link) == ("linear_mean", "exact", "log_softmax")
