"""The package on a GPU, from programs to the callback.  DEVICE=cpu runs the same tests without one."""

import warnings

import lightning.pytorch as pl
import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ConvexInitializer, ReconstructionCallback, convex_init_, diagnose, over_time, refit_
from snn_recon_plugin.convex import SOLVERS, Features, HeldOutRows, Problem, solve, solve_path
from snn_recon_plugin.demo import build_network, load_digits_data

from .nets import Loop, Recurrent, sequential_net, spikes_of
from .training.runs import MARKS, Module

pytestmark = [pytest.mark.cuda, *MARKS]

DATA = load_digits_data()
SAMPLES, STEPS = 400, 5
LOSSES = ("cross_entropy", "squared_hinge", "hinge", "squared")
PENALTIES = ("ridge", "group_l1", "l1")


def spikes_and_labels(samples=300, columns=30):
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(3, columns, generator=generator)
    labels = torch.arange(samples) % 3
    return (torch.rand(samples, columns, generator=generator) < rates[labels]).to(torch.uint8), labels


def loader_of(samples=SAMPLES):
    return DataLoader(TensorDataset(DATA.train_inputs[:samples], DATA.train_labels[:samples]), 64)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_program_has_the_same_optimum_as_on_the_cpu(device, loss, penalty):
    spikes, labels = spikes_and_labels()
    options = {"loss": loss, "penalty": penalty, "strength": 0.01}
    found = solve(Problem(Features(spikes.to(device)), labels.to(device), **options), tol=1e-6)
    expected = solve(Problem(Features(spikes), labels, **options), tol=1e-6)
    assert found.certificate.reached
    assert found.weight.device.type == device.type
    assert found.certificate.primal == pytest.approx(expected.certificate.primal, abs=2e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_runs(device, name):
    spikes, labels = spikes_and_labels()
    for loss in LOSSES:
        problem = Problem(Features(spikes.to(device)), labels.to(device), loss=loss, penalty="l1", strength=0.01)
        if SOLVERS[name].supports(problem) is None:
            assert solve(problem, solver=name, tol=1e-4).certificate.relative_gap < 1e-3


def test_a_path(device):
    spikes, labels = spikes_and_labels()
    on_device, targets = spikes.to(device), labels.to(device)
    path = solve_path(Problem(Features(on_device[:200]), targets[:200]), HeldOutRows(on_device[200:], targets[200:]))
    assert path.chosen.solution.certificate.relative_gap < 1e-3


def test_the_same_bits_twice(device):
    spikes, labels = spikes_and_labels(2000, 200)
    given = Features(spikes.to(device)), Features(spikes.to(device))  # each keeps its Gram matrix, from which a second solve begins
    one, other = (solve(Problem(features, labels.to(device), loss="squared_hinge", penalty="ridge")) for features in given)
    assert torch.equal(one.weight, other.weight)


def unlike():
    """Build a net with a leak for each hidden unit and output, whose spikes are scores."""
    leaks = {"hidden_neuron": torch.linspace(0.5, 0.95, 40), "output": torch.linspace(0.8, 0.9, 10)}
    return Loop(hidden=40, steps=STEPS, decode=spikes_of, **{name: snn.Leaky(beta=beta) for name, beta in leaks.items()})


def convolutional():
    layers = nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 6, 3), nn.MaxPool2d(2), snn.Leaky(beta=0.9, init_hidden=True), nn.Flatten()
    return nn.Sequential(*layers, *sequential_net(sizes=(54, 10)))


def multi_step():
    return norse.SequentialState(norse.Lift(nn.Linear(64, 40)), norse.LIF(), norse.Lift(nn.Linear(40, 10)), norse.LI())


def recurrent():
    neuron = snn.RLeaky(beta=0.9, linear_features=40)
    return Recurrent(nn.Linear(8, 40), neuron, hidden=40, over=lambda x: x.reshape(-1, 8, 8).unbind(1))


NETS = {
    "snnTorch": (lambda: build_network(64, 40, 10, STEPS), {}),
    "recurrent": (recurrent, {}),
    "units that differ": (unlike, {}),
    "convolutional": (convolutional, {"forward": over_time(STEPS)}),
    "Norse": (multi_step, {"forward": lambda net, inputs: net(inputs.expand(STEPS, *inputs.shape))[0]}),
}


@pytest.mark.parametrize("hidden", ["auto", "rescale"])
@pytest.mark.parametrize("name", NETS)
def test_a_diagnosis_a_start_and_a_refit(device, name, hidden):
    build, options = NETS[name]
    torch.manual_seed(0)
    net = build().to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert diagnose(net, loader_of(), **options).layers
        report = convex_init_(net, loader_of(), hidden=hidden, progress=False, **options)
        after = refit_(net, loader_of(), **options)
    assert report.accuracy_after > 0.5
    assert {tensor.device.type for tensor in (*net.parameters(), *net.buffers())} == {device.type}
    assert after.accuracy_after > 0.5
    report.undo()


def test_protection_in_a_plain_loop(device):
    torch.manual_seed(0)
    net = build_network(64, 40, 10, STEPS).to(device)
    report = convex_init_(net, loader_of(), progress=False)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    with report.protect(optimizer) as guard:
        for inputs, labels in loader_of():
            optimizer.zero_grad()
            F.cross_entropy(net(inputs.to(device)).mean(0), labels.to(device)).backward()
            optimizer.step()
        with guard.evaluated():
            predicted = net(DATA.test_inputs.to(device)).mean(0).argmax(1).cpu()
    assert float((predicted == DATA.test_labels).double().mean()) > 0.7


def test_the_callback_in_lightning(device, tmp_path):
    torch.manual_seed(0)
    module = Module()
    callback = ReconstructionCallback(ConvexInitializer(progress=False))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    accelerator = "cpu" if device.type == "cpu" else "gpu"
    trainer = pl.Trainer(max_epochs=2, accelerator=accelerator, devices=1, callbacks=[callback], default_root_dir=tmp_path, **quiet)
    trainer.fit(module, loader_of(), DataLoader(TensorDataset(DATA.test_inputs, DATA.test_labels), 225))
    assert len(callback.reports) > 1
    assert callback.reports[0].accuracy_after > 0.7
