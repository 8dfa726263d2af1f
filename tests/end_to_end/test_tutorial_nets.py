"""The nets of snnTorch's and Norse's tutorials at a reduced size: each with its tutorial's own loop, loss and test.

After the one line the tutorial's own test, which uses nothing of the package, must show the accuracy that the report shows.
"""

from functools import partial

import norse.torch as norse
import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import spikegen, surrogate, utils
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_, over_time

from ..helpers import test_data as held_back
from ..helpers import train_data

TRAIN, BATCH, STEPS, HIDDEN, CLASSES = 400, 100, 8, 50, 10
SPIKE_GRAD = surrogate.fast_sigmoid(slope=25)


@pytest.fixture(autouse=True)
def no_other_neurons(monkeypatch):
    """``utils.reset`` resets every neuron of the process, those of other tests too, whatever these did to them."""
    monkeypatch.setattr(snn.SpikingNeuron, "instances", [])


# -- data ---------------------------------------------------------------------------------------------------------------


def images(inputs, labels):
    """[B, 1, 8, 8] as torchvision gives them."""
    return DataLoader(TensorDataset(inputs.reshape(-1, 1, 8, 8), labels), BATCH, shuffle=True)


def spike_trains(inputs, labels):
    """[T, B, 64] of snnTorch's rate code, drawn once."""
    torch.manual_seed(0)
    return [(spikegen.rate(part, num_steps=STEPS), targets) for part, targets in DataLoader(TensorDataset(inputs, labels), BATCH)]


def events(inputs, labels):
    """[T, B, 2, 8, 8]: brighter and darker pixels of a moving image, with another T in each batch, as PadTensors gives them."""
    batches = []
    for number, (image, targets) in enumerate(images(inputs, labels)):
        frames = torch.stack([image.roll(step % 3 - 1, dims=3) for step in range(STEPS + 1 + number % 2)])
        change = frames.diff(dim=0)
        batches.append((torch.cat([change > 0.3, change < -0.3], dim=2).float(), targets))
    return batches


def same_length_events(inputs, labels):
    """The same, all as long."""
    return [(frames[:STEPS], targets) for frames, targets in events(inputs, labels)]


def functions(count):
    """Regression I: a line over time for each sample, and its end as the input at each step, both [B, T, 1]."""
    ends = torch.rand(count, 1, 1, generator=torch.Generator().manual_seed(count))
    return ends.expand(count, 2 * STEPS, 1).clone(), ends * torch.linspace(0, 1, 2 * STEPS)[:, None]


# -- nets ---------------------------------------------------------------------------------------------------------------


class FeedForward(nn.Module):
    """Tutorials 3 and 5 and the quick start: the loop inside, membranes passed by hand."""

    def __init__(self, beta=0.95, **output):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, HIDDEN), snn.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(beta=beta, **output)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for step in range(STEPS):
            spk1, mem1 = self.lif1(self.fc1(x[step] if x.dim() == 3 else x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec), torch.stack(mem2_rec)


def conv_net(channels):
    """Tutorials 6 and 7: convolutions in a Sequential whose neurons keep their membranes."""
    kept = {"beta": 0.5, "spike_grad": SPIKE_GRAD, "init_hidden": True}
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.MaxPool2d(2),
        snn.Leaky(**kept),
        nn.Conv2d(8, 24, 3),
        snn.Leaky(**kept),
        nn.Flatten(),
        nn.Linear(24 * 2 * 2, CLASSES),
        snn.Leaky(**kept, output=True),
    )


def population_net():
    """The population tutorial: five outputs a class."""
    kept = {"beta": 0.9, "spike_grad": SPIKE_GRAD, "init_hidden": True}
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, HIDDEN), snn.Leaky(**kept), nn.Linear(HIDDEN, 5 * CLASSES), snn.Leaky(**kept, output=True)
    )


class Notebook(nn.Module):
    """Norse's MNIST notebook: an encoder, cells stepped by hand, the largest voltage decoded."""

    def __init__(self):
        super().__init__()
        parameters = norse.LIFParameters(v_th=torch.tensor(0.5))
        self.encoder = norse.ConstantCurrentLIFEncoder(seq_length=16)
        self.l1 = norse.LIFRecurrentCell(64, HIDDEN, p=parameters)
        self.fc_out, self.out = nn.Linear(HIDDEN, CLASSES, bias=False), norse.LICell()

    def forward(self, x):
        encoded = self.encoder(4 * x)
        s1 = so = None
        voltages = []
        for spikes in encoded:
            z, s1 = self.l1(spikes.flatten(1), s1)
            vo, so = self.out(self.fc_out(z), so)
            voltages.append(vo)
        largest, _ = torch.max(torch.stack(voltages), 0)
        return nn.functional.log_softmax(largest, dim=1)


