"""What a refusal proposes is typed as it stands, and the net then does what the user's own test says."""

import re

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import DataError, NetworkError

from ..helpers import batches, test_data
from ..nets import CLASSES, HIDDEN, PIXELS, STEPS, Sequence, loop_net, sequential_net

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


class Layers(nn.Sequential):
    """Returns the membranes of the last neuron, at one step a call or of all steps at once; neurons keep their membranes."""

    def forward(self, x):
        return self[3](self[2](self[1](self[0](x))[0]))[1]


def test_one_step_of_a_loop_outside():
    torch.manual_seed(0)
    layers = nn.Linear(PIXELS, HIDDEN), snn.Leaky(beta=0.9), nn.Linear(HIDDEN, CLASSES)
    net = Layers(*layers, snn.Leaky(beta=0.9, reset_mechanism="none"))
    report = convex_init_(net, batches(600), progress=False, **proposal(net, batches(600), NetworkError))
    assert report.num_steps == 25

    def loop(net, inputs):
        net[1].reset_mem()
        net[3].reset_mem()
        return torch.stack([net(inputs) for _ in range(25)])

    assert own_accuracy(net, loop, test_data()) > report.accuracy_after - 0.05


def test_images_for_a_net_that_takes_time_batch_and_pixels_in_one_call():
    torch.manual_seed(0)
    layers = nn.Linear(PIXELS, HIDDEN), snn.StateLeaky(beta=0.9, channels=1), nn.Linear(HIDDEN, CLASSES)
    net = Layers(*layers, snn.StateLeaky(beta=0.9, channels=1))
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
    assert error < 2 * report.after.loss
    assert report.after.loss < 0.1 * report.before.loss


class MeanOfTokens(nn.Module):
    def forward(self, spikes):
        return spikes.mean(1)


@pytest.mark.parametrize("hidden", ["auto", "reconstruct"])
def test_a_linear_over_tokens_keeps_its_rows(hidden):
    net = loop_net(inputs=8)  # a hidden Linear over the rows of an image, as over tokens
    net.fc2 = nn.Sequential(MeanOfTokens(), net.fc2)
    images = [(inputs.view(-1, 8, 8), labels) for inputs, labels in batches(300)]
    report = convex_init_(net, images, hidden=hidden, progress=False)
    (layer,) = report.layers
    assert layer.witnesses is None
    assert "runs over 8 places of a sample" in layer.reason
