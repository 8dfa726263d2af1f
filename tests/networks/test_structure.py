"""Inspections that are kept for batches of the same shapes."""

import numpy as np
import pytest
import torch

from snn_recon_plugin.networks import Inspections


def find_in(inspections, inputs, samples):
    """Return what an inspection of a batch gives: here a new object."""
    return inspections.find(inputs, samples, object)


def test_batches_that_differ_in_their_number_of_samples_are_inspected_once():
    inspections = Inspections()
    found = find_in(inspections, torch.zeros(32, 5, 3), 32)
    assert find_in(inspections, torch.ones(64, 5, 3), 64) is found
    assert find_in(inspections, (torch.ones(64, 5, 3),), 64) is found


def test_other_steps_are_inspected_anew():
    inspections = Inspections()
    found = find_in(inspections, torch.zeros(32, 5, 3), 32)
    assert find_in(inspections, torch.zeros(32, 6, 3), 32) is not found
    assert find_in(inspections, torch.zeros(32, 5, 3), 32) is found


def test_arrays_of_other_steps_are_inspected_anew():
    inspections = Inspections()
    found = find_in(inspections, np.zeros((5, 32, 3)), 32)
    assert find_in(inspections, np.ones((5, 32, 3)), 32) is found
    assert find_in(inspections, np.zeros((6, 32, 3)), 32) is not found


def test_an_inspection_that_refuses_is_made_again():
    inspections = Inspections()

    def refuse():
        raise ValueError("no readout")

    for _ in range(2):
        with pytest.raises(ValueError, match="no readout"):
            inspections.find(torch.zeros(32, 3), 32, refuse)
    assert find_in(inspections, torch.zeros(32, 3), 32) is not None
