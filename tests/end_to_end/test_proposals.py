"""What a refusal proposes is typed as it stands, and the net then does what the user's own test says."""

import re

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import DataError, NetworkError

from ..helpers import batches, test_data
from ..nets import CLASSES, HIDDEN, PIXELS, STEPS, Sequence, sequential_net

pytestmark = pytest.mark.usefixtures("one_rate")


def proposal(net, loader, error, **options):
    """Return what the refusal proposes for an option, as Python reads it."""
    with pytest.raises(error) as caught:
        convex_init_(net, loader, progress=False, **options)
    name, code = re.search(r"pass (\w+)=(.+?)(?:,? which runs| with your| if targets|; )", caught.value.fix + "; ").groups()
    return {name: eval(code, {"over_time": over_time})}


def own_accuracy(net, forward, data):
    inputs, labels = data
    with torch.no_grad():
        returned = forward(net, inputs)
    return float((returned.mean(0).argmax(1) == labels).float().mean())


class OneStep(nn.Module):
    """One step a call; its neurons keep their membranes, though the net was not built for that."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(PIXELS, HIDDEN), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x):
        spikes, _ = self.lif1(self.fc1(x))
        return self.lif2(self.fc2(spikes))[1]


def loop(net, inputs):
    net.lif1.reset_mem()
    net.lif2.reset_mem()
    return torch.stack([net(inputs) for _ in range(25)])


def test_one_step_of_a_loop_outside():
    net = OneStep()
    report = convex_init_(net, batches(600), progress=False, **proposal(net, batches(600), NetworkError))
    assert report.num_steps == 25
    assert own_accuracy(net, loop, test_data()) > report.accuracy_after - 0.05


class OverTime(nn.Sequential):
    """Takes [time, batch, pixels] in one call."""

    def forward(self, x):
        return self[3](self[2](self[1](self[0](x))[0]))[1]


def test_images_for_a_net_over_time():
    torch.manual_seed(0)
    layers = nn.Linear(PIXELS, HIDDEN), snn.StateLeaky(beta=0.9, channels=1), nn.Linear(HIDDEN, CLASSES)
    net = OverTime(*layers, snn.StateLeaky(beta=0.9, channels=1))
    images = [(inputs.view(-1, 1, 8, 8), labels) for inputs, labels in batches(600)]
    report = convex_init_(net, images, progress=False, **proposal(net, images, NetworkError))
    assert report.num_steps == 25
    inputs, labels = test_data()
    data = inputs.expand(25, -1, -1), labels
    assert own_accuracy(net, lambda net, x: net(x), data) > report.accuracy_after - 0.05


def test_frames_with_the_batch_first():
    net = sequential_net(output=snn.Leaky(beta=0.9, init_hidden=True, output=True))
    frames = [(inputs.view(-1, 1, 8, 8)[:, None].expand(-1, STEPS, -1, -1, -1), labels) for inputs, labels in batches(200)]
    given = proposal(net, frames, NetworkError)
    assert given["forward"].time_dim == 1
    assert convex_init_(net, frames, progress=False, **given).num_steps == STEPS


def test_targets_with_time_first():
    torch.manual_seed(0)
    inputs = torch.rand(1, 60, 1) * torch.linspace(0, 2, 30)[:, None, None]
    loader = list(zip(inputs.split(20, 1), (inputs**2 / 4).split(20, 1), strict=True))
    options = {"loss": "mse", "readout": "membrane_per_step"}
    net = Sequence(1, HIDDEN, 1, beta=0.8)  # takes and returns [time, batch, values]
    report = convex_init_(net, loader, progress=False, **options, **proposal(net, loader, DataError, **options))
    with torch.no_grad():
        error = float(nn.functional.mse_loss(net(inputs), inputs**2 / 4)) / 2
    assert error < 2 * report.loss_after
    assert report.loss_after < 0.1 * report.loss_before


class Clamped(nn.Module):
    """Bounds the output membrane between steps."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(PIXELS, HIDDEN), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(beta=0.9)

    def forward(self, x):
        hidden, output, returned = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for _ in range(STEPS):
            spikes, hidden = self.lif1(self.fc1(x), hidden)
            spikes, output = self.lif2(self.fc2(spikes), output)
            output = output.clamp(-0.2, 0.2)
            returned.append(spikes)
        return torch.stack(returned)


def test_a_clamped_membrane_is_named():
    with pytest.raises(NetworkError, match="changes the state of the output neuron 'lif2' between time steps, as a clamp does"):
        convex_init_(Clamped(), batches(100), progress=False)


class Tokens(nn.Module):
    """A hidden Linear over the rows of an image, as over tokens."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2 = nn.Linear(8, HIDDEN), snn.Leaky(beta=0.9), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        hidden, returned = self.lif1.init_leaky(), []
        for _ in range(STEPS):
            spikes, hidden = self.lif1(self.fc1(x), hidden)
            returned.append(self.fc2(spikes.mean(1)))
        return torch.stack(returned)


@pytest.mark.parametrize("hidden", ["auto", "reconstruct"])
def test_a_linear_over_tokens_keeps_its_rows(hidden):
    torch.manual_seed(0)
    images = [(inputs.view(-1, 8, 8), labels) for inputs, labels in batches(300)]
    report = convex_init_(Tokens(), images, hidden=hidden, progress=False)
    (layer,) = report.layers
    assert layer.witnesses is None
    assert "runs over 8 places of a sample" in layer.reason
