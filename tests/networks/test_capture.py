import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin.errors import CaptureError, DataError, NetworkError
from snn_recon_plugin.networks import (
    ActivityRecorder,
    Storage,
    StoredBatch,
    capture,
    inspect_network,
    neuron_currents,
    over_time,
    plain_forward,
    quiet,
    record,
    resolve_readout,
)
from snn_recon_plugin.networks.capture import RowBuffer

from ..helpers import as_batches

STEPS = 6


@pytest.fixture
def run(inputs):
    """Inspect, resolve and capture in one call."""

    def run_all(net, loader, forward=plain_forward, kind="auto", sample=inputs, keep=0, progress=None, **storage):
        with quiet(net, seed=0):
            net_map = inspect_network(net, sample, forward)
            readout = resolve_readout(net, net_map, sample, forward, kind)
            recorder = ActivityRecorder(net_map, readout, keep)
            return capture(net, as_batches(loader), recorder, forward, Storage(**storage), progress), readout, net_map

    return run_all


def simulate(net, x):
    """The net of conftest.Mlp written out by hand, without modules of snnTorch."""
    m1 = m2 = torch.zeros(len(x), 16)
    r1 = r2 = torch.zeros(len(x), 16)
    spikes, first, second = [], [], []
    for _ in range(STEPS):
        r1, r2 = (m1 > 1).float(), (m2 > 1).float()
        current = net.fc1(x)
        first.append(current)
        m1 = 0.8 * m1 + current - r1
        s1 = (m1 > 1).float()
        current = net.fc2(s1)
        second.append(current)
        m2 = 0.8 * m2 + current - r2
        spikes.append((m2 > 1).float())
    return torch.stack(spikes), torch.stack(first), torch.stack(second)


@pytest.mark.parametrize("kind", ["membrane_mean", "membrane_sum", "membrane_last"])
def test_features_of_a_hand_written_simulation(nets, loader, run, kind):
    net = nets.Mlp()
    captured, _, _ = run(net, loader, kind=kind)
    x, y = loader.dataset.tensors
    with torch.no_grad():
        spikes, _, _ = simulate(net, x)
    assert spikes.any()
    membranes, mem = [], torch.zeros(20, 16)
    for step in spikes:
        mem = 0.9 * mem + step
        membranes.append(mem)
    record = torch.stack(membranes)
    expected = {"membrane_mean": record.mean(0), "membrane_sum": record.sum(0), "membrane_last": record[-1]}[kind]
    assert torch.allclose(captured.features, expected, atol=1e-5)
    assert captured.features.dtype == torch.float32
    assert torch.equal(captured.targets, y)
    assert captured.num_steps == STEPS


def explained(net_linear, captured, readout):
    with torch.no_grad():
        return captured.features @ net_linear.weight.T + readout.bias_gain * net_linear.bias + readout.constant


@pytest.mark.parametrize(
    "output",
    [
        lambda: snn.Leaky(beta=0.95, reset_mechanism="none"),
        lambda: snn.Synaptic(alpha=0.8, beta=0.9, reset_mechanism="none"),
        lambda: snn.Alpha(alpha=0.9, beta=0.8, reset_mechanism="none"),
        lambda: snn.Lapicque(beta=0.8, reset_mechanism="none"),
    ],
)
def test_features_explain_the_scores(nets, loader, run, output):
    net = nets.Mlp(output=output())
    captured, readout, _ = run(net, loader)
    assert captured.scores.std() > 0
    assert torch.allclose(explained(net.fc3, captured, readout), captured.scores, atol=1e-5)


@pytest.mark.parametrize("kind", ["sequential", "Nested", "Recurrent"])
def test_features_explain_the_scores_of_other_idioms(nets, loader, run, kind):
    net = getattr(nets, kind)()
    forward = plain_forward if kind == "Recurrent" else over_time(5)
    captured, readout, net_map = run(net, loader, forward)
    assert captured.features.any()
    assert torch.allclose(explained(net_map.readout, captured, readout), captured.scores, atol=1e-5)


