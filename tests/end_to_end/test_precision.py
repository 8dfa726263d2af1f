"""Calls inside autocast and inference mode, nets with an autocast of their own, and nets in double precision."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import ReconstructionError, convex_init_, over_time
from snn_recon_plugin.demo import build_network
from snn_recon_plugin.networks.calls.forward import plain_forward
from snn_recon_plugin.stages.stream import split_samples

from ..nets import Looped

STEPS = 5
LABELS = torch.arange(90) % 3
torch.manual_seed(0)
INPUTS = 2 * torch.rand(3, 12)[LABELS] + 0.4 * torch.randn(90, 12)


class Sequences(nn.Module):
    """Multi-step neurons, whose convolution takes one dtype alone."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(12, 16), snn.StateLeaky(beta=0.9, channels=16)
        self.fc2, self.lif2 = nn.Linear(16, 3), snn.StateLeaky(beta=0.9, channels=3)

    def forward(self, x):
        spikes, _ = self.lif1(self.fc1(x.expand(STEPS, *x.shape)))
        return self.lif2(self.fc2(spikes.to(self.fc2.weight)))[1]


def in_autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net(x)


def network():
    return build_network(12, 16, 3, STEPS)


def cells():
    return Looped(over_time(STEPS), nn.Linear(12, 16), norse.LIFCell(), nn.Linear(16, 3), norse.LICell())


def multi_step():
    return Looped(over_time(STEPS), nn.Linear(12, 16), norse.LIF(), nn.Linear(16, 3), norse.LI())


def recurrent():
    return Looped(over_time(STEPS), norse.LIFRecurrentCell(12, 16), nn.Linear(16, 3))


def made(make):
    torch.manual_seed(0)
    return make()


def solved(net, dtype=torch.float32, **options):
    return convex_init_(net, [(INPUTS.to(dtype), LABELS)], progress=False, **options)


def accuracy(net, forward=plain_forward):
    with torch.no_grad():
        return float((forward(net, INPUTS).mean(0).argmax(1) == LABELS).double().mean())


@pytest.mark.parametrize(
    ("make", "dtype", "hidden"),
    [(network, torch.bfloat16, "reconstruct"), (cells, torch.float16, "rescale"), (Sequences, torch.bfloat16, "reconstruct")],
)
def test_a_call_inside_autocast_reports_what_the_net_does_there(make, dtype, hidden):
    net = made(make)
    with torch.autocast("cpu", dtype):
        accuracy(net)  # autocast keeps what it has cast the weights to, and must not go on with it
        report = solved(net, hidden=hidden)
        assert accuracy(net) == pytest.approx(report.accuracy_written)
    assert report.certificate.reached
    assert report.exactness.label == "exact"
    assert report.exactness.tolerance == pytest.approx(8 * torch.finfo(dtype).eps * max(1, report.exactness.scale))
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


def test_firing_is_counted_in_full_precision_inside_autocast():
    """Half of the neurons fire at every step of 630 samples, a number that bfloat16 doesn't have."""
    net = made(network)
    with torch.no_grad():
        net.fc1.weight[:8] = 0.0
        net.fc1.bias[:8] = 10.0
    with torch.autocast("cpu", torch.bfloat16):
        report = convex_init_(net, [(INPUTS.repeat(7, 1), LABELS.repeat(7))], hidden="keep", progress=False)
    assert report.layers[0].stats.always_on >= 0.5


def test_a_forward_with_an_autocast_of_its_own():
    net = made(network)
    report = solved(net, hidden="reconstruct", forward=in_autocast)
    assert report.accuracy_written == pytest.approx(accuracy(net, in_autocast))
    assert report.exactness.tolerance > 1e-2  # that of 16 bits


def test_a_call_inside_inference_mode_leaves_a_net_that_trains():
    one, two = (made(network) for _ in range(2))
    with torch.inference_mode():
        report = solved(one, hidden="reconstruct")
    solved(two, hidden="reconstruct")
    assert all(torch.equal(left, right) for left, right in zip(one.parameters(), two.parameters(), strict=True))
    one(INPUTS).sum().backward()
    report.undo()
    assert not any(tensor.is_inference() for tensor in (*one.parameters(), *one.buffers()))


def test_a_net_built_in_inference_mode_is_refused():
    with torch.inference_mode():
        net = made(network)
        with pytest.raises(ReconstructionError, match=r"'fc2.weight' was made in torch.inference_mode"):
            solved(net)


@pytest.mark.parametrize(
    ("make", "hidden"), [(Sequences, "keep"), (cells, "rescale"), (multi_step, "reconstruct"), (recurrent, "reconstruct")]
)
def test_nets_in_double_precision(make, hidden):
    net = made(make).double()
    report = solved(net, torch.float64, hidden=hidden, witnesses="traces")
    assert report.exactness.label == "exact"
    assert report.certificate.reached
    assert all(parameter.dtype == torch.float64 for parameter in net.parameters())


def test_batches_of_one_sample_rebuild_what_whole_ones_do():
    seed, rows = 0, []
    while 0 in split_samples(len(LABELS), 0.2, seed).fitted:
        seed += 1  # to one with which the first batch takes no part in the selection
    for size in (1, 90):
        net = made(network)
        batches = list(zip(INPUTS.split(size), LABELS.split(size), strict=True))
        convex_init_(net, batches, hidden="reconstruct", seed=seed, progress=False)
        rows.append(net.fc1.weight)
    assert torch.equal(*rows)
