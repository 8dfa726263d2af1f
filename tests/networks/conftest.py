"""Inputs and comparisons shared by the tests of this room."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from .nets import CLASSES, INPUTS

BATCH = 8


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def inputs():
    return torch.randn(BATCH, INPUTS)


@pytest.fixture
def loader():
    """Three batches of 8, 8 and 4."""
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(20, INPUTS, generator=generator), torch.randint(0, CLASSES, (20,), generator=generator))
    return DataLoader(data, BATCH)
