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


# Counting lines takes half as long again.  Tests of whole nets, and of what is around the package, run lines that the rooms' tests
# count.  Further cases of a test do so too, but where cases are kinds of nets, losses, options or errors.
WHOLE = {"benchmarks", "end_to_end", "fuzz", "user_nets"}
WHOLE |= {"test_demo", "test_docs", "test_packaging", "test_snippets", "test_steps_of_user_nets"}
KINDS = {"networks", "test_checks", "test_losses", "test_loss_calls", "test_criterion", "test_scores"}
KINDS |= {"test_options", "test_diagnosis"}


@pytest.hookimpl(trylast=True)  # when tests that -m leaves out are gone
def pytest_collection_modifyitems(items):
    """Count lines as far as other tests do not."""
    seen = set()
    for item in items:
        places = item.path.relative_to(item.config.rootpath).with_suffix("").parts
        name = item.nodeid.partition("[")[0]
        if not WHOLE.isdisjoint(places) or (name in seen and KINDS.isdisjoint(places)):
            item.add_marker(pytest.mark.no_cover)
        seen.add(name)
