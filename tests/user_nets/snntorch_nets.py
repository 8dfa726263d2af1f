"""Nets as scripts and tutorials with snnTorch write them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import lightning as L
import pytorch_lightning
import snntorch as snn
import snntorch.functional as SF
import torch
import torch.nn.utils.prune
from snntorch import surrogate
from torch import nn
from torch.nn.functional import max_pool2d

from ..nets import step_through
from .data import CLASSES, HIDDEN, STEPS
from .record import DIGITS, Sizes

BETA = 0.9


leaky, tutorial_5 = partial(snn.Leaky, beta=BETA), partial(snn.Leaky, beta=0.95)


def both(spikes, membranes):
    return spikes, membranes


def membranes(spikes, membranes):
    return membranes


class Loop(nn.Module):
    """Tutorial 5: two layers, membranes passed by hand; neurons are modules, or functions that build them in their turn."""

    def __init__(
        self,
        inputs=64,
        steps=STEPS,
        hidden=tutorial_5,
        output=tutorial_5,
        *,
        sizes=(HIDDEN, CLASSES),
        at=lambda x, step: x,
        returns=both,
    ):
        super().__init__()
        self.num_steps, self.at, self.returns = steps, at, returns
        self.fc1 = nn.Linear(inputs, sizes[0])
        self.lif1 = hidden if isinstance(hidden, nn.Module) else hidden()
        self.fc2 = nn.Linear(*sizes)
        self.lif2 = output if isinstance(output, nn.Module) else output()

    def forward(self, x):
        inputs = (self.at(x, step) for step in range(self.num_steps))
        return self.returns(*step_through(inputs, (self.fc1, self.fc2), (self.lif1, self.lif2)))


def explicit_loop(reset: str, sizes: Sizes = DIGITS, hidden: Callable[[Sizes], nn.Module] = lambda sizes: leaky()) -> Loop:
    """An idiom: tutorial 5 with a reset mechanism of the output."""
    output = leaky(reset_mechanism=reset)
    return Loop(sizes.inputs, sizes.steps, partial(hidden, sizes), output, sizes=(sizes.hidden, sizes.classes))


class Steps(nn.Module):
    """Layers of one step whose states go in and come out; the loop is the script's."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, HIDDEN), leaky()
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), leaky()

    def forward(self, x, mem1, mem2):
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2


def run_steps(net, x):
    mem1, mem2, spikes = net.lif1.reset_mem(), net.lif2.reset_mem(), []
    for _ in range(STEPS):
        spk, mem1, mem2 = net(x, mem1, mem2)
        spikes.append(spk)
    return torch.stack(spikes)


class ModuleLists(nn.Module):
    """A ModuleList of Linears and one of neurons, learned leaks and thresholds."""

    def __init__(self, sizes=(64, HIDDEN, HIDDEN, CLASSES), steps=STEPS, output=None, returns=both):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.neurons = nn.ModuleList(leaky(learn_beta=True, learn_threshold=True) for _ in self.linears)
        self.steps, self.returns = steps, returns
        if output is not None:
            self.neurons[-1] = output

    def forward(self, x):
        return self.returns(*step_through([x] * self.steps, self.linears, self.neurons))


class AllSteps(nn.Module):
    """Named layers that take all steps in one call: StateLeaky (tutorial 8), LinearLeaky, LeakyParallel."""

    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        for layer in self.children():
            output = layer(x)
            x = output[0] if isinstance(output, tuple) else output
        return output


def state_leaky(inputs, outputs):
    return nn.Linear(inputs, outputs), snn.StateLeaky(beta=BETA, channels=outputs)


def sequential(reset: str, sizes: Sizes = DIGITS, **options) -> nn.Sequential:
    """The quickstart: neurons keep their own membranes, the time loop is outside."""
    return nn.Sequential(
        nn.Linear(sizes.inputs, sizes.hidden),
        leaky(init_hidden=True, **options),
        nn.Linear(sizes.hidden, sizes.classes),
        leaky(init_hidden=True, output=True, reset_mechanism=reset, **options),
    )


def population_net(outputs: int = CLASSES) -> nn.Sequential:
    """The population tutorial: images, and a slope of its own."""
    return nn.Sequential(
        nn.Flatten(), *sequential("subtract", Sizes(hidden=HIDDEN, classes=outputs), spike_grad=surrogate.fast_sigmoid(slope=25))
    )


def sequential_conv(reset: str, sizes: Sizes = DIGITS, inputs: int = 1, **options) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, sizes.channels[0], 3, padding=1),
        nn.MaxPool2d(2),
        leaky(init_hidden=True, **options),
        nn.Conv2d(*sizes.channels, 3),
        leaky(init_hidden=True, **options),
        nn.Flatten(),
        nn.Linear(4 * sizes.channels[1], sizes.classes),
        leaky(init_hidden=True, output=True, reset_mechanism=reset, **options),
    )


def conv_net(inputs: int = 1) -> nn.Sequential:
    """Tutorials 6 and 7: with fewer channels, and their leak."""
    return sequential_conv("subtract", Sizes(channels=(8, 16)), inputs, beta=0.5, spike_grad=surrogate.atan())


event_net = partial(conv_net, 2)


