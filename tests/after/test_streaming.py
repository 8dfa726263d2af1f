"""The stream: as the batch solution, in memory that stays, and refusals that change nothing."""

import gc

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import StreamingReadout, statistics_of
from snn_recon_plugin.errors import DataError, NetworkError, OptionError

from ..helpers import batches, lived_in, train_data, untouched
from ..nets import CLASSES, Averaged, Loop, loop_net


def batch_solution(net, loader, penalty):
    """Weight and bias of the ridge on all samples, by the normal equations of their rows."""
    features, labels = [], torch.cat([labels for _, labels in loader])
    handle = net.fc2.register_forward_hook(lambda _, given, output: features.append(given[0].detach().double()))
    for inputs, _ in loader:
        net(inputs)
    handle.remove()
    rows = torch.cat([torch.cat(features), torch.ones(len(labels), 1)], 1)
    targets = 2.0 * nn.functional.one_hot(labels, CLASSES).double() - 1
    matrix = rows.T @ rows + penalty * torch.eye(rows.shape[1]).double()
    matrix[-1, -1] -= penalty
    solution = torch.linalg.solve(matrix, rows.T @ targets)
    return solution[:-1].T, solution[-1]


def test_a_stream_may_start_with_copies_of_one_sample():
    net, ((inputs, labels),) = Averaged(), batches(100)
    stream = StreamingReadout(net, [(inputs[:1].expand(8, -1), labels[:1].expand(8))])
    stream.update_((inputs, labels))
    assert net.fc2.weight.isfinite().all()


def test_samples_count_once_where_each_step_decides():
    net, ((inputs, labels),) = loop_net(), batches(100)
    stream = StreamingReadout(net, [(inputs[:60], labels[:60])], readout="membrane_per_step")
    stream.update_((inputs[60:], labels[60:]))
    assert stream.samples == 100


@pytest.mark.parametrize("size", [7, 200])
def test_the_solution_after_each_batch_is_that_of_all_samples(size):
    torch.manual_seed(0)
    net, loader = Averaged(), batches(300, 100)
    stream = StreamingReadout(net, loader[:1], strength=1e-2)
    inputs, labels = (torch.cat([pair[place] for pair in loader[1:]]) for place in (0, 1))
    for batch in zip(inputs.split(size), labels.split(size), strict=True):
        stream.update_(batch)
    weight, bias = batch_solution(net, loader, 1e-2 * 100)
    torch.testing.assert_close(net.fc2.weight.detach().double(), weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net.fc2.bias.detach().double(), bias, rtol=1e-5, atol=1e-5)
    assert stream.samples == 300


TINY = snn.Leaky(beta=0.9, threshold=0.1)


def held_bytes():
    gc.collect()
    tensors = (value for value in gc.get_objects() if issubclass(type(value), torch.Tensor))
    return sum(value.nbytes for value in tensors if value.layout is torch.strided)


@pytest.mark.slow
def test_ten_thousand_updates_take_no_more_memory_and_lose_no_digits():
    torch.manual_seed(0)
    net, draw = Averaged(hidden=3, steps=1, inputs=4, outputs=2, hidden_neuron=TINY), torch.Generator().manual_seed(0)
    inputs = torch.randn(10_100, 4, generator=draw)
    labels = (inputs[:, 0] > 0).long()
    stream = StreamingReadout(net, [(inputs[:100], labels[:100])], strength=1e-3)
    for place in range(100, 200):
        stream.update_((inputs[place : place + 1], labels[place : place + 1]))
    before = held_bytes()
    for place in range(200, 10_100):
        stream.update_((inputs[place : place + 1], labels[place : place + 1]))
    assert held_bytes() <= before
    everything = statistics_of(net, [(inputs, labels)])
    gram, sums = everything.gram[0].sum(0), everything.sums[0]
    penalty = torch.tensor([0.1, 0.1, 0.1, 0.0], dtype=torch.float64).diag()
    solution = torch.linalg.solve(gram + penalty, 2 * sums - sums.sum(1, keepdim=True))
    torch.testing.assert_close(net.fc2.weight.detach().double(), solution[:-1].T, rtol=1e-5, atol=1e-5)


def test_a_stream_from_saved_statistics_with_a_leak_for_each_output(tmp_path):
    torch.manual_seed(0)
    net = Loop(output=snn.Leaky(beta=torch.linspace(0.6, 0.95, CLASSES), reset_mechanism="none"))
    loader = batches(600, 100)
    stream = StreamingReadout(net, statistics_of(net, loader[:2]))
    for batch in loader[2:]:
        stream.update_(batch)
    inputs, labels = train_data()
    assert float((net(inputs).mean(0).argmax(1) == labels).float().mean()) > 0.85


def test_only_the_readout_is_written():
    net, loader = lived_in(loop_net()), batches(300, 100)
    stream = StreamingReadout(net, loader[:1])
    with untouched(net, written=("fc2.weight", "fc2.bias")):
        stream.update_(loader[1])


def test_what_is_refused_changes_nothing():
    net, loader = loop_net(), batches(300, 100)
    stream = StreamingReadout(net, loader[:1])
    stream.update_(loader[1])
    for bad, error, message in [
        ((torch.rand(2, 64), torch.tensor([3, 10])), DataError, "labels up to 10 for 10 outputs"),
        ((torch.rand(2, 63), torch.tensor([3, 1])), NetworkError, "raised RuntimeError"),
        ((torch.full((2, 64), float("nan")), torch.tensor([3, 1])), DataError, "NaN"),
    ]:
        with untouched(net), pytest.raises(error, match=message):
            stream.update_(bad)
    assert stream.samples == 200
    with torch.no_grad():
        net.fc1.weight.mul_(1.0)
    with untouched(net), pytest.raises(NetworkError, match=r"'fc1.weight', which was written since"):
        stream.update_(loader[2])
    with pytest.raises(OptionError, match="strength='best'"):
        StreamingReadout(net, loader[:1], strength="best")
