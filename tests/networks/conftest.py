"""Small nets in the idioms of snnTorch's tutorials, shared by the tests of this room."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

STEPS, BATCH, INPUTS, HIDDEN, CLASSES = 6, 8, 10, 16, 3


def readout_neuron(**options):
    return snn.Leaky(**{"beta": 0.9, "reset_mechanism": "none", **options})


class Mlp(nn.Module):
    """Time loop inside, explicit membranes, two hidden layers; `returns` makes the output from (spk, mem)."""

    def __init__(self, returns: Callable = lambda spk, mem: (spk, mem), output=None, hidden=None, steps=STEPS):
        super().__init__()
        hidden = hidden or (lambda: snn.Leaky(beta=0.8))
        self.fc1, self.lif1 = nn.Linear(INPUTS, HIDDEN), hidden()
        self.fc2, self.lif2 = nn.Linear(HIDDEN, HIDDEN), hidden()
        self.fc3, self.lif3 = nn.Linear(HIDDEN, CLASSES), output if output is not None else readout_neuron()
        self.returns, self.steps = returns, steps
        with torch.no_grad():
            for layer in (self.fc1, self.fc2):
                layer.weight.mul_(3)

    def forward(self, x):
        for lif in (self.lif1, self.lif2, self.lif3):
            lif.reset_mem()
        spk, mem = [], []
        for _ in range(self.steps):
            z = self.lif1(self.fc1(x))[0]
            z = self.lif2(self.fc2(z))[0]
            spk.append(self.lif3(self.fc3(z))[0])
            mem.append(self.lif3.mem)
        return self.returns(torch.stack(spk), torch.stack(mem))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.l1 = nn.Linear(INPUTS, HIDDEN), snn.RLeaky(beta=0.9, linear_features=HIDDEN)
        self.fc2, self.l2 = nn.Linear(HIDDEN, CLASSES), readout_neuron()

    def forward(self, x):
        (spk, mem), out = self.l1.reset_mem(), self.l2.reset_mem()
        record = []
        for _ in range(STEPS):
            spk, mem = self.l1(3 * self.fc1(x), spk, mem)
            _, out = self.l2(self.fc2(spk), out)
            record.append(out)
        return torch.stack(record)


class Conv(nn.Module):
    def __init__(self, gain=1.0):
        super().__init__()
        self.c1, self.l1 = nn.Conv2d(1, 4, 5), snn.Leaky(beta=0.9)
        self.c2, self.l2 = nn.Conv2d(4, 6, 3), snn.Leaky(beta=0.9)
        self.fc, self.l3 = nn.Linear(6 * 2 * 2, CLASSES), readout_neuron()
        self.gain = gain

    def forward(self, x):
        m1, m2, m3 = self.l1.reset_mem(), self.l2.reset_mem(), self.l3.reset_mem()
        record = []
        for _ in range(STEPS):
            z, m1 = self.l1(F.max_pool2d(self.gain * self.c1(x), 2), m1)
            z, m2 = self.l2(F.max_pool2d(self.gain * self.c2(z), 2), m2)
            _, m3 = self.l3(self.fc(z.view(z.size(0), -1)), m3)
            record.append(m3)
        return torch.stack(record)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.lif = nn.Linear(INPUTS, HIDDEN), snn.Leaky(beta=0.8)
        self.fc_a, self.lif_a = nn.Linear(HIDDEN, CLASSES), readout_neuron()
        self.fc_b, self.lif_b = nn.Linear(HIDDEN, 2), readout_neuron()

    def forward(self, x):
        m, a, b = self.lif.reset_mem(), self.lif_a.reset_mem(), self.lif_b.reset_mem()
        left, right = [], []
        for _ in range(STEPS):
            z, m = self.lif(3 * self.body(x), m)
            _, a = self.lif_a(self.fc_a(z), a)
            _, b = self.lif_b(self.fc_b(z), b)
            left.append(a)
            right.append(b)
        return torch.stack(left), torch.stack(right)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = sequential()

    def forward(self, x):
        return self.body(x)


def sequential(**output):
    """The quickstart's net: stepped from outside, states kept in the neurons."""
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(INPUTS, HIDDEN),
        snn.Leaky(beta=0.8, init_hidden=True),
        nn.Linear(HIDDEN, CLASSES),
        readout_neuron(**{"init_hidden": True, "output": True, **output}),
    )
    with torch.no_grad():
        net[1].weight.mul_(3)
    return net


def conv_sequential():
    return nn.Sequential(
        nn.Conv2d(1, 4, 5),
        nn.MaxPool2d(2),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Flatten(),
        nn.Linear(4 * 7 * 7, CLASSES),
        readout_neuron(init_hidden=True, output=True),
    )


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def nets():
    return SimpleNamespace(
        Mlp=Mlp,
        Recurrent=Recurrent,
        Conv=Conv,
        TwoHeads=TwoHeads,
        Nested=Nested,
        sequential=sequential,
        conv_sequential=conv_sequential,
        readout_neuron=readout_neuron,
    )


@pytest.fixture
def inputs():
    return torch.randn(BATCH, INPUTS)


@pytest.fixture
def images():
    return torch.rand(BATCH, 1, 18, 18) * 2


@pytest.fixture
def loader():
    """Three batches of 8, 8 and 4."""
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(20, INPUTS, generator=generator), torch.randint(0, CLASSES, (20,), generator=generator))
    return DataLoader(data, BATCH)


@pytest.fixture
def count_hooks():
    """Count the hooks on all modules of a net."""

    def count(net):
        return sum(
            len(getattr(module, name))
            for module in net.modules()
            for name in (
                "_forward_hooks",
                "_forward_pre_hooks",
                "_forward_hooks_with_kwargs",
                "_forward_pre_hooks_with_kwargs",
            )
        )

    return count


@pytest.fixture
def snapshot():
    """Take down everything of a net that must not change: state, modes, gradients, all generators."""
    import random

    import numpy as np

    def take(net):
        return {
            "state": {
                (name, key): (id(value), value.detach().clone())
                for name, module in net.named_modules()
                for key, value in (*module._parameters.items(), *module._buffers.items(), *vars(module).items())
                if isinstance(value, torch.Tensor)
            },
            "attributes": {name: sorted(vars(module)) for name, module in net.named_modules()},
            "modes": [module.training for module in net.modules()],
            "grads": [p.requires_grad for p in net.parameters()],
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state()[1].tolist(),
            "python": random.getstate(),
            "grad_mode": torch.is_grad_enabled(),
        }

    return take


@pytest.fixture
def assert_unwritten():
    """Compare parameters, their flags, generators and the gradient mode: a pass of a private net may change all else."""

    def compare(net, before, after):
        parameters = {(name, key) for name, module in net.named_modules() for key in module._parameters}
        for key in parameters & before["state"].keys():
            identity, value = before["state"][key]
            assert after["state"][key][0] == identity, key
            assert torch.equal(after["state"][key][1], value), key
        assert torch.equal(before["torch"], after["torch"])
        for key in ("grads", "numpy", "python", "grad_mode"):
            assert before[key] == after[key], key

    return compare


@pytest.fixture
def assert_same():
    """Compare two snapshots bit for bit."""

    def compare(before, after):
        assert before["state"].keys() == after["state"].keys()
        for key, (identity, value) in before["state"].items():
            assert after["state"][key][0] == identity, key
            assert torch.equal(after["state"][key][1], value), key
        assert torch.equal(before["torch"], after["torch"])
        for key in ("attributes", "modes", "grads", "numpy", "python", "grad_mode"):
            assert before[key] == after[key], key

    return compare