def depthwise_net():
    """A grouped convolution, as mobile nets have them."""
    kept = {"beta": 0.5, "init_hidden": True, "spike_grad": surrogate.atan()}
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        snn.Leaky(**kept),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.AvgPool2d(2),
        snn.Leaky(**kept),
        nn.Flatten(),
        nn.Linear(16 * 3 * 3, CLASSES),
        snn.Leaky(**kept, output=True),
    )


def frozen_features():
    """Convolutions that are not trained, and a head for new classes."""
    net = conv_net()
    for parameter in net[:6].parameters():
        parameter.requires_grad_(False).mul_(2)  # as of a trained part, whose neurons spike
    return net


class ExplicitConv(nn.Module):
    """Tutorial 6 as a class: pooling between the currents, ``flatten`` before the readout."""

    def __init__(self, reset: str, sizes: Sizes = DIGITS):
        super().__init__()
        self.steps = sizes.steps
        self.conv1, self.lif1 = nn.Conv2d(1, sizes.channels[0], 3, padding=1), leaky()
        self.conv2, self.lif2 = nn.Conv2d(*sizes.channels, 3), leaky()
        self.fc, self.lif3 = nn.Linear(4 * sizes.channels[1], sizes.classes), leaky(reset_mechanism=reset)

    def forward(self, x):
        synapses = (lambda x: max_pool2d(self.conv1(x), 2), self.conv2, lambda spikes: self.fc(spikes.flatten(1)))
        return step_through([x] * self.steps, synapses, (self.lif1, self.lif2, self.lif3))


class Conv1dNet(nn.Module):
    """A convolution along a row, the rows as channels, as keyword nets have it."""

    def __init__(self):
        super().__init__()
        self.conv, self.lif1 = nn.Conv1d(8, 24, 3), leaky()
        self.fc, self.lif2 = nn.Linear(24 * 6, CLASSES), leaky()

    def forward(self, x):
        return step_through([x] * STEPS, (self.conv, lambda spikes: self.fc(spikes.flatten(1))), (self.lif1, self.lif2))


def run_in(norm):
    """Statistics as of a net that was trained for a while."""
    norm.running_mean.normal_(0, 0.2)
    norm.running_var.uniform_(0.2, 0.6)


class Normalised(Loop):
    """Batch norm and dropout before the neuron."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(self.fc1.out_features), nn.Dropout(0.2)
        self.fc1 = nn.Sequential(self.fc1, self.norm, self.drop)
        run_in(self.norm)


class NormalisedOverTime(Loop):
    """Batch norm with parameters of its own at each step."""

    def __init__(self):
        super().__init__()
        self.norms = snn.BatchNormTT1d(self.fc1.out_features, STEPS)
        for norm in self.norms:
            run_in(norm)

    def forward(self, x):
        currents = (norm(self.fc1(x)) for norm in self.norms)
        return step_through(currents, (nn.Identity(), self.fc2), (self.lif1, self.lif2))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 60), leaky()
        self.fc2, self.lif2 = nn.Linear(60, 60), leaky()
        self.fc3, self.lif3 = nn.Linear(60, CLASSES), leaky()

    def forward(self, x):
        mem1, mem2, mem3 = (neuron.reset_mem() for neuron in (self.lif1, self.lif2, self.lif3))
        spikes, membranes = [], []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk3, mem3 = self.lif3(self.fc3(spk1 + spk2), mem3)
            spikes.append(spk3)
            membranes.append(mem3)
        return torch.stack(spikes), torch.stack(membranes)


class LongShortTerm(nn.Module):
    def __init__(self):
        super().__init__()
        self.slstm = snn.SLSTM(8, 40)
        self.fc, self.lif = nn.Linear(40, CLASSES), leaky()

    def forward(self, x):
        syn, mem = self.slstm.reset_mem()
        mem2, spikes, membranes = self.lif.reset_mem(), [], []
        for step in range(x.size(1)):
            _, syn, mem = self.slstm(x[:, step], syn, mem)
            spk2, mem2 = self.lif(self.fc(mem), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


class Nested(nn.Module):
    """A net inside a net, whose neurons ``snntorch.utils.reset`` does not reach."""

    def __init__(self, reset: str, sizes: Sizes = DIGITS):
        super().__init__()
        self.body = sequential(reset, sizes)

    def forward(self, x):
        spikes, membrane = self.body(x)
        return spikes, membrane


class InLightning(L.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net, self.loss = net, SF.ce_rate_loss()

    def forward(self, x):
        return self.net(x.flatten(1))

    def training_step(self, batch, batch_idx):
        data, targets = batch
        return self.loss(self(data)[0], targets)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class OldLightningNet(pytorch_lightning.LightningModule):
    """A net whose layers the module of the older package holds itself."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 80), leaky()
        self.fc2, self.lif2 = nn.Linear(80, CLASSES), leaky()

    def forward(self, x):
        return step_through([x] * STEPS, (self.fc1, self.fc2), (self.lif1, self.lif2))


class OwnTraining(Loop):
    """A module whose ``train`` is a training loop of its own."""

    def train(self):
        raise RuntimeError("the script's training loop was called")


def with_changed(change: Callable[[nn.Module], object], *layers: str) -> Callable[[], Loop]:
    """A Loop of which some layers are changed by a function of torch."""

    def build() -> Loop:
        net = Loop()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the weight norm of before PyTorch 2.0
            for layer in layers:
                change(net.get_submodule(layer))
        return net

    return build


pruned = with_changed(partial(torch.nn.utils.prune.l1_unstructured, name="weight", amount=0.5), "fc1")
