"""Small snnTorch nets on scikit-learn's digits, snapshots, refusals, and a second opinion on a readout."""

import builtins
import contextlib
import copy
import functools
import random
from types import SimpleNamespace

import numpy as np
import pytest
import snntorch as snn
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_
from snn_recon_plugin.errors import ReconstructionError
from snn_recon_plugin.networks.calls.batches import split_batch
from snn_recon_plugin.networks.calls.record import prepare_batch

from .convex.helpers import SecondOpinion
from .nets import BETA, CLASSES, HIDDEN, PIXELS, STEPS, Conv, Loop, TwoHeads, conv_net, loop_net, sequential_net  # noqa: F401

TRAIN, TEST = 600, 400


# -- data ---------------------------------------------------------------------------------------------------------------
@functools.cache
def _digits():
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return inputs[order], labels[order]


def train_data(count=TRAIN):
    inputs, labels = _digits()
    return inputs[:count].clone(), labels[:count].clone()


def test_data():
    inputs, labels = _digits()
    return inputs[-TEST:].clone(), labels[-TEST:].clone()


test_data.__test__ = False  # pytest must not take it for a test where it is imported


def batches(count=TRAIN, size=200):
    inputs, labels = train_data(count)
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def data_loader(count=TRAIN, size=200, **options):
    return DataLoader(TensorDataset(*train_data(count)), size, **options)


# -- nets in a given condition -------------------------------------------------------------------------------------------
def divided(net, by=20.0, layer="fc1"):
    """The net with its first layer scaled down until nothing spikes."""
    with torch.no_grad():
        for parameter in getattr(net, layer).parameters():
            parameter.div_(by)
    return net


def lived_in(net):
    """The net as it may be in the middle of a user's script: mixed modes, frozen parts, gradients, membranes, a hook."""
    net.train()
    parameters = list(net.parameters())
    net.spare = nn.Parameter(torch.zeros(2), requires_grad=False)
    parameters[1].grad = torch.full_like(parameters[1], 0.25)
    for neuron in [module for module in net.modules() if isinstance(module, snn.Leaky)][:1]:
        neuron.eval()
        neuron.mem = torch.full((2, 3), 0.125)
    net.visits = torch.ones(3)
    net.register_forward_hook(lambda *_: None)
    return net


# -- what must not change -----------------------------------------------------------------------------------------------
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_backward_hooks")


def snapshot(net):
    """All of a net and of the process that a call must leave alone."""
    names = [name for name, _ in net.named_modules()]
    modules = [module for _, module in net.named_modules()]
    return {
        "parameters": {name: (id(p), bits(p), p.requires_grad, id(p.grad), bits(p.grad)) for name, p in net.named_parameters()},
        "buffers": {name: (id(b), bits(b)) for name, b in net.named_buffers()},
        "plain tensors": {
            f"{name}.{key}": (id(value), bits(value))
            for name, module in zip(names, modules, strict=True)
            for key, value in vars(module).items()
            if isinstance(value, torch.Tensor)
        },
        "attributes": {name: sorted(vars(module)) for name, module in zip(names, modules, strict=True)},
        "modes": [module.training for module in modules],
        "hooks": [list(getattr(module, hooks).items()) for module in modules for hooks in _HOOKS],
        "torch": bits(torch.get_rng_state()),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "python": random.getstate(),
        "gradients on": torch.is_grad_enabled(),
    }


def bits(tensor):
    return None if tensor is None else (tensor.dtype, tuple(tensor.shape), tensor.detach().contiguous().numpy().tobytes())


def values(net):
    """The bits of all parameters and buffers, by name."""
    return {name: bits(tensor) for name, tensor in net.state_dict(keep_vars=True).items()}


def parameters_of(net):
    """The objects and bits of all parameters, and the hooks: what a pass of a private net must leave alone."""
    hooks = [list(getattr(module, hooks).items()) for module in net.modules() for hooks in _HOOKS]
    return {name: (id(p), bits(p), p.requires_grad) for name, p in net.named_parameters()}, hooks


def assert_as_before(net, before, *, written=()):
    """Compare with an earlier snapshot; of the parameters in ``written`` the values may differ, nothing else."""
    now = snapshot(net)
    for name in written:
        kind = "parameters" if name in before["parameters"] else "buffers"
        for one in (before, now):
            identity, _, *others = one[kind][name]
            one[kind] = {**one[kind], name: (identity, None, *others)}
    for key, value in before.items():
        assert now[key] == value, f"{key} changed"


@contextlib.contextmanager
def untouched(net, *, written=()):
    """Seed all generators, and check that the block leaves the net and the process as before, but for ``written``."""
    torch.manual_seed(21)
    np.random.seed(22)
    random.seed(23)
    before = snapshot(net)
    yield
    assert_as_before(net, before, written=written)


