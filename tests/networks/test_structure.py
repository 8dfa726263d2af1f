"""Inspections that are kept for batches of the same shapes."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from snn_recon_plugin.networks import Inspections, private_copy

NET = nn.Linear(3, 2)


def find_in(inspections, inputs, samples):
    """Return what an inspection of a batch gives: here a new object."""
    return inspections.find(NET, inputs, samples, object)


@dataclass(frozen=True)
class Found:
    layer: nn.Module


def test_what_was_found_in_one_copy_has_the_modules_of_another_one():
    net = nn.Sequential(nn.Linear(3, 2))
    inspections, first, second = Inspections(net), private_copy(net), private_copy(net)
    inputs = torch.zeros(32, 3)
    assert inspections.find(first, inputs, 32, lambda: Found(first[0])).layer is first[0]
    assert inspections.find(second, inputs, 32, lambda: pytest.fail("inspected again")).layer is second[0]
    assert inspections.find(net, inputs, 32, lambda: pytest.fail("inspected again")).layer is net[0]


def test_batches_that_differ_in_their_number_of_samples_are_inspected_once():
    inspections = Inspections(NET)
    found = find_in(inspections, torch.zeros(32, 5, 3), 32)
    assert find_in(inspections, torch.ones(64, 5, 3), 64) is found
    assert find_in(inspections, (torch.ones(64, 5, 3),), 64) is found


def test_other_steps_are_inspected_anew():
    inspections = Inspections(NET)
    found = find_in(inspections, torch.zeros(32, 5, 3), 32)
    assert find_in(inspections, torch.zeros(32, 6, 3), 32) is not found
    assert find_in(inspections, torch.zeros(32, 5, 3), 32) is found


def test_arrays_of_other_steps_are_inspected_anew():
    inspections = Inspections(NET)
    found = find_in(inspections, np.zeros((5, 32, 3)), 32)
    assert find_in(inspections, np.ones((5, 32, 3)), 32) is found
    assert find_in(inspections, np.zeros((6, 32, 3)), 32) is not found


def test_an_inspection_that_refuses_is_made_again():
    inspections = Inspections(NET)

    def refuse():
        raise ValueError("no readout")

    for _ in range(2):
        with pytest.raises(ValueError, match="no readout"):
            inspections.find(NET, torch.zeros(32, 3), 32, refuse)
    assert find_in(inspections, torch.zeros(32, 3), 32) is not None
