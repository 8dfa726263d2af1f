"""Batches of different numbers of time steps: solved together, and the written net decides as the report says."""

from types import SimpleNamespace

import norse.torch as norse
import pytest
import snntorch.functional as SF
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import CaptureError, DataError
from snn_recon_plugin.networks.calls.record import StoredBatch
from snn_recon_plugin.networks.structure.layers import NetworkMap, ReadoutLayer
from snn_recon_plugin.stages.build import pad_batches

from ..nets import sequential_net

CLASSES, PIXELS, LENGTHS = 3, 10, (6, 11, 7, 12, 8, 6)


def spike_trains(batch_first=False):
    """Random spikes whose rates tell the class, each batch over steps of its own."""
    generator = torch.Generator().manual_seed(0)
    rates = 0.15 + 0.7 * torch.rand(CLASSES, PIXELS, generator=generator)
    labels = torch.arange(30) % CLASSES
    batches = [(torch.rand(steps, 30, PIXELS, generator=generator) < rates[labels]).float() for steps in LENGTHS]
    return [(x.transpose(0, 1).contiguous() if batch_first else x, labels) for x in batches]


def build(reset="none"):
    return sequential_net(sizes=(PIXELS, 16, CLASSES), reset_mechanism=reset)


def solved(net, forward=None, batches=None, **options):
    options = {"hidden": "keep", "strength": 1e-3, "progress": False, **options}
    return convex_init_(net, batches or spike_trains(), forward=forward or over_time(), **options)


def accuracy(net, decide, forward=None):
    with torch.no_grad():
        right = [(decide((forward or over_time())(net, x)).argmax(1) == labels).float() for x, labels in spike_trains()]
    return float(torch.cat(right).mean())


def first_spikes(out):
    """As snnTorch: a silent output spikes last."""
    steps = torch.arange(len(out[0]), 0, -1)[:, None, None]
    return (out[0] * steps).amax(0).clamp(min=1) - len(out[0])


DECISIONS = {
    "membrane_mean": ("none", lambda out: out[1].mean(0)),
    "membrane_sum": ("none", lambda out: out[1].sum(0)),
    "membrane_last": ("none", lambda out: out[1][-1]),
    "membrane_max": ("none", lambda out: out[1].amax(0)),
    "spike_count": ("subtract", lambda out: out[0].sum(0)),
    "spike_rate": ("subtract", lambda out: out[0].mean(0)),
    "first_spike": ("subtract", first_spikes),
}


@pytest.mark.parametrize("readout", DECISIONS)
def test_the_report_shows_the_users_own_test(readout):
    reset, decide = DECISIONS[readout]
    net = build(reset)
    before = accuracy(net, decide)
    report = solved(net, readout=readout)
    assert report.accuracy_written == pytest.approx(accuracy(net, decide), abs=1e-6)
    assert report.certificate.reached
    assert "6 to 12 steps" in report.details()
    if readout != "first_spike":
        assert report.accuracy_written > max(0.6, before)
    if report.exactness.label == "exact":
        assert report.exactness.max_difference < 1e-4 * report.exactness.scale


def test_no_other_readout_is_better():
    net = build()
    solved(net, loss="cross_entropy", fit_loss="same", tol=1e-8)
    losses = [nn.functional.cross_entropy(over_time()(net, x)[1].mean(0), labels) for x, labels in spike_trains()]
    ridge = 0.5 * 1e-3 * net[2].weight.square().sum()
    slopes = torch.autograd.grad(torch.stack(losses).mean() + ridge, [net[2].weight, net[2].bias])
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-4


def test_multi_step_layers():
    def forward(net, x):
        return net(10 * x)[0]

    torch.manual_seed(0)
    net = norse.SequentialState(nn.Linear(PIXELS, 16), norse.LIF(), nn.Linear(16, CLASSES), norse.LI())
    report = solved(net, forward)
    assert report.accuracy_written == pytest.approx(accuracy(net, lambda out: out.mean(0), forward), abs=1e-6)


def test_batches_that_come_first():
    first, second = build(), build()
    solved(first)
    solved(second, over_time(time_dim=1), spike_trains(batch_first=True))
    assert torch.equal(first[2].weight, second[2].weight)


@pytest.mark.parametrize("hidden", ["rescale", "reconstruct"])
def test_hidden_layers_are_chosen_on_padded_batches(hidden):
    net, (_, decide) = build(), DECISIONS["membrane_mean"]
    report = solved(net, hidden=hidden)
    assert report.accuracy_written == pytest.approx(accuracy(net, decide), abs=1e-6)
    assert report.accuracy_written > 0.6


@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_adds_zeros_after_the_last_step(batch_first):
    parts = [torch.ones(3, steps, 2) if batch_first else torch.ones(steps, 3, 2) for steps in (4, 6, 5)]
    batches = [StoredBatch(part, slice(3 * k, 3 * k + 3)) for k, part in enumerate(parts)]
    net_map = NetworkMap("snntorch", (), ReadoutLayer("fc", nn.Linear(2, 2), None, None), 4)
    found, net_map, steps = pad_batches(batches, net_map, SimpleNamespace(for_steps=lambda steps: steps, padded=False), over_time)
    inputs = [batch.inputs.transpose(0, 1) if batch_first else batch.inputs for batch in found]
    assert [tuple(part.shape) for part in inputs] == [(6, 3, 2)] * 3
    assert (float(inputs[0][:4].min()), float(inputs[0][4:].abs().max())) == (1.0, 0.0)
    assert (net_map.num_steps, steps) == (6, 6)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"readout": "membrane_per_step"}, CaptureError, "membrane_per_step"),
        ({"forward": lambda net, x: over_time()(net, x)[1][2:].mean(0)}, CaptureError, "custom"),
        ({"loss": SF.mse_count_loss(0.8, 0.2), "readout": "membrane_sum"}, DataError, "grow with the steps"),
        ({"forward": lambda net, x: over_time()(net, x[::2]), "hidden": "rescale"}, DataError, "6 to 12 values on axis 0"),
    ],
    ids=["per step", "custom", "count targets", "steps that are not those of the inputs"],
)
def test_what_needs_one_number_of_steps(options, error, word):
    with pytest.raises(error, match=word) as caught:
        solved(build(), **options)
    assert "pad all batches" in caught.value.fix
