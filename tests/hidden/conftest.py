"""A small classification task and layers on it."""

from __future__ import annotations

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.hidden.neuron import measure_excitability
from snn_recon_plugin.hidden.site import LayerSite


def blobs(seed=0, samples=120, inputs=8, classes=3):
    """Samples (n, inputs) around a centre for each class, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    centres = 2 * torch.rand(classes, inputs, generator=torch.Generator().manual_seed(99))
    return centres[labels] + 0.3 * torch.randn(samples, inputs, generator=generator), labels


@pytest.fixture
def make_site():
    """A function that makes the site of a Linear before a Leaky."""

    def make(bias=True, width=16, spikes=False, beta=0.9, **options):
        inputs, labels = blobs(**options)
        if spikes:
            inputs = (inputs > 1).float()
        synapse = nn.Linear(inputs.shape[1], width, bias=bias)
        excitability = measure_excitability(snn.Leaky(beta=beta), 10, inputs)
        return LayerSite(synapse, inputs, labels, excitability, spikes)

    return make
