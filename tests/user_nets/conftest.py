"""Fixtures of the tests over the catalogue."""

import random

import numpy as np
import pytest
import torch

from snn_recon_plugin.networks.write import Transaction
from snn_recon_plugin.stages import initialize


def generators():
    return random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()


def tensors_and_objects(net):
    """All tensors, versions and flags of a net, and the objects among its attributes and hooks."""
    found = {}
    for name, module in net.named_modules():
        for key, value in vars(module).items():
            entries = value if isinstance(value, dict) else {"": value}
            for part, entry in entries.items():
                version = entry._version if isinstance(entry, torch.Tensor) and not entry.is_inference() else None
                found[name, key, part] = id(entry), version, getattr(entry, "requires_grad", None)
        found[name, "training"] = module.training
    return found


@pytest.fixture
def state_of():
    return lambda net: (tensors_and_objects(net), generators())


@pytest.fixture
def at_the_write(monkeypatch):
    """States of the net at the moments when its transactions begin."""
    seen = []

    class Watched(Transaction):
        def __enter__(self):
            seen.append((tensors_and_objects(self._net), generators()))
            return super().__enter__()

    monkeypatch.setattr(initialize, "Transaction", Watched)
    return seen
