"""Batches of different numbers of time steps: solved together, and the written net decides as the report says."""

import norse.torch as norse
import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import CaptureError, DataError
from snn_recon_plugin.networks import NetworkMap, ReadoutLayer, StoredBatch
from snn_recon_plugin.stages.build import pad_batches

CLASSES, PIXELS, LENGTHS = 3, 10, (6, 11, 7, 12, 8, 6)


def spike_trains(batch_first=False):
    """Random spikes whose rates tell the class, each batch over steps of its own."""
    generator = torch.Generator().manual_seed(0)
    rates = 0.15 + 0.7 * torch.rand(CLASSES, PIXELS, generator=generator)
    labels = torch.arange(30) % CLASSES
    batches = [(torch.rand(steps, 30, PIXELS, generator=generator) < rates[labels]).float() for steps in LENGTHS]
    return [(x.transpose(0, 1).contiguous() if batch_first else x, labels) for x in batches]


def stepped(reset="none"):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(PIXELS, 16),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(16, CLASSES),
        snn.Leaky(beta=0.9, init_hidden=True, output=True, reset_mechanism=reset),
    )


def solved(net, forward=None, batches=None, **options):
    options = {"hidden": "keep", "strength": 1e-3, "progress": False, **options}
    return convex_init_(net, batches or spike_trains(), forward=forward or over_time(), **options)


def accuracy(net, decide, forward=None, batches=None):
    """The user's own test, batch by batch."""
    batches = batches or spike_trains()
    with torch.no_grad():
        right = [(decide((forward or over_time())(net, x)).argmax(1) == labels).float() for x, labels in batches]
    return float(torch.cat(right).mean())


DECISIONS = {
    "membrane_mean": ("none", lambda out: out[1].mean(0)),
    "membrane_sum": ("none", lambda out: out[1].sum(0)),
    "membrane_last": ("none", lambda out: out[1][-1]),
    "membrane_max": ("none", lambda out: out[1].amax(0)),
    "spike_count": ("subtract", lambda out: out[0].sum(0)),
    "spike_rate": ("subtract", lambda out: out[0].mean(0)),
}


@pytest.mark.parametrize("readout", DECISIONS)
def test_the_report_shows_the_users_own_test(readout):
    reset, decide = DECISIONS[readout]
    net = stepped(reset)
    before = accuracy(net, decide)
    report = solved(net, readout=readout)
    assert report.accuracy_written == pytest.approx(accuracy(net, decide), abs=1e-6)
    assert report.accuracy_written > max(0.6, before)
    assert report.certificate.reached
    assert "6 to 12 steps" in str(report)
    if report.exactness.label == "exact":
        assert report.exactness.max_difference < 1e-4 * report.exactness.scale


def test_first_spikes():
    net = stepped("subtract")
    report = solved(net, readout="first_spike")

    def decide(out):
        steps = torch.arange(len(out[0]), 0, -1)[:, None, None]
        return (out[0] * steps).amax(0).clamp(min=1) - len(out[0])  # as snnTorch: a silent output spikes last

    assert report.accuracy_written == pytest.approx(accuracy(net, decide), abs=1e-6)


def test_no_other_readout_is_better():
    net = stepped()
    solved(net, loss="cross_entropy", fit_loss="same", tol=1e-8)
    losses = [nn.functional.cross_entropy(over_time()(net, x)[1].mean(0), labels) for x, labels in spike_trains()]
    ridge = 0.5 * 1e-3 * net[2].weight.square().sum()
    slopes = torch.autograd.grad(torch.stack(losses).mean() + ridge, [net[2].weight, net[2].bias])
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-4


def test_multi_step_layers_and_batches_that_come_first():
    def norse_net():
        torch.manual_seed(0)
        return norse.SequentialState(nn.Linear(PIXELS, 16), norse.LIF(), nn.Linear(16, CLASSES), norse.LI())

    def forward(net, x):
        return net(10 * x)[0]

    net = norse_net()
    report = solved(net, forward)
    assert report.accuracy_written == pytest.approx(accuracy(net, lambda out: out.mean(0), forward), abs=1e-6)
    first, second = stepped(), stepped()
    solved(first)
    solved(second, over_time(time_dim=1), spike_trains(batch_first=True))
    assert torch.equal(first[2].weight, second[2].weight)


def test_only_the_first_batch_of_another_length_is_run_twice():
    runs = []

    def forward(net, x):
        runs.append(len(x))
        return over_time()(net, x)

    solved(stepped(), forward, spike_trains()[:1])
    alone = len(runs)
    runs.clear()
    solved(stepped(), forward)
    # The pass over the others and the second run of the first of them; then all of them, for the comparison after writing.
    assert len(runs) - alone == 2 * (len(LENGTHS) - 1) + 1


@pytest.mark.parametrize("hidden", ["rescale", "reconstruct"])
def test_hidden_layers_are_chosen_on_padded_batches(monkeypatch, hidden):
    monkeypatch.setattr("snn_recon_plugin.hidden.rescale.RATES", (0.12,))
    net, (_, decide) = stepped(), DECISIONS["membrane_mean"]
    report = solved(net, hidden=hidden)
    assert report.accuracy_written == pytest.approx(accuracy(net, decide), abs=1e-6)
    assert report.accuracy_written > 0.6


def net_map(steps):
    return NetworkMap("snntorch", (), ReadoutLayer("fc", nn.Linear(2, 2), None, None), steps)


class Lengths:
    """A readout that notes for how many steps it is asked."""

    def at(self, steps):
        return steps


def stored(*lengths, batch_first=False):
    parts = [torch.ones(steps, 3, 2) for steps in lengths]
    parts = [part.transpose(0, 1) for part in parts] if batch_first else parts
    return [StoredBatch(part, slice(3 * k, 3 * k + 3)) for k, part in enumerate(parts)]


@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_adds_zeros_after_the_last_step(batch_first):
    padded, found, steps = pad_batches(stored(4, 6, 5, batch_first=batch_first), net_map(4), Lengths(), over_time)
    assert [tuple(batch.inputs.shape) for batch in padded] == [(3, 6, 2) if batch_first else (6, 3, 2)] * 3
    last = padded[0].inputs.transpose(0, 1) if batch_first else padded[0].inputs
    assert (float(last[:4].min()), float(last[4:].abs().max())) == (1.0, 0.0)
    assert (found.num_steps, steps) == (6, 6)


def test_batches_pad_batches_are_left_alone():
    batches, readout = stored(4, 4), Lengths()
    same = pad_batches(batches, net_map(4), readout, over_time)
    assert same[0] is batches
    assert same[2] is readout


def test_steps_that_are_not_those_of_the_inputs():
    with pytest.raises(DataError, match="4 to 6 values on axis 0") as caught:
        pad_batches(stored(4, 6), net_map(2), Lengths(), over_time)
    assert "hidden='keep'" in caught.value.fix


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"readout": "membrane_per_step"}, CaptureError, "membrane_per_step"),
        ({"forward": lambda net, x: over_time()(net, x)[1][2:].mean(0)}, CaptureError, "custom"),
        ({"loss": SF.mse_count_loss(0.8, 0.2), "readout": "membrane_sum"}, DataError, "grow with the steps"),
    ],
    ids=["per step", "custom", "count targets"],
)
def test_what_needs_one_number_of_steps(options, error, word):
    net = stepped("none")
    with pytest.raises(error, match=word) as caught:
        solved(net, **options)
    assert "pad all batches" in caught.value.fix
