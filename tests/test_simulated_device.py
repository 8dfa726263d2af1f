"""The package on a simulated device: what would fail on a GPU fails here, and results have the bits of the CPU's."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_, refit_
from snn_recon_plugin.convex import Features, HeldOutRows, Problem, solve, solve_path
from snn_recon_plugin.demo import build_network

from .simulated_device import DEVICE, Remote, Simulation
from .test_cuda import DATA, NETS, spikes_and_labels
from .training.runs import MARKS
from .versions import OLD_TORCH

pytestmark = [*MARKS, pytest.mark.skipif(OLD_TORCH, reason="torch 2.4 wraps no tensors of another device")]


def loader_of(samples):
    return DataLoader(TensorDataset(DATA.train_inputs[:samples], DATA.train_labels[:samples]), 50)


def on_device(net, build):
    found = build()
    found.load_state_dict(net.state_dict())
    return found.to(DEVICE)


def test_it_refuses_what_a_gpu_refuses():
    with Simulation() as simulation:
        there, here = torch.ones(3).to(DEVICE), torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device=DEVICE, generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        there[1:].mul_(2.0)
        assert isinstance(there, Remote)
        assert (there * torch.tensor(2.0)).cpu().tolist() == [2.0, 4.0, 4.0]
        assert float(there.sum()) == 5.0
    assert sum(simulation.transfers.values()) == 2


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_hinge"])
@pytest.mark.parametrize("penalty", ["ridge", "group_l1"])
def test_a_program_stays_there(loss, penalty):
    spikes, labels = spikes_and_labels(90, 12)
    options = {"loss": loss, "penalty": penalty, "strength": 0.02}
    expected = solve(Problem(Features(spikes), labels, **options), tol=1e-4)
    with Simulation():
        found = solve(Problem(Features(spikes.to(DEVICE)), labels.to(DEVICE), **options), tol=1e-4)
        assert isinstance(found.weight, Remote)
        assert torch.equal(found.weight.cpu(), expected.weight)


@pytest.mark.slow
def test_a_path_stays_there():
    spikes, labels = spikes_and_labels(90, 12)
    expected = solve_path(Problem(Features(spikes[:60]), labels[:60]), HeldOutRows(spikes[60:], labels[60:]))
    with Simulation():
        spikes, labels = spikes.to(DEVICE), labels.to(DEVICE)
        found = solve_path(Problem(Features(spikes[:60]), labels[:60]), HeldOutRows(spikes[60:], labels[60:]))
    assert found.chosen.strength == expected.chosen.strength


@pytest.mark.slow
def test_transfers_of_the_pass_over_the_data_do_not_grow_with_the_steps():
    counts = []
    for steps in (3, 6):
        torch.manual_seed(0)
        with Simulation() as simulation:
            net = build_network(64, 12, 10, steps).to(DEVICE)
            convex_init_(net, loader_of(60), hidden="keep", progress=False, strength=0.1, tol=0.1)
        files = ("calls/calls.py", "calls/record.py", "capture.py", "libraries")
        passes = (*(f"networks/{name}" for name in files), "scan/")
        counts.append(sum(number for line, number in simulation.transfers.items() if line.startswith(passes)))
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("hidden", ["auto", "rescale"])
@pytest.mark.parametrize("name", NETS)
def test_a_start_and_a_refit_stay_there(name, hidden):
    build, options = NETS[name]
    torch.manual_seed(0)
    net = build()
    options = {**options, "hidden": hidden, "progress": False, "tol": 1e-2, "strength": 0.05, "n_candidates": 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Simulation():
            other = on_device(net, build)
            report = convex_init_(other, loader_of(100), **options)
            refit_(other, loader_of(100), **{name: value for name, value in options.items() if name != "hidden"})
            assert {tensor.device for tensor in (*other.parameters(), *other.buffers())} == {DEVICE}
        expected = convex_init_(net, loader_of(100), **options)
    assert report.accuracy_after == expected.accuracy_after
    assert report.certificate.primal == expected.certificate.primal
