"""The start of hidden layers without labels: rates reached, what stays, undo, loaders with and without labels, and its errors."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import hidden_init_, over_time
from snn_recon_plugin.errors import DataError, NetworkError, OptionError, SilentLayerError

from .faults import LineFault
from .helpers import divided, lived_in, train_data, untouched
from .nets import CLASSES, HIDDEN, PIXELS, STEPS, Deep, Driven, Loop, Once, Stack, conv_net, loop_net, sequential_net

IMAGES = train_data(100)[0]
OVER = over_time(STEPS)
RATE = 0.08


def seeded(build):
    torch.manual_seed(0)
    return build()


def norse_layers(*hidden):
    return lambda: norse.SequentialState(*hidden, nn.Linear(HIDDEN, CLASSES), norse.LICell())


def jelly_layers():
    """Two hidden layers, the first one a convolution with a batch norm, in step mode "m"."""
    first = layer.Conv2d(1, 4, 3, step_mode="m"), layer.BatchNorm2d(4, step_mode="m"), neuron.IFNode(step_mode="m")
    second = layer.Flatten(step_mode="m"), nn.Linear(4 * 6 * 6, HIDDEN), neuron.LIFNode(step_mode="m")
    return nn.Sequential(nn.Unflatten(2, (1, 8, 8)), *first, *second, nn.Linear(HIDDEN, CLASSES))


def normed(norm):
    net = sequential_net()
    return nn.Sequential(net[0], norm(HIDDEN), *net[1:])


class Head(Loop):
    """A net that ends in no readout: its outputs are products of two layers."""

    def forward(self, x):
        return super().forward(x) * self.fc2.bias.exp() + self.fc2.weight.sum()


def skip_net():
    net = Driven(lambda net, x, spikes: net.fc1(x) + net.skip(x))
    net.skip = nn.Linear(PIXELS, HIDDEN)
    return net


# How to make a net, and how to call it.
NETS = {
    "dense": (loop_net, None),
    "deep": (lambda: Stack((50.0, 0.05, 1.0)), None),
    "current once": (lambda: seeded(Once), None),
    "convolution": (conv_net, None),
    "no bias": (lambda: Deep(nn.Linear(HIDDEN, HIDDEN, bias=False)), None),
    "recurrent synaptic": (lambda: Deep(neuron=snn.RSynaptic(alpha=0.5, beta=0.8, linear_features=HIDDEN)), None),
    "batch norm": (lambda: normed(nn.BatchNorm1d), OVER),
    "layer norm": (lambda: normed(nn.LayerNorm), OVER),
    "no readout": (lambda: seeded(Head), None),
    "Norse": (norse_layers(nn.Linear(PIXELS, HIDDEN), norse.LIFCell()), OVER),
    "Norse recurrent": (norse_layers(norse.LIFRecurrentCell(PIXELS, HIDDEN)), OVER),
    "SpikingJelly": (jelly_layers, OVER),
}


@pytest.mark.parametrize("name", NETS)
def test_every_hidden_layer_reaches_the_rate(name):
    build, forward = NETS[name]
    net = seeded(build)
    start = hidden_init_(net, [IMAGES], forward=forward, rate=RATE)
    assert start.layers
    for each in start.layers:
        assert not each.reason
        assert each.after.firing_rate == pytest.approx(RATE, abs=0.02)
        assert each.after.silent < 0.5
    again = hidden_init_(net, [IMAGES], forward=forward, rate=RATE)  # the net itself has what the report says
    assert [one.before for one in again.layers] == [one.after for one in start.layers]


def test_units_spike_for_some_samples_and_not_for_all():
    net = loop_net()
    with torch.no_grad():
        net.fc1.bias[:20] = 5.0  # these spike at every step
        net.fc1.bias[20:] = -5.0
    start = hidden_init_(net, [IMAGES])
    (found,) = start.layers
    assert (found.before.silent, found.before.always_on) == pytest.approx((28 / 48, 20 / 48))
    assert found.after.silent < 0.1
    assert found.after.always_on == 0


def test_no_drift_exceeds_the_fluctuations_and_rows_keep_their_pattern():
    net, old = loop_net(), loop_net()
    start = hidden_init_(net, [IMAGES])
    (found,) = start.layers
    assert torch.allclose(net.fc1.weight, found.gain * old.fc1.weight, rtol=1e-5)
    current, own = net.fc1(IMAGES), found.gain * (old.fc1(IMAGES) - old.fc1.bias)
    assert bool((current.mean(0).abs() <= 1.01 * current.std(0)).all())
    small = own.mean(0).abs() < 0.99 * own.std(0)
    assert 0 < small.sum() < HIDDEN
    assert torch.allclose(net.fc1.bias[small], torch.zeros(1), atol=1e-5)
    assert (net.fc1.bias - found.gain * old.fc1.bias).mean().item() == pytest.approx(found.offset, abs=1e-5)
    assert torch.equal(net.fc2.weight, old.fc2.weight)


def test_a_batch_norm_gets_the_statistics_of_its_inputs():
    net = normed(nn.BatchNorm1d)
    with untouched(net):
        start = hidden_init_(net, [IMAGES], forward=OVER)
        current = net[0](IMAGES)
        assert torch.allclose(net[1].running_mean, current.mean(0), atol=1e-5)
        assert torch.allclose(net[1].running_var, current.var(0, correction=0), rtol=1e-3)
        assert torch.allclose(net[1].bias, torch.zeros(HIDDEN), atol=1e-4)
        start.undo()


def test_a_skip_connection_is_searched_in_the_net():
    (found,) = hidden_init_(seeded(skip_net), [IMAGES], rate=RATE).layers
    assert found.after.firing_rate == pytest.approx(RATE, abs=0.02)


class ReadMembranes(Loop):
    """The last layer reads membranes far below the threshold."""

    def forward(self, x):
        mem1, mem2, found = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for _ in range(STEPS):
            _, mem1 = self.lif1(self.fc1(x), mem1)
            _, mem2 = self.lif2(self.fc2(mem1), mem2)
            found.append(mem2)
        return torch.stack(found)


def membranes_below():
    return ReadMembranes(hidden_neuron=snn.Leaky(beta=0.5, threshold=100.0))


def changed(build, change):
    net = seeded(build)
    change(net)
    return net


def tie(net):
    net.synapses[1].bias = net.synapses[0].bias


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: changed(loop_net, lambda net: net.fc1.bias.requires_grad_(False)), "requires_grad=False"),
        (lambda: changed(loop_net, lambda net: prune.random_unstructured(net.fc1, "weight", 0.5)), "pruning"),
        (membranes_below, "nothing reads its spikes, but its membranes"),
        (lambda: changed(Stack, tie), "is tied to synapses."),
        (lambda: normed(lambda width: nn.BatchNorm1d(width, affine=False)), "BatchNorm1d without a weight of its own"),
    ],
    ids=["frozen", "pruned", "membranes", "tied", "norm without weights"],
)
def test_a_layer_that_can_not_be_set_stays(build, reason):
    net = seeded(build)
    with untouched(net):
        start = hidden_init_(net, [IMAGES], forward=OVER if isinstance(net, nn.Sequential) else None)
    for found in start.layers:
        assert reason in found.reason
        assert found.before == found.after
        assert f"stays as it was: {found.reason}" in str(start)


def test_only_hidden_layers_are_written_and_undo_brings_all_back():
    net = lived_in(Stack((20.0, 20.0)))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with untouched(net):
        with untouched(net, written=[f"synapses.{number}.{name}" for number in (0, 1) for name in ("weight", "bias")]):
            start = hidden_init_(net, [IMAGES])
        assert not torch.equal(net.synapses[1].weight, before["synapses.1.weight"])
        start.undo()
        start.undo()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_interrupt_at_some_line():
    files = "hidden_init.py", "drive.py"
    with LineFault(files) as count:
        hidden_init_(loop_net(steps=2), [IMAGES[:20]])
    net = lived_in(loop_net(steps=2))
    with untouched(net), pytest.raises(KeyboardInterrupt), LineFault(files, int(0.99 * count.seen)):
        hidden_init_(net, [IMAGES[:20]])


LABELS = torch.zeros(100).long()
SEQUENCES = IMAGES.expand(STEPS, *IMAGES.shape)


@pytest.mark.parametrize(
    ("loader", "options"),
    [
        (DataLoader(TensorDataset(IMAGES), 50), {}),
        (DataLoader(IMAGES, 50), {}),
        ([(IMAGES, [{"boxes": 4}] * 100)], {}),
        ([(IMAGES, None, "more")], {}),
        ([{"image": IMAGES}], {"unpack": lambda batch: batch["image"]}),
        ([{"image": IMAGES, "label": LABELS}], {"unpack": lambda batch: (batch["image"], batch["label"])}),
        (iter([IMAGES]), {}),
    ],
    ids=["data set", "loader", "detection", "triples", "a dictionary", "both", "iterator"],
)
def test_labels_are_not_needed(loader, options):
    start = hidden_init_(net := loop_net(), loader, **options)
    expected = hidden_init_(other := loop_net(), [IMAGES])
    assert start.samples == 100
    assert start.layers[0].gain == pytest.approx(expected.layers[0].gain, rel=1e-3)
    assert torch.allclose(net.fc1.bias, other.fc1.bias, atol=1e-3)


def test_sequences_have_their_samples_where_the_forward_has_them():
    found = hidden_init_(sequential_net(), [SEQUENCES], forward=over_time(), max_samples=50)
    assert found.samples == 50
    assert found.layers[0].after.firing_rate == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize(
    ("build", "loader", "options", "error", "word"),
    [
        (loop_net, [IMAGES], {"rate": 0.7}, OptionError, "up to 0.5"),
        (loop_net, [IMAGES], {"max_samples": 9}, OptionError, "max_samples=9"),
        (loop_net, IMAGES, {}, DataError, "a loader of type Tensor"),
        (loop_net, [IMAGES * float("nan")], {}, DataError, "NaN"),
        (loop_net, [{"image": IMAGES}], {}, DataError, "unpack"),
        (loop_net, [torch.zeros(20, PIXELS)], {}, SilentLayerError, "the same current for every sample"),
        (sequential_net, [IMAGES], {}, NetworkError, "forward=over_time"),
        (lambda: nn.Linear(PIXELS, 2), [IMAGES], {}, NetworkError, "no spiking neuron"),
        (lambda: sequential_net(sizes=(PIXELS, CLASSES)), [IMAGES], {"forward": OVER}, NetworkError, "no hidden layer"),
    ],
)
def test_errors(build, loader, options, error, word):
    net = build()
    before = {name: value.clone() for name, value in net.state_dict().items()} if isinstance(net, nn.Module) else {}
    with pytest.raises(error) as caught:
        hidden_init_(net, loader, **options)
    assert word in str(caught.value)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


def test_the_report():
    start = hidden_init_(divided(loop_net(), 100), [IMAGES])
    text = str(start)
    assert "'fc1'  Leaky         0.000  0.048                100%     2%" in text  # within a twentieth of 0.05
    assert "100 samples, no labels" in text
    assert repr(start) == "<HiddenStart of fc1>"