class Function(nn.Module):
    """Regression I: the output's membrane follows a function of time."""

    def __init__(self):
        super().__init__()
        self.fc_in, self.lif1 = nn.Linear(1, HIDDEN), snn.Leaky(beta=0.9, threshold=1.0)
        self.fc_hidden, self.lif2 = nn.Linear(HIDDEN, HIDDEN), snn.Leaky(beta=0.9, threshold=1.0)
        self.fc_out = nn.Linear(HIDDEN, 1)
        self.li_out = snn.Leaky(beta=0.9, threshold=1.0, learn_beta=True, reset_mechanism="none")

    def forward(self, x):
        mem1, mem2, mem3, mem_rec = self.lif1.init_leaky(), self.lif2.init_leaky(), self.li_out.init_leaky(), []
        for step in x:
            spk1, mem1 = self.lif1(self.fc_in(step), mem1)
            spk2, mem2 = self.lif2(self.fc_hidden(spk1), mem2)
            _, mem3 = self.li_out(self.fc_out(spk2), mem3)
            mem_rec.append(mem3)
        return torch.stack(mem_rec)


# -- the tutorials' loops and tests ---------------------------------------------------------------------------------------


def flattened(net, data):
    """Tutorial 5's call."""
    return net(data.view(data.size(0), -1))


def forward_pass(net, num_steps, data):
    """Tutorial 6's loop: the same image at each step."""
    spk_rec, mem_rec = [], []
    utils.reset(net)
    for _ in range(num_steps):
        spk_out, mem_out = net(data)
        spk_rec.append(spk_out)
        mem_rec.append(mem_out)
    return torch.stack(spk_rec), torch.stack(mem_rec)


def over_steps(num_steps):
    """The spikes of that loop."""
    return lambda net, data: forward_pass(net, num_steps, data)[0]


def spikes_of(run):
    """The spikes of a loop that gives membranes too."""
    return lambda net, data: run(net, data)[0]


def time_first(net, data):
    """Regression I's call."""
    return net(data.swapaxes(0, 1))


def over_frames(net, data):
    """Tutorial 7's loop: as many steps as the recording has."""
    utils.reset(net)
    return torch.stack([net(data[step])[0] for step in range(data.size(0))])


def loss_over_steps(outputs, targets):
    """Tutorial 5's loss: cross-entropy of the membranes, summed over the steps."""
    return sum(nn.functional.cross_entropy(mem, targets) for mem in outputs[1])


def most_spikes(outputs, targets):
    """Tutorial 5's accuracy."""
    _, predicted = outputs[0].sum(dim=0).max(1)
    return (predicted == targets).float().mean()


def most_probable(outputs, targets):
    """The accuracy of Norse's notebook, of log-probabilities."""
    return (outputs.argmax(dim=1) == targets).float().mean()


def batch_accuracy(run, accuracy, net, loader):
    """Tutorial 6's test: accuracies of batches, weighted by their sizes."""
    total = correct = 0
    with torch.no_grad():
        net.eval()
        for data, targets in loader:
            correct += float(accuracy(run(net, data), targets)) * targets.size(0)
            total += targets.size(0)
    return correct / total


def show_the_same(net, data, run, accuracy, **options):
    """Run the one line; the tutorial's test must show the report's accuracy on the same samples, and a good one on others.

    Args:
        net: the tutorial's net.
        data: builds its loader.
        run: its loop, ``run(net, data)``.
        accuracy: its accuracy of a batch, ``accuracy(outputs, targets)``.
        options: the line's options.

    Returns:
        The report, and the tutorial's accuracy on 400 samples that the line has not seen.
    """
    train, fresh = data(*train_data(TRAIN)), data(*held_back())
    before = batch_accuracy(run, accuracy, net, fresh)
    report = convex_init_(net, train, progress=False, **options)
    assert report.exactness.samples == TRAIN
    assert report.accuracy_written == pytest.approx(batch_accuracy(run, accuracy, net, train), abs=0.005)
    after = batch_accuracy(run, accuracy, net, fresh)
    assert after > before + 0.5
    # The report's estimate is of 80 samples and of a readout fitted without them.
    assert report.accuracy_after == pytest.approx(after, abs=0.1)
    return report, after


def train_a_step(net, data, run, loss):
    """One step of the tutorial's training loop goes on from what was written."""
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4)
    inputs, targets = next(iter(data(*train_data(BATCH))))
    value = loss(run(net, inputs), targets)
    torch.autograd.backward(value)
    optimizer.step()
    assert torch.isfinite(value)
    assert all(parameter.grad is not None for parameter in net.parameters())


# -- tests ----------------------------------------------------------------------------------------------------------------


