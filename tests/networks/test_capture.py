import norse.torch as norse
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin.errors import DataError, NetworkError
from snn_recon_plugin.networks.calls.calls import CallRecorder
from snn_recon_plugin.networks.calls.forward import over_time, plain_forward
from snn_recon_plugin.networks.calls.record import record
from snn_recon_plugin.networks.capture import ActivityRecorder, RowBuffer, capture
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.readout.output_neuron import own_scores, readout_currents

from ..helpers import as_batches
from ..user_nets.small_idioms import BATCH, CLASSES, FIRST, loud
from .nets import STEPS, Dense, Logits, sequential
from .reading import captured, explained, read, resolve


def simulate(net, x):
    """The net Dense written out by hand, without modules of snnTorch: spikes, and currents of both hidden layers."""
    mem, record = [torch.zeros(len(x), 16)] * 2, []
    for _ in range(STEPS):
        z, currents = x, []
        for number, layer in enumerate((net.fc1, net.fc2)):
            currents.append(layer(z))
            mem[number] = 0.8 * mem[number] + currents[-1] - (mem[number] > 1).float()
            z = (mem[number] > 1).float()
        record.append((z, *currents))
    return [torch.stack(values) for values in zip(*record, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["membrane_mean", "membrane_sum", "membrane_last"])
def test_features_of_a_hand_written_simulation(loader, inputs, kind):
    net = Dense()
    net.fc2.bias[0], net.fc2.bias[1] = -1e3, 1e3
    found, _, net_map = captured(net, loader, inputs, kind, keep=11)
    x, y = loader.dataset.tensors
    spikes, first, second = simulate(net, x)
    membranes, mem = [], torch.zeros(20, 16)
    for step in spikes:
        mem = 0.9 * mem + step
        membranes.append(mem)
    values = torch.stack(membranes)
    expected = {"membrane_mean": values.mean(0), "membrane_sum": values.sum(0), "membrane_last": values[-1]}[kind]
    assert torch.allclose(found.features, expected, atol=1e-5)
    assert found.features.dtype == torch.float32
    assert torch.equal(found.targets, y)
    assert found.num_steps == STEPS
    assert torch.equal(found.spikes, spikes[:, :11].to(torch.uint8))
    # How the layers fired
    stats = found.firing["fc2"].stats()
    assert list(found.firing) == ["fc1", "fc2"]
    assert stats.neurons == 16
    assert stats.firing_rate == pytest.approx(float(spikes.mean()))
    assert 1 / 16 <= stats.silent == pytest.approx(float((spikes.sum((0, 1)) == 0).float().mean()))
    assert 1 / 16 <= stats.always_on == pytest.approx(float(spikes.bool().all(0).all(0).float().mean()))
    # Currents of the hidden neurons
    with quiet(net, seed=0):
        currents = [CallRecorder(net, found.batches, plain_forward).record_currents(layer) for layer in net_map.hidden]
    assert torch.allclose(currents[0], first, atol=1e-5)
    assert torch.allclose(currents[1], second, atol=1e-5)
    assert currents[0].untyped_storage().nbytes() == currents[0][0].numel() * 4  # of inputs held still, once
    assert currents[1].is_contiguous()


@pytest.mark.parametrize("limit", [3, 8, 11, None])
def test_the_number_of_samples_and_of_stored_batches(loader, inputs, limit):
    done = []
    found, _, _ = captured(Dense(), loader, inputs, samples=limit, stored=9, progress=done.append)
    rows = limit or 20
    assert len(found.features) == len(found.targets) == len(found.scores) == rows
    assert done == [end for end in (8, 16, 20) if end < rows] + [rows]
    assert [batch.rows for batch in found.batches] == [slice(0, min(8, rows)), slice(8, min(16, rows))][: 1 if rows <= 8 else 2]
    assert torch.equal(found.batches[-1].inputs, loader.dataset.tensors[0][(len(found.batches) - 1) * 8 :][:8])
    assert found.spikes is None  # kept only if asked for
    assert len(captured(Dense(), loader, inputs, stored=0)[0].batches) == 1


Y = torch.zeros(4, dtype=torch.long)


def varying(layout="steps"):
    return Logits(layout, lambda values: values.mean(0), steps=lambda x: int(x[0, 0]))


def test_kept_spikes_have_the_steps_of_the_longest_batch():
    net, x = varying(), torch.ones(4, 10)
    found, _, _ = captured(net, [(3 * x, Y), (4 * x, Y)], 3 * x, keep=4)
    assert found.spikes.shape[:2] == (4, 4)
    assert not found.spikes[0].any()


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("layout", ["steps", "time_first"])
def test_a_varying_number_of_steps(layout, steps):
    net, x = varying(layout), torch.ones(4, 10)
    found, _, _ = captured(net, [(3 * x, Y), (steps * x, Y)], 3 * x, keep=8)
    assert found.lengths.tolist() == [3] * 4 + [steps] * 4
    assert found.num_steps == len(found.spikes) == max(3, steps)
    assert torch.allclose(net.fc2(found.features), found.scores, atol=1e-6)
    # The shorter batch's spikes stand at the end.
    short, rows = min(3, steps), slice(0, 4) if steps > 3 else slice(4, 8)
    assert not found.spikes[:-short, rows].any()
    assert torch.allclose(found.spikes[-short:, rows].float().mean(0), found.features[rows])


def test_features_that_are_not_finite(inputs):
    net = Dense()
    recorder = ActivityRecorder(*read(net, inputs))
    net.fc3.register_forward_pre_hook(lambda _module, args: (args[0] / 0,))
    with pytest.raises(NetworkError, match="entering the readout"):
        capture(net, as_batches([(inputs, torch.zeros(8))]), recorder, forward=plain_forward)


def test_random_encodings_repeat_for_stored_batches(loader):
    net, forward = sequential(), over_time(4, encoding="rate")
    found, readout, _ = captured(net, loader, torch.rand(8, 10), forward=forward)
    for batch in found.batches:
        assert torch.equal(readout.scores(record(net, batch, forward)), found.scores[batch.rows])


def test_spikes_of_the_first_samples_are_counted():
    net, inputs, targets = Dense(), torch.rand(15_000, 10), torch.arange(15_000) % 3

    def firing(count):
        data = DataLoader(TensorDataset(inputs[:count], targets[:count]), 4_000)
        return captured(net, data, inputs[:8])[0].firing["fc1"].stats()

    assert firing(15_000) == firing(12_000)  # 10,000 and the remainder of their batch
    assert firing(12_000) != firing(8_000)


@pytest.mark.parametrize("expected", [1, 5, 100])
def test_rows_come_back_in_order_and_of_one_shape(expected):
    buffer, rows = RowBuffer(), torch.arange(18.0).reshape(9, 2)
    for part in rows.split(2):
        buffer.append(part, expected=expected)
    assert torch.equal(buffer.rows(), rows)
    with pytest.raises(DataError, match=r"shape \[4\] after samples of shape \[2\]"):
        buffer.append(torch.ones(2, 4), expected=4)


# -- scores at every step, for losses at every step -------------------------------------------------------------------------
def test_one_filter_for_each_step_and_their_mean(inputs):
    cell = norse.LICell(p=norse.LIParameters(v_leak=torch.tensor(0.3)))
    net = norse.SequentialState(nn.Linear(10, 16), norse.LIFCell(), nn.Linear(16, 3), cell)
    readout = resolve(net, inputs, "membrane_per_step", over_time(STEPS))
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


@pytest.mark.parametrize("layout", ["steps", "time_first", "batch_first"])
def test_logits_at_every_step(layout, inputs, loader):
    net = Logits(layout)
    found, readout, net_map = captured(net, loader, inputs, "linear_per_step")
    assert net_map.layout == layout
    assert torch.equal(readout.matrix, torch.eye(STEPS, dtype=torch.float64))
    assert (readout.bias_gains.tolist(), readout.constants.tolist()) == ([1.0] * STEPS, [0.0] * STEPS)
    assert found.features.any()
    x, y = loader.dataset.tensors
    with torch.no_grad():
        assert torch.allclose(found.scores, net.fc2(found.features), atol=1e-5)
        own = net(x)
    assert torch.equal(found.targets, y)
    assert torch.allclose(found.scores, own if layout == "batch_first" else own.movedim(0, 1), atol=1e-6)


def test_features_of_every_step_are_filtered_spikes(inputs, loader):
    net = Dense()
    found, readout, _ = captured(net, loader, inputs, "membrane_per_step", keep=20)
    assert found.features.dtype == torch.float32
    assert found.features.shape == (20, STEPS, 16)
    for step in range(STEPS):
        expected = sum(0.9 ** (step - earlier) * found.spikes[earlier].double() for earlier in range(step + 1))
        assert torch.allclose(found.features[:, step].double(), expected, atol=1e-5)
    with torch.no_grad():
        linear = explained(net.fc3, found, readout)
    assert found.scores.std() > 0
    assert torch.allclose(linear, found.scores, atol=1e-5)
    alone = own_scores(readout, net.lif3, readout_currents(found.spikes, net.fc3.weight, net.fc3.bias))
    assert torch.allclose(alone, found.scores, atol=1e-5)
    # Their mean over the steps is the other readout.
    mean, other, _ = captured(net, loader, inputs, "membrane_mean")
    assert torch.allclose(found.features.mean(1), mean.features, atol=1e-5)
    assert torch.allclose(found.scores.mean(1), mean.scores, atol=1e-5)
    assert torch.allclose(readout.filter, other.filter)
    assert found.firing["fc1"].stats() == mean.firing["fc1"].stats()
    # The same for the first samples alone.
    cut, _, _ = captured(net, loader, inputs, "membrane_per_step", samples=11, keep=9)
    assert torch.equal(cut.features, found.features[:11])
    assert torch.equal(cut.scores, found.scores[:11])
    assert torch.equal(cut.spikes, found.spikes[:, :9])


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
    found, _, _ = captured(net, [(inputs, torch.zeros(8))], inputs, "linear_per_step")
    assert found.features.any()
    with torch.no_grad():
        assert torch.allclose(found.scores, net.fc2(found.features), atol=1e-5)


OVER_TIME = [name for name, (_, reading) in FIRST.items() if reading.kind == "membrane_mean"]


@pytest.mark.parametrize("name", OVER_TIME)
def test_scores_at_every_step_of_an_idiom(name):
    idiom, reading = FIRST[name]
    net, x = loud(idiom.build(reading.output)), 2 * torch.rand(BATCH, *idiom.shape)
    data = [(x[:5], torch.zeros(5)), (x[5:], torch.zeros(3))]
    found, readout, net_map = captured(net, data, x, "membrane_per_step", idiom.forward, keep=6)
    with torch.no_grad():
        linear = found.features @ net_map.readout.weight.T + readout.constants.float()[:, None]
        if net_map.readout.bias is not None:
            linear += readout.bias_gains.float()[:, None] * net_map.readout.bias
    assert found.features.any()
    assert found.scores.shape == (BATCH, STEPS, CLASSES)
    assert float((found.scores - linear).abs().max()) <= 1e-4 * max(1.0, float(linear.abs().max()))
    again = torch.einsum("ts,smp->mtp", readout.matrix.float(), found.spikes.float())
    assert torch.allclose(again, found.features[:6], rtol=1e-4, atol=1e-5)
