"""Reports that the tests of this room only read."""

import pytest

from snn_recon_plugin import convex_init_

from ..helpers import batches, divided
from ..nets import loop_net


@pytest.fixture(scope="session")
def auto():
    """Report of a silent net, rescaled, the strength chosen."""
    return convex_init_(divided(loop_net()), batches(200), hidden="rescale", fit_loss="same", penalty="group_l1", seed=2)


@pytest.fixture(scope="session")
def given():
    return convex_init_(loop_net(), batches(200), hidden="keep", strength=1e-2)


@pytest.fixture(scope="session")
def rebuilt():
    return convex_init_(loop_net(hidden=200), batches(200), hidden="reconstruct", progress=False)