def test_tutorial_3_feed_forward_net_over_time():
    torch.manual_seed(0)
    net = FeedForward()
    report, accuracy = show_the_same(net, spike_trains, FeedForward.forward, most_spikes)
    assert (report.readout_kind, report.num_steps) == ("spike_count", STEPS)
    assert accuracy > 0.8
    train_a_step(net, spike_trains, FeedForward.forward, loss_over_steps)


def test_tutorial_5_with_a_loop_that_flattens():
    torch.manual_seed(0)
    net = FeedForward()
    report, accuracy = show_the_same(net, images, flattened, most_spikes, forward=flattened, loss=nn.CrossEntropyLoss())
    assert report.readout_kind == "spike_count"
    assert accuracy > 0.85
    train_a_step(net, images, flattened, loss_over_steps)


def test_tutorial_6_convolutional_net():
    torch.manual_seed(0)
    net, loss = conv_net(1), SF.ce_rate_loss()
    report, accuracy = show_the_same(net, images, over_steps(STEPS), SF.accuracy_rate, forward=over_time(STEPS), loss=loss)
    assert report.readout_kind == "spike_count"
    assert accuracy > 0.8
    train_a_step(net, images, over_steps(STEPS), loss)


def test_tutorial_7_events_of_different_lengths():
    torch.manual_seed(0)
    net, loss = conv_net(2), SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)
    report, accuracy = show_the_same(net, events, over_frames, SF.accuracy_rate, forward=over_time(), loss=loss)
    assert report.readout_kind == "spike_count"
    assert accuracy > 0.65
    train_a_step(net, events, over_frames, loss)


def test_tutorial_7_events_pad_batches():
    torch.manual_seed(0)
    net, loss = conv_net(2), SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)
    options = {"forward": over_time(STEPS, time_dim=0), "loss": loss}
    report, accuracy = show_the_same(net, same_length_events, over_frames, SF.accuracy_rate, **options)
    assert report.readout_kind == "spike_count"
    assert accuracy > 0.65
    train_a_step(net, same_length_events, over_frames, loss)


def test_quickstart_with_a_leak_for_each_output():
    torch.manual_seed(0)
    net, loss = FeedForward(beta=torch.rand(CLASSES), learn_beta=True), SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)
    beta = net.lif2.beta.detach().clone()
    report, accuracy = show_the_same(net, images, spikes_of(flattened), SF.accuracy_rate, forward=flattened, loss=loss)
    assert report.readout_kind == "spike_count"
    assert accuracy > 0.8
    assert torch.equal(net.lif2.beta, beta)
    train_a_step(net, images, spikes_of(flattened), loss)


def test_quickstart_convolutional_net():
    torch.manual_seed(0)
    net, loss = conv_net(1), SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)
    report, accuracy = show_the_same(net, images, over_steps(STEPS), SF.accuracy_rate, forward=over_time(STEPS), loss=loss)
    assert report.readout_kind == "spike_count"
    assert accuracy > 0.8
    train_a_step(net, images, over_steps(STEPS), loss)


@pytest.mark.parametrize("num_steps", [1, STEPS])
def test_population_code(num_steps):
    torch.manual_seed(0)
    classes = {"population_code": True, "num_classes": CLASSES}
    net, loss = population_net(), SF.mse_count_loss(correct_rate=1.0, incorrect_rate=0.0, **classes)
    run, accuracy = over_steps(num_steps), partial(SF.accuracy_rate, **classes)
    report, fresh = show_the_same(net, images, run, accuracy, forward=over_time(num_steps), loss=loss)
    assert report.readout_kind == "spike_count"
    assert fresh > 0.6
    train_a_step(net, images, run, loss)


def test_norses_mnist_notebook():
    torch.manual_seed(0)
    net = Notebook()
    report, accuracy = show_the_same(net, images, Notebook.forward, most_probable, loss=nn.NLLLoss())
    assert report.readout_kind == "membrane_max"
    assert accuracy > 0.8
    train_a_step(net, images, Notebook.forward, nn.functional.nll_loss)


def test_regression_1_follows_a_function_of_time():
    torch.manual_seed(0)
    net, loss = Function(), nn.MSELoss()

    def error(samples):
        feature, label = (part.swapaxes(0, 1) for part in samples)
        with torch.no_grad():
            return float(loss(net(feature), label))

    train, fresh = functions(300), functions(100)
    before = error(fresh)
    report = convex_init_(
        net, DataLoader(TensorDataset(*train), BATCH), forward=time_first, loss=loss, readout="membrane_per_step", progress=False
    )
    assert report.exactness.label == "exact"
    assert error(fresh) < 0.1 * before
    # Both are of samples that the readout was not fitted on, the report's of 60.
    assert 2 * report.loss_after == pytest.approx(error(fresh), rel=0.5)
    train_a_step(net, lambda *_: [train], time_first, lambda mem, label: loss(mem, label.swapaxes(0, 1)))
