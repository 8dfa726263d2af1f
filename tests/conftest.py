"""Fixtures of several folders."""

import pytest


@pytest.fixture
def one_rate(monkeypatch):
    """Try a single gain, in tests that do not depend on the gain chosen."""
    monkeypatch.setattr("snn_recon_plugin.witnesses.rescale.RATES", (0.06,))
