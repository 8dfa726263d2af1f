"""Fixtures of several folders."""

import pytest


@pytest.fixture
def one_rate(monkeypatch):
    """Try a single gain, in tests that do not depend on the gain chosen."""
    monkeypatch.setattr("snn_recon_plugin.witnesses.rescale.RATES", (0.06,))


@pytest.fixture
def two_rates(monkeypatch):
    """Try two gains, in tests that do not depend on which one is chosen."""
    monkeypatch.setattr("snn_recon_plugin.witnesses.rescale.RATES", (0.06, 0.12))