@pytest.mark.parametrize("kind", ["Conv", "conv_sequential"])
def test_features_explain_the_scores_of_convolutions(nets, images, run, kind):
    net = getattr(nets, kind)()
    loader = DataLoader(TensorDataset(images, torch.zeros(8, dtype=torch.long)), 4)
    forward = plain_forward if kind == "Conv" else over_time(5)
    captured, readout, net_map = run(net, loader, forward, sample=images)
    assert captured.features.any()
    assert torch.allclose(explained(net_map.readout, captured, readout), captured.scores, atol=1e-5)


def test_a_readout_called_once(run, loader):
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif = nn.Linear(10, 8), snn.Leaky(beta=0.9)
            self.fc2, self.out = nn.Linear(8, 3), snn.Leaky(beta=0.9, reset_mechanism="none")

        def forward(self, x):
            m1, m2, spk, record = self.lif.reset_mem(), self.out.reset_mem(), [], []
            for _ in range(5):
                z, m1 = self.lif(3 * self.fc1(x), m1)
                spk.append(z)
            for current in self.fc2(torch.stack(spk)):
                _, m2 = self.out(current, m2)
                record.append(m2)
            return torch.stack(record)

    net = Once()
    captured, readout, net_map = run(net, loader)
    assert net_map.layout == "time_first"
    assert captured.features.any()
    assert torch.allclose(explained(net.fc2, captured, readout), captured.scores, atol=1e-5)


def test_layer_statistics(nets, loader, run):
    net = nets.Mlp()
    with torch.no_grad():
        net.fc2.bias[0], net.fc2.bias[1] = -1e3, 1e3
    captured, _, _ = run(net, loader)
    with torch.no_grad():
        spikes, _, _ = simulate(net, loader.dataset.tensors[0])
    stats = captured.firing["fc2"].stats()
    assert list(captured.firing) == ["fc1", "fc2"]
    assert stats.neurons == 16
    assert stats.firing_rate == pytest.approx(float(spikes.mean()))
    assert stats.silent == pytest.approx(float((spikes.sum((0, 1)) == 0).float().mean()))
    assert stats.always_on == pytest.approx(float(spikes.bool().all(0).all(0).float().mean()))
    assert stats.silent >= 1 / 16
    assert stats.always_on >= 1 / 16


def test_statistics_of_layers_that_take_sequences(loader, run):
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif = nn.Linear(10, 8), snn.StateLeaky(beta=0.9, channels=8)
            self.fc2 = nn.Linear(8, 3)

        def forward(self, x):
            return self.fc2(self.lif(5 * self.fc1(x.expand(4, *x.shape)))[0]).mean(0)

    net = Sequence()
    captured, _, net_map = run(net, loader)
    assert captured.firing["fc1"].stats().neurons == 8
    assert 0 < captured.firing["fc1"].stats().firing_rate <= 1
    with quiet(net, seed=0):
        currents = neuron_currents(net, captured.batches, net_map.hidden[0], plain_forward)
    assert currents.shape == (4, 20, 8)


def test_max_samples_cuts_rows(nets, loader, run):
    whole, _, _ = run(nets.Mlp(), loader)
    torch.manual_seed(0)
    for limit in (3, 8, 11):
        torch.manual_seed(0)
        done = []
        captured, _, _ = run(nets.Mlp(), loader, samples=limit, progress=done.append)
        assert len(captured.features) == len(captured.targets) == len(captured.scores) == limit
        assert done[-1] == limit
        assert captured.batches[-1].rows.stop == limit
    assert len(whole.features) == 20


def test_stored_batches(nets, loader, run):
    captured, _, _ = run(nets.Mlp(), loader, stored=9)
    assert [batch.rows for batch in captured.batches] == [slice(0, 8), slice(8, 16)]
    assert torch.equal(captured.batches[1].inputs, loader.dataset.tensors[0][8:16])
    captured, _, _ = run(nets.Mlp(), loader, stored=0)
    assert len(captured.batches) == 1