# -- refusals -------------------------------------------------------------------------------------------------------------
def refused(net, loader, error, *words, **options):
    """Check that the call raises, that the message holds the words, and that everything is as before."""
    with untouched(lived_in(net)), pytest.raises(error) as caught:
        convex_init_(net, loader, **options)
    if isinstance(caught.value, ReconstructionError):
        assert all(part.strip() for part in (caught.value.found, caught.value.needed, caught.value.fix))
        for word in words:
            assert word in str(caught.value)
    return caught.value


def replaced(number, function, count=300):
    pairs = batches(count, 100)
    pairs[number] = function(*pairs[number])
    return pairs


def spoiled(value):
    """Return a function that puts a value into the inputs of a batch."""

    def spoil(inputs, labels):
        inputs = inputs.clone()
        inputs[3, 5] = value
        return inputs, labels

    return spoil


def without(monkeypatch, package):
    """Let imports of a package fail, as where it is not installed."""
    real = builtins.__import__

    def missing(name, *args, **given):
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **given)

    monkeypatch.setattr(builtins, "__import__", missing)


# -- looking at a net from outside ----------------------------------------------------------------------------------------
def mean_membrane(net, inputs, forward=None):
    """The scores, as a user decodes them: the mean membrane over time."""
    with torch.no_grad():
        outputs = net(inputs) if forward is None else forward(net, inputs)
    return (outputs[-1] if isinstance(outputs, tuple) else outputs).mean(0)


def accuracy(net, forward=None):
    inputs, labels = test_data()
    return float((mean_membrane(net, inputs, forward).argmax(1) == labels).double().mean())


def hidden_spikes(linear, inputs, steps=STEPS, beta=BETA):
    """Spikes [T, n, P] of a Linear and a Leaky (reset by subtraction), written out without snnTorch."""
    with torch.no_grad():
        current = linear(inputs)
    mem, spikes = torch.zeros_like(current), []
    for _ in range(steps):
        mem = beta * mem + current - (mem > 1).float()
        spikes.append((mem > 1).float())
    return torch.stack(spikes)


def mean_filter(steps=STEPS, beta=BETA):
    """Weight of a spike at each step in the mean membrane of a Leaky without reset, float64."""
    return torch.tensor([sum(beta ** (s - t) for s in range(t, steps)) / steps for t in range(steps)], dtype=torch.float64)


def features(linear, inputs):
    """The program's features [n, P], float64, from the hand-written simulation."""
    return torch.einsum("t,tnp->np", mean_filter(), hidden_spikes(linear, inputs).double())


def opinion_on(net, inputs, labels, *, loss, penalty, strength):
    """Primal and dual value and loss at zero of a Loop's readout as it stands: float64, none of the package's code."""
    made = SimpleNamespace(
        matrix=features(net.fc1, inputs),
        bias_column=mean_filter().sum().expand(len(inputs), 1),
        row_weights=torch.full((len(inputs),), 1 / len(inputs), dtype=torch.float64),
        has_bias=net.fc2.bias is not None,
    )
    named = SimpleNamespace(name=loss), SimpleNamespace(name=penalty)
    program = SimpleNamespace(features=made, strength=strength, loss=named[0], penalty=named[1], num_outputs=net.fc2.out_features)
    opinion = SecondOpinion(program, labels)
    weight = net.fc2.weight.detach().double().numpy()
    bias = np.zeros(len(weight)) if net.fc2.bias is None else net.fc2.bias.detach().double().numpy()
    return opinion.objective(weight, bias), opinion.dual(weight, bias), opinion.zero_loss


def one_line(report):
    """The report's text without the line breaks of its table."""
    return " ".join(report.details().split())


def chosen(report):
    """The point of the report's path whose strength was used."""
    (point,) = (point for point in report.program.path if point.chosen)
    return point


def as_batches(loader):
    """Batches as a capture takes them."""
    start = 0
    for number, batch in enumerate(loader, start=1):
        found = prepare_batch(*split_batch(batch, number), number, torch.device("cpu"), start)
        start = found.rows.stop
        yield found


def check_certificate(report, net, penalty="ridge", count=TRAIN):
    """Check the reported certificate against one that was computed elsewhere, from the parameters that were written."""
    inputs, labels = train_data(count)
    solved = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in solved.fc2.parameters():
            parameter.div_(report.exactness.weight_scale)
    program = report.program
    primal, dual, zero = opinion_on(solved, inputs, labels, loss=program.loss, penalty=penalty, strength=program.strength)
    certificate = report.certificate
    assert certificate.primal == pytest.approx(primal, abs=2e-7 * zero)
    # A lower bound may come from elsewhere than the written point: better than its own, but never above the optimum.
    assert dual - 2e-7 * zero <= certificate.dual <= primal + 2e-7 * zero
    assert certificate.gap == certificate.primal - certificate.dual
    assert certificate.relative_gap == pytest.approx(certificate.gap / zero, rel=1e-9)
    assert -1e-12 <= certificate.relative_gap <= certificate.tol
    assert certificate.reached
