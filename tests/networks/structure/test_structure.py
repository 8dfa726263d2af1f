"""Inspections that are kept for batches of the same shapes."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from snn_recon_plugin.networks.private.workbench import private_copy
from snn_recon_plugin.networks.structure.inspect import Inspections

NET = nn.Linear(3, 2)


@dataclass(frozen=True, eq=False)
class Found:
    layer: nn.Module = NET
    lasts: bool = True


def test_what_was_found_in_one_copy_has_the_modules_of_another_one():
    net = nn.Sequential(nn.Linear(3, 2))
    inspections, first, second = Inspections(net), private_copy(net), private_copy(net)
    inputs = torch.zeros(32, 3)
    assert inspections.find(first, inputs, 32, lambda: Found(first[0])).layer is first[0]
    assert inspections.find(second, inputs, 32, lambda: pytest.fail("inspected again")).layer is second[0]
    assert inspections.find(net, inputs, 32, lambda: pytest.fail("inspected again")).layer is net[0]


@pytest.mark.parametrize(
    ("first", "same", "samples", "other"),
    [
        (torch.zeros(32, 5, 3), torch.ones(64, 5, 3), 64, torch.zeros(32, 6, 3)),
        (torch.zeros(32, 5, 3), (torch.ones(64, 5, 3),), 64, (torch.zeros(32, 6, 3),)),
        (np.zeros((5, 32, 3)), np.ones((5, 32, 3)), 32, np.zeros((6, 32, 3))),
    ],
    ids=["other number of samples", "in a tuple", "arrays"],
)
def test_batches_of_other_steps_are_inspected_anew(first, same, samples, other):
    inspections = Inspections(NET)
    found = inspections.find(NET, first, 32, Found)
    assert inspections.find(NET, same, samples, Found) is found
    assert inspections.find(NET, other, 32, Found) is not found
    assert inspections.find(NET, first, 32, Found) is found


def test_an_inspection_that_refuses_is_made_again():
    inspections = Inspections(NET)

    def refuse():
        raise ValueError("no readout")

    for _ in range(2):
        with pytest.raises(ValueError, match="no readout"):
            inspections.find(NET, torch.zeros(32, 3), 32, refuse)
    assert inspections.find(NET, torch.zeros(32, 3), 32, Found) is not None


def test_a_scale_that_training_changes_is_measured_again():
    inspections, found = Inspections(NET), Found(lasts=False)
    assert inspections.find(NET, torch.zeros(32, 3), 32, lambda: found) is found
    assert inspections.find(NET, torch.zeros(32, 3), 32, Found) is not found
