"""The oldest versions that pyproject.toml allows, where tests can ask less of them."""

from importlib.metadata import version

import pytest
import torch
from spikingjelly.activation_based import neuron

OLD_TORCH = torch.__version__.startswith("2.4.")  # rounds otherwise in places, and has no wrapped tensors on another device
OLD_CLARABEL = version("clarabel").startswith("0.9.")  # its dual points are less accurate
OLD_JELLY = not hasattr(neuron, "NonSpikingLIFNode")  # 0.0.0.0.14
needs_new_jelly = pytest.mark.skipif(OLD_JELLY, reason="SpikingJelly 0.0.0.0.14 lacks it")
