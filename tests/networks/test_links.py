"""Nets that end in log_softmax, trained by NLLLoss."""

import pytest
import torch

from snn_recon_plugin.errors import NetworkError
from snn_recon_plugin.networks.readout.output_neuron import own_scores, readout_currents

from .nets import Dense, Logits, readout_neuron
from .reading import captured, explained, resolve

CASES = {
    "membrane_mean": ("none", lambda spk, mem: mem.mean(0), "exact"),
    "membrane_sum": ("none", lambda spk, mem: mem.sum(0), "exact"),
    "membrane_last": ("subtract", lambda spk, mem: mem[-1], "surrogate"),
    "membrane_max": ("none", lambda spk, mem: mem.amax(0), "majorised"),
    "spike_count": ("subtract", lambda spk, mem: spk.sum(0), "surrogate"),
    "spike_rate": ("zero", lambda spk, mem: spk.mean(0), "surrogate"),
}


def linked(kind):
    return lambda spk, mem: CASES[kind][1](spk, mem).log_softmax(1)


def net_of(kind):
    """Build a net whose readout makes its neuron spike now and then."""
    net = Dense(output=readout_neuron(reset_mechanism=CASES[kind][0]), returns=linked(kind))
    with torch.no_grad():
        net.fc3.weight.mul_(4)
    return net


@pytest.mark.parametrize("kind", CASES)
def test_log_softmax_of_decoded_scores(inputs, loader, kind):
    _, decode, exactness = CASES[kind]
    net = net_of(kind)
    for asked in (kind, "auto"):
        readout = resolve(net, inputs, asked)
        assert (readout.kind, readout.exactness, readout.link) == (kind, exactness, "log_softmax")
    found, _, _ = captured(net, loader, inputs, keep=20)
    with torch.no_grad():
        alone = own_scores(readout, net.lif3, readout_currents(found.spikes, net.fc3.weight, net.fc3.bias))
    assert found.scores.std() > 0
    assert torch.allclose(alone, found.scores, atol=1e-5)
    log_probabilities = net(inputs)
    assert torch.equal(readout.scores(log_probabilities), log_probabilities)
    net.returns = decode
    plain = resolve(net, inputs, kind)
    assert plain.link == "identity"
    assert torch.equal(plain.filter, readout.filter)
    assert torch.equal(readout.linked(net(inputs)), log_probabilities)
    assert torch.equal(plain.linked(net(inputs)), net(inputs))


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (lambda: Dense(lambda spk, mem: (mem.sum(0).log_softmax(1), mem.mean(0))), ("membrane_mean", "identity", 1)),
        (lambda: Dense(lambda spk, mem: (mem.square(), mem.sum(0).log_softmax(1))), ("membrane_sum", "log_softmax", 1)),
        (lambda: Logits(decode=lambda values: values.mean(0).log_softmax(1)), ("linear_mean", "log_softmax", None)),
    ],
    ids=["plain scores first", "beside something else", "plain logits"],
)
def test_which_item_is_read(inputs, net, expected):
    readout = resolve(net(), inputs)
    assert (readout.kind, readout.link, readout.index) == expected
    assert readout.exactness == "exact"


@pytest.mark.parametrize("time_dim", [0, 1])
@pytest.mark.parametrize("kind", ["membrane_per_step", "membrane_last"])
def test_log_softmax_at_every_step(inputs, loader, kind, time_dim):
    net = Dense(returns=lambda spk, mem: mem.log_softmax(2).movedim(0, time_dim))
    found, readout, _ = captured(net, loader, inputs, kind)
    assert (readout.kind, readout.exactness, readout.link, readout.time_dim) == (kind, "exact", "log_softmax", time_dim)
    assert found.scores.shape == ((20, 6, 3) if readout.per_step else (20, 3))
    with torch.no_grad():
        assert torch.allclose(readout.linked(explained(net.fc3, found, readout)), found.scores, atol=1e-5)


NONE_OF = "whose values are none of"
REFUSED = {
    "log_softmax": (
        lambda mem: mem.log_softmax(2),
        ["auto", "membrane_mean", "membrane_sum"],
        "log_softmax at every step, and readout=",
    ),
    "over time": (lambda mem: mem.log_softmax(0).movedim(0, 1), ["auto", "membrane_per_step"], NONE_OF),
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in REFUSED for kind in REFUSED[name][1]])
def test_outputs_that_are_refused(inputs, name, kind):
    decode, _, found = REFUSED[name]
    with pytest.raises(NetworkError, match=found) as error:
        resolve(Dense(returns=lambda spk, mem: decode(mem)), inputs, kind)
    assert ("readout='membrane_per_step'" if name == "log_softmax" else "softmax") in error.value.fix