def test_progress(nets, loader, run):
    done = []
    run(nets.Mlp(), loader, progress=done.append)
    assert done == [8, 16, 20]


def test_nested_inputs(nets, run):
    class Dictionary(nets.Mlp):
        def forward(self, x):
            return super().forward(x["left"] + x["right"][0])

    x = torch.randn(8, 10)
    batch = {"left": x, "right": (x,)}
    captured, _, _ = run(Dictionary(), [(batch, torch.zeros(8))] * 2, sample=batch)
    assert captured.features.shape == (16, 16)
    assert captured.batches[0].inputs["right"][0].shape == (8, 10)


def test_neuron_currents(nets, loader, run):
    net = nets.Mlp()
    captured, _, net_map = run(net, loader, samples=18)
    with quiet(net, seed=0):
        currents = [neuron_currents(net, captured.batches, layer, plain_forward) for layer in net_map.hidden]
    with torch.no_grad():
        _, first, second = simulate(net, loader.dataset.tensors[0][:18])
    assert torch.allclose(currents[0], first, atol=1e-5)
    assert torch.allclose(currents[1], second, atol=1e-5)
    assert currents[0].shape[:2] == (STEPS, 18)
    assert currents[0].untyped_storage().nbytes() == currents[0][0].numel() * 4  # of inputs held still, once
    assert currents[1].is_contiguous()


X, Y = torch.zeros(4, 10), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "a loader without a single sample"),
        ([(X, Y), X], "batch 2 is tensor"),
        ([(X, Y), (X, Y, Y)], "batch 2 is a tuple of 3"),
        ([(X, Y), (X / 0, Y)], "batch 2 holds 40 NaN"),
        ([(X, Y[:3])], "batch 1 has 3 targets, but 4 samples reach the readout"),
        ([(X[:0], Y[:0])], "batch 1 is empty"),
    ],
)
def test_bad_batches(nets, run, count_hooks, batches, message):
    net = nets.Mlp()
    with pytest.raises(DataError, match=message):
        run(net, batches)
    assert count_hooks(net) == 0


class Varying(nn.Module):
    """As many steps as the first input says."""

    def __init__(self, once):
        super().__init__()
        self.fc1, self.lif, self.fc2, self.once = nn.Linear(10, 8), snn.Leaky(beta=0.9), nn.Linear(8, 3), once

    def forward(self, x):
        mem, spk = self.lif.reset_mem(), []
        for _ in range(int(x[0, 0])):
            z, mem = self.lif(self.fc1(x), mem)
            spk.append(z if self.once else self.fc2(z))
        return (self.fc2(torch.stack(spk)) if self.once else torch.stack(spk)).mean(0)


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("once", [False, True])
def test_a_varying_number_of_steps(run, once, steps, count_hooks):
    net, x = Varying(once), torch.ones(4, 10)
    captured, _, _ = run(net, [(3 * x, Y), (steps * x, Y)], sample=3 * x, keep=8)
    assert captured.lengths.tolist() == [3] * 4 + [steps] * 4
    assert captured.num_steps == len(captured.spikes) == max(3, steps)
    assert torch.allclose(net.fc2(captured.features), captured.scores, atol=1e-6)
    # The shorter batch's spikes stand at the end.
    short, rows = min(3, steps), slice(0, 4) if steps > 3 else slice(4, 8)
    assert not captured.spikes[:-short, rows].any()
    assert torch.allclose(captured.spikes[-short:, rows].float().mean(0), captured.features[rows])
    assert count_hooks(net) == 0


def test_a_varying_number_of_calls_of_a_hidden_neuron(run):
    net, x = Varying(False), torch.ones(4, 10)
    captured, _, net_map = run(net, [(3 * x, Y), (3 * x, Y)], sample=3 * x)
    captured.batches[1].inputs.fill_(2)
    with pytest.raises(CaptureError, match="'lif' was called 2 times"):
        neuron_currents(net, captured.batches, net_map.hidden[0], plain_forward)


