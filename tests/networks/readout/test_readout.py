import pytest
import torch
from snntorch.functional import acc

from snn_recon_plugin.errors import NetworkError
from snn_recon_plugin.networks.readout.output_neuron import own_scores, readout_currents
from snn_recon_plugin.networks.readout.readout import (
    ALL_READOUTS,
    KINDS,
    SPIKE_READOUTS,
    block_mean,
    block_sum,
    rows_of_outputs,
    step_weights,
)

from ..nets import Dense, Logits, readout_neuron
from ..reading import captured, explained, resolve

VALUES = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.decoding.exactness == "exact"])
def test_exact_scores_are_the_weighted_sum_of_the_steps(kind):
    scores = KINDS[kind].decoding.decode(VALUES)
    if KINDS[kind].decoding.per_step:
        assert scores.shape == (4, 5, 3)
        scores = scores.mean(1)
    assert torch.allclose(scores, torch.einsum("t,tbc->bc", step_weights(kind, 5), VALUES))


def test_other_kinds_have_a_linear_score_to_solve_instead():
    assert step_weights("membrane_max", 4).tolist() == [0.25] * 4
    for kind in (*SPIKE_READOUTS, "custom"):
        assert step_weights(kind, 4).tolist() == [0.25] * 4
    spikes = torch.zeros(4, 1, 3)
    spikes[2:, 0, 0] = spikes[1, 0, 1] = 1
    decoded = {kind: KINDS[kind].decoding.decode(spikes)[0].tolist() for kind in SPIKE_READOUTS}
    assert decoded == {
        "spike_count": [2, 1, 0],
        "spike_rate": [0.5, 0.25, 0],
        "first_spike": [-2, -1, -3],
        "spike_per_step": spikes[:, 0].tolist(),
    }


def test_a_loss_prescribes_the_decoding_of_the_same_signal():
    assert KINDS["membrane_mean"].decoded_by("max").name == "membrane_max"
    assert KINDS["linear_last"].decoded_by("per_step").name == "linear_per_step"
    assert set(SPIKE_READOUTS) < set(ALL_READOUTS) == set(KINDS)


def test_blocks_are_those_of_snntorch():
    spikes = torch.bernoulli(torch.full((5, 7, 12), 0.4))
    assert torch.equal(block_sum(spikes.sum(0), 4), acc._population_code(spikes, 3, 12))
    assert torch.equal(block_mean(spikes, 4, -1), block_sum(spikes, 4) / 4)
    assert block_mean(torch.rand(12, 5), 4).shape == (3, 5)


def test_outputs_of_a_class_keep_their_differences_in_proportion():
    rows, own = torch.randn(3, 6).double(), torch.randn(12, 6)
    rows[:, 2] = 0.0
    weight = rows_of_outputs(rows, 4, own, share=0.5)
    assert torch.allclose(block_mean(weight, 4), rows)
    assert not weight[:, 2].any()
    differences = weight - rows.repeat_interleave(4, 0)
    assert float(differences.norm() / rows.repeat_interleave(4, 0).norm()) == pytest.approx(0.5)
    assert torch.allclose(rows_of_outputs(rows, 4, torch.ones(12, 6), share=0.5), rows.repeat_interleave(4, 0))
    # One output a class is left alone.
    assert block_sum(rows, 1) is block_mean(rows, 1) is rows_of_outputs(rows, 1, rows, share=0.5) is rows


# -- nets that end in log_softmax, trained by NLLLoss -----------------------------------------------------------------------
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
