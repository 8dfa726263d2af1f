"""Nets, loaders and training steps of users, whose steps are read."""

import snntorch as snn
import torch
from snntorch import utils
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.functional import reset_net
from torch import nn

from ..helpers import batches, loop_net, sequential_net
from ..nets import BETA, CLASSES, HIDDEN, PIXELS, STEPS, spikes_and_membranes

QUICK = {"hidden": "keep", "strength": 1e-3, "progress": False}
ce = nn.CrossEntropyLoss()


def both(reset="subtract"):
    return loop_net(output=snn.Leaky(beta=BETA, reset_mechanism=reset), decode=spikes_and_membranes)


class AtOnce(nn.Module):
    """As ``both``, with neurons of SpikingJelly that get all steps at once."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(PIXELS, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.lif1 = neuron.LIFNode(tau=2.0, v_threshold=0.5, step_mode="m")
        self.lif2 = neuron.LIFNode(tau=2.0, step_mode="m", store_v_seq=True)

    def forward(self, x):
        reset_net(self)
        return self.lif2(self.fc2(self.lif1(self.fc1(4 * repeated(x))))), self.lif2.v_seq


def voters():
    net = both()
    net.fc2 = nn.Linear(HIDDEN, 4 * CLASSES)
    return net


def outside():
    """A net whose time loop is in the step."""
    return sequential_net(reset_mechanism="subtract")


def run(net, steps):
    utils.reset(net)
    return torch.stack([net(step)[0] for step in steps])


def repeated(x):
    return x.expand(STEPS, *x.shape)


def membranes_at_each_step(net, batch):
    _, membranes = net(batch[0])
    return sum(ce(step, batch[1]) for step in membranes)


def trains(net, batch):
    """As a script trains on a batch."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net.train()
    loss = ce(net(batch[0])[0].sum(0), batch[1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def images(size=100):
    return [(inputs.view(-1, 1, 8, 8), labels) for inputs, labels in batches(300, size)]


def time_first():
    return [(repeated(inputs).clone(), labels) for inputs, labels in batches(300)]


def dictionaries():
    return [{"image": inputs, "label": labels} for inputs, labels in batches(300)]


def spikes(net, inputs):
    return net(inputs)[0].sum(0)


def looped(net, inputs):
    return run(net, repeated(inputs)).sum(0)
