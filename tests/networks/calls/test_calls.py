"""Calls of layers: their layout, and inputs, currents and spikes joined over batches."""

import math

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import CaptureError
from snn_recon_plugin.networks.calls.calls import (
    LAYOUTS,
    CallRecorder,
    Calls,
    SpikeCounter,
    find_layout,
    possible_layouts,
    time_first,
)
from snn_recon_plugin.networks.calls.forward import plain_forward
from snn_recon_plugin.networks.calls.record import StoredBatch
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.structure.inspect import inspect_network
from snn_recon_plugin.networks.structure.layers import HiddenLayer

from ...nets import Series
from ..nets import Dense, Logits

STEPS, BATCH, FEATURES, COUNT = 4, 3, 2, 12
VALUES = torch.arange(24.0).reshape(STEPS, BATCH, FEATURES)
CALLS = {
    "steps": list(VALUES),
    "time_first": [VALUES],
    "batch_first": [VALUES.movedim(0, 1)],
    "folded": [VALUES.flatten(0, 1)],
    "folded_batch_first": [VALUES.movedim(0, 1).flatten(0, 1)],
}
USED, COMPARED = torch.arange(1, 11), torch.tensor([7, 0, 11, 3])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("samples", [BATCH, None])
def test_every_layout_is_brought_to_time_first_and_only_the_order_within_a_fold_is_open(layout, samples):
    calls = CALLS[layout]
    folded = ["folded", "folded_batch_first"]
    assert possible_layouts([call.shape for call in calls], STEPS, samples) == (folded if layout in folded else [layout])
    assert torch.equal(time_first(layout, calls, STEPS), VALUES)


def test_blank_samples_in_front_do_not_hide_the_order_of_time_and_samples():
    inputs, synapse = draw(64), nn.Linear(FEATURES, 2)
    inputs[:20] = 0.0
    currents = synapse(inputs).detach().movedim(1, 0)
    with torch.no_grad():
        assert find_layout(Calls([inputs.flatten(0, 1)]), currents, synapse) == "folded_batch_first"
        assert find_layout(Calls([inputs.flatten(0, 1)]), 2 * currents, synapse) is None
        assert find_layout(Calls([inputs[:, 0]]), synapse(inputs[:, 0]).expand(STEPS, -1, -1), synapse) == "constant"


def draw(samples=COUNT):
    return torch.rand(samples, STEPS, FEATURES, generator=torch.Generator().manual_seed(0))


def batches_of(inputs, size):
    return [StoredBatch(part, slice(k * size, k * size + len(part))) for k, part in enumerate(inputs.split(size))]


@pytest.mark.parametrize("kind", ["", "constant", "binary", "constant and binary"])
@pytest.mark.parametrize("first", [4, COUNT], ids=["first batch", "all"])
def test_inputs_of_sets_of_samples_are_in_bytes_or_one_step_if_all_allow_it(kind, first):
    inputs, net = draw(), Series(inputs=FEATURES)
    if "binary" in kind:
        inputs[:first] = (inputs[:first] < 0.3).float()
    if "constant" in kind:
        inputs[:first] = inputs[:first, :1]
    recorder, layer = CallRecorder(net, batches_of(inputs, 4), plain_forward), HiddenLayer("fc1", net.fc1, "lif1", net.lif1)
    steps = 1 if "constant" in kind and first == COUNT else STEPS
    both, number = recorder.collect_inputs(layer, "steps", STEPS, [USED, COMPARED])
    assert number == COUNT
    for found, samples in zip(both, (USED, COMPARED), strict=True):
        assert (found.dtype is torch.uint8) == ("binary" in kind and first == COUNT)
        assert torch.equal(found.float(), inputs[samples, :steps].movedim(1, 0))


class Refilled(Series):
    """A net that copies each step into one buffer."""

    def take_steps(self, x):
        buffer = torch.empty_like(x[:, 0])
        for step in super().take_steps(x):
            yield buffer.copy_(step)


def test_inputs_of_one_buffer_are_recorded_as_they_were():
    inputs, net = draw(), Refilled(inputs=FEATURES)
    recorder, layer = CallRecorder(net, batches_of(inputs, 4), plain_forward), HiddenLayer("fc1", net.fc1, "lif1", net.lif1)
    (found,), _ = recorder.collect_inputs(layer, "steps", STEPS, [USED])
    assert torch.equal(found, inputs[USED].movedim(1, 0))


def test_currents_of_the_first_samples_inside_a_linear_leaky():
    net = nn.Sequential(snn.LinearLeaky(0.9, 4, 6), snn.LinearLeaky(0.9, 6, 3, output=False))

    def forward(net, x):
        return net[1](net[0](x)[0])

    x = torch.rand(5, 7, 4)
    layer, recorder = inspect_network(net, x, forward).hidden[0], CallRecorder(net, [StoredBatch(x, slice(0, 6))], forward)
    assert torch.equal(recorder.record_currents(layer), net[0].linear(x)[:, :6])
    assert torch.equal(recorder.record_currents(layer, keep=2), net[0].linear(x)[:, :2])


def test_a_varying_number_of_calls():
    net, x = Logits("steps", lambda values: values.mean(0), steps=lambda x: int(x[0, 0])), torch.ones(4, 10)
    (layer,) = inspect_network(net, 3 * x, plain_forward).hidden
    recorder = CallRecorder(net, batches_of(torch.cat([3 * x, 2 * x]), 4), plain_forward)
    for record in (recorder.record_currents, lambda layer: recorder.filter_spikes(layer, torch.ones(1, 3))):
        with pytest.raises(CaptureError, match="'lif' was called 2 times"):
            record(layer)


@pytest.mark.parametrize("size", [8, 12])
def test_spikes_are_filtered_and_counted_over_all_samples_however_they_are_batched(size):
    net, inputs, seen = Dense(), torch.rand(20, 10), []
    layer = inspect_network(net, inputs[:8], plain_forward).hidden[1]
    recorder, filters = CallRecorder(net, batches_of(inputs, size), plain_forward), torch.rand(2, 6)
    with quiet(net, seed=0):
        found = recorder.filter_spikes(layer, filters)
        CallRecorder(net, batches_of(inputs, 20), plain_forward).visit_spikes(layer, seen.append)
    spikes = torch.stack(seen)
    assert 0 < float(spikes.mean()) < 1
    assert found.steps == 6
    torch.testing.assert_close(found.rate, spikes.mean((0, 1)))
    torch.testing.assert_close(found.features, torch.einsum("kt,tnp->nkp", filters, spikes).flatten(0, 1))


# -- the counter of spikes --------------------------------------------------------------------------------------------------
def test_rates_are_counted_over_steps_of_different_shapes():
    counter = SpikeCounter()
    counter.add(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))
    assert counter.spikes.tolist() == [3, 1]
    assert counter.rates.tolist() == [1.0, torch.tensor(1 / 3)]
    assert counter.stats().always_on == 0.5
    assert not counter.varies
    counter.add(torch.tensor([[1.0], [0.0]]))
    assert counter.varies
    assert counter.rate == counter.stats().firing_rate == 5 / 8
    assert math.isnan(counter.stats().silent)
