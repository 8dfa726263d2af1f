"""Fixtures of several folders."""

import os

import pytest
import torch


@pytest.fixture
def one_rate(monkeypatch):
    """Try a single gain, in tests that do not depend on the gain chosen."""
    monkeypatch.setattr("snn_recon_plugin.hidden.gains.RATES", (0.06,))


@pytest.fixture
def two_rates(monkeypatch):
    """Try two gains, in tests that do not depend on which one is chosen."""
    monkeypatch.setattr("snn_recon_plugin.hidden.gains.RATES", (0.06, 0.12))


@pytest.fixture
def no_other_neurons(monkeypatch):
    """``utils.reset`` resets every neuron of the process, those of other tests too, whatever these did to them."""
    monkeypatch.setattr("snntorch.SpikingNeuron.instances", [])


@pytest.fixture
def device():
    """Return the device of the tests marked cuda: a GPU, or what the variable DEVICE names; skip where there is none."""
    name = os.environ.get("DEVICE", "cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no GPU; DEVICE=cpu tries the test without one")
    return torch.device(name)
