"""The idioms at a small size, for tests, and layouts that no table shows."""

from functools import partial

import snntorch as snn
import torch
from torch import nn

from ..nets import step_through
from .idioms import IDIOMS, NO_RESET, idiom
from .record import SMALL
from .snntorch_nets import BETA, Loop, ModuleLists, leaky, membranes

STEPS, BATCH, INPUTS, HIDDEN, CLASSES = SMALL.steps, 8, SMALL.inputs, SMALL.hidden, SMALL.classes


def loud(net, gain=30.0):
    """Make the synapses strong enough for spikes, weights inside neurons included."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1 and "recurrent" not in name:
                parameter.mul_(gain)
    return net


def no_reset():
    return leaky(reset_mechanism="none")


class BatchMajor(Loop):
    """Time on the second axis throughout: the readout sees [B, T, P] once, or [B * T, P] if ``fold``."""

    def __init__(self, fold=False):
        super().__init__(INPUTS, STEPS, leaky, no_reset, sizes=(HIDDEN, CLASSES))
        self.fold = fold

    def forward(self, x):
        whole = step_through([x] * STEPS, [self.fc1], [self.lif1])[0].transpose(0, 1).contiguous()
        currents = self.fc2(whole.flatten(0, 1)).unflatten(0, whole.shape[:2]) if self.fold else self.fc2(whole)
        record = step_through(currents.unbind(1), [nn.Identity()], [self.lif2])[1]
        return record.transpose(0, 1).contiguous()


class Mixed(Loop):
    """A readout of another precision than the hidden layer."""

    def __init__(self, dtype):
        super().__init__(INPUTS, STEPS, leaky, no_reset, sizes=(HIDDEN, CLASSES))
        self.fc2.to(dtype)

    def forward(self, x):
        synapses = (lambda x: 3 * self.fc1(x), lambda spikes: self.fc2(spikes.to(self.fc2.weight.dtype)))
        return step_through([x] * STEPS, synapses, (self.lif1, self.lif2))[1]


def synaptic():
    neuron = partial(snn.RSynaptic, alpha=0.8, beta=BETA, linear_features=HIDDEN)
    return Loop(INPUTS, STEPS, neuron, no_reset, sizes=(HIDDEN, CLASSES), returns=membranes)


def module_lists():
    sizes = (INPUTS, HIDDEN, HIDDEN, CLASSES)
    return ModuleLists(sizes, STEPS, no_reset(), returns=lambda spikes, membranes: list(membranes))


def layout(name, build, readout="fc2", **more):
    return idiom(name, lambda _: build(), (NO_RESET,), readout, "", "", sizes=SMALL, shape=(INPUTS,), **more)


CATALOGUE = {each.name: each.at(SMALL) for each in IDIOMS}
LAYOUTS = (
    layout("RSynaptic", synaptic),
    layout("module lists", module_lists, "linears.2", hidden=2),
    layout("batch first", BatchMajor),
    layout("batch first, folded", lambda: BatchMajor(fold=True)),
)
SMALL_IDIOMS = (*CATALOGUE.values(), *LAYOUTS)
FIRST = {each.name: (each, each.readings[0]) for each in SMALL_IDIOMS}
# The first reading of each exactness.
CASES = {
    f"{each.name} | {reading.title}": (each, reading)
    for each in SMALL_IDIOMS
    for reading in {reading.exactness: reading for reading in reversed(each.readings)}.values()
}
MULTI_STEP = CATALOGUE["Norse, multi-step layers"]