def test_features_that_are_not_finite(nets, inputs):
    net = nets.Mlp()
    net_map = inspect_network(net, inputs, plain_forward)
    readout = resolve_readout(net, net_map, inputs, plain_forward)
    net.fc3.register_forward_pre_hook(lambda _module, args: (args[0] / 0,))
    with pytest.raises(NetworkError, match="entering the readout"):
        capture(net, as_batches([(inputs, torch.zeros(8))]), ActivityRecorder(net_map, readout), plain_forward)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["loader", "net"])
def test_errors_leave_no_hook_and_those_of_the_loader_pass_through(
    nets, inputs, snapshot, assert_unwritten, count_hooks, where, error
):
    net = nets.Mlp()
    net_map = inspect_network(net, inputs, plain_forward)
    readout = resolve_readout(net, net_map, inputs, plain_forward)
    net(inputs)

    def batches():
        yield inputs, torch.zeros(8)
        if where == "loader":
            raise error("midway")
        yield inputs + 1, torch.zeros(8)

    def forward(net, x):
        if where == "net" and not torch.equal(x, inputs):
            net.fc1(x)
            raise error("midway")
        return net(x)

    before = snapshot(net)
    expected = NetworkError if where == "net" and error is OSError else error
    with pytest.raises(expected, match="midway"), quiet(net, seed=0):
        capture(net, as_batches(batches()), ActivityRecorder(net_map, readout), forward)
    assert_unwritten(net, before, snapshot(net))
    assert count_hooks(net) == 0


def test_a_capture_writes_nothing_and_leaves_no_hook(nets, loader, inputs, snapshot, assert_unwritten, count_hooks, run):
    net = nets.Mlp()
    net(inputs)
    before = snapshot(net)
    run(net, loader)
    assert_unwritten(net, before, snapshot(net))
    assert count_hooks(net) == 0


def test_spikes_are_kept_as_bytes(nets, loader, run):
    captured, _, _ = run(nets.Mlp(), loader, keep=11)
    assert captured.spikes.shape == (STEPS, 11, 16)
    assert captured.spikes.dtype == torch.uint8
    assert run(nets.Mlp(), loader)[0].spikes is None


def test_currents_inside_a_linear_leaky():
    net = nn.Sequential(snn.LinearLeaky(0.9, 4, 6), snn.LinearLeaky(0.9, 6, 3, output=False))

    def forward(net, x):
        return net[1](net[0](x)[0])

    x = torch.rand(5, 7, 4)
    net_map = inspect_network(net, x, forward)
    currents = neuron_currents(net, [StoredBatch(x, slice(0, 6))], net_map.hidden[0], forward)
    assert torch.equal(currents, net[0].linear(x)[:, :6])


def test_random_encodings_repeat_for_stored_batches(nets, loader, run):
    net, forward = nets.sequential(), over_time(4, encoding="rate")
    captured, readout, _ = run(net, loader, forward=forward, sample=torch.rand(8, 10))
    for batch in captured.batches:
        again = readout.scores(record(net, batch, forward))
        assert torch.equal(again, captured.scores[batch.rows])


def test_spikes_of_the_first_samples_are_counted(nets, run):
    net, inputs, targets = nets.Mlp(), torch.rand(15_000, 10), torch.arange(15_000) % 3

    def firing(count):
        return run(net, DataLoader(TensorDataset(inputs[:count], targets[:count]), 4_000))[0].firing["fc1"].stats()

    assert firing(15_000) == firing(12_000)  # 10,000 and the remainder of their batch
    assert firing(12_000) != firing(8_000)


@pytest.mark.parametrize("expected", [1, 5, 100])
def test_rows_come_back_in_order(expected):
    buffer, rows = RowBuffer(), torch.arange(18.0).reshape(9, 2)
    for part in rows.split(2):
        buffer.append(part, expected=expected)
    assert torch.equal(buffer.rows(), rows)


def test_another_shape():
    buffer = RowBuffer()
    buffer.append(torch.ones(2, 3), expected=4)
    with pytest.raises(DataError, match=r"shape \[4\] after samples of shape \[3\]"):
        buffer.append(torch.ones(2, 4), expected=4)
