"""Until the write, nothing of a user's net changes: work is done on a private copy."""

import random

import numpy as np
import pytest
import torch

from benchmarks.idioms import IDIOMS
from benchmarks.user_nets import GROUPS, type_line, with_options
from benchmarks.user_nets_common import digits
from snn_recon_plugin import convex_init_, diagnose
from snn_recon_plugin.networks import Transaction
from snn_recon_plugin.stages import initialize

from ..helpers import CLASSES

FEW = 40


def touched(net):
    """What tells a write or another object: every tensor, its version and flag, and the objects among attributes and hooks."""
    found = {}
    for name, module in net.named_modules():
        for key, value in vars(module).items():
            entries = value if isinstance(value, dict) else {"": value}
            for part, entry in entries.items():
                version = entry._version if isinstance(entry, torch.Tensor) and not entry.is_inference() else None
                found[name, key, part] = id(entry), version, getattr(entry, "requires_grad", None)
        found[name, "training"] = module.training
    return found


def generators():
    return random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()


@pytest.fixture
def at_the_write(monkeypatch):
    """Snapshots of the net at the moment when its transaction begins."""
    seen = []

    class Watched(Transaction):
        def __enter__(self):
            seen.append((touched(self._net), generators()))
            return super().__enter__()

    monkeypatch.setattr(initialize, "Transaction", Watched)
    return seen


@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda idiom: idiom.title)
def test_idioms_are_untouched_until_the_write(idiom, at_the_write):
    reading = next(iter(idiom.readings))
    torch.manual_seed(0)
    net = idiom.build(reading.output)
    inputs = torch.rand(FEW, *idiom.shape)
    before, drawn = touched(net), generators()
    loader = [(inputs, torch.arange(FEW) % CLASSES)]
    convex_init_(net, loader, forward=idiom.forward, readout=reading.kind, hidden="rescale", strength=1e-2, progress=False)
    assert at_the_write == [(before, drawn)]


@pytest.mark.filterwarnings("ignore::snn_recon_plugin.errors.ReadoutWarning")
@pytest.mark.parametrize("group", GROUPS)
def test_user_nets_are_untouched_until_the_write(group, at_the_write):
    samples, *_ = digits(0)
    for entry in GROUPS[group]:
        if entry.refused:
            continue
        torch.manual_seed(0)
        net, few = entry.make(), entry.order(samples.of(slice(0, 100)))
        before = touched(net)
        type_line(with_options(entry.typed, 'hidden="rescale", strength=1e-2'), entry, net, few)
        assert [of_net for of_net, _ in at_the_write] == [before], entry.name
        at_the_write.clear()


def test_a_diagnosis_touches_nothing():
    torch.manual_seed(0)
    idiom = IDIOMS[0]
    net = idiom.build(next(iter(idiom.readings)).output)
    loader = [(torch.rand(FEW, *idiom.shape), torch.arange(FEW) % CLASSES)]
    before, drawn = touched(net), generators()
    diagnose(net, loader, forward=idiom.forward)
    assert (touched(net), generators()) == (before, drawn)
