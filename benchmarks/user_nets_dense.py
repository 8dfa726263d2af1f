"""Dense nets with snnTorch: the loop inside forward or in the script, and the scripts' own tests."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn

from benchmarks.user_nets_common import CLASSES, STEPS

HIDDEN = 64


class Loop(nn.Module):
    """Two layers, membranes passed by hand, a static input; all but the output neuron's options as in tutorial 5."""

    def __init__(
        self, inputs: int = 64, steps: int = STEPS, hidden: nn.Module | None = None, output: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.num_steps = steps
        self.fc1 = nn.Linear(inputs, HIDDEN)
        self.lif1 = snn.Leaky(beta=0.95) if hidden is None else hidden
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.lif2 = snn.Leaky(beta=0.95) if output is None else output

    def steps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state1, state2 = initial(self.lif1), initial(self.lif2)
        spk2_rec, mem2_rec = [], []
        for step in range(self.num_steps):
            spk1, *state1 = self.lif1(self.fc1(self.current(x, step)), *state1)
            if carries_spikes(self.lif1):
                state1 = [spk1, *state1]
            spk2, *state2 = self.lif2(self.fc2(spk1), *state2)
            spk2_rec.append(spk2)
            mem2_rec.append(state2[-1])
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)

    def current(self, x: Tensor, step: int) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Any:
        return self.steps(x)


def initial(neuron: nn.Module) -> list[Tensor]:
    """A neuron's states at rest, as a list."""
    state = neuron.reset_mem()
    return list(state) if isinstance(state, tuple) else [state]


def carries_spikes(neuron: nn.Module) -> bool:
    return isinstance(neuron, snn.RLeaky | snn.RSynaptic)


class Sequences(Loop):
    """Tutorial 3's loop: a step of the input at each step, ``[T, B, F]``."""

    def current(self, x: Tensor, step: int) -> Tensor:
        return x[step]


class BatchFirst(Loop):
    """The same for ``[B, T, F]``."""

    def current(self, x: Tensor, step: int) -> Tensor:
        return x[:, step]


class Membranes(Loop):
    """Returns membranes alone."""

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x)[1]


class Counts(Loop):
    """Returns how often each output spiked."""

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x)[0].sum(0)


class LogProbabilities(Loop):
    """Returns the log-softmax of the last membrane."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.log_softmax(self.steps(x)[1][-1], dim=1)


class Steps(nn.Module):
    """Layers of one step whose states go in and come out; the loop is the script's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, HIDDEN), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor, mem1: Tensor, mem2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2


def run_steps(net: nn.Module, x: Tensor) -> Tensor:
    """The script's loop over such a net."""
    mem1, mem2, spikes = net.lif1.reset_mem(), net.lif2.reset_mem(), []
    for _ in range(STEPS):
        spk, mem1, mem2 = net(x, mem1, mem2)
        spikes.append(spk)
    return torch.stack(spikes)


class ThreeLayers(nn.Module):
    """A ModuleList of Linears and one of neurons, learned leaks and thresholds."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (64, HIDDEN, HIDDEN, CLASSES)
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.neurons = nn.ModuleList(snn.Leaky(beta=0.9, learn_beta=True, learn_threshold=True) for _ in self.linears)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mems, spikes, membranes = [neuron.reset_mem() for neuron in self.neurons], [], []
        for _ in range(STEPS):
            spk = x
            for layer, (linear, neuron) in enumerate(zip(self.linears, self.neurons, strict=True)):
                spk, mems[layer] = neuron(linear(spk), mems[layer])
            spikes.append(spk)
            membranes.append(mems[-1])
        return torch.stack(spikes), torch.stack(membranes)


class AllSteps(nn.Module):
    """StateLeaky or LinearLeaky: all steps in one call."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        if linear:
            self.layer1, self.layer2 = snn.LinearLeaky(0.9, 8, HIDDEN), snn.LinearLeaky(0.9, HIDDEN, CLASSES)
        else:
            self.layer1 = nn.Sequential(nn.Linear(8, HIDDEN), snn.StateLeaky(beta=0.9, channels=HIDDEN))
            self.layer2 = nn.Sequential(nn.Linear(HIDDEN, CLASSES), snn.StateLeaky(beta=0.9, channels=CLASSES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer2(self.layer1(x)[0])


def hidden_states(outputs: int = CLASSES) -> nn.Sequential:
    """The population tutorial's form: neurons that keep their membranes."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, HIDDEN),
        snn.Leaky(beta=0.9, spike_grad=surrogate.fast_sigmoid(slope=25), init_hidden=True),
        nn.Linear(HIDDEN, outputs),
        snn.Leaky(beta=0.9, spike_grad=surrogate.fast_sigmoid(slope=25), init_hidden=True, output=True),
    )


def forward_pass(net: nn.Module, num_steps: int, data: Tensor) -> Tensor:
    """Spikes over time of such a net."""
    utils.reset(net)
    return torch.stack([net(data)[0] for _ in range(num_steps)])


def by_forward_pass(num_steps: int, **population: Any) -> Any:
    """snnTorch's own accuracy of a forward pass, weighted by the batches' sizes."""

    def test(net: nn.Module, loader: Any) -> float:
        right = total = 0.0
        with torch.no_grad():
            net.eval()
            for data, targets in loader:
                right += SF.accuracy_rate(forward_pass(net, num_steps, data), targets, **population) * targets.size(0)
                total += targets.size(0)
        return right / total

    return test


def by_last_membrane(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    data, targets = batch
    return net(data)[1][-1].argmax(1), targets


def by_largest_membrane(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    data, targets = batch
    return net(data)[1].max(dim=0).values.argmax(1), targets


def by_first_spike(net: nn.Module, loader: Any) -> float:
    with torch.no_grad():
        parts = [(SF.accuracy_temporal(net(data)[0], targets), len(targets)) for data, targets in loader]
    return sum(accuracy * count for accuracy, count in parts) / sum(count for _, count in parts)


def by_script_loop(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    data, targets = batch
    return run_steps(net, data).sum(0).argmax(1), targets


def leaky(**options: Any) -> nn.Module:
    return snn.Leaky(beta=0.9, **options)
