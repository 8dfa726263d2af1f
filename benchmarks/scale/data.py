"""Made programs of any size: spikes as bytes, with labels of a planted readout."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["planted_spikes"]

_LATENTS = 20  # numbers that the firing probabilities of a sample follow, so that neurons are correlated as in a net
_SILENCE = 2.0  # of the logits: about one neuron in six spikes
_NOISE = 0.3  # of the planted scores, in their standard deviations
_BLOCK = 2**24  # values made at a time


def planted_spikes(rows: int, columns: int, outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return spikes (rows, columns) uint8 and labels (rows,) int64: the largest of ``outputs`` planted linear scores with noise."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(_LATENTS, columns, generator=generator) / _LATENTS**0.5
    planted = torch.randn(columns, outputs, generator=generator) / columns**0.5
    spikes, labels = torch.empty(rows, columns, dtype=torch.uint8), torch.empty(rows, dtype=torch.int64)
    size = max(1, _BLOCK // max(columns, outputs))
    centre = scale = torch.zeros(0)
    for start in range(0, rows, size):
        part = slice(start, min(start + size, rows))
        latents = torch.randn(part.stop - start, _LATENTS, generator=generator)
        rates = torch.sigmoid(2 * latents @ mixing - _SILENCE)
        spikes[part] = torch.rand(rates.shape, generator=generator) < rates
        scores = spikes[part].float() @ planted
        if start == 0:  # without their means one class would hold most samples
            centre, scale = scores.mean(0), scores.std()
        noise = _NOISE * scale * torch.randn(scores.shape, generator=generator)
        labels[part] = (scores - centre + noise).argmax(1)
    return spikes, labels
